"""The records that the packages share; every field states its shape and its unit.

Letters: N samples, B samples in a batch, L lanes (a lane is one training run: one setting, one seed).
"""

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Dataset:
    """Labelled samples, all of them, on the host or on the device."""

    inputs: chex.ArrayTree  # [N, ...] uint8 pixels (models scale them to [-1, 1]), tokens or floats; a pytree of such
    labels: chex.Array  # [N] integers, 0 <= label < num_classes; targets [N] or [N, K] of other tasks
    num_classes: int = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="unnamed")
    weights: chex.Array | None = None  # [N] floats >= 0, of the samples in loss and metric; None: all count the same
    # Of a sample, where inputs lie flat, [N, features]: a TPU pads the last two axes, small ones of images.
    shape: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    # What inputs look like in a task (`sp_jax.data.task_streams`): `look(view, inputs)`, [..., features] to the same.
    look: Callable | None = struct.field(pytree_node=False, default=None)
    view: chex.ArrayTree = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def take(self, indices: chex.Array) -> "Dataset":
        """Return some of the samples, in their own shape and as they look in a task."""
        taken = jax.tree.map(lambda x: x[indices], self.replace(look=None, view=()))
        if self.look is not None:
            flat = taken.inputs.reshape(*jnp.shape(indices), -1)
            taken = taken.replace(inputs=self.look(self.view, flat).reshape(taken.inputs.shape))
        if self.shape is None:
            return taken
        return taken.replace(inputs=taken.inputs.reshape(*taken.inputs.shape[:-1], *self.shape), shape=None)

    def flat(self) -> "Dataset":
        """Return the same samples with inputs [N, features]; dictionaries of inputs stay as they are."""
        if self.shape is not None or isinstance(self.inputs, Mapping) or self.inputs.ndim < 3:
            return self
        return self.replace(inputs=self.inputs.reshape(len(self), -1), shape=self.inputs.shape[1:])

    def batch(self, size: int) -> "Dataset":
        """Return the shapes and dtypes of so many samples, in their own shape."""
        return jax.eval_shape(lambda data: data.take(jnp.zeros(size, jnp.int32)), self)


class Model(NamedTuple):
    """A network as two pure functions; `sp_jax.models.from_module` makes one of a Flax module.

    `init(key) -> (params, batch_stats)` draws a fresh network (the key is consumed).
    `apply(params, batch_stats, inputs, mask, train) -> (logits, batch_stats)`: inputs [B, ...], mask [B] booleans
    (False marks padding, which must influence nothing) or None, `train` a Python bool; logits [B, classes]. Batch
    statistics are whatever else a network carries along: BatchNorm's, other collections, counts of random streams.
    They are returned updated where `train`, else unchanged; a network with none has an empty dict.
    """

    init: Callable[..., tuple[chex.ArrayTree, chex.ArrayTree]]
    apply: Callable[..., tuple[chex.Array, chex.ArrayTree]]
    # For methods that re-draw hidden units: `activations(params, batch_stats, inputs, mask, train)` gives
    # [B, ..., units] for the incoming path of each of the `links`: `sp_jax.plasticity.Link`, or such tuples.
    activations: Callable[..., dict[str, chex.Array]] | None = None
    links: tuple = ()
    # Layouts of axes, for growing: see `sp_jax.transforms.layouts`; None is unknown.
    layouts: Mapping[str, Mapping[int, Any]] | None = None
    # What the last layer reads, for diagnostics: `features(params, batch_stats, inputs, mask, train)` gives [B, F].
    features: Callable[..., chex.Array] | None = None

    def __hash__(self):
        """Hash the two functions: a model is a static argument, and layouts are dictionaries."""
        return hash((self.init, self.apply))


class Batches(NamedTuple):
    """Samples in the order of arrival, for restarts that read data; padding comes last."""

    inputs: chex.Array  # [K, B, ...]
    masks: chex.Array  # [K, B] booleans, False marks padding
    labels: chex.Array | None = None  # [K, B] integers


@struct.dataclass
class TrainState:
    """Everything that training changes in one lane, and so everything that a restart may touch."""

    params: chex.ArrayTree  # the learned parameters θ
    batch_stats: chex.ArrayTree  # running means and variances of BatchNorm; {} without
    opt_state: chex.ArrayTree  # an optax state
    memory: chex.ArrayTree = ()  # the state of a method of `sp_jax.plasticity.methods`


@struct.dataclass
class HParams:
    """Settings that a sweep varies without compiling again: each a scalar, or [L] for lanes."""

    learning_rate: chex.Numeric = 1e-3  # η, per step
    weight_decay: chex.Numeric = 0.0  # coupled L2 (Section 3.3): added to the gradient, times θ
    shrink: chex.Numeric = 1.0  # λ in [0, 1] (Section 4); 1 is the warm start
    noise_scale: chex.Numeric = 0.0  # σ >= 0; times a freshly drawn network (or N(0, 1))
    penalty_strength: chex.Numeric = 0.0  # β or ε of `sp_jax.penalties`
    method_strength: chex.Numeric = 0.0  # of a method of `sp_jax.plasticity.methods`
    decay_every: chex.Numeric = 0  # epochs of a round after which η is divided by ten, twice at most; 0 never


class StopReason(enum.IntEnum):
    """Why a round ended; `RUNNING` while it has not."""

    RUNNING = 0
    THRESHOLD = 1  # the training accuracy reached the threshold
    PLATEAU = 2  # the training accuracy stopped improving
    CAP = 3  # the largest number of epochs
    FIXED = 4  # exactly as many epochs as requested
    NAN = 5  # the training loss is no longer finite, or the network holds a NaN: the lane is lost, see `Convergence`
    BUDGET = 6  # as many samples or steps as it may take


class Sums(NamedTuple):
    """What is summed over samples, in training and in evaluation. Scalars."""

    loss: chex.Array  # nats, times the samples' weights
    metric: chex.Array  # likewise; int32 where right predictions are counted
    weight: chex.Array | None = None  # None where all samples count the same

    @classmethod
    def zero(cls, *, counts: bool = True, weighted: bool = False) -> "Sums":
        """Return those of no samples; `counts` is whether the metric is a number of right predictions."""
        nothing, number = jnp.zeros((), float), jnp.zeros((), jnp.int32)
        return cls(nothing, number if counts and not weighted else nothing, nothing if weighted else None)

    def add(self, losses: chex.Array, metric: chex.Array, mask: chex.Array, weights: chex.Array | None) -> "Sums":
        """Return the sums with a batch.

        Args:
          losses: [B] nats.
          metric: [B] booleans or floats.
          mask: [B] booleans, False marks padding.
          weights: [B], or None.
        """
        if weights is not None:
            losses, metric = losses * weights, metric * weights
        of_batch = (jnp.sum(jnp.where(mask, losses, 0)), jnp.sum(jnp.where(mask, metric, 0), dtype=self.metric.dtype))
        weight = None if weights is None else self.weight + jnp.sum(jnp.where(mask, weights, 0))
        return Sums(self.loss + of_batch[0].astype(self.loss.dtype), self.metric + of_batch[1], weight)

    def means(self, count: chex.Numeric) -> tuple[chex.Array, chex.Array]:
        """Return the mean metric and the mean loss of so many samples; their weighted means where they have weights."""
        total = count if self.weight is None else self.weight
        return self.metric.astype(float) / total, self.loss / total


@struct.dataclass
class Progress:
    """The progress of one lane in a round: argument and result of a chunk of epochs. All are scalars, or [L]."""

    state: TrainState
    epoch: chex.Array  # int32, epochs trained in this round
    stop_reason: chex.Array  # int32, a `StopReason`
    best_accuracy: chex.Array  # fraction, the reference of the plateau rule
    best_epoch: chex.Array  # int32, the epoch that set it
    train_accuracy: chex.Array  # fraction (of other tasks the metric), online: in train mode over the last epoch
    train_loss: chex.Array  # nats, mean over the samples of the last epoch
    samples: chex.Array  # int32, of the current epoch, where a streamed round is interrupted in its middle; else 0
    loss_sum: chex.Array  # nats, over those samples
    correct_sum: chex.Array  # of their metric: int32, right predictions, or a float
    weight_sum: chex.Array | None = None  # of their weights, where they have some
    accuracy_sum: chex.Array = 0.0  # of the training accuracies of the epochs so far
    best_state: chex.ArrayTree = ()  # at the best epoch, where the rule restores it

    @classmethod
    def start(
        cls,
        state: TrainState,
        *,
        stop_reason: chex.Numeric = StopReason.RUNNING.value,
        sums: "Sums | None" = None,
    ) -> "Progress":
        """Return the progress before a round's first epoch; with a `stop_reason`, of a lane that does not train."""
        nan, reason = jnp.full((), jnp.nan, float), jnp.asarray(stop_reason, jnp.int32)
        zero, sums = jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, sums) or Sums.zero()
        none = jnp.zeros((), float)
        return cls(state, zero, reason, jnp.full((), -jnp.inf, float), zero, nan, nan, zero, *sums, accuracy_sum=none)

    @property
    def sums(self) -> "Sums":
        """What has been summed over the samples of the current epoch."""
        return Sums(self.loss_sum, self.correct_sum, self.weight_sum)


class Evaluation(NamedTuple):
    """Results of a model on held-out samples, in evaluation mode. Scalars, or [L]."""

    accuracy: chex.Array  # fraction; the mean metric of other tasks (`sp_jax.tasks`)
    loss: chex.Array  # nats, mean over the samples


GOALS = ("threshold", "fixed", "budget")  # stop reasons of a round that has reached its goal


class RoundResult(NamedTuple):
    """The results of one lane in one finished round, as Python numbers."""

    seed: int
    round: int  # counted from 1
    num_train: int  # samples that have arrived
    epochs: int  # in this round
    samples_seen: int  # epochs * num_train: the cost independent of the machine
    stop_reason: str  # `StopReason` in lower case
    train_accuracy: float  # fraction (the mean metric of other tasks, `sp_jax.tasks`), of the last epoch
    train_loss: float  # nats
    validation_accuracy: float  # likewise; NaN where the lane diverged
    validation_loss: float  # nats
    seconds: float  # wall time of all the lanes that ran together, compiling left out
    lanes: int  # how many ran together
    online_accuracy: float = math.nan  # of training, over all samples of all epochs, each before its step
    diverged: str = ""  # where the lane diverged in this round: when, and what was not finite first

    @property
    def converged(self) -> bool:
        """Whether the round reached its goal: the threshold, or exactly so many epochs, steps or samples."""
        return self.stop_reason in GOALS
