"""Training of many lanes: seeds and settings side by side, rounds in sequence, checkpoints between them.

A group is the lanes of one setting, one for each seed. Groups whose rounds have been identical so far share them; the
others train as one pool as far as an engine has room for them, so that a grid is one program.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sp_jax import divergence, restarts
from sp_jax.engine import Engine, lanes_of, make_lanes
from sp_jax.engine.program import layout
from sp_jax.storage.checkpoints import Store
from sp_jax.training import Lane
from sp_jax.types import Progress, RoundResult, StopReason, TrainState

__all__ = [
    "Callbacks", "Engine", "Finished", "Group", "RoundPlan", "lanes_of", "make_lanes", "rounds", "run", "train_round",
]  # fmt: skip


class RoundPlan(NamedTuple):
    """The plan of one round of a group."""

    engine: Engine  # a round may have another data set, batch size or optimiser than the one before
    lanes: Lane  # [L, ...]
    num_visible: int  # samples that have arrived
    restart: restarts.Restart | tuple = restarts.no_restart  # before the round: of all lanes, or one for each


class Group(NamedTuple):
    """Lanes that run together: one setting, one lane for each seed."""

    name: str  # unique in a run; names the checkpoint
    phases: tuple[RoundPlan, ...]  # one for each round


def rounds(
    engine: Engine, lanes: Lane, restart: restarts.Restart, arrivals: Sequence[int], *, restart_first: bool = False
) -> tuple[RoundPlan, ...]:
    """Make the phases of sequential rounds: samples arrive, restart, train until converged (Sections 2.1 and 2.2).

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
    return tuple(RoundPlan(engine, lanes, *each) for each in zip(arrivals, before, strict=True))


class Finished(NamedTuple):
    """A group that has finished a round."""

    group: Group
    results: list[RoundResult]  # [L]
    owner: str  # the group that trained the round: this one, or one whose rounds were identical so far
    measures: dict[str, np.ndarray]  # [L] each: the result of `Callbacks.measure`
    state: TrainState  # [L, ...] on the host, as the next round's restart finds it

    @property
    def trained(self) -> bool:
        """Whether the group trained the round itself."""
        return self.owner == self.group.name


class Stopped(KeyboardInterrupt):
    """Training was stopped on request (`Callbacks.stop`); resumed, it gives the same results."""


class Callbacks(NamedTuple):
    """Functions called while groups train; those that are None cost nothing."""

    on_chunk: Callable[[Sequence[Group], int, Progress], None] | None = None  # of a pool, every few seconds; no state
    on_epoch: Callable[[Group, int, Lane, Progress], None] | None = None  # on the devices; slower, see `Engine.train`
    measure: Callable[[RoundPlan, int, Lane, TrainState, TrainState], dict] | None = (
        None  # of the states around a round
    )
    stop: Callable[[], bool] | None = None  # called after each chunk: whether to save now and raise `Stopped`
    note: Callable[[], dict] = dict  # plain JSON, saved beside the states

    @property
    def alone(self) -> bool:
        """Whether each group trains by itself, as `on_epoch` and `measure` need."""
        return bool(self.on_epoch or self.measure)


NOTHING = Callbacks()


def run(groups: Sequence[Group], *, store: Store | None = None, watch: Callbacks = NOTHING) -> Iterator[Finished]:
    """Train all groups through all their rounds.

    All groups finish a round before the next one begins. Groups whose rounds have been identical so far share them: the
    first round, which no restart precedes, is trained once for all settings that differ in their restart alone.

    Args:
      groups: names must be unique.
      store: where the states are saved, after each round and every few minutes in the middle of one, and loaded from:
        rounds that it holds are not trained again.
      watch: functions called meanwhile.

    Yields:
      Each group as it finishes a round. A checkpoint is written after all its groups have been consumed, so
      the consumer's records are never older than the checkpoint.

    Raises:
      Stopped: `watch.stop` asked for it.
      CheckpointError: the store's content cannot be read, or nothing can be written to it.
    """
    standing = _Standing(groups, store, watch)
    past = histories(groups)
    placed = {}
    for round_ in range(1, 1 + max((len(group.phases) for group in groups), default=0)):
        training_now = [g for g in groups if standing.done.get(g.name, 0) < round_ <= len(g.phases)]
        owners = {}  # by history, shared by groups
        for group in training_now:
            owners.setdefault(past[group.name][round_ - 1], group)
        finished, states = {}, {}  # by the owner's name; by the group's
        for group in training_now:
            owner = owners[past[group.name][round_ - 1]].name
            if owner not in finished:
                pool = _pool(owners.values(), group, round_, finished, watch)
                finished |= _train(pool, round_, standing, placed, watch)
            states[group.name], results, measures = finished[owner]
            yield Finished(group, results, owner, measures, states[group.name])
        if training_now:
            standing.end_round(round_, states, last=round_ == max(len(group.phases) for group in groups))


class PartialRound(NamedTuple):
    """A group in the middle of a round."""

    progress: Progress  # [L, ...] on the host
    seconds: float  # of the round so far


class _Standing:
    """The state of a run, saved at intervals: all states after a round, and the progress of the next round."""

    def __init__(self, groups, store, watch):
        """Load the checkpoint of the store."""
        self._store, self._watch = store, watch
        self._phases, self._reads = {group.name: group.phases for group in groups}, {}
        self.done, self.states = finished_rounds(groups, store), {}  # by group
        self._midway, self._summary = {}, None  # of the current round, by group; of the newest chunk
        self._unsaved = False  # whether the states are newer than the store's
        whole, part = store.resume() if store else (None, None)
        if whole:
            phases = {g.name: g.phases[self.done[g.name] - 1] for g in groups if self.done.get(g.name)}
            self.states = store.load(whole, {name: _shapes(phase) for name, phase in phases.items()})
        if part:
            phases = {g.name: g.phases[part.note["round"] - 1] for g in groups if g.name in part.note["seconds"]}
            start = jax.vmap(Progress.start)
            found = store.load(part, {name: jax.eval_shape(start, _shapes(phase)) for name, phase in phases.items()})
            self._midway = {name: PartialRound(each, part.note["seconds"][name]) for name, each in found.items()}

    def midway(self, pool):
        """Return the progress of the pool's groups in the round, as one; None where one of them has not begun."""
        found = [self._midway.get(group.name) for group in pool]
        if any(each is None for each in found):
            return None
        return PartialRound(_stack([each.progress for each in found]), max(each.seconds for each in found))

    def chunk(self, round_, summary, split, whole):
        """Save after a chunk, where it is time or a stop is requested.

        `summary` is the pool's progress without its state; `split` returns each group's part of a tree of [L, ...], and
        `whole` fetches the `PartialRound` of the pool.
        """
        self._summary = summary
        asked, due = _any_host(self._watch.stop is not None and self._watch.stop(), self._store and self._store.due())
        if self._store and (asked or due):
            if self._unsaved:
                self._save_round()
            progress, seconds = whole()
            parts = self._midway | {name: PartialRound(each, seconds) for name, each in split(progress).items()}
            note = {"round": round_, "seconds": {name: each.seconds for name, each in parts.items()}}
            trees = {name: each.progress for name, each in parts.items()}
            self._store.save(trees, note | {"watch": self._watch.note()}, midway=True)
        if asked:
            raise Stopped

    def end_pool(self, split, states, seconds):
        """Record that a pool has finished the round, which others may not have; `states` by group."""
        for name, summary in split(self._summary).items():
            self._midway[name] = PartialRound(summary.replace(state=states[name]), seconds)

    def end_round(self, round_, states, *, last):
        """Record that all groups have finished a round, and save, unless that takes long and a later round will do."""
        self.states |= states
        self.done |= dict.fromkeys(states, round_)
        self._midway, self._unsaved = {}, True
        (due,) = _any_host(self._store and (last or self._store.due_after_round()))
        if due:
            self._save_round()

    def _save_round(self):
        kept = {name: self._needed(name, state) for name, state in self.states.items()}
        self._store.save(kept, {"done": self.done, "watch": self._watch.note()})
        self._unsaved = False

    def _needed(self, name, state):
        """Return what a group's next restart reads of its state; the rest is zeros, which cost no room on the disk."""
        later = self._phases[name][self.done[name] :]
        if not later:
            return state
        engine, lanes, _, restart = later[0]
        key = (engine, restart, layout(state))
        if key not in self._reads:
            self._reads[key] = engine.reads(restart, lanes, state)
        return jax.tree.map(lambda x, read: x if read else np.zeros_like(x), state, self._reads[key])


def _pool(owners, first, round_, finished, watch):
    """Return the group and those that train with it: of one engine now and in the round before, with as many
    samples."""

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
    phase: RoundPlan,
    round_: int,
    lanes: Lane,
    state: TrainState | None,
    *,
    midway: PartialRound | None = None,
    on_chunk: Callable[[Progress, Callable[[], PartialRound]], None] | None = None,
    on_epoch: Callable | None = None,
    measure: Callable | None = None,
) -> tuple[TrainState, list[RoundResult], dict[str, np.ndarray]]:
    """Restart and train all lanes of a phase until converged, then evaluate them.

    Args:
      phase: the plan of the round.
      round_: counted from 1.
      lanes: the phase's, as placed by its engine.
      state: on the devices, after the last round; None draws the first initialisation.
      midway: the progress of an interrupted round; None begins it.
      on_chunk: see `Engine.train`; the function that it gets fetches the round's progress so far.
      on_epoch: see `Engine.train`.
      measure: see `Callbacks`.

    Returns:
      The state after the round, on the devices; the results, [L]; the measures, [L] each.
    """
    engine, _, num_visible, restart = phase
    count = len(phase.lanes.seed)
    start, compiled = time.monotonic() - (midway.seconds if midway else 0.0), engine.compile_seconds

    def seconds():
        return time.monotonic() - start - (engine.compile_seconds - compiled)

    def on_lanes(progress, whole):
        on_chunk(_part(progress, 0, count), lambda: PartialRound(_part(whole(), 0, count), seconds()))

    def begin():
        return engine.begin(lanes, engine.init(lanes) if state is None else state, restart, round_, num_visible)

    progress = begin() if midway is None or measure else None
    before = jax.tree.map(jnp.copy, progress.state) if measure else None
    progress = progress if midway is None else engine.place(midway.progress)
    progress = engine.train(lanes, progress, round_, num_visible, on_chunk and on_lanes, on_epoch)
    evaluation = engine.fetch(engine.evaluate(lanes, progress.state, round_), count)
    measures = measure(phase, round_, lanes, before, progress.state) if measure else {}
    summary = engine.fetch(progress.replace(state=None), count)
    results = _results(phase.lanes, engine, round_, num_visible, summary, evaluation, seconds())
    if any(result.stop_reason == "nan" for result in results):
        results = _explained(results, engine, lanes, begin, progress.state)
    return progress.state, results, engine.fetch(measures, count)


def _explained(results, engine, lanes, begin, after):
    """Fill in what was not finite first in lanes that diverged, and set their accuracy and loss to NaN."""
    counts = samples = np.zeros(len(results), int)
    if any(result.stop_reason == "nan" and result.epochs for result in results):  # the others diverged before the round
        look = engine.measure(
            engine.first_lost_sample, lanes, begin().state, np.int32(results[0].num_train), round_=results[0].round
        )
        counts, samples = engine.fetch(look, len(results))
    states, explained = engine.fetch(after, len(results)), []
    for i, result in enumerate(results):
        if result.stop_reason == "nan":
            state = jax.tree.map(lambda x, i=i: x[i], states)
            why = divergence.explain(result, int(counts[i]), int(samples[i]), state)
            result = result._replace(diverged=why, validation_accuracy=math.nan, validation_loss=math.nan)
        explained.append(result)
    return explained


def _train(pool, round_, standing, placed, watch):
    """Call `train_round` for all groups of a pool at once; return each one's state, results and measures."""
    phases = [group.phases[round_ - 1] for group in pool]
    counts = [len(phase.lanes.seed) for phase in phases]
    cuts = np.cumsum([0, *counts]).tolist()
    engine, num_visible = phases[0].engine, phases[0].num_visible
    restart = tuple(phase.restart for phase, count in zip(phases, counts, strict=True) for _ in range(count))
    lanes = _stack([phase.lanes for phase in phases])
    key = (engine, *(id(phase.lanes) for phase in phases))
    if key not in placed:
        placed[key] = engine.place(lanes)
    states = [standing.states.get(group.name) for group in pool]

    def split(tree):
        return {g.name: _part(tree, a, b) for g, a, b in zip(pool, cuts, cuts[1:], strict=False)}

    def on_chunk(progress, whole):
        if watch.on_chunk:
            watch.on_chunk(pool, round_, progress)
        standing.chunk(round_, progress, split, whole)

    looks = {
        "on_chunk": on_chunk,
        "on_epoch": watch.on_epoch and (lambda progress: watch.on_epoch(pool[0], round_, placed[key], progress)),
        "measure": watch.measure,
    }
    phase = RoundPlan(engine, lanes, num_visible, restart)
    state = None if states[0] is None else engine.place(_stack(states))
    state, results, measures = train_round(phase, round_, placed[key], state, midway=standing.midway(pool), **looks)
    state = split(engine.fetch(state, len(restart)))
    standing.end_pool(split, state, results[0].seconds)
    return {
        group.name: (state[group.name], results[a:b], measures)
        for group, a, b in zip(pool, cuts, cuts[1:], strict=False)
    }


def _part(tree, start, stop):
    """Return some of the lanes of [L, ...]."""
    return jax.tree.map(lambda x: x[start:stop], tree)


def _stack(trees):
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs), *trees)


def finished_rounds(groups: Sequence[Group], store: Store | None) -> dict[str, int]:
    """Return how many rounds of each group the store holds as finished."""
    whole = store.resume()[0] if store else None
    done = whole.note["done"] if whole else {}
    return {group.name: min(done.get(group.name, 0), len(group.phases)) for group in groups}


def _shapes(phase):
    return phase.engine.shapes(phase.lanes)


def _any_host(*flags):
    """Return for each flag whether it is set on any host; all hosts must call it at the same time."""
    flags = np.array([bool(flag) for flag in flags])
    return multihost_utils.process_allgather(flags).any(axis=0) if jax.process_count() > 1 else flags


def histories(groups: Sequence[Group]) -> dict[str, list[tuple]]:
    """Return for each group, by name, and each round a key of all that the round depends on: groups with equal keys may
    share the round."""
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


def _results(lanes, engine, round_, num_visible, progress, evaluation, seconds):
    seeds, budget = lanes.seed, _budget(lanes.convergence, num_visible, engine.trainer.batch_size)
    return [
        RoundResult(
            seed=int(seeds[i]),
            round=round_,
            num_train=num_visible,
            epochs=int(progress.epoch[i]),
            samples_seen=min(int(progress.epoch[i]) * num_visible, budget[i]),
            stop_reason=StopReason(int(progress.stop_reason[i])).name.lower(),
            train_accuracy=float(progress.train_accuracy[i]),
            train_loss=float(progress.train_loss[i]),
            validation_accuracy=float(evaluation.accuracy[i]),
            validation_loss=float(evaluation.loss[i]),
            seconds=seconds,
            lanes=len(seeds),
            online_accuracy=float(progress.accuracy_sum[i]) / max(int(progress.epoch[i]), 1),
        )
        for i in range(len(seeds))
    ]


def _budget(rule, num_visible, batch_size):
    """Return the most samples that a round may visit, of each lane."""
    found = np.full(len(rule.max_epochs), np.iinfo(np.int64).max)
    if rule.max_samples is not None:
        found = np.minimum(found, rule.max_samples)
    if rule.max_steps is not None:
        whole, rest = np.divmod(np.asarray(rule.max_steps, np.int64), -(-num_visible // batch_size))
        found = np.minimum(found, whole * num_visible + np.minimum(rest * batch_size, num_visible))
    return found.tolist()
