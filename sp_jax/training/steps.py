"""One step of training, and a run of steps over some samples."""

import chex
import jax
import jax.numpy as jnp
import optax

from sp_jax import tasks
from sp_jax.training.optimizers import update
from sp_jax.training.trainer import Trainer
from sp_jax.transforms import filters
from sp_jax.types import Dataset, HParams, Sums, TrainState


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


def _moved_by(share, old, new):
    """Return running statistics moved from `old` to `new` by a share; `new` bit for bit where the share is 1."""

    def leaf(old, new):
        return jnp.where(share < 1, old + (share * (new - old)).astype(new.dtype), new)

    return jax.tree.map(lambda old, new: leaf(old, new) if filters.is_changeable(new) else new, old, new)


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
