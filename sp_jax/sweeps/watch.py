"""Functions that are called while groups train."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sp_jax.sweeps.plan import Group, RoundPlan
from sp_jax.training import Lane
from sp_jax.types import Progress, TrainState


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
