"""A run: all rounds of all groups in sequence, as few programs as there are engines.

Groups that train together are a pool, as far as an engine has room for them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sp_jax.engine.lanes import part_of, stacked
from sp_jax.storage.checkpoints import Store
from sp_jax.sweeps.one_round import train_round
from sp_jax.sweeps.plan import Group, RoundPlan, histories
from sp_jax.sweeps.standing import Standing
from sp_jax.sweeps.watch import NOTHING, Callbacks
from sp_jax.types import RoundResult, TrainState


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
    standing = Standing(groups, store, watch)
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


def _train(pool, round_, standing, placed, watch):
    """Call `train_round` for all groups of a pool at once; return each one's state, results and measures."""
    phases = [group.phases[round_ - 1] for group in pool]
    counts = [len(phase.lanes.seed) for phase in phases]
    cuts = np.cumsum([0, *counts]).tolist()
    engine, num_visible = phases[0].engine, phases[0].num_visible
    restart = tuple(phase.restart for phase, count in zip(phases, counts, strict=True) for _ in range(count))
    lanes = stacked([phase.lanes for phase in phases])
    key = (engine, *(id(phase.lanes) for phase in phases))
    if key not in placed:
        placed[key] = engine.place(lanes)
    states = [standing.states.get(group.name) for group in pool]

    def split(tree):
        return {g.name: part_of(tree, a, b) for g, a, b in zip(pool, cuts, cuts[1:], strict=False)}

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
    state = None if states[0] is None else engine.place(stacked(states))
    state, results, measures = train_round(phase, round_, placed[key], state, midway=standing.midway(pool), **looks)
    state = split(engine.fetch(state, len(restart)))
    standing.end_pool(split, state, results[0].seconds)
    return {
        group.name: (state[group.name], results[a:b], measures)
        for group, a, b in zip(pool, cuts, cuts[1:], strict=False)
    }
