"""Training of one lane: step, epoch, round until convergence, evaluation; pure functions of any model and data set.

A round is training to convergence (Section 2.1): a `while_loop` of epochs inside one program; an epoch is a
`fori_loop` of steps. The data stay on the device at full size; how many samples have arrived is a traced scalar, so
round 1 and round 34 are the same program.

Arguments that recur: `trainer` is the static configuration, `lane` one lane, `hparams` its settings, `data` the samples
on the device, `num_visible` how many have arrived, `round_` the round's number; scalars may be traced, keys are
consumed.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from sp_jax import penalties
from sp_jax.plasticity import methods
from sp_jax.random import Purpose, key_for
from sp_jax.transforms import filters, optimizer_state
from sp_jax.types import Dataset, Evaluation, HParams, Model, Progress, StopReason, TrainState

Optimizer = Callable[[HParams], optax.GradientTransformation]
EVALUATION_BATCH = 500  # samples at a time


def adam(hparams: HParams) -> optax.GradientTransformation:
    """Make Adam with PyTorch's defaults (Section 2.2) and coupled L2: the decay is added to the gradient before Adam's
    moments."""
    return optax.chain(optax.add_decayed_weights(hparams.weight_decay), optax.adam(hparams.learning_rate))


def adam_per_entry(hparams: HParams) -> optax.GradientTransformation:
    """Make `adam` with a step count for each entry, which is reset with its moments: what continual backprop's authors
    train with (`sp_jax.transforms.optimizer_state`)."""
    decay = optax.add_decayed_weights(hparams.weight_decay)
    return optax.chain(decay, optimizer_state.adam_per_entry(hparams.learning_rate))


def sgd(hparams: HParams) -> optax.GradientTransformation:
    """Make stochastic gradient descent without momentum (Section 3), with coupled L2."""
    return optax.chain(optax.add_decayed_weights(hparams.weight_decay), optax.sgd(hparams.learning_rate))


def only(optimizer: Optimizer, where: Callable) -> Optimizer:
    """Make an optimiser that trains the leaves picked by a filter and leaves all others as they are (Table 5's LL).

    `where` is a filter on paths, as `filters.layer("head")`; a ValueError where it matches nothing. Gradients of frozen
    leaves are dropped, and the compiler drops their computation.
    """

    def labels(params):
        return jax.tree.map(lambda picked: "trained" if picked else "frozen", filters.pick(params, where))

    return lambda hparams: optax.partition({"trained": optimizer(hparams), "frozen": optax.set_to_zero()}, labels)


@struct.dataclass
class Convergence:
    """When a round ends; every field is traced, so a sweep may vary it. Each is a scalar, or [L].

    The paper trains to 99 % training accuracy; the authors stopped models that cannot reach it "when training accuracy
    stops improving". Training accuracy is the online one: counted in train mode while the epoch runs.

    A lane whose loss is no longer finite, or whose network holds a NaN, stops (`StopReason.NAN`) and costs no time,
    in later rounds either: a round that begins with a NaN has no epochs. So with λ > 0 a lane stays NaN for good; only
    a restart that forgets the old network (random init, or λ = 0 with statistics and optimiser reset) recovers it.
    """

    train_accuracy: chex.Numeric = 0.99  # fraction: the threshold
    patience: chex.Numeric = 100  # epochs without an improvement that count as a plateau
    min_improvement: chex.Numeric = 0.001  # fraction: less than this is no improvement
    max_epochs: chex.Numeric = 1000
    fixed: chex.Numeric = False  # True: exactly `max_epochs` epochs, whatever the accuracy

    @classmethod
    def exactly(cls, epochs: int) -> "Convergence":
        """Make the rule of exactly so many epochs (Figure 1 has 350; Figure 6 has none)."""
        return cls(max_epochs=epochs, fixed=True)

    def start(self, state: TrainState, *, active: chex.Array = True) -> Progress:
        """Return the progress of a round before its first epoch; it has already stopped where `active` is False, the
        network holds a NaN, or the round has exactly 0 epochs."""
        untrained = jnp.logical_and(self.fixed, self.max_epochs <= 0)
        reason = jnp.where(untrained, StopReason.FIXED.value, StopReason.RUNNING.value)
        reason = jnp.where(holds_nan(state), StopReason.NAN.value, reason)
        return Progress.start(state, stop_reason=jnp.where(active, reason, StopReason.CAP.value))

    def update(self, progress: Progress, accuracy: chex.Array, loss: chex.Array) -> Progress:
        """Record one more epoch of this training accuracy (fraction) and loss (nats), and decide whether to stop."""
        epoch = progress.epoch + 1
        # A thousandth less as tolerance for rounding: of 1,000 samples, one more correct is 0.001 or a little less.
        improved = accuracy - progress.best_accuracy >= self.min_improvement * 0.999
        best_epoch = jnp.where(improved, epoch, progress.best_epoch)
        open_ended = jnp.logical_not(self.fixed)
        reasons = {  # the first that holds
            StopReason.NAN: ~jnp.isfinite(loss) | holds_nan(progress.state),
            StopReason.THRESHOLD: open_ended & (accuracy >= self.train_accuracy),
            StopReason.PLATEAU: open_ended & (epoch - best_epoch >= self.patience),
            StopReason.CAP: open_ended & (epoch >= self.max_epochs),
            StopReason.FIXED: epoch >= self.max_epochs,
        }
        stop_reason = jnp.int32(StopReason.RUNNING.value)
        for reason in reversed(reasons):
            stop_reason = jnp.where(reasons[reason], jnp.int32(reason.value), stop_reason)
        return Progress.start(progress.state).replace(
            epoch=epoch,
            stop_reason=stop_reason,
            best_accuracy=jnp.where(improved, accuracy, progress.best_accuracy),
            best_epoch=best_epoch,
            train_accuracy=accuracy,
            train_loss=loss,
        )


def holds_nan(state: TrainState) -> chex.Array:
    """Return whether a parameter or a statistic is NaN: the loss does not reflect the last step of an epoch."""
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    found = [jnp.any(jnp.isnan(x)) for x in leaves if filters.is_changeable(x)]
    return jnp.any(jnp.array(found, bool))


@struct.dataclass
class Lane:
    """The settings and samples of one lane, constant while it trains; `[L, ...]` for several lanes."""

    seed: chex.Array  # int32
    hparams: HParams
    convergence: Convergence
    order: chex.Array  # [T] int32, indices of the training samples in the order of arrival
    validation: chex.Array  # [V] int32, indices of the validation samples
    active: chex.Array = True  # False: the lane is padding


class Trainer(NamedTuple):
    """The static configuration of training, which is compiled into the program."""

    model: Model
    optimizer: Optimizer
    batch_size: int
    penalty: penalties.Penalty = penalties.none
    method: methods.Method = methods.none
    spread: Callable = lambda batch: batch  # puts the samples of a batch, [B, ...], on several devices
    # Whether a partial batch moves running statistics by its share of samples; in PyTorch, and so in the authors'
    # program, one sample moves them as much as a whole batch.
    weigh_last_batch: bool = False


def init_state(trainer: Trainer, lane: Lane, round_: chex.Numeric) -> TrainState:
    """Draw a fresh training state: the first initialisation is that of round 0, round t's restart draws that of t. All
    settings of a seed get the same network."""
    params, batch_stats = trainer.model.init(key_for(lane.seed, Purpose.INIT, round_))
    memory = trainer.method.init(key_for(lane.seed, Purpose.METHOD, round_), trainer.model, params, batch_stats)
    return TrainState(params, batch_stats, trainer.optimizer(lane.hparams).init(params), memory)


def train_step(
    trainer: Trainer,
    hparams: HParams,
    state: TrainState,
    inputs: chex.Array,
    labels: chex.Array,
    mask: chex.Array,
    *,
    whole: chex.Numeric | None = None,
) -> tuple[TrainState, chex.Array, chex.Array]:
    """Take one step on the mean loss, cross-entropy and penalty, of the real samples of a batch.

    Inputs are [B, ...], labels [B] integers, the mask [B] booleans, False for padding. `whole` is an int scalar: the
    samples of a batch that is not partial, by default B; see `Trainer.weigh_last_batch`.

    Returns:
      The state after the step; the loss summed over the real samples, nats; how many of them were predicted right.
    """

    def mean_loss(params):
        def forward(x):
            return trainer.model.apply(params, state.batch_stats, x, mask, True)

        losses, logits, batch_stats = trainer.penalty(forward, inputs, labels, mask, hparams.penalty_strength)
        loss = jnp.sum(jnp.where(mask, losses, 0))
        return loss / jnp.sum(mask), (batch_stats, loss, _num_correct(logits, labels, mask))

    (value, (batch_stats, loss, correct)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    gradient = trainer.method.gradient(state, gradient, hparams.method_strength)
    if trainer.weigh_last_batch:
        share = jnp.minimum(1, jnp.sum(mask) / (len(mask) if whole is None else whole))
        batch_stats = _moved_by(share, state.batch_stats, batch_stats)
    optimizer = trainer.optimizer(hparams)
    looked_at = {"value": value, "grad": gradient, "value_fn": lambda params: mean_loss(params)[0]}
    updates, opt_state = update(optimizer, gradient, state.opt_state, state.params, looked_at)
    state = TrainState(optax.apply_updates(state.params, updates), batch_stats, opt_state, state.memory)
    state = trainer.method.after_step(trainer.model, optimizer, state, inputs, mask, hparams.method_strength)
    return state, loss, correct


def update(optimizer: optax.GradientTransformation, gradient, opt_state, params, looked_at: dict):
    """Return the updates and the state of any optimiser, which may depend on the loss (a plateau, Polyak's step, a
    search).

    It is called without the loss first, since some accept no other arguments than the parameters; `looked_at` has
    `value`, `grad` and `value_fn`, as optax's optimisers name them.
    """
    try:
        return optimizer.update(gradient, opt_state, params)
    except TypeError as error:
        if "missing" not in str(error):
            raise
    return optax.with_extra_args_support(optimizer).update(gradient, opt_state, params, **looked_at)


def _moved_by(share, old, new):
    """Return running statistics moved from `old` to `new` by a share; `new` bit for bit where the share is 1."""

    def leaf(old, new):
        return jnp.where(share < 1, old + (share * (new - old)).astype(new.dtype), new)

    return jax.tree.map(lambda old, new: leaf(old, new) if filters.is_changeable(new) else new, old, new)


def at_epoch(hparams: HParams, epoch: chex.Numeric) -> HParams:
    """Return the settings of an epoch, counted from 0: where `decay_every` is not 0, η, η/10, η/100 (Figure 32).

    >>> [round(float(at_epoch(HParams(decay_every=20), epoch).learning_rate), 7) for epoch in (19, 20, 40, 60)]
    [0.001, 0.0001, 1e-05, 1e-05]
    """
    drops = jnp.clip(epoch // jnp.maximum(hparams.decay_every, 1), 0, 2)
    decayed = jnp.where(hparams.decay_every > 0, hparams.learning_rate * 0.1**drops, hparams.learning_rate)
    return hparams.replace(learning_rate=decayed)


def epoch_order(key: chex.PRNGKey, order: chex.Array, num_visible: chex.Numeric, length: int) -> chex.Array:
    """Shuffle the samples of one epoch: those that have arrived come first, each once.

    The key is consumed. From `order`, [T] indices in the order of arrival, it makes [length], length at least T; from
    position `num_visible` on they mean nothing.
    """
    bits = jax.random.bits(key, order.shape, jnp.uint32) >> 1
    unseen = jnp.arange(order.shape[0]) >= num_visible
    shuffled = order[jnp.argsort(jnp.where(unseen, jnp.uint32(0xFFFFFFFF), bits))]
    return jnp.pad(shuffled, (0, length - order.shape[0]))


def train_batches(
    trainer: Trainer,
    hparams: HParams,
    data: Dataset,
    indices: chex.Array,
    carry: tuple[TrainState, chex.Array, chex.Array],
    num_samples: chex.Numeric,
) -> tuple[TrainState, chex.Array, chex.Array]:
    """Run a part of an epoch: steps over the first `num_samples` of some samples; the last, partial batch is masked.

    `indices` are [K * B] int32, into the data; those from `num_samples` on, an int scalar, are padding, and no step is
    made where it is not positive. `carry` is the state, the loss (nats) and the right predictions, both summed over the
    epoch so far; what is returned is the same after the steps.
    """
    size = trainer.batch_size

    def step(i, carry):
        state, loss, correct = carry
        batch = jax.lax.dynamic_slice(indices, (i * size,), (size,))
        mask = i * size + jnp.arange(size) < num_samples
        samples = trainer.spread((data.inputs[batch], data.labels[batch], mask))
        whole = jnp.minimum(size, num_samples)
        state, batch_loss, batch_correct = train_step(trainer, hparams, state, *samples, whole=whole)
        return state, loss + batch_loss.astype(loss.dtype), correct + batch_correct

    return jax.lax.fori_loop(0, (num_samples + size - 1) // size, step, carry)


def train_epoch(
    trainer: Trainer, lane: Lane, data: Dataset, state: TrainState, key: chex.PRNGKey, num_visible: chex.Numeric
) -> tuple[TrainState, chex.Array, chex.Array]:
    """Train one pass over the samples that have arrived; the last, partial batch is padded and masked.

    Returns:
      The state after the epoch, the online training accuracy (fraction) and the mean training loss (nats).
    """
    data = jax.tree.map(jnp.asarray, data)
    total = -(-lane.order.shape[0] // trainer.batch_size) * trainer.batch_size
    indices = epoch_order(key, lane.order, num_visible, total)
    start = (state, jnp.zeros((), float), jnp.zeros((), jnp.int32))
    state, loss, correct = train_batches(trainer, lane.hparams, data, indices, start, num_visible)
    state = trainer.method.after_epoch(state)
    return state, correct.astype(float) / num_visible, loss / num_visible


def train_round(
    trainer: Trainer,
    lane: Lane,
    data: Dataset,
    progress: Progress,
    round_: chex.Numeric,
    num_visible: chex.Numeric,
    epoch_limit: chex.Numeric,
) -> Progress:
    """Train until converged, or until an epoch of the round, `epoch_limit`, at which control comes back at the latest:
    a round may be cut into chunks, which changes no result.

    Returns:
      The progress; its `stop_reason` is `RUNNING` where only the limit ended the chunk.
    """

    def running(progress):
        return (progress.stop_reason == StopReason.RUNNING.value) & (progress.epoch < epoch_limit)

    def epoch(progress):
        key = key_for(lane.seed, Purpose.SHUFFLE, round_, progress.epoch)
        decayed = lane.replace(hparams=at_epoch(lane.hparams, progress.epoch))
        state, accuracy, loss = train_epoch(trainer, decayed, data, progress.state, key, num_visible)
        return lane.convergence.update(progress.replace(state=state), accuracy, loss)

    return jax.lax.while_loop(running, epoch, progress)


def evaluate(
    model: Model, state: TrainState, data: Dataset, indices: chex.Array, batch_size: int = EVALUATION_BATCH
) -> Evaluation:
    """Compute accuracy (fraction) and mean loss (nats) over the samples `indices`, [V] int32, in evaluation mode
    (BatchNorm with its running statistics), `batch_size` samples at a time."""
    data = jax.tree.map(jnp.asarray, data)
    count = indices.shape[0]
    padded = jnp.pad(indices, (0, -count % batch_size))
    start = (jnp.zeros((), float), jnp.zeros((), jnp.int32))
    loss, correct = evaluate_batches(model, state, data, padded, start, count, batch_size)
    return Evaluation(correct.astype(float) / count, loss / count)


def evaluate_batches(
    model: Model,
    state: TrainState,
    data: Dataset,
    indices: chex.Array,
    sums: tuple[chex.Array, chex.Array],
    num_samples: chex.Numeric,
    batch_size: int = EVALUATION_BATCH,
) -> tuple[chex.Array, chex.Array]:
    """Run a part of an evaluation: return the sums of loss (nats) and right predictions with those of the first
    `num_samples` of some samples, an int scalar; `indices` are [K * batch_size] int32, the others of them padding."""

    def batch(i, sums):
        loss, correct = sums
        chosen = jax.lax.dynamic_slice(indices, (i * batch_size,), (batch_size,))
        mask = i * batch_size + jnp.arange(batch_size) < num_samples
        logits, _ = model.apply(state.params, state.batch_stats, data.inputs[chosen], mask, False)
        losses = jnp.where(mask, penalties.cross_entropy(logits, data.labels[chosen]), 0)
        right = _num_correct(logits, data.labels[chosen], mask)
        return loss + jnp.sum(losses).astype(loss.dtype), correct + right

    return jax.lax.fori_loop(0, (num_samples + batch_size - 1) // batch_size, batch, sums)


def _num_correct(logits, labels, mask):
    """Return how many of the real samples are predicted right, int32."""
    return jnp.sum((jnp.argmax(logits, axis=-1) == labels) & mask, dtype=jnp.int32)
