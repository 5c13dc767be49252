"""What training is given: a trainer, compiled into the program, and lanes, its arguments."""

from collections.abc import Callable
from typing import NamedTuple

import chex
from flax import struct

from sp_jax import penalties, tasks
from sp_jax.data import task_streams
from sp_jax.plasticity import methods
from sp_jax.random import Purpose, key_for
from sp_jax.training.convergence import Convergence
from sp_jax.training.optimizers import Optimizer
from sp_jax.types import Dataset, HParams, Model, Sums, TrainState


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
    shuffle: str = "epoch"  # one of `SHUFFLES`

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
