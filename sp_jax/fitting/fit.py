"""What a round leaves: the network, the history, and where it lost its way."""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.fitting.arrays import as_arrays
from sp_jax.fitting.evaluation_weights import evaluation_state
from sp_jax.fitting.scores import score
from sp_jax.tasks import Task, classification
from sp_jax.transforms import growth
from sp_jax.transforms.layouts import merged
from sp_jax.types import Model, RoundResult, TrainState

PREDICTED = 1000  # samples at a time


class Fit(NamedTuple):
    """A network after its newest round."""

    model: Model
    state: TrainState
    history: tuple[RoundResult, ...]  # of all rounds, those of `since` included
    grown: Mapping[str, tuple]  # path -> (old shape, new shape) of leaves larger than in `since`, as `sp_jax.grown`
    task: Task = classification

    def predict(self, inputs: chex.ArrayTree) -> chex.Array:
        """Return logits [B, classes], or the outputs of another task, of inputs [B, ...], in evaluation mode, with the
        weights that the optimiser keeps for evaluation where it does (schedule-free, Hare and Tortoise).

        Raises:
          ValueError: the network diverged in its last round.
        """
        if self.diverged:
            raise ValueError(f"this network has diverged and predicts nothing: {self.diverged}")
        state = evaluation_state(self.state)
        inputs = jax.tree.map(jnp.asarray, inputs)
        return self.model.apply(state.params, state.batch_stats, inputs, None, False)[0]

    def score(self, inputs: chex.ArrayTree, labels: chex.Array, weights: chex.Array | None = None) -> dict[str, float]:
        """Return measures on samples [N, ...], by name (scikit-learn's): accuracy, log loss and recall by class; log
        loss and AUC of a binary task; R², root of the mean squared and mean absolute error of a regression.

        Raises:
          ValueError: samples that do not fit, scikit-learn is not installed, or the network diverged.
        """
        samples, _ = as_arrays("inputs and labels", inputs, labels, self.task, weights)
        return score(self.task, self.outputs(samples.inputs), samples)

    def outputs(self, inputs: chex.ArrayTree) -> np.ndarray:
        """Return what `predict` gives, of any number of samples [N, ...] on the host, 1,000 at a time."""
        parts = range(0, max(len(jax.tree.leaves(inputs)[0]), 1), PREDICTED)
        found = (self.predict(jax.tree.map(lambda x, i=i: x[i : i + PREDICTED], inputs)) for i in parts)
        return np.concatenate([np.asarray(part) for part in found])

    @property
    def diverged(self) -> str:
        """When the network diverged in its last round, and what was not finite first; "" where it did not."""
        last = self.history[-1] if self.history else None
        return last.diverged or "its loss was not finite" if last and last.stop_reason == "nan" else ""


class DivergedError(ValueError):
    """A round cannot begin, as the network diverged in the one before; `fit` is the last finite fit, or None."""

    def __init__(self, message: str, fit: Fit | None):
        """Store the message and the fit."""
        super().__init__(message)
        self.fit = fit


def check_since(since) -> None:
    """Raise a ValueError where something is no `Fit`."""
    if not isinstance(since, Fit):
        raise ValueError(f"`since` must be what fit_rounds returned, got {type(since).__name__}")


def grown_since(
    since: Fit, model: Model, inputs: chex.ArrayTree | None, layouts=None, renamed=None
) -> dict[str, tuple]:
    """Return which leaves are larger than in `since`; checked on some inputs, or unchecked where `inputs` is None.

    Raises:
      ValueError: `since` holds a network that cannot have grown so; one line.
    """
    old, fresh = since.state.params, jax.eval_shape(model.init, jax.random.key(0))[0]
    declared = merged(model.layouts, layouts)
    try:
        if inputs is None:
            return growth.differences(old, fresh, renamed=renamed)
        found = growth.grown(old, fresh, layouts=declared, renamed=renamed)
        if found and layouts is None:
            growth.check_function(
                since.model,
                old,
                since.state.batch_stats,
                model,
                declared,
                renamed,
                jax.tree.map(lambda x: x[:8], inputs),
            )
    except ValueError as error:
        raise ValueError(f"`since` holds another network: {error}") from error
    return found
