"""Training of one lane: step, epoch, round until convergence, evaluation; pure functions of any model and data set.

A round is training to convergence (Section 2.1): a `while_loop` of epochs inside one program; an epoch is a
`fori_loop` of steps. The data stay on the device at full size; how many samples have arrived is a traced scalar, so
round 1 and round 34 are the same program.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from sp_jax import penalties, tasks
from sp_jax.data import task_streams
from sp_jax.plasticity import methods
from sp_jax.random import Purpose, key_for
from sp_jax.transforms import filters, optimizer_state
from sp_jax.types import Dataset, Evaluation, HParams, Model, Progress, StopReason, Sums, TrainState

Optimizer = Callable[[HParams], optax.GradientTransformation]
EVALUATION_BATCH = 500  # samples at a time
NO_LIMIT = 2**31 - 1
MONITORS = ("train_accuracy", "train_loss", "validation_accuracy", "validation_loss")


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

    Args:
      optimizer: of the picked leaves.
      where: a filter on paths, as `filters.layer("head")`; a ValueError where it matches nothing.

    Returns:
      An `Optimizer`; gradients of frozen leaves are dropped, and the compiler drops their computation.
    """

    def labels(params):
        return jax.tree.map(lambda picked: "trained" if picked else "frozen", filters.pick(params, where))

    return lambda hparams: optax.partition({"trained": optimizer(hparams), "frozen": optax.set_to_zero()}, labels)


@struct.dataclass
class Convergence:
    """When a round ends; every field is traced, so a sweep may vary it. Each is a scalar, or [L].

    The paper trains to 99 % training accuracy; the authors stopped models that cannot reach it "when training accuracy
    stops improving". Training accuracy is the online one: counted in train mode while the epoch runs.

    Where another quantity is watched (`monitor`), it decides on the plateau, and `reaches` is the threshold. One of the
    validation samples costs an evaluation an epoch; `restore_best` ends the round with the network of the best epoch.

    A lane whose loss is no longer finite, or whose network holds a NaN, stops (`StopReason.NAN`) and costs no time,
    in later rounds either: a round that begins with a NaN has no epochs. So with λ > 0 a lane stays NaN for good; only
    a restart that forgets the old network (random init, or λ = 0 with statistics and optimiser reset) recovers it.
    """

    train_accuracy: chex.Numeric = 0.99  # fraction: the threshold, where it is what `monitor` names
    patience: chex.Numeric = 100  # epochs without an improvement that count as a plateau
    min_improvement: chex.Numeric = 0.001  # fraction, or nats of a loss: less than this is no improvement
    max_epochs: chex.Numeric = 1000
    fixed: chex.Numeric = False  # True: exactly `max_epochs` epochs, whatever the accuracy
    reaches: chex.Numeric = math.nan  # the threshold of another `monitor`; NaN for none
    # Budgets of a round, None for none: then the compiler knows that lanes side by side take the same steps. Samples
    # visited, one once an epoch; steps of the optimiser. The last epoch may be a part.
    max_samples: chex.Numeric | None = None
    max_steps: chex.Numeric | None = None
    monitor: str = struct.field(pytree_node=False, default="train_accuracy")  # one of `MONITORS`
    restore_best: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def exactly(
        cls, epochs: int | None = None, *, steps: int | None = None, samples: int | None = None
    ) -> "Convergence":
        """Make the rule of exactly so many epochs (Figure 1 has 350; Figure 6 has none), steps or samples.

        Raises:
          ValueError: none of them is said.
        """
        if epochs is None and steps is None and samples is None:
            raise ValueError("a round must end: say exactly how many epochs, steps or samples")
        epochs = NO_LIMIT if epochs is None else epochs
        return cls(max_epochs=epochs, fixed=True, max_steps=steps, max_samples=samples)

    @property
    def validates(self) -> bool:
        """Whether the rule looks at the validation samples after each epoch."""
        return self.monitor.startswith("validation")

    @property
    def budgeted(self) -> bool:
        """Whether a round has a budget of samples or steps."""
        return self.max_samples is not None or self.max_steps is not None

    def allowed(self, epoch: chex.Array, num_visible: chex.Numeric, batch_size: int) -> tuple[chex.Array, chex.Array]:
        """Return how many samples the next epoch may visit after `epoch` ones, and whether it is the budget's last."""
        if not self.budgeted:
            return num_visible, False

        def left(epoch, total, each):
            if total is None:
                return each
            whole = total // each
            return jnp.where(epoch < whole, each, jnp.where(epoch == whole, total % each, 0))

        def count(epoch):
            steps = left(epoch, self.max_steps, (num_visible + batch_size - 1) // batch_size)
            return jnp.minimum(left(epoch, self.max_samples, num_visible), jnp.minimum(steps * batch_size, num_visible))

        return count(epoch), (count(epoch) < num_visible) | (count(epoch + 1) == 0)

    def start(self, state: TrainState, *, active: chex.Array = True, sums: Sums | None = None) -> Progress:
        """Return the progress of a round before its first epoch; it has already stopped where `active` is False, the
        network holds a NaN, or the round has exactly 0 epochs. `sums` are those of no samples, of the task."""
        untrained = jnp.logical_and(self.fixed, self.max_epochs <= 0)
        reason = jnp.where(untrained, StopReason.FIXED.value, StopReason.RUNNING.value)
        reason = jnp.where(holds_nan(state), StopReason.NAN.value, reason)
        progress = Progress.start(state, stop_reason=jnp.where(active, reason, StopReason.CAP.value), sums=sums)
        return progress.replace(best_state=state) if self.restore_best else progress

    def update(
        self,
        progress: Progress,
        accuracy: chex.Array,
        loss: chex.Array,
        *,
        spent: chex.Numeric = False,
        evaluation: Evaluation | None = None,
    ) -> Progress:
        """Record one more epoch, and decide whether to stop.

        Args:
          progress: after the epoch's steps.
          accuracy: of training, a fraction.
          loss: of training, nats.
          spent: whether the budget of samples or steps is used up.
          evaluation: on the validation samples, where the rule looks at them.
        """
        epoch = progress.epoch + 1
        held = evaluation or Evaluation(None, None)
        watched = dict(zip(MONITORS, (accuracy, loss, held.accuracy, held.loss), strict=True))[self.monitor]
        sign, goal = -1 if "loss" in self.monitor else 1, self.reaches
        goal = self.train_accuracy if self.monitor == "train_accuracy" else goal
        watched = sign * watched
        # A thousandth less as tolerance for rounding: of 1,000 samples, one more correct is 0.001 or a little less.
        improved = watched - progress.best_accuracy >= self.min_improvement * 0.999
        best_epoch = jnp.where(improved, epoch, progress.best_epoch)
        open_ended = jnp.logical_not(self.fixed)
        reasons = {  # the first that holds
            StopReason.NAN: ~jnp.isfinite(loss) | holds_nan(progress.state),
            StopReason.THRESHOLD: open_ended & (watched >= sign * goal),
            StopReason.PLATEAU: open_ended & (epoch - best_epoch >= self.patience),
            StopReason.BUDGET: spent,
            StopReason.CAP: open_ended & (epoch >= self.max_epochs),
            StopReason.FIXED: epoch >= self.max_epochs,
        }
        stop_reason = jnp.int32(StopReason.RUNNING.value)
        for reason in reversed(reasons):
            stop_reason = jnp.where(reasons[reason], jnp.int32(reason.value), stop_reason)
        state, best_state = progress.state, progress.best_state
        if self.restore_best:
            best_state = jax.tree.map(partial(jnp.where, improved), state, best_state)
            ended = (stop_reason != StopReason.RUNNING.value) & (stop_reason != StopReason.NAN.value)
            state = jax.tree.map(partial(jnp.where, ended), best_state, state)
        return Progress.start(state, sums=progress.sums).replace(
            epoch=epoch,
            stop_reason=stop_reason,
            best_accuracy=jnp.where(improved, watched, progress.best_accuracy),
            best_epoch=best_epoch,
            train_accuracy=accuracy,
            train_loss=loss,
            accuracy_sum=progress.accuracy_sum + accuracy,
            best_state=best_state,
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
    num_validation: chex.Array | None = None  # int32, how many of `validation` count; None: all
    which: chex.Array | None = None  # int32, its stream of tasks, where the trainer has several


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
    task: tasks.Task = tasks.classification
    augment: Callable | None = None  # `augment(key, inputs)` of a batch in training, pure, to inputs of the same shapes
    stream: task_streams.TaskStream = task_streams.growing  # what the samples of a round are

    def zero_sums(self, data: Dataset) -> Sums:
        """Return what is summed over samples, of none."""
        return Sums.zero(counts=self.task.counts, weighted=data.weights is not None)

    def in_round(self, lane: Lane, data: Dataset, round_: chex.Numeric) -> tuple[Lane, Dataset]:
        """Return a lane and the data set as training sees them in a round of the stream of tasks."""
        stream = self.stream.at(lane.which)
        order = stream.arranged(lane.seed, round_, lane.order)
        return lane.replace(order=order), stream.training(lane.seed, round_, data)


def init_state(trainer: Trainer, lane: Lane, round_: chex.Numeric) -> TrainState:
    """Draw a fresh training state: the first initialisation is that of round 0, round t's restart draws that of t.

    Args:
      trainer: the static configuration.
      lane: one lane.
      round_: int scalar, may be traced.

    Returns:
      A `TrainState`; all settings of a seed get the same network.
    """
    params, batch_stats = trainer.model.init(key_for(lane.seed, Purpose.INIT, round_))
    memory = trainer.method.init(key_for(lane.seed, Purpose.METHOD, round_), trainer.model, params, batch_stats)
    return TrainState(params, batch_stats, trainer.optimizer(lane.hparams).init(params), memory)


def train_step(
    trainer: Trainer,
    hparams: HParams,
    state: TrainState,
    inputs: chex.ArrayTree,
    labels: chex.Array,
    mask: chex.Array,
    weights: chex.Array | None = None,
    *,
    whole: chex.Numeric | None = None,
) -> tuple[TrainState, chex.Array, chex.Array]:
    """Take one step on the mean loss, the task's and the penalty, of the real samples of a batch.

    Args:
      trainer: the static configuration.
      hparams: of the lane.
      state: before the step.
      inputs: [B, ...], or a pytree of such.
      labels: [B] integers, or targets of the task.
      mask: [B] booleans, False marks padding.
      weights: [B] >= 0: the mean is Σ weight · loss / Σ weight; None is a weight of 1. A weight of 0 marks padding.
      whole: int scalar, the samples of a batch that is not partial, by default B; see `Trainer.weigh_last_batch`.

    Returns:
      The state after the step; the loss summed over the real samples, nats, and the metric: how many of them were
      predicted right. Both times the weights.
    """
    sums = Sums.zero(counts=trainer.task.counts, weighted=weights is not None)
    state, sums = _step(trainer, hparams, state, sums, inputs, labels, mask, weights, whole=whole)
    return state, sums.loss, sums.metric


def _step(trainer, hparams, state, sums, inputs, labels, mask, weights, *, whole):
    """Take a step; return the sums with those of its samples, before it."""
    mask = mask if weights is None else mask & (weights > 0)

    def mean_loss(params):
        def forward(x):
            return trainer.model.apply(params, state.batch_stats, x, mask, True)

        task = trainer.task
        given = {} if task.losses is tasks.cross_entropy else {"losses": task.losses}
        losses, outputs, batch_stats = trainer.penalty(forward, inputs, labels, mask, hparams.penalty_strength, **given)
        total = jnp.sum(jnp.where(mask, losses if weights is None else losses * weights, 0))
        count = jnp.sum(mask) if weights is None else _at_least_tiny(jnp.sum(jnp.where(mask, weights, 0)))
        return total / count, (batch_stats, sums.add(losses, task.metric(outputs, labels), mask, weights))

    (value, (batch_stats, sums)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    state = trainer.method.observe(state, gradient, hparams.method_strength)
    gradient = trainer.method.gradient(state, gradient, hparams.method_strength)
    if trainer.weigh_last_batch:
        share = jnp.minimum(1, jnp.sum(mask) / (len(mask) if whole is None else whole))
        batch_stats = _moved_by(share, state.batch_stats, batch_stats)
    optimizer = trainer.optimizer(hparams)
    looked_at = {"value": value, "grad": gradient, "value_fn": lambda params: mean_loss(params)[0]}
    updates, opt_state = update(optimizer, gradient, state.opt_state, state.params, looked_at)
    state = TrainState(optax.apply_updates(state.params, updates), batch_stats, opt_state, state.memory)
    state = trainer.method.after_step(trainer.model, optimizer, state, inputs, mask, hparams.method_strength)
    return state, sums


def _at_least_tiny(total):
    """Return a sum of weights by which to divide, where all may be 0."""
    return jnp.maximum(total, jnp.finfo(total.dtype).tiny)


def update(optimizer: optax.GradientTransformation, gradient, opt_state, params, looked_at: dict):
    """Return the updates and the state of an optimiser, which may depend on the loss (a plateau, Polyak's step, a line
    search).

    Args:
      optimizer: any; called without the loss first, since some accept no other arguments than the parameters.
      gradient: pytree like `params`.
      opt_state: its state.
      params: pytree of arrays.
      looked_at: `value`, `grad` and `value_fn`, as optax's optimisers name them.
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

    Args:
      key: consumed.
      order: [T] indices in the order of arrival.
      num_visible: int scalar, how many have arrived; may be traced.
      length: of the result, at least T.

    Returns:
      [length] indices; from position `num_visible` on they mean nothing.
    """
    sizes, padded = _sizes(order.shape[0]), jnp.pad(order, (0, length - order.shape[0]))

    def shuffled(size):
        bits = jax.random.bits(key, (size,), jnp.uint32) >> 1  # each number depends on its place alone
        unseen = jnp.arange(size) >= num_visible
        ranks = _argsort(jnp.where(unseen, jnp.uint32(0xFFFFFFFF), bits))
        return jax.lax.dynamic_update_slice(padded, order[:size][ranks], (0,))

    smallest = sum((num_visible <= size for size in sizes[1:]), 0)  # that holds all visible ones
    return jax.lax.switch(smallest, [partial(shuffled, size) for size in sizes])


def _sizes(count):
    """Return the numbers of samples that an epoch may sort: all, and those powers of 4 that are fewer.

    >>> _sizes(50_000)
    [50000, 16384, 4096, 1024]
    """
    return [count, *(4**k for k in range(12, 4, -1) if 4**k < count)]


def _argsort(keys):
    """Return `jnp.argsort` of uint32 keys [N]; on a CPU, where a sort of one array is many times faster than one of
    two, in passes over some bits of each key together with its place."""
    count, places = keys.shape[0], jnp.arange(keys.shape[0], dtype=jnp.uint32)
    bits = max(1, (count - 1).bit_length())  # of a place
    low = jnp.uint32((1 << bits) - 1)

    def passes(keys):
        def one(i, order):
            shift = (i * (32 - bits)).astype(jnp.uint32)
            return order[jnp.sort((keys[order] >> shift) << bits | places) & low]

        return jax.lax.fori_loop(0, -(-32 // (32 - bits)), one, places).astype(jnp.int32)

    return jax.lax.platform_dependent(keys, cpu=passes, default=lambda keys: jnp.argsort(keys).astype(jnp.int32))


def train_batches(
    trainer: Trainer,
    hparams: HParams,
    data: Dataset,
    indices: chex.Array,
    carry: tuple[TrainState, Sums],
    num_samples: chex.Numeric,
    *,
    key: chex.PRNGKey | None = None,
    first: chex.Numeric = 0,
) -> tuple[TrainState, Sums]:
    """Run a part of an epoch: steps over the first `num_samples` of some samples; the last, partial batch is masked.

    Args:
      trainer: the static configuration.
      hparams: of the lane, at this epoch.
      data: the samples, on the device.
      indices: [K * B] int32, into them.
      carry: the state, and the sums over the epoch so far.
      num_samples: int scalar, at most K * B; the others are padding. No step is made where it is not positive.
      key: of the epoch's augmentation, where there is one.
      first: int scalar, the steps of the epoch before these.

    Returns:
      The carry after the steps.
    """
    size = trainer.batch_size

    def step(i, carry):
        state, sums = carry
        batch = data.take(jax.lax.dynamic_slice(indices, (i * size,), (size,)))
        mask, inputs = i * size + jnp.arange(size) < num_samples, batch.inputs
        if trainer.augment is not None:
            inputs = trainer.augment(jax.random.fold_in(key, first + i), inputs)
        samples = trainer.spread((inputs, batch.labels, mask, batch.weights))
        return _step(trainer, hparams, state, sums, *samples, whole=jnp.minimum(size, num_samples))

    return jax.lax.fori_loop(0, (num_samples + size - 1) // size, step, carry)


def train_epoch(
    trainer: Trainer,
    lane: Lane,
    data: Dataset,
    state: TrainState,
    key: chex.PRNGKey,
    num_visible: chex.Numeric,
    *,
    count: chex.Numeric | None = None,
    augment_key: chex.PRNGKey | None = None,
) -> tuple[TrainState, chex.Array, chex.Array]:
    """Train one pass over the samples that have arrived; the last, partial batch is padded and masked.

    Args:
      trainer: the static configuration.
      lane: one lane.
      data: all samples, on the device.
      state: before the epoch.
      key: consumed by the shuffle.
      num_visible: int scalar, how many samples have arrived.
      count: int scalar, how many of them to visit, by default all.
      augment_key: consumed by the augmentation, where there is one.

    Returns:
      The state after the epoch, the online training accuracy (fraction) and the mean training loss (nats).
    """
    data = jax.tree.map(jnp.asarray, data)
    total = -(-lane.order.shape[0] // trainer.batch_size) * trainer.batch_size
    indices = epoch_order(key, lane.order, num_visible, total)
    count = num_visible if count is None else count
    start = (state, trainer.zero_sums(data))
    state, sums = train_batches(trainer, lane.hparams, data, indices, start, count, key=augment_key)
    return trainer.method.after_epoch(state), *sums.means(count)


def train_round(
    trainer: Trainer,
    lane: Lane,
    data: Dataset,
    progress: Progress,
    round_: chex.Numeric,
    num_visible: chex.Numeric,
    epoch_limit: chex.Numeric,
) -> Progress:
    """Train until converged, or until `epoch_limit`: a round may be cut into chunks, which changes no result.

    Args:
      trainer: the static configuration.
      lane: one lane.
      data: all samples, on the device.
      progress: where the round stands.
      round_: int scalar, for the order of the epochs.
      num_visible: int scalar, how many samples have arrived.
      epoch_limit: int scalar; control comes back after this epoch of the round at the latest.

    Returns:
      The progress; its `stop_reason` is `RUNNING` where only the limit ended the chunk.
    """

    arranged, seen = trainer.in_round(lane, data, round_)

    def running(progress):
        return (progress.stop_reason == StopReason.RUNNING.value) & (progress.epoch < epoch_limit)

    def epoch(progress):
        key = key_for(lane.seed, Purpose.SHUFFLE, round_, progress.epoch)
        decayed = arranged.replace(hparams=at_epoch(lane.hparams, progress.epoch))
        count, spent = lane.convergence.allowed(progress.epoch, num_visible, trainer.batch_size)
        augment = augment_key(lane, round_, progress.epoch)
        state, *means = train_epoch(
            trainer, decayed, seen, progress.state, key, num_visible, count=count, augment_key=augment
        )
        evaluation = evaluate_lane(trainer, lane, state, data, round_) if lane.convergence.validates else None
        return lane.convergence.update(progress.replace(state=state), *means, spent=spent, evaluation=evaluation)

    return jax.lax.while_loop(running, epoch, progress)


def augment_key(lane: Lane, round_: chex.Numeric, epoch: chex.Numeric) -> chex.PRNGKey:
    """Return the key of the augmentation in an epoch of a lane."""
    return key_for(lane.seed, Purpose.AUGMENT, round_, epoch)


def evaluate_lane(
    trainer: Trainer, lane: Lane, state: TrainState, data: Dataset, round_: chex.Numeric = 1
) -> Evaluation:
    """Evaluate a lane on its validation samples, as they are in a round, with the weights that its method keeps."""
    stream, count = trainer.stream.at(lane.which), lane.num_validation
    if stream.held_out_count is not None:
        count = jnp.minimum(stream.held_out_count(round_), lane.validation.shape[0])
    state, data = trainer.method.evaluated(state), stream.held_out(lane.seed, round_, data)
    return evaluate(trainer.model, state, data, lane.validation, task=trainer.task, count=count)


def evaluate(
    model: Model,
    state: TrainState,
    data: Dataset,
    indices: chex.Array,
    batch_size: int = EVALUATION_BATCH,
    *,
    task: tasks.Task = tasks.classification,
    count: chex.Numeric | None = None,
) -> Evaluation:
    """Compute accuracy and loss in evaluation mode (BatchNorm with its running statistics).

    Args:
      model: its two functions.
      state: what was trained.
      data: all samples, on the device.
      indices: [V] int32, the samples to evaluate on.
      batch_size: samples at a time.
      task: what the network predicts.
      count: int scalar, how many of the V samples count, by default all.

    Returns:
      Accuracy (fraction; the mean metric of other tasks) and mean loss (nats) over these samples.
    """
    data = jax.tree.map(jnp.asarray, data)
    count = indices.shape[0] if count is None else count
    padded = jnp.pad(indices, (0, -indices.shape[0] % batch_size))
    start = Sums.zero(counts=task.counts, weighted=data.weights is not None)
    sums = evaluate_batches(model, state, data, padded, start, count, batch_size, task=task)
    return Evaluation(*sums.means(count))


def evaluate_batches(
    model: Model,
    state: TrainState,
    data: Dataset,
    indices: chex.Array,
    sums: Sums,
    num_samples: chex.Numeric,
    batch_size: int = EVALUATION_BATCH,
    *,
    task: tasks.Task = tasks.classification,
) -> Sums:
    """Run a part of an evaluation: the first `num_samples` of some samples.

    Args:
      model: its two functions.
      state: what was trained.
      data: the samples, on the device.
      indices: [K * batch_size] int32, into them.
      sums: over the samples before.
      num_samples: int scalar, at most K * batch_size; the others are padding.
      batch_size: samples at a time.
      task: what the network predicts.

    Returns:
      The sums with these samples.
    """

    def batch(i, sums):
        samples = data.take(jax.lax.dynamic_slice(indices, (i * batch_size,), (batch_size,)))
        mask = i * batch_size + jnp.arange(batch_size) < num_samples
        outputs, _ = model.apply(state.params, state.batch_stats, samples.inputs, mask, False)
        losses, metric = (f(outputs, samples.labels) for f in (task.losses, task.metric))
        return sums.add(losses, metric, mask, samples.weights)

    return jax.lax.fori_loop(0, (num_samples + batch_size - 1) // batch_size, batch, sums)
