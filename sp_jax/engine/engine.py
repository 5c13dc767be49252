"""The engine: one lane's functions over all lanes and devices, compiled once; its samples come from a source.

Seed, λ, σ, learning rate, weight decay, convergence, round and number of samples are all traced: changing them does not
compile again.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sp_jax import divergence, restarts, tasks, tracing, training
from sp_jax.data import samples, task_streams
from sp_jax.engine.lanes import check_count
from sp_jax.engine.program import BATCH, LANES, Programs, pad, regrouped, to_host
from sp_jax.engine.resident import Resident
from sp_jax.engine.source import Source, restart_lane
from sp_jax.models import check_logits
from sp_jax.plasticity.methods import check_method
from sp_jax.storage.checkpoints import CheckpointError
from sp_jax.training import Lane, Trainer
from sp_jax.types import Dataset, Evaluation, Progress, StopReason, TrainState

CHUNK_SECONDS = 2.0  # about how long the device works before the host gets control


class Engine:
    """The programs of one static configuration (model, data, optimiser, batch size) on some devices."""

    def __init__(
        self,
        trainer: Trainer,
        data: Dataset,
        num_lanes: int,
        *,
        devices: Sequence[jax.Device] | None = None,
        side_by_side: int | None = None,
        devices_per_lane: int = 1,
        source: Callable[[Trainer, Dataset, Programs], Source] = Resident,
    ):
        """Give the data to the source; compile nothing yet.

        Args:
          trainer: the static configuration.
          data: all samples: on the host, or the `data` of an engine on the same devices, which are not copied again.
          num_lanes: the most lanes of a call; where there are fewer, idle lanes, which cost nothing, pad them.
          devices: all by default; never more than the lanes can use.
          side_by_side: how many lanes a device trains at once (`vmap`), the others after them; by default one on a CPU,
            and all of a device's on an accelerator, which one lane does not fill.
          devices_per_lane: over how many devices the samples of a lane's batch are spread (data parallelism); the
            statistics of BatchNorm are those of the whole batch.
          source: from where the lanes get their samples: by default each device has a copy of all of them.

        Raises:
          ValueError: samples that are not valid, a model whose logits are fewer than the classes, a count
            below 1; the trainer's method re-draws hidden units, and its model has no `links`; the devices or the batch
            cannot be divided evenly.
        """
        check_method(trainer.method, trainer.model)
        counts = {"batch_size": trainer.batch_size, "num_lanes": num_lanes, "side_by_side": side_by_side or 1}
        for name, count in counts.items():
            check_count(name, count)
        if trainer.task is tasks.classification:  # others are checked where their targets are
            if not isinstance(data.inputs, Mapping):
                samples.check(data)
            check_logits(trainer.model, data.batch(1).inputs, data.num_classes)
        devices = list(devices or jax.devices())
        _check_devices_per_lane(devices_per_lane, len(devices), trainer.batch_size)
        self.num_lanes = num_lanes
        rows = len(devices) // devices_per_lane  # of devices, each with lanes of its own
        rows = rows if jax.process_count() > 1 else min(rows, num_lanes)  # each host has a part in each program
        most = -(-num_lanes // rows)
        self.side_by_side = min(side_by_side or (1 if devices[0].platform == "cpu" else most), most)
        devices, kinds = devices[: rows * devices_per_lane], (AxisType.Auto,) * 2
        self.mesh = jax.make_mesh((rows, devices_per_lane), (LANES, BATCH), axis_types=kinds, devices=devices)
        self.trainer = trainer._replace(spread=_spread) if devices_per_lane > 1 else trainer
        self._programs = Programs(self.mesh, num_lanes, self.side_by_side)
        self.source = source(self.trainer, data, self._programs)
        self._rate = 0.0  # lane-samples/s, as last measured
        self.used = self.spent = 0  # epochs that lanes needed, and that devices had time for, until the slowest stopped

    @property
    def data(self) -> Dataset:
        """All samples, as the source holds them: on the devices, or on the host."""
        return self.source.data

    @property
    def compile_seconds(self) -> float:
        """The compile time so far, of all programs together."""
        return self._programs.compile_seconds

    @property
    def program_bytes(self) -> int:
        """The bytes that the largest program compiled so far needs on each device, data and states included."""
        return self._programs.bytes

    def feed(self, data: Dataset | None) -> None:
        """Train on other samples of the same shapes and dtypes from now on, unchecked; None lets the old ones go."""
        self.source.feed(data)

    def place(self, lanes):
        """Put a pytree of [L, ...], L at most `num_lanes`, on the devices, padded with idle copies of the last lane."""
        count = len(jax.tree.leaves(lanes)[0])
        slots = self._programs.slots
        if not 1 <= count <= slots:
            raise ValueError(f"this engine has room for 1 to {self.num_lanes} lanes, got {count}")
        if isinstance(lanes, Lane):
            _check_indices(lanes, len(self.data.labels))
        padded = pad(lanes, slots)
        if isinstance(padded, Lane):
            padded = padded.replace(active=padded.active & (np.arange(slots) < count))
        return self._programs.send(padded)

    def fetch(self, lanes, count: int | None = None):
        """Reverse `place`: return NumPy arrays of [L, ...]; `count` is L, by default `num_lanes`."""
        return self._programs.fetch(lanes, self.num_lanes if count is None else count)

    def init(self, lanes: Lane) -> TrainState:
        """Draw the first initialisation of each lane."""
        return self._drawn(lanes, 0)

    def _drawn(self, lanes, round_):
        return self._programs.once("init", self._init_lane)(lanes, (), np.int32(round_))

    def shapes(self, lanes: Lane) -> TrainState:
        """Return the shapes and dtypes of the lanes' states, as `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(jax.vmap(lambda lane: self._init_lane(lane, (), 0)), lanes)

    def begin(
        self,
        lanes: Lane,
        state: TrainState,
        restart: restarts.Restart | Sequence[restarts.Restart],
        round_: int,
        num_visible: int,
    ) -> Progress:
        """Restart each lane before a round (Section 4); `restarts.no_restart` continues with the state as it is.

        Args:
          lanes: as placed.
          state: of the lanes, as placed.
          restart: of all lanes, or one for each lane.
          round_: counted from 1.
          num_visible: how many samples have arrived.

        Returns:
          Rounds that have not begun.

        Raises:
          ValueError: none have arrived, or more than there are.
        """
        there = lanes.order.shape[1]
        if not 1 <= num_visible <= there:
            raise ValueError(f"num_visible must lie between 1 and the {there:,} training samples, got {num_visible}")
        each = [restart] * self.num_lanes if callable(restart) else restart
        each = [restarts.as_restart(one) for one in each]
        fresh = state if set(each) == {restarts.no_restart} else self._drawn(lanes, round_)
        merged = None
        for kind in dict.fromkeys(each):
            chosen = np.array([one is kind for one in each] + [False] * (self._programs.slots - len(each)))
            chosen = self._programs.send(chosen)
            mine = lanes.replace(active=lanes.active & chosen)
            begun = self.source.begin(kind, mine, (state, fresh), np.int32(round_), np.int32(num_visible))
            merge = self._programs.once("merge", _merge_lane)
            merged = begun if merged is None else merge(lanes, (chosen, begun, merged))
        return merged

    def reads(self, restart: restarts.Restart | Sequence[restarts.Restart], lanes: Lane, state: TrainState):
        """Return which leaves of a state a restart reads, as a pytree of booleans; nothing is run.

        Args:
          restart: of all lanes, or one for each.
          lanes: [L, ...].
          state: [L, ...]; shapes are enough.
        """
        kinds = dict.fromkeys(map(restarts.as_restart, [restart] if callable(restart) else restart))
        lane, old, fresh = (_of_a_lane(tree) for tree in (lanes, state, self.shapes(lanes)))
        scalar, data = jax.ShapeDtypeStruct((), np.int32), jax.tree.map(_shape, self.data)
        leaves, structure = jax.tree.flatten(old)
        found = [False] * len(leaves)
        for kind in kinds:
            sums = self.trainer.zero_sums(data)

            def begin(leaves, lane, fresh, data, round_, num_visible, kind=kind, sums=sums):
                states = structure.unflatten(leaves), fresh
                return restart_lane(self.trainer, kind, lane, states, data, round_, num_visible, sums)

            used = tracing.used(begin, leaves, lane, fresh, data, scalar, scalar)
            found = [before or now for before, now in zip(found, used, strict=False)]
        return structure.unflatten(found)

    def lower(self, lanes: Lane, restart: restarts.Restart) -> dict[str, jax.stages.Lowered]:
        """Lower the programs of a round for the engine's devices, which need not be there; nothing is run.

        Args:
          lanes: [L, ...] on the host.
          restart: of all lanes.

        Returns:
          By name: "init", "restart", "train" and "evaluate".
        """
        lanes = jax.tree.map(_shape, pad(lanes, self._programs.slots))
        scalar, states = jax.ShapeDtypeStruct((), np.int32), (self.shapes(lanes),) * 2
        programs = {"init": (self._programs.once("init", self._init_lane), (lanes, (), scalar))}
        programs |= self.source.programs(restarts.as_restart(restart), lanes, states)
        return {name: program.lower(*arguments) for name, (program, arguments) in programs.items()}

    def expect(self, restart: restarts.Restart, lanes: Lane) -> None:
        """Compile a restart while other work goes on, since a later round begins with it.

        Args:
          restart: of all lanes.
          lanes: as placed.
        """
        self.source.expect(restarts.as_restart(restart), lanes, (self.shapes(lanes),) * 2)

    def train(
        self,
        lanes: Lane,
        progress: Progress,
        round_: int,
        num_visible: int,
        on_chunk: Callable[[Progress, Callable[[], Progress]], None] | None = None,
        on_epoch: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Train all lanes until each has stopped, in chunks of about `CHUNK_SECONDS`; running lanes are regrouped as
        others stop.

        Args:
          lanes: as placed.
          progress: from `begin`, or of an interrupted round, as placed; its buffers are reused.
          round_: counted from 1.
          num_visible: how many samples have arrived.
          on_chunk: called after each chunk with the progress, state left out, and a function that fetches all of it
            (several hosts call it together); both [slots, ...] on the host, idle lanes too.
          on_epoch: called with the progress, on the devices, before the first epoch and after each: a chunk is then
            one epoch.

        Returns:
          The progress, no lane `RUNNING`.

        Raises:
          CheckpointError: the round was interrupted in the middle of an epoch, which not every source can resume.
        """
        home, active = np.arange(self._programs.slots), to_host(lanes.active)  # the original slot of each slot's lane
        before, running = self._summary(progress), active & (to_host(progress.stop_reason) == StopReason.RUNNING)
        if before.samples.any() and not self.source.resumes_mid_epoch:
            raise CheckpointError("the round was left in the middle of an epoch of a stream: go on with --stream")
        while True:
            if on_epoch and not before.samples.any():
                on_epoch(progress)
            limit = before.epoch.max() + (1 if on_epoch else self._fill(max(1, running.sum()) * num_visible))
            scalars = (np.int32(round_), np.int32(num_visible), np.int32(limit))
            start, chunks = self._clock(), self.source.train(lanes, progress, *scalars, self._fill)
            for progress in chunks:
                summary = self._summary(progress)
                self._book(before, summary, num_visible, self._clock() - start)
                if on_chunk:
                    home_order = partial(_at_home, home)
                    on_chunk(home_order(summary), partial(home_order, progress))
                before, start = summary, self._clock()
            running = (before.stop_reason == StopReason.RUNNING) & active[home]
            if not running.any():
                break
            order = None if on_epoch else regrouped(running, self._programs.rows, self.side_by_side)
            if order is not None:
                lanes, progress = self._move((lanes, progress), order)
                home, running, before = home[order], running[order], _take(before, order)
        if (home != np.arange(self._programs.slots)).any():
            progress = self._move(progress, np.argsort(home))
        if on_epoch:
            on_epoch(progress)
        return progress

    def _fill(self, num_samples):
        """Return how many passes over so many samples, of all running lanes, fill a chunk; the same on all hosts."""
        count = max(1, int(CHUNK_SECONDS * self._rate / num_samples)) if self._rate else 1
        if jax.process_count() > 1:
            count = int(multihost_utils.broadcast_one_to_all(np.int32(count)))
        return count

    def _clock(self):
        """Return a monotonic time in seconds, without the time spent compiling."""
        return time.monotonic() - self.compile_seconds

    @staticmethod
    def _summary(progress):
        """Return the progress without its state, on the host."""
        return jax.tree.map(to_host, progress.replace(state=None))

    def _book(self, before, after, num_visible, seconds):
        """Record a chunk: its speed, the epochs that lanes needed, and those that the devices had time for."""
        epochs, part = after.epoch - before.epoch, after.samples - before.samples
        self._rate = (epochs.sum() * num_visible + part.sum()) / max(seconds, 1e-9)
        rows = self._programs.rows
        batches = epochs.reshape(rows, -1, self.side_by_side).max(axis=2)
        self.used += int(epochs.sum())
        self.spent += int(batches.sum(axis=1).max()) * rows * self.side_by_side

    def _move(self, lanes, order):
        """Permute the lanes' slots: `order[i]` moves to slot i."""
        split, whole = (NamedSharding(self.mesh, spec) for spec in (PartitionSpec(LANES), PartitionSpec()))
        move = jax.jit(_take, in_shardings=(split, whole), out_shardings=split)
        return move(lanes, np.asarray(order, np.int32))

    def evaluate(self, lanes: Lane, state: TrainState, round_: int | None = None) -> Evaluation:
        """Evaluate each lane on its validation samples, as they are in a round of the stream of tasks.

        Args:
          lanes: as placed.
          state: of the lanes, as placed.
          round_: counted from 1; may be left out where the samples are the same in all rounds.

        Raises:
          ValueError: it is left out where they are not.
        """
        return self.source.evaluate(lanes, state, self._round(round_))

    def _round(self, round_):
        if round_ is None and self.trainer.stream is not task_streams.growing:
            raise ValueError("the samples of a stream of tasks are others in each round: say which, as round_=1")
        return np.int32(1 if round_ is None else round_)

    @functools.cached_property
    def first_lost_sample(self) -> Callable:
        """A measure of lanes that diverged, see `sp_jax.divergence`."""
        return divergence.first_lost_sample(self.trainer.model, self.trainer.task.losses)

    def measure(self, function: Callable, lanes: Lane, carry, *shared, round_: int | None = None):
        """Run any function of one lane on all lanes: `function(lane, carry, data, *shared)` (`sp_jax.diagnostics`).
        `data.take(indices)` gives samples in their own shape; on the devices they may lie flat.

        Args:
          function: the same object at each call, or it is compiled again.
          lanes: as placed.
          carry: a pytree of [L, ...], as the states or a progress.
          *shared: NumPy scalars.
          round_: of the stream of tasks, as for `evaluate`; lane and data are as training sees them in it.

        Returns:
          Its results of all lanes, on the devices.
        """
        return self.source.measure(function, lanes, carry, *shared, round_=self._round(round_))

    def _init_lane(self, lane, _, round_):
        return training.init_state(self.trainer, lane, round_)


def _spread(batch):
    """Spread the samples of a batch over the devices of a lane."""
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(BATCH))


def _shape(x):
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype)


def _of_a_lane(lanes):
    """Return the shapes of one lane of [L, ...]."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x)[1:], x.dtype), lanes)


def _merge_lane(lane, carry):
    """Select one of two progresses."""
    del lane
    first, one, other = carry
    return jax.tree.map(partial(jnp.where, first), one, other)


def _take(lanes, order):
    return jax.tree.map(lambda x: x[order], lanes)


def _at_home(home, lanes):
    """Return NumPy arrays of [slots, ...] in the order in which the lanes were placed."""
    return _take(jax.tree.map(to_host, lanes), np.argsort(home))


def _check_indices(lanes, count):
    """Raise a ValueError for indices out of range, which a gather would clamp to the last sample without an error."""
    for indices in (lanes.order, lanes.validation):
        if isinstance(indices, np.ndarray) and indices.size and not 0 <= indices.min() <= indices.max() < count:
            found = f"{indices.min()} to {indices.max()}"
            raise ValueError(f"the lanes index samples {found}, the data have {count:,}: make them for these data")


def _check_devices_per_lane(count, num_devices, batch_size):
    if count < 1 or num_devices % count:
        raise ValueError(f"devices_per_lane={count} does not divide the {num_devices} devices")
    if batch_size % count:
        raise ValueError(f"devices_per_lane={count} does not divide the batch size {batch_size}")
