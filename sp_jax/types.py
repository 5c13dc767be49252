"""The records that the packages share; every field states its shape and its unit.

Letters: N samples, B samples in a batch, L lanes (a lane is one training run: one setting, one seed).
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Dataset:
    """Labelled samples, all of them, on the host or on the device."""

    inputs: chex.Array  # [N, ...] uint8 pixels (models scale them to [-1, 1]) or floats
    labels: chex.Array  # [N] integers, 0 <= label < num_classes
    num_classes: int = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="unnamed")


class Model(NamedTuple):
    """A network as two pure functions; `sp_jax.models.from_module` makes one of a Flax module.

    `init(key) -> (params, batch_stats)` draws a fresh network (the key is consumed).
    `apply(params, batch_stats, inputs, mask, train) -> (logits, batch_stats)`: inputs [B, ...], mask [B] booleans
    (False marks padding, which must influence nothing) or None, `train` a Python bool; logits [B, classes]. Batch
    statistics are returned updated where `train`, else unchanged; a network without BatchNorm has an empty dict.
    """

    init: Callable[..., tuple[chex.ArrayTree, chex.ArrayTree]]
    apply: Callable[..., tuple[chex.Array, chex.ArrayTree]]
    # For methods that re-draw hidden units: `activations(params, batch_stats, inputs, mask, train)` gives
    # [B, ..., units] for the incoming path of each of the `links`: `sp_jax.plasticity.Link`, or such tuples.
    activations: Callable[..., dict[str, chex.Array]] | None = None
    links: tuple = ()
    # Layouts of axes, for growing: see `sp_jax.transforms.layouts`; None is unknown.
    layouts: Mapping[str, Mapping[int, Any]] | None = None

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


@struct.dataclass
class Progress:
    """The progress of one lane in a round: argument and result of a chunk of epochs. All are scalars, or [L]."""

    state: TrainState
    epoch: chex.Array  # int32, epochs trained in this round
    stop_reason: chex.Array  # int32, a `StopReason`
    best_accuracy: chex.Array  # fraction, the reference of the plateau rule
    best_epoch: chex.Array  # int32, the epoch that set it
    train_accuracy: chex.Array  # fraction, online: counted in train mode over the last epoch
    train_loss: chex.Array  # nats, mean over the samples of the last epoch
    samples: chex.Array  # int32, of the current epoch, where a streamed round is interrupted in its middle; else 0
    loss_sum: chex.Array  # nats, over those samples
    correct_sum: chex.Array  # int32, right predictions of them

    @classmethod
    def start(cls, state: TrainState, *, stop_reason: chex.Numeric = StopReason.RUNNING.value) -> "Progress":
        """Return the progress before a round's first epoch; with a `stop_reason`, of a lane that does not train."""
        nan, reason = jnp.full((), jnp.nan, float), jnp.asarray(stop_reason, jnp.int32)
        zero, nothing = jnp.zeros((), jnp.int32), jnp.zeros((), float)
        return cls(state, zero, reason, jnp.full((), -jnp.inf, float), zero, nan, nan, zero, nothing, zero)


class Evaluation(NamedTuple):
    """Results of a model on held-out samples, in evaluation mode. Scalars, or [L]."""

    accuracy: chex.Array  # fraction
    loss: chex.Array  # nats, mean over the samples


class RoundResult(NamedTuple):
    """The results of one lane in one finished round, as Python numbers."""

    seed: int
    round: int  # counted from 1
    num_train: int  # samples that have arrived
    epochs: int  # in this round
    samples_seen: int  # epochs * num_train: the cost independent of the machine
    stop_reason: str  # `StopReason` in lower case
    train_accuracy: float  # fraction, of the last epoch
    train_loss: float  # nats
    validation_accuracy: float  # fraction; NaN where the lane diverged
    validation_loss: float  # nats
    seconds: float  # wall time of all the lanes that ran together, compiling left out
    lanes: int  # how many ran together
    diverged: str = ""  # where the lane diverged in this round: when, and what was not finite first

    @property
    def converged(self) -> bool:
        """Whether the round reached its goal: the threshold, or exactly so many epochs."""
        return self.stop_reason in ("threshold", "fixed")
