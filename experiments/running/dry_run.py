"""Forecast of a run: its grid, programs, memory and time, from a short measurement. Writes nothing."""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.config.settings import Settings
from experiments.config.sweep import Trial, several
from experiments.running import builder
from experiments.running.plan import RunPlan
from experiments.specs.base import RoundSpec
from sp_jax import restarts, sweeps
from sp_jax.engine.program import LANES, pad
from sp_jax.training import Convergence

SECONDS = 0.5  # the least duration of a measurement
LIKELY = (5, 100)  # epochs of a round: nine of ten lane-rounds in experiments/results


class Speed(NamedTuple):
    """The speed and memory of the programs of a static configuration."""

    compile_seconds: float
    rate: float  # samples/s of all lanes together, each device busy
    at_once: int  # lanes that train at the same time
    device_bytes: int  # needed by training on each device, data and states of all lanes included


class Work(NamedTuple):
    """Lanes that train together in a round."""

    engine: sweeps.Engine
    lanes: int
    num_visible: int  # samples of an epoch
    epochs: tuple[int, int]  # of each lane, at least and at most


def measure(
    engine: sweeps.Engine, phase: sweeps.RoundPlan, num_visible: int, clock: Callable = time.monotonic
) -> Speed:
    """Compile an engine's training program and train some epochs of a phase, on all devices; the clock has seconds.

    `num_visible` are the samples of a usual epoch; slow programs are measured on fewer.
    """
    count = min(engine.num_lanes, engine.mesh.shape[LANES] * engine.side_by_side)
    lanes = jax.tree.map(lambda x: x[:count], pad(phase.lanes, max(count, len(phase.lanes.seed))))
    state = engine.init(engine.place(lanes))

    def train(batches):
        """Train so many batches in each lane; return the samples visited by all lanes, and the seconds."""
        samples = min(num_visible, batches * engine.trainer.batch_size)
        epochs = max(1, batches * engine.trainer.batch_size // samples)
        limits = jax.tree.map(np.full_like, lanes.convergence, Convergence.exactly(epochs))
        placed = engine.place(lanes.replace(convergence=limits))
        progress = engine.begin(placed, state, restarts.no_restart, 1, samples)
        start, compiled = clock(), engine.compile_seconds
        engine.train(placed, progress, 1, samples)
        return count * samples * epochs, clock() - start - (engine.compile_seconds - compiled)

    train(1)  # compiles
    batches, (least, overhead) = 1, train(1)
    visited, seconds = least, overhead
    while seconds - overhead < max(SECONDS, overhead):  # the constant overhead of a call must not count
        batches *= int(np.clip(2 * SECONDS / max(seconds - overhead, 1e-3), 2, 16))
        visited, seconds = train(batches)
    return Speed(engine.compile_seconds, (visited - least) / (seconds - overhead), count, engine.program_bytes)


def work(
    plan: Mapping[Trial, Sequence[RoundSpec]],
    groups: Sequence[sweeps.Group],
    done: Mapping[str, int],
    *,
    alone: bool = False,
) -> list[Work]:
    """Return the lanes of each round, still to be done, that train together; what several groups share counts once.

    `done` are the finished rounds of each group, by default none; `alone` says whether each trains by itself.
    """
    shared, pools = sweeps.shared_rounds(groups, done), Counter()
    for (member, phases), group in zip(plan.items(), groups, strict=True):
        for i, (phase, made) in enumerate(zip(phases, group.phases, strict=True)):
            if i < done.get(group.name, 0) or shared[group.name][i]:
                continue
            pool = (i, made.engine, made.num_visible, _epochs(phase), group.name if alone else None)
            pools[pool] += member.settings.seeds
    return [Work(engine, lanes, visible, epochs) for (_, engine, visible, epochs, _), lanes in pools.items()]


def _epochs(phase):
    """Return the least and the largest number of epochs."""
    return tuple(min(phase.settings.max_epochs, n) if phase.exactly is None else phase.exactly for n in LIKELY)


def estimate(found: Sequence[Work], speeds: Mapping[sweeps.Engine, Speed]) -> tuple[float, float]:
    """Return the seconds that the work takes, at least and at most; a device that gets no lane waits for the others."""
    ends = [sum(speed.compile_seconds for speed in speeds.values())] * 2
    for each in found:
        speed = speeds[each.engine]
        busy = -(-each.lanes // speed.at_once) * speed.at_once
        for i, epochs in enumerate(each.epochs):
            ends[i] += busy * each.num_visible * epochs / speed.rate
    return tuple(ends)


class Elsewhere(NamedTuple):
    """A device that is not here, of which a forecast speaks."""

    name: str
    memory: int  # bytes
    speed: Callable[[sweeps.Engine], Speed]  # of an engine's programs there, as its compiler has it


def text(planned: RunPlan, done: Mapping[str, int], elsewhere: Elsewhere | None = None) -> str:
    """Return the forecast of one experiment, measured now, or for a device that is not here; see `work`."""
    job, plan, groups = planned.job, planned.rounds, planned.groups
    alone = job.grid.base.curves or job.experiment.gradient_norms or job.experiment.similarity
    found = work(plan, groups, done, alone=alone)
    settings = {}  # of each engine
    for phases, group in zip(plan.values(), groups, strict=True):
        settings |= {made.engine: (phase.settings, made) for phase, made in zip(phases, group.phases, strict=True)}
    names = _names({engine: own for engine, (own, _) in settings.items()})
    speeds = {}
    for engine in dict.fromkeys(each.engine for each in found):
        print(
            f"{'compiling' if elsewhere else 'measuring'} {len(speeds) + 1} of {len(names)}: {names[engine]} …",
            file=sys.stderr,
            flush=True,
        )
        visible = [each.num_visible for each in found if each.engine is engine]
        if elsewhere:
            speeds[engine] = elsewhere.speed(engine)
        else:
            speeds[engine] = measure(engine, settings[engine][1], int(statistics.median(visible)))
    programs = [f"{names[engine]}: {_speed(speed)}" for engine, speed in speeds.items()]
    parts = {
        "grid": [_grid(plan, found)],
        "data": _data(settings),
        "programs": [f"{_count(len(speeds), 'static configuration')} to compile", *programs],
        "memory": [_memory(speeds, elsewhere)],
        "time": [*_time(found, speeds), NOT_COUNTED],
    }
    if elsewhere:
        parts["device"] = [f"one {elsewhere.name}, by its compiler's estimates, which are lower bounds: not measured"]
    lines = [f"  {head * (i == 0):10}{line}" for head, part in parts.items() for i, line in enumerate(part)]
    return "\n".join([f"{job.experiment.name}: a dry run; nothing was written into {job.folder}", *lines])


NOT_COUNTED = (
    "not counted: the start, restarts, evaluation, checkpoints, figures; devices that wait for the slowest lane"
)


def _names(settings: Mapping[sweeps.Engine, Settings]):
    """Return a name of each static configuration, from the settings in which they differ."""
    compiled = [dict(builder.static(each)) for each in settings.values()]
    differ = [name for name in (compiled or [{}])[0] if len({each[name] for each in compiled}) > 1]
    more = [name for name in differ if name not in ("model", "dataset")]
    return {
        engine: ", ".join(
            [f"{own.model} on {own.dataset}", *(f"{name}={several([getattr(own, name)])}" for name in more)]
        )
        for engine, own in settings.items()
    }


def _grid(plan, found):
    lanes, rounds = sum(m.settings.seeds for m in plan), max(map(len, plan.values()))
    visible = [phase.num_visible for phases in plan.values() for phase in phases]
    counts = " to ".join(dict.fromkeys(f"{n:,}" for n in (min(visible), max(visible))))
    return (
        f"{_count(len(plan), 'cell')} x {_count(next(iter(plan)).settings.seeds, 'seed')} = {_count(lanes, 'lane')}, "
        f"{_count(rounds, 'round')} of {counts} samples; {_count(sum(each.lanes for each in found), 'lane-round')} to "
        "train (those that cells share count once)"
    )


def _count(number, what):
    return f"{number:,} {what}{'s' * (number != 1)}"


def _data(settings):
    sets = {own.dataset: engine.data for engine, (own, _) in settings.items()}
    sizes = {name: data.inputs.nbytes + data.labels.nbytes for name, data in sets.items()}
    return [f"{name}: {len(data.labels):,} samples, {_bytes(sizes[name])}" for name, data in sets.items()]


def _speed(speed):
    return (
        f"compiled in {speed.compile_seconds:.1f} s, {speed.rate:,.0f} samples/s ({speed.at_once} lanes at a time), "
        f"{_bytes(speed.device_bytes)} on each device"
    )


def _memory(speeds, elsewhere):
    devices = {engine: 1 if elsewhere else engine.mesh.size for engine in speeds}
    needed = max((devices[engine] * speed.device_bytes for engine, speed in speeds.items()), default=0)
    there = elsewhere.memory if elsewhere else builder.memory()
    fits = "" if needed <= there else "; too much: fewer cells or --seeds at a time, or --stream"
    return f"{_bytes(needed)} on all devices of the largest configuration, of {_bytes(there)}{fits}"


def _time(found, speeds):
    low, high = map(_duration, estimate(found, speeds))
    size = f"an epoch of each lane-round is {sum(each.lanes * each.num_visible for each in found):,} samples in all"
    if all(each.epochs[0] == each.epochs[1] for each in found):
        return [f"{low}, for as many epochs as are asked for; {size}"]
    assumed = f"{LIKELY[0]} to {LIKELY[1]} epochs a round, as in nine of ten lane-rounds in experiments/results"
    return [f"{low} to {high}; {size}", f"assumed: {assumed}"]


def _duration(seconds):
    for unit, length in (("days", 86_400), ("hours", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(count):
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
