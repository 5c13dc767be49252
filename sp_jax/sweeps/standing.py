"""The state of a run between its rounds and in the middle of one: what is saved, and resumed from."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from sp_jax.engine.lanes import stacked
from sp_jax.engine.program import layout
from sp_jax.storage.checkpoints import Store
from sp_jax.sweeps.plan import Group
from sp_jax.sweeps.watch import Stopped
from sp_jax.types import Progress


class PartialRound(NamedTuple):
    """A group in the middle of a round."""

    progress: Progress  # [L, ...] on the host
    seconds: float  # of the round so far


class Standing:
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
        return PartialRound(stacked([each.progress for each in found]), max(each.seconds for each in found))

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
