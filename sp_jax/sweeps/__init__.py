"""Training of many lanes: seeds and settings side by side, rounds in sequence, checkpoints between them.

A group is the lanes of one setting, one for each seed. Groups whose rounds have been identical so far share them; the
others train as one pool as far as an engine has room for them, so that a grid is one program.
"""

from sp_jax.engine import Engine, lanes_of, make_lanes
from sp_jax.sweeps.one_round import train_round
from sp_jax.sweeps.plan import Group, RoundPlan, rounds, shared_rounds
from sp_jax.sweeps.pools import Finished, run
from sp_jax.sweeps.standing import finished_rounds
from sp_jax.sweeps.watch import Callbacks, Stopped

__all__ = [
    "Callbacks", "Engine", "Finished", "Group", "RoundPlan", "Stopped", "finished_rounds", "lanes_of", "make_lanes",
    "rounds", "run", "shared_rounds", "train_round",
]  # fmt: skip
