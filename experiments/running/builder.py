"""From names to objects: settings become a model, an optimiser, restarts, groups of lanes."""

import dataclasses
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.config import choices, fields, own_methods, streams
from experiments.config.settings import Settings
from experiments.config.sweep import Trial
from experiments.running import multihost
from experiments.specs.base import RoundSpec
from sp_jax import restarts, sweeps, training
from sp_jax.engine import lanes_of, lanes_per_device, streamed
from sp_jax.engine import memory as devices_memory
from sp_jax.types import Dataset, HParams

logger = logging.getLogger("sp_jax.experiments")  # whose words reach the terminal


class Builder:
    """Makes groups of lanes; what several of them need is made once, and so compiled and put on the devices once."""

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        plan: Mapping[Trial, Sequence[RoundSpec]],
        *,
        devices_per_lane: int = 1,
        stream: bool | None = None,
        side_by_side: Iterable[int] = (),
    ):
        """Args:
        datasets: by name, all that the groups need.
        plan: the phases of each member of the grid.
        devices_per_lane: over how many devices each batch is spread; see `sweeps.Engine`.
        stream: whether data stay on the host; by default where they would fill more than half of the devices' memory.
        side_by_side: how many lanes a device trains at once, for the engines in the order in which they are made; for
          those that it lacks one on a CPU, and what is fastest, measured, on an accelerator.
        """
        self._datasets, self._devices_per_lane, self._stream = datasets, devices_per_lane, stream
        self._held = {}  # the data sets as the engines hold them: the next engine takes over the copy on the devices
        self.side_by_side, self._given = [], iter(side_by_side)  # those of the engines made
        self._members = Counter(key for phases in plan.values() for key in {static(p.settings) for p in phases})
        self._made = {}

    def group(self, member: Trial, phases: Sequence[RoundSpec]) -> sweeps.Group:
        """Make the lanes of a trial, one for each seed, and what they do in each round."""
        made, before = [], None
        arrivals = tuple(sorted({phase.num_visible for phase in phases}))
        for phase in phases:
            restarting = before is not None or member.settings.restart_first
            shapes = "same" if before in (None, phase.settings.dataset) else "redraw"
            restart = self._restart(member, phase, shapes, arrivals) if restarting else restarts.no_restart
            made.append(
                sweeps.RoundPlan(self.engine(phase.settings), self._lanes(member, phase), phase.num_visible, restart)
            )
            before = phase.settings.dataset
        return sweeps.Group(member.name, tuple(made))

    def engine(self, settings: Settings) -> sweeps.Engine:
        """Return the programs of a static configuration."""

        def make():
            data = self._datasets[settings.dataset]
            made = choices.trainer(settings, data)
            kind = streamed.StreamedEngine if self._streams(data) else sweeps.Engine
            num_lanes = self._num_lanes(settings, made)

            def at(side_by_side):
                held = self._held.get(settings.dataset, data)
                options = {"side_by_side": side_by_side, "devices_per_lane": self._devices_per_lane}
                engine = kind(made, held, num_lanes, **options)
                self._held[settings.dataset] = engine.data
                return engine

            given = next(self._given, None)
            engine = at(given)
            if given is None and engine.side_by_side > 1:
                engine = lanes_per_device.fastest(at, engine.side_by_side)
            self.side_by_side.append(engine.side_by_side)
            return engine

        return self._once(("engine", static(settings)), make)

    def _streams(self, data):
        """Return whether a data set stays on the host."""
        copies = jax.local_device_count() * (data.inputs.nbytes + data.labels.nbytes)
        if self._stream is None and copies > memory() // 2:
            why = f"a copy for each device is {copies / 2**30:.1f} GiB, more than half of {memory() / 2**30:.1f} GiB"
            logger.info("%s stays on the host and is streamed: %s (--stream, --nostream)", data.name, why)
        return copies > memory() // 2 if self._stream is None else self._stream

    def _num_lanes(self, settings, made):
        """Count the lanes of the grid that share the engine; at most what an eighth of the memory has room for."""
        lanes = len(settings.lane_seeds)
        room = memory() // 8 // lane_bytes(made) // lanes
        return lanes * max(1, min(self._members[static(settings)], room))

    def _restart(self, member, phase, shapes, arrivals):
        settings, row = phase.settings, choices.RESTARTS[member.cell.restart]
        policies = {"statistics": settings.statistics, "optimizer_state": settings.optimizer_state, "shapes": shapes}
        engine = self.engine(settings)
        arrivals = arrivals if row.reads_data else None  # others share their programs whatever has arrived
        key = ("restart", member.cell.restart, _values(settings, fields.OF_RESTART), shapes, arrivals, id(engine))
        return self._once(key, lambda: row.make(engine.trainer.model, settings.noise, arrivals, **policies))

    def _lanes(self, member, phase):
        settings, cell = phase.settings, member.cell
        hparams = HParams(
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            shrink=float(cell.shrink),
            noise_scale=float(cell.noise_scale),
            penalty_strength=settings.penalty_strength,
            method_strength=_strength(settings),
            decay_every=settings.decay_every or 0,
        )
        convergence, seeds = _convergence(settings, phase.exactly), settings.lane_seeds

        stream, labels = self.engine(settings).trainer.stream, self._datasets[settings.dataset].labels

        def make():
            made = lanes_of(seeds, hparams, convergence, *streams.indices(settings, stream, labels, seeds))
            return made if which is None else made.replace(which=np.full(len(seeds), which, np.int32))

        which, own = streams.which(settings), static(settings) if stream.split else None
        key = ("lanes", seeds, hparams, convergence, settings.dataset, settings.samples, which, own)
        return self._once(str(key), make)

    def _once(self, key, make):
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def lane_bytes(made: training.Trainer) -> int:
    """Count the bytes of a lane's state: parameters, statistics, and what the optimiser and the method keep."""
    lanes = sweeps.make_lanes([0], HParams(), training.Convergence(), 3)
    state = jax.eval_shape(jax.vmap(lambda lane: training.init_state(made, lane, 0)), lanes)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def _values(settings, at_work):
    """Return names and values of the settings that are at work there."""
    where = {field.name: field.metadata.get("at_work", fields.COMPILED) for field in dataclasses.fields(settings)}
    return tuple((name, getattr(settings, name)) for name in where if where[name] == at_work)


def static(settings: Settings) -> tuple[tuple[str, Any], ...]:
    """Return what is compiled into an engine's programs: all settings but those declared otherwise."""
    return (*_values(settings, fields.COMPILED), *streams.compiled(settings).items())


def memory() -> int:
    """Return the bytes of a host's devices together, of the host where they are its cores; the least of all hosts."""
    return multihost.least(devices_memory.of_devices() >> 20) << 20


def _strength(settings):
    published = own_methods.find(settings.method).default_strength
    return published if settings.method_strength is None else settings.method_strength


def _convergence(settings, epochs):
    if epochs is not None or settings.steps is not None:
        return training.Convergence.exactly(epochs, steps=settings.steps if epochs is None else None)
    return training.Convergence(settings.train_accuracy, settings.patience, max_epochs=settings.max_epochs)
