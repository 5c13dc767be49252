"""How many lanes side by side: what was measured decides."""

import jax
import pytest
from helpers import SMALL, TRAINER

from sp_jax import sweeps
from sp_jax.engine import lanes_per_device


class Clock:
    """A clock on which an engine's lanes cost what they are said to."""

    def __init__(self, costs):
        self.costs, self.now, self.tried = costs, 0.0, []

    def make(self, count):
        if self.costs[count] is None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        self.tried.append(count)
        return sweeps.Engine(TRAINER, SMALL, 6, devices=jax.devices()[:1], side_by_side=count)

    def __call__(self):
        self.now += self.costs[self.tried[-1]]
        return self.now


@pytest.mark.parametrize(
    ("costs", "found", "tried"),
    [
        pytest.param({1: 6.0, 4: 2.0, 6: 1.0}, 6, [1, 4, 6], marks=pytest.mark.slow),
        pytest.param({1: 3.0, 4: 1.0, 6: 2.0}, 4, [1, 4, 6], marks=pytest.mark.slow),
        ({1: 1.0, 4: 2.0}, 1, [1, 4]),  # it tries no more where more is slower
        ({1: 1.0, 4: None}, 1, [1]),  # no memory
    ],
)
def test_the_fastest_is_taken(costs, found, tried):
    clock = Clock(costs)
    engine = lanes_per_device.fastest(clock.make, 6, clock)
    assert (engine.side_by_side, clock.tried) == (found, tried)
    assert (engine.used, engine.spent) == (0, 0)


@pytest.mark.slow
def test_it_measures_for_real():
    engine = lanes_per_device.fastest(Clock({1: 1, 2: 1}).make, 2)
    assert engine.side_by_side in (1, 2)
    assert engine.compile_seconds > 0


def test_no_memory_for_one_lane_is_an_error():
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        lanes_per_device.fastest(Clock({1: None}).make, 6)


def test_only_useful_epochs_count():
    """Four lanes at once, in half the time, are no gain where a third of their epochs are of no use."""
    clock = Clock({1: 3.0, 4: 2.0})
    assert lanes_per_device.useful(6, 4) == pytest.approx(21 / (4 * 4 + 2 * 8))
    assert lanes_per_device.fastest(clock.make, 6, clock).side_by_side == 1
