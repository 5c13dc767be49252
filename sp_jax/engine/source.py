"""What an engine asks of the source of its samples."""

from collections.abc import Callable, Iterator
from typing import Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.random import Purpose, key_for
from sp_jax.restarts import Restart
from sp_jax.training import Lane, Trainer
from sp_jax.types import Batches, Dataset, Evaluation, Progress, Sums, TrainState


class Source(Protocol):
    """Gives the lanes of an engine their samples: `sp_jax.engine.resident`, `sp_jax.engine.streamed`, or your own.

    A source is made by `source(trainer, data, programs)`. Lanes, states and progresses are pytrees of [slots, ...] on
    the devices, as the engine places them; scalars are NumPy's.
    """

    data: Dataset
    resumes_mid_epoch: bool  # whether `train` goes on with an epoch that was left in its middle

    def feed(self, data: Dataset | None) -> None:
        """Take other samples of the same shapes and dtypes; None lets go of those that it has."""

    def begin(
        self,
        restart: Restart,
        lanes: Lane,
        states: tuple[TrainState, TrainState],
        round_: np.int32,
        num_visible: np.int32,
    ) -> Progress:
        """Restart each lane before a round, from its state and a fresh one."""

    def expect(self, restart: Restart, lanes: Lane, states: tuple[TrainState, TrainState]) -> None:
        """Prepare for a restart in a later round, where that saves time then; of the states, the shapes are enough."""

    def train(
        self,
        lanes: Lane,
        progress: Progress,
        round_: np.int32,
        num_visible: np.int32,
        epoch_limit: np.int32,
        fill: Callable[[int], int],
    ) -> Iterator[Progress]:
        """Train up to an epoch, and yield the progress wherever the host is to have control: after `fill(n)` passes
        over n samples, and in the end."""

    def evaluate(self, lanes: Lane, state: TrainState, round_: np.int32) -> Evaluation:
        """Evaluate each lane on its validation samples, as they are in a round."""

    def measure(self, function: Callable, lanes: Lane, carry, *shared, round_: np.int32):
        """Run `function(lane, carry, data, *shared)` of one lane on all lanes, as `Engine.measure` says."""


def restart_lane(
    trainer: Trainer,
    restart: Restart | Callable,
    lane: Lane,
    states: tuple[TrainState, TrainState],
    data: Dataset | None,
    round_: chex.Numeric,
    num_visible: chex.Numeric,
    sums: Sums,
) -> Progress:
    """Restart one lane before a round (Section 4).

    Args:
      trainer: the static configuration.
      restart: a `sp_jax.restarts.Restart`, or, without data, a function of its signature.
      lane: one lane.
      states: its state and a fresh one.
      data: the samples that `lane.order` indexes; None where the restart reads none.
      round_: int scalar, may be traced.
      num_visible: int scalar, how many samples have arrived.
      sums: of no samples, see `Trainer.zero_sums`.

    Returns:
      A round that has not begun.
    """
    state, fresh = states
    key = key_for(lane.seed, Purpose.NOISE, round_)
    hparams = {"shrink": lane.hparams.shrink, "noise_scale": lane.hparams.noise_scale}
    data_pass, batches = getattr(restart, "data_pass", None), None
    if data is not None:  # the compiler drops them where they are not used
        lane, data = trainer.in_round(lane, data, round_)
        batches, in_order = _in_batches(trainer.batch_size, lane, data, num_visible, restart.num_batches)

    def apply(state):
        if data_pass is None or data is None:
            return restart(key, state, fresh, **hparams, batches=batches)
        swept = _swept(data_pass, state, data, in_order, num_visible)
        return data_pass.finish(swept)(key, state, fresh, **hparams, batches=batches)

    return lane.convergence.start(trainer.method.restarted(apply, state), active=lane.active, sums=sums)


def _in_batches(batch_size, lane, data, num_visible, count):
    """Return the first `count` batches in the order of arrival, of 0 all, those that have not arrived masked; and the
    indices of all batches [K, B]."""
    size = min(batch_size, lane.order.shape[0])
    shape = (-(-lane.order.shape[0] // size), size)
    order = jnp.pad(lane.order, (0, shape[0] * size - lane.order.shape[0])).reshape(shape)
    first = order[: count or None]
    masks = (jnp.arange(first.size) < num_visible).reshape(first.shape)
    samples = data.take(first)
    return Batches(samples.inputs, masks, samples.labels), order


def _swept(data_pass, state, data, order, num_visible):
    """Pass a restart over all samples that have arrived, a batch at a time: they are never gathered as a whole."""
    size = order.shape[1]

    def one(i, carry):
        samples = data.take(order[i][None])
        masks = (i * size + jnp.arange(size) < num_visible)[None]
        return data_pass.update(state, carry, Batches(samples.inputs, masks, samples.labels))

    return jax.lax.fori_loop(0, (num_visible + size - 1) // size, one, data_pass.start(state))
