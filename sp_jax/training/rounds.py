"""An epoch, and a round: epochs until convergence."""

import chex
import jax
import jax.numpy as jnp

from sp_jax.random import Purpose, key_for
from sp_jax.training.evaluation import evaluate_lane
from sp_jax.training.optimizers import at_epoch
from sp_jax.training.shuffling import SHUFFLES, epoch_order
from sp_jax.training.steps import train_batches
from sp_jax.training.trainer import Lane, Trainer
from sp_jax.transforms import check_choice
from sp_jax.types import Dataset, Progress, StopReason, TrainState


def train_epoch(
    trainer: Trainer,
    lane: Lane,
    data: Dataset,
    state: TrainState,
    key: chex.PRNGKey | None,
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
      key: consumed by the shuffle; None keeps the order of arrival.
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
        key = shuffle_key(trainer, lane, round_, progress.epoch)
        decayed = arranged.replace(hparams=at_epoch(lane.hparams, progress.epoch))
        count, spent = lane.convergence.allowed(progress.epoch, num_visible, trainer.batch_size)
        augment = augment_key(lane, round_, progress.epoch)
        state, *means = train_epoch(
            trainer, decayed, seen, progress.state, key, num_visible, count=count, augment_key=augment
        )
        evaluation = evaluate_lane(trainer, lane, state, data, round_) if lane.convergence.validates else None
        return lane.convergence.update(progress.replace(state=state), *means, spent=spent, evaluation=evaluation)

    return jax.lax.while_loop(running, epoch, progress)


def shuffle_key(trainer: Trainer, lane: Lane, round_: chex.Numeric, epoch: chex.Numeric) -> chex.PRNGKey | None:
    """Return the key that shuffles an epoch of a lane, or None where its samples keep the order of arrival.

    Raises:
      ValueError: the trainer's `shuffle` is none of `SHUFFLES`.
    """
    check_choice("shuffle", trainer.shuffle, SHUFFLES)
    if trainer.shuffle == "never":
        return None
    return key_for(lane.seed, Purpose.SHUFFLE, round_, epoch if trainer.shuffle == "epoch" else 0)


def augment_key(lane: Lane, round_: chex.Numeric, epoch: chex.Numeric) -> chex.PRNGKey:
    """Return the key of the augmentation in an epoch of a lane."""
    return key_for(lane.seed, Purpose.AUGMENT, round_, epoch)
