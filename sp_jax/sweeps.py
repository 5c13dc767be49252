"""MANY lanes: seeds and settings side by side, rounds in sequence, checkpoints between them.

A group is the lanes of one setting, one for each seed. Groups that have been the same so far share their rounds; all
others that an engine has room for train as one pool, a whole grid in one program.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sp_jax import restarts
from sp_jax.checkpoint import Store
from sp_jax.engine import Engine, make_lanes
from sp_jax.training import Lane
from sp_jax.types import Progress, RoundResult, StopReason, TrainState

__all__ = ["Engine", "Finished", "Group", "Phase", "Watch", "make_lanes", "rounds", "run", "train_round"]


class Phase(NamedTuple):
    """What a group does in one round."""

    engine: Engine  # a round may have another data set, batch size or optimiser than the one before
    lanes: Lane  # [L, ...]
    num_visible: int  # samples that have arrived
    restart: restarts.Restart | tuple = restarts.no_restart  # before the round: of all lanes, or one for each


class Group(NamedTuple):
    """Lanes that run together: one setting, one lane for each seed."""

    name: str  # unique in a run; names the checkpoint
    phases: tuple[Phase, ...]  # one for each round


def rounds(
    engine: Engine, lanes: Lane, restart: restarts.Restart, arrivals: Sequence[int], *, restart_first: bool = False
) -> tuple[Phase, ...]:
    """The phases of sequential rounds: samples arrive, restart, train until converged (Sections 2.1 and 2.2).

    Args:
      engine: the programs of all rounds.
      lanes: [L, ...], of all rounds.
      restart: before each round but the first, which has nothing to restart from.
      arrivals: how many samples have arrived in each round; from `data.arrival`.
      restart_first: also restart before the first round, from one fresh network to the next, as the authors' program
        does (the paper's text does not).

    Returns:
      A phase for each round.
    """
    before = [restart if i or restart_first else restarts.no_restart for i in range(len(arrivals))]
    return tuple(Phase(engine, lanes, *each) for each in zip(arrivals, before, strict=True))


class Finished(NamedTuple):
    """A group that has finished a round."""

    group: Group
    results: list[RoundResult]  # [L]
    owner: str  # the group that trained the round: this one, or one that was the same so far
    measures: dict[str, np.ndarray]  # [L] each: what `Watch.measure` found

    @property
    def trained(self) -> bool:
        """Whether the group trained the round itself."""
        return self.owner == self.group.name


class Watch(NamedTuple):
    """What is looked at while groups train; off the hot path where it is not asked for."""

    on_chunk: Callable[[Sequence[Group], int, Progress], None] | None = None  # of a pool, every few seconds; no state
    on_epoch: Callable[[Group, int, Lane, Progress], None] | None = None  # on the devices; slower, see `Engine.train`
    measure: Callable[[Phase, Lane, TrainState, TrainState], dict] | None = None  # of the states around a round

    @property
    def alone(self) -> bool:
        """Whether each group trains by itself: what is looked at is one group's."""
        return bool(self.on_epoch or self.measure)


NOTHING = Watch()


def run(groups: Sequence[Group], *, store: Store | None = None, watch: Watch = NOTHING) -> Iterator[Finished]:
    """Trains all groups through all their rounds.

    All groups finish a round before the next one begins. Groups that have been the same so far share their rounds: the
    first one, which no restart precedes, is trained once for all settings that differ in their restart alone.

    Args:
      groups: names must be unique.
      store: where the states are saved after each round, and taken from: rounds that it holds are not trained again.
      watch: what is called meanwhile.

    Yields:
      Each group as it finishes a round. Its checkpoint is written when the next one is asked for, so what was yielded
      and written down is never older than the checkpoint.
    """
    states, done = _restore(groups, store) if store else ({}, {})
    histories = _histories(groups)
    placed = {}
    for round_ in range(1, 1 + max((len(group.phases) for group in groups), default=0)):
        training_now = [g for g in groups if done.get(g.name, 0) < round_ <= len(g.phases)]
        owners = {}  # by history, for those who share it
        for group in training_now:
            owners.setdefault(histories[group.name][round_ - 1], group)
        finished = {}  # by the owner's name, until all who share it have it
        for group in training_now:
            owner = owners[histories[group.name][round_ - 1]].name
            if owner not in finished:
                pool = _pool(owners.values(), group, round_, finished, watch)
                finished |= _train(pool, round_, [states.get(g.name) for g in pool], placed, watch)
            states[group.name], results, measures = finished[owner]
            yield Finished(group, results, owner, measures)
            if store is not None:
                store.save(group.name, round_, states[group.name])
            if round_ == len(group.phases):
                del states[group.name]


def _pool(owners, first, round_, finished, watch):
    """The group and those after it that train with it: in one engine, on as many samples, from states of one kind."""

    def kind(group):
        engine, _, num_visible, _ = group.phases[round_ - 1]
        return engine, num_visible, round_ > 1 and group.phases[round_ - 2].engine

    pool, room = [first], first.phases[round_ - 1].engine.num_lanes - len(first.phases[round_ - 1].lanes.seed)
    for group in () if watch.alone else owners:
        count = len(group.phases[round_ - 1].lanes.seed)
        if group is not first and group.name not in finished and kind(group) == kind(first) and count <= room:
            pool, room = [*pool, group], room - count
    return pool


def train_round(
    phase: Phase,
    round_: int,
    lanes: Lane,
    state: TrainState | None,
    *,
    on_chunk: Callable | None = None,
    on_epoch: Callable | None = None,
    measure: Callable | None = None,
) -> tuple[TrainState, list[RoundResult], dict[str, np.ndarray]]:
    """Restarts and trains all lanes of a phase until converged, then evaluates them.

    Args:
      phase: what happens in the round.
      round_: counted from 1.
      lanes: the phase's, as placed by its engine.
      state: on the devices, after the last round; None draws the first initialisation.
      on_chunk: see `Engine.train`.
      on_epoch: see `Engine.train`.
      measure: see `Watch`.

    Returns:
      The state after the round, on the devices; the results, [L]; the measures, [L] each.
    """
    engine, _, num_visible, restart = phase
    count = len(phase.lanes.seed)
    start, compiled = time.monotonic(), engine.compile_seconds
    state = engine.init(lanes) if state is None else state
    progress = engine.begin(lanes, state, restart, round_, num_visible)
    before = jax.tree.map(jnp.copy, progress.state) if measure else None
    on_lanes = on_chunk and (lambda progress: on_chunk(jax.tree.map(lambda x: x[:count], progress)))
    progress = engine.train(lanes, progress, round_, num_visible, on_lanes, on_epoch)
    evaluation = engine.fetch(engine.evaluate(lanes, progress.state), count)
    measures = measure(phase, lanes, before, progress.state) if measure else {}
    seconds = time.monotonic() - start - (engine.compile_seconds - compiled)
    summary = engine.fetch(progress.replace(state=None), count)
    results = _results(phase.lanes.seed, round_, num_visible, summary, evaluation, seconds)
    return progress.state, results, engine.fetch(measures, count)


def _train(pool, round_, states, placed, watch):
    """`train_round` of all groups of a pool at once; for each its state, results and measures, on the host."""
    phases = [group.phases[round_ - 1] for group in pool]
    counts = [len(phase.lanes.seed) for phase in phases]
    engine, num_visible = phases[0].engine, phases[0].num_visible
    restart = tuple(phase.restart for phase, count in zip(phases, counts, strict=True) for _ in range(count))
    lanes = _stack([phase.lanes for phase in phases])
    key = (engine, *(id(phase.lanes) for phase in phases))
    if key not in placed:
        placed[key] = engine.place(lanes)
    state = None if states[0] is None else engine.place(_stack(states))
    looks = {
        "on_chunk": watch.on_chunk and (lambda progress: watch.on_chunk(pool, round_, progress)),
        "on_epoch": watch.on_epoch and (lambda progress: watch.on_epoch(pool[0], round_, placed[key], progress)),
    }
    phase = Phase(engine, lanes, num_visible, restart)
    found = train_round(phase, round_, placed[key], state, measure=watch.measure, **looks)
    state, results, measures = engine.fetch(found[0], len(restart)), *found[1:]
    cuts = np.cumsum([0, *counts])
    return {
        group.name: (jax.tree.map(lambda x, a=a, b=b: x[a:b], state), results[a:b], measures)
        for group, a, b in zip(pool, cuts, cuts[1:], strict=False)
    }


def _stack(trees):
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs), *trees)


def _restore(groups, store):
    """The states of the newest finished rounds, and how many rounds that is."""
    states, done = {}, {}
    for group in groups:
        done[group.name] = min(store.newest(group.name), len(group.phases))
        if done[group.name] > 0:
            engine, lanes, *_ = group.phases[done[group.name] - 1]
            found = store.restore(group.name, engine.shapes(lanes))[1]
            states |= {group.name: found} if done[group.name] < len(group.phases) else {}
    return states, done


def _histories(groups):
    """For each group and round, a name of all that the round depends on: groups of the same name may share it."""
    digests = {}  # of arrays, which phases share

    def digest(array):
        if id(array) not in digests:
            digests[id(array)] = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
        return digests[id(array)]

    def names(group):
        history = ()
        for engine, lanes, num_visible, restart in group.phases:
            if restart is restarts.no_restart:
                lanes = lanes.replace(hparams=lanes.hparams.replace(shrink=None, noise_scale=None))
            arrays = tuple(map(digest, jax.tree.leaves(lanes)))
            history = (history, id(engine), id(restart), num_visible, arrays)
            yield history

    return {group.name: list(names(group)) for group in groups}


def _results(seeds, round_, num_visible, progress, evaluation, seconds):
    return [
        RoundResult(
            seed=int(seeds[i]),
            round=round_,
            num_train=num_visible,
            epochs=int(progress.epoch[i]),
            samples_seen=int(progress.epoch[i]) * num_visible,
            stop_reason=StopReason(int(progress.stop_reason[i])).name.lower(),
            train_accuracy=float(progress.train_accuracy[i]),
            train_loss=float(progress.train_loss[i]),
            validation_accuracy=float(evaluation.accuracy[i]),
            validation_loss=float(evaluation.loss[i]),
            seconds=seconds,
            lanes=len(seeds),
        )
        for i in range(len(seeds))
    ]
