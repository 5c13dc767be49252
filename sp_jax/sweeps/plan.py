"""What is trained: groups of lanes, and the rounds of each; which groups share a round."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from sp_jax import restarts
from sp_jax.engine import Engine
from sp_jax.training import Lane


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


def shared_rounds(groups: Sequence[Group], done: Mapping[str, int]) -> dict[str, list[bool]]:
    """Return for each group, by name, and each round whether a group before it trains the round for both; `done` are
    the finished rounds of each group, by default none, which nobody trains again."""
    trained, found = set(), {}
    for name, keys in histories(groups).items():
        found[name] = [key in trained for key in keys]
        trained.update(keys[done.get(name, 0) :])
    return found
