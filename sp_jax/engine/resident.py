"""Samples that lie on the devices, all of them: an epoch, a restart and an evaluation are one program each."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sp_jax import training
from sp_jax.engine.program import Programs, layout, put
from sp_jax.engine.source import restart_lane
from sp_jax.training import Trainer
from sp_jax.types import Dataset, StopReason


class Resident:
    """A `Source` that has a copy of all samples on each device."""

    resumes_mid_epoch = False

    def __init__(self, trainer: Trainer, data: Dataset, programs: Programs):
        """Copy the samples to the devices, where they are not there already.

        Args:
          trainer: the static configuration.
          data: all samples.
          programs: of the engine.
        """
        self._trainer, self._programs = trainer, programs
        self.feed(data)

    def feed(self, data):
        """Take other samples, and copy them to the devices."""
        self.data = None if data is None else put(data.flat(), self._programs.mesh, PartitionSpec())

    def begin(self, restart, lanes, states, round_, num_visible):
        """Restart each lane before a round."""
        return self._begin(restart, states)(lanes, states, self.data, round_, num_visible)

    def programs(self, restart, lanes, states):
        """Return the programs of a round, each with its arguments, as shapes, by name."""
        scalar = jax.ShapeDtypeStruct((), np.int32)
        begin = self._begin(restart, states), (lanes, states, self.data, scalar, scalar)
        progress = begin[0].shapes(*begin[1])
        train = self._programs.once("train", self._train_lane, donate=True)
        evaluate = self._programs.once("evaluate", self._evaluate_lane)
        return {
            "restart": begin,
            "train": (train, (lanes, progress, self.data, scalar, scalar, scalar)),
            "evaluate": (evaluate, (lanes, states[0], self.data, scalar)),
        }

    def expect(self, restart, lanes, states):
        """Compile a restart in another thread."""
        self._begin(restart, states).compile_ahead(lanes, states, self.data, np.int32(0), np.int32(0))

    def _begin(self, restart, states):
        def begin(lane, states, data, round_, num_visible):
            sums = self._trainer.zero_sums(data)
            return restart_lane(self._trainer, restart, lane, states, data, round_, num_visible, sums)

        return self._programs.once(("begin", restart, layout(states[0])), begin)

    def train(self, lanes, progress, round_, num_visible, epoch_limit, fill):
        """Train up to an epoch; the host gets control there."""
        del fill
        program = self._programs.once("train", self._train_lane, donate=True)
        yield program(lanes, progress, self.data, round_, num_visible, epoch_limit)

    def evaluate(self, lanes, state, round_):
        """Evaluate each lane on its validation samples, as they are in a round."""
        return self._programs.once("evaluate", self._evaluate_lane)(lanes, state, self.data, round_)

    def measure(self, function, lanes, carry, *shared, round_):
        """Run a function of one lane on all lanes."""

        def measured(lane, carry, data, round_, *shared):
            lane, data = self._trainer.in_round(lane, data, round_)
            return function(lane, carry, data, *shared)

        program = self._programs.once(("measure", function, layout(carry)), measured)
        return program(lanes, carry, self.data, round_, *shared)

    def _train_lane(self, lane, progress, data, round_, num_visible, epoch_limit):
        idle = jnp.where(lane.active, progress.stop_reason, StopReason.CAP.value)
        progress = progress.replace(stop_reason=idle)
        return training.train_round(self._trainer, lane, data, progress, round_, num_visible, epoch_limit)

    def _evaluate_lane(self, lane, state, data, round_):
        return training.evaluate_lane(self._trainer, lane, state, data, round_)
