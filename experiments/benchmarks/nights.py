"""Ten nights of three tasks: each restart's quality, samples and seconds, beside a loop written by hand.

pip install '.[retrain]'                      brings scikit-learn
python -m experiments.benchmarks.nights       on two cores two minutes

Regression is scikit-learn's friedman1, the binary task its classification of 5 % positives, the text the embedded
reviews; each night brings a tenth. All stop where the loss on the held-out samples was best.
"""

import inspect
import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import sp_jax
from experiments.benchmarks import by_hand
from experiments.reporting.summary import markdown
from sp_jax import tasks
from sp_jax.fitting import kept
from sp_jax.training import Convergence

PATIENCE, MAX_EPOCHS = 5, 100
RULE = Convergence(monitor="validation_loss", patience=PATIENCE, restore_best=True, max_epochs=MAX_EPOCHS)
RESTARTS = ("random_init", "warm_start", "shrink_perturb")


class Net(nn.Module):
    """Two hidden layers; tokens are embedded and averaged."""

    outputs: int
    words: int = 0

    @nn.compact
    def __call__(self, x):
        """Map [B, F] numbers or [B, T] tokens to [B, outputs]."""
        if self.words:
            there = (x > 0)[..., None]
            x = jnp.sum(nn.Embed(self.words, 32)(x) * there, axis=1) / jnp.maximum(jnp.sum(there, axis=1), 1)
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(self.outputs)(x)


class Problem(NamedTuple):
    """A task with its samples; the last tenth or so is held out."""

    task: str
    measure: str  # of `Fit.score`
    network: nn.Module
    inputs: np.ndarray
    targets: np.ndarray
    num_train: int


def problems() -> dict[str, Problem]:
    """Make the three, always the same."""
    from sklearn import datasets

    x, y = datasets.make_friedman1(11_000, noise=1.0, random_state=0)
    x, y = x.astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)
    rare, clicked = datasets.make_classification(
        11_000, 20, n_informative=8, n_clusters_per_class=4, weights=[0.95], flip_y=0.01, random_state=0
    )
    text = sp_jax.data.reviews()
    words = int(np.max(text.inputs)) + 1
    return {
        "regression": Problem("regression", "r2", Net(1), x, y, 10_000),
        "binary, 5 % positive": Problem("binary", "auc", Net(1), rare.astype(np.float32), clicked, 10_000),
        "text": Problem("classification", "accuracy", Net(2, words), np.asarray(text.inputs), text.labels, 2_000),
    }


class Nights(NamedTuple):
    """What ten nights gave."""

    score: float
    samples: int
    first: float  # seconds of the first night, with compiling
    others: float  # of the nine others


def fit(problem: Problem, restart: str) -> Nights:
    """Train ten nights with `fit_rounds`."""
    kept.forget()  # or only the first restart's first night would compile
    x, y, stop, found, seconds = problem.inputs, problem.targets, problem.num_train, None, []
    held = x[stop:], y[stop:]
    for night in range(1, 11):
        start, count = time.perf_counter(), night * stop // 10
        found = sp_jax.fit_rounds(
            0, x[:count], y[:count], network=problem.network, task=problem.task, validation=held, convergence=RULE,
            restart=restart, since=found,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
    samples = sum(result.samples_seen for result in found.history)
    return Nights(found.score(*held)[problem.measure], samples, seconds[0], sum(seconds[1:]))


def hand(problem: Problem) -> Nights:
    """Train ten nights with the loop by hand."""
    x, stop, how = problem.inputs, problem.num_train, {"patience": PATIENCE, "max_epochs": MAX_EPOCHS}
    task = tasks.as_task(problem.task, problem.targets)
    y = task.check("targets", np.asarray(problem.targets))
    held, seconds = (x[stop:], y[stop:]), []
    for nights in (1, 10):
        start, arrivals = time.perf_counter(), [night * stop // 10 for night in range(1, nights + 1)]
        params, samples = by_hand.nights(problem.network, task.losses, x, y, held, arrivals, **how)
        seconds.append(time.perf_counter() - start)
    state: Any = sp_jax.TrainState(params, {}, ())
    found = sp_jax.fitting.Fit(sp_jax.models.as_model(problem.network, x[:1]), state, (), {}, task)
    return Nights(found.score(*held)[problem.measure], samples, seconds[0], seconds[1] - seconds[0])


def main() -> None:
    """Print the table."""
    rows = []
    for name, problem in problems().items():
        found = {restart: fit(problem, restart) for restart in RESTARTS} | {"by hand": hand(problem)}
        for who, (score, samples, first, others) in found.items():
            cells = (f"{problem.measure} {score:.3f}", f"{samples:,}", f"{first:.1f}", f"{others:.1f}")
            rows.append((name, who, *cells, f"{found['by hand'].others / others:.1f}x"))
    header = ("task", "restart", "at the end", "samples", "first night, s", "nine nights, s", "speed from then on")
    print(markdown([header, *rows]))
    print(f"\nThe loop by hand is shrink-perturb, {len(inspect.getsource(by_hand.nights).splitlines())} lines.")


if __name__ == "__main__":
    main()
