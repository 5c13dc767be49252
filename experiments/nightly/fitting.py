"""What a night asks of `sp_jax`: a fit after yesterday's, a choice of λ and σ, outputs."""

import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

import sp_jax
from experiments.config.fields import UsageError
from experiments.nightly.columns import Preparation, Rows
from experiments.nightly.network import TableNetwork
from sp_jax import tasks
from sp_jax.divergence import DivergenceWarning
from sp_jax.training import Convergence


class Training(NamedTuple):
    """How a network is trained."""

    seed: int = 0
    batch_size: int = 128
    learning_rate: float = 1e-3
    convergence: Convergence | None = None  # that of the task


class Score(NamedTuple):
    """A network on held-out rows."""

    metric: float  # of the task; larger is better
    loss: float


def network(preparation: Preparation, outputs: int | None = None) -> TableNetwork:
    """Make the network of a preparation; by default with an output for each class or label."""
    count = outputs or preparation.outputs
    return TableNetwork(count, len(preparation.numbers), preparation.hidden, preparation.buckets)


def inputs(rows: Rows) -> np.ndarray:
    """Return rows as the network takes them, [N, F + C] float32."""
    return np.concatenate([rows.numbers, rows.categories.astype(np.float32)], axis=1)


def load(path: pathlib.Path, preparation: Preparation, rows: Rows, outputs: int) -> Any:
    """Read a night's network as a `Fit`."""
    return sp_jax.load_fit(path, inputs(rows), network=network(preparation, outputs))


def fit(training: Training, preparation: Preparation, rows: Rows, held_out: Rows, since: Any, pair=(0.6, 0.01)) -> Any:
    """Train a night's network on all visible rows, after `since` by shrink-perturb with a pair (λ, σ)."""
    how = _arguments(training, preparation, rows, held_out)
    shrink, noise_scale = pair
    return _told(
        lambda: sp_jax.fit_rounds(*how.pop("samples"), since=since, shrink=shrink, noise_scale=noise_scale, **how)
    )


def tune(training: Training, preparation: Preparation, rows: Rows, held_out: Rows, since: Any) -> Any:
    """Choose λ and σ: all pairs of the grid train on the visible rows; a `Tuned`, or None where all diverged."""
    how = _arguments(training, preparation, rows, held_out)
    try:
        return _told(lambda: sp_jax.tune_restart(*how.pop("samples"), since, **how))
    except UsageError as error:
        if "diverged" in str(error):
            return None
        raise


def _arguments(training, preparation, rows, held_out):
    """Return what a fit and a choice have in common."""
    return {
        "samples": (training.seed, inputs(rows), rows.labels),
        "network": network(preparation),
        "optimizer": optax.adam(training.learning_rate),
        "validation": (inputs(held_out), held_out.labels, *(() if held_out.weights is None else (held_out.weights,))),
        "batch_size": training.batch_size,
        "convergence": training.convergence,
        "task": preparation.task,
        "weights": rows.weights,
    }


def _told(call: Callable) -> Any:
    """Call; print warnings as one line each, and turn a ValueError into a `UsageError`."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            return call()
        except ValueError as error:
            raise UsageError(f"tonight's training is refused: {error}") from error
        finally:
            for each in found:
                if not issubclass(each.category, (DivergenceWarning, DeprecationWarning)):
                    print(f"note: {' '.join(str(each.message).split())}", flush=True)


def outputs(fitted: Any, rows: Rows) -> np.ndarray:
    """Return a fit's outputs [N, K] for rows."""
    return fitted.outputs(inputs(rows)).reshape(len(rows.numbers), -1)


def score(fitted: Any, preparation: Preparation, held_out: Rows, targets: np.ndarray) -> Score:
    """Measure a fit on held-out rows; `targets` of the training rows say what a regression is compared with."""
    task, found = tasks.as_task(preparation.task, targets), outputs(fitted, held_out)
    weights = np.ones(len(found)) if held_out.weights is None else held_out.weights.astype(float)
    weights = weights if weights.any() else np.ones(len(found))
    right = np.asarray(task.metric(found, held_out.labels), float)
    known = held_out.labels if preparation.task != "classification" else np.minimum(held_out.labels, found.shape[1] - 1)
    losses = np.asarray(task.losses(found, known), float)
    return Score(float(np.average(right, weights=weights)), float(np.average(losses, weights=weights)))


def save(path: pathlib.Path, fitted: Any) -> None:
    """Write a fit's network, atomically."""
    sp_jax.save_fit(path, fitted)
