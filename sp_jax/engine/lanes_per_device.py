"""The number of lanes that a device should train at once: measured, as no rule fits all networks and devices.

Lanes side by side (`vmap`) use a device that one lane cannot fill; but a ResNet's convolutions become grouped ones,
which some devices run slowly, and memory limits their number. And a batch runs until its slowest lane has converged: of
the epochs that it has time for only some are of use.
"""

import logging
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from sp_jax import restarts
from sp_jax.engine.engine import Engine
from sp_jax.engine.lanes import check_count, make_lanes
from sp_jax.training import Convergence
from sp_jax.types import HParams

logger = logging.getLogger(__name__)

BATCHES = 8  # in the epoch of a lane that is timed
STEP = 4  # the factor from one number of lanes to the next


def fastest(make: Callable[[int], Engine], most: int, clock: Callable[[], float] = time.perf_counter) -> Engine:
    """Return the engine that trains most useful samples a second (`useful`): try 1, 4, 16, … lanes side by side while
    each is faster.

    Args:
      make: makes the engine with a given number of lanes side by side.
      most: the largest number of lanes side by side on a device.
      clock: seconds.

    Returns:
      The fastest engine, its programs compiled.

    Raises:
      ValueError: `most` is below 1.
      jax.errors.JaxRuntimeError: memory does not suffice for one lane.
    """
    check_count("most", most)
    best, best_rate, count = None, 0.0, 1
    while True:
        engine, rate = _measured(make, count, clock)
        rate *= useful(most, count)
        if rate <= best_rate:
            break
        best, best_rate = engine, rate
        if count == most:
            break
        count = min(count * STEP, most)
    rate = f"{best_rate:,.0f}"
    logger.info("%d of %d lanes side by side on a device: %s useful samples/s", best.side_by_side, most, rate)
    return best


def useful(lanes: int, side_by_side: int) -> float:
    """Return the share of a device's epochs that lanes need, where the length of their rounds is spread evenly from
    nothing to the longest, about as in the grid of Figure 8.

    >>> [round(useful(25, n), 2) for n in (1, 4, 16, 25)]
    [1.0, 0.89, 0.6, 0.52]

    Args:
      lanes: of a device; as some stop, those that still run fill whole batches.
      side_by_side: of a batch.
    """
    running = np.arange(1, lanes + 1)
    return float(running.sum() / (np.ceil(running / side_by_side) * side_by_side).sum())


def _measured(make, count, clock):
    """Return an engine and its samples/s; None and 0 where memory is exhausted with more than one lane."""
    try:
        engine = make(count)
        return engine, _rate(engine, clock)
    except jax.errors.JaxRuntimeError as error:
        if count == 1 or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, 0.0


def _rate(engine, clock):
    """Return the samples/s of a short epoch of all lanes, run for the second time; the same on all hosts."""
    count = len(engine.data.labels)
    hosts_lanes = make_lanes(range(engine.num_lanes), HParams(), Convergence.exactly(1), count)
    lanes, samples = engine.place(hosts_lanes), min(BATCHES * engine.trainer.batch_size, hosts_lanes.order.shape[1])
    state = engine.init(lanes)
    for _ in range(2):
        progress = jax.block_until_ready(engine.begin(lanes, state, restarts.no_restart, 1, samples))
        start = clock()
        jax.block_until_ready(engine.train(lanes, progress, 1, samples))
        rate = engine.num_lanes * samples / (clock() - start)
    engine.used = engine.spent = 0
    return float(multihost_utils.broadcast_one_to_all(np.float32(rate))) if jax.process_count() > 1 else rate
