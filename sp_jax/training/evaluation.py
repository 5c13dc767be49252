"""Accuracy and loss on samples that are held out."""

import chex
import jax
import jax.numpy as jnp

from sp_jax import tasks
from sp_jax.training.trainer import Lane, Trainer
from sp_jax.types import Dataset, Evaluation, Model, Sums, TrainState

EVALUATION_BATCH = 500  # samples at a time


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
