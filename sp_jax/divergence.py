"""Lanes that diverged: the first value that was not finite, in words, and a warning class."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.tasks import cross_entropy
from sp_jax.transforms.filters import is_changeable, path_name
from sp_jax.types import Model, RoundResult, TrainState

BATCH = 500  # samples at a time


class DivergenceWarning(RuntimeWarning):
    """A lane diverged: its loss or its network is no longer finite."""


def first_not_finite(state: TrainState) -> str:
    """Return the path of the first parameter or statistic that is not finite, in words; "" where all are finite.

    Args:
      state: of one lane; its optimiser's state is not checked.
    """
    for kind, tree in (("parameter", state.params), ("statistic", state.batch_stats)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if is_changeable(leaf) and not np.isfinite(np.asarray(leaf)).all():
                return f"{kind} {path_name(path)!r}"
    return ""


def first_lost_sample(model: Model, losses: Callable = cross_entropy) -> Callable:
    """Make a measure, as `Engine.measure` runs it: the samples whose loss under a network is not finite.

    Args:
      model: its two functions.
      losses: of the task.

    Returns:
      `measure(lane, state, data, num_visible)`, in evaluation mode: how many of the samples that have arrived have no
      finite loss (0 where data are streamed, which are not checked), and the index of the first.
    """

    def measure(lane, state, data, num_visible):
        if data is None:
            return jnp.int32(0), jnp.int32(0)
        count = lane.order.shape[0]
        places = jnp.arange(-(-count // BATCH) * BATCH, dtype=jnp.int32).reshape(-1, BATCH)

        def lost(places):
            chosen = lane.order[jnp.minimum(places, count - 1)]
            samples = data.take(chosen)
            outputs, _ = model.apply(state.params, state.batch_stats, samples.inputs, None, False)
            return ~jnp.isfinite(losses(outputs, samples.labels)) & (places < num_visible)

        found = jnp.ravel(jax.lax.map(lost, places))
        return jnp.sum(found, dtype=jnp.int32), lane.order[jnp.argmax(found)]

    return measure


def explain(result: RoundResult, lost: int, sample: int, state: TrainState) -> str:
    """Return what was not finite first in a lane that diverged.

    Args:
      result: of the lane's round.
      lost: how many samples had a loss that was not finite before the round's first step.
      sample: the index of the first of them in the order of arrival.
      state: of the lane, after the round.

    Returns:
      A part of a sentence.
    """
    found, when = first_not_finite(state), f"in epoch {result.epochs}: "
    if result.epochs == 0:
        return f"before its first epoch: {found or 'a network'} was not finite when it began"
    if lost == result.num_train:
        return f"{when}the loss of all {lost:,} samples was not finite before the first step"
    if lost:
        others = f" (and of {lost - 1:,} more)" if lost > 1 else ""
        return f"{when}the loss of sample {sample}{others} was not finite before the first step: look at its input"
    if np.isfinite(result.train_loss):
        return f"{when}{found or 'a parameter'} was not finite after the last step, while the loss still was"
    return f"{when}the loss was not finite" + (f", nor is {found}" if found else "")


def check_finite(what: str, state: TrainState, advice: str) -> None:
    """Raise a ValueError with the advice where a network is not finite.

    Args:
      what: whose network, for the message.
      state: of one lane.
      advice: what to do.
    """
    if found := first_not_finite(state):
        raise ValueError(f"{what} has diverged, its {found} is not finite: {advice}")
