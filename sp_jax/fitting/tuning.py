"""The choice of λ and σ by trial on the data at hand (Section 2.2, the grid of Figure 8)."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import numpy as np
import optax

from sp_jax import sweeps
from sp_jax.divergence import DivergenceWarning
from sp_jax.engine import check_count
from sp_jax.fitting.checks import check_grid, check_seed, warn_of_majority
from sp_jax.fitting.evaluation_weights import evaluation_state
from sp_jax.fitting.fit import Fit, check_since, grown_since
from sp_jax.fitting.preparing import (
    Samples,
    Setting,
    arrays_of,
    as_optimizer,
    prepare,
    released,
    stacked,
    task_since,
)  # fmt: skip
from sp_jax.tasks import Task
from sp_jax.training import Convergence
from sp_jax.transforms.layouts import Layouts
from sp_jax.types import GOALS, HParams, RoundResult


class Choice(NamedTuple):
    """One setting that `tune_restart` tried."""

    shrink: float  # λ
    noise_scale: float  # σ
    accuracy: float  # fraction, on the validation samples, mean over the seeds that did not diverge; NaN if all did
    samples_seen: float  # until converged, mean over those seeds
    converged: int  # of the seeds
    diverged: int = 0  # of the seeds


class Tuned(NamedTuple):
    """The result of `tune_restart`."""

    best: Choice
    table: tuple[Choice, ...]  # one for each pair of the grid; best accuracy first
    standard_error: float  # of the best accuracy, a fraction
    samples_seen: int  # by all lanes together
    seconds: float  # wall time of training, compiling left out
    wall_seconds: float = math.nan  # of the whole call, compiling included

    @property
    def saving(self) -> str:
        """What the choice saves beside random init, and what the trial cost, in one line; "" if that was not tried."""
        fresh = [each for each in self.table if each.shrink == 0 and each.noise_scale == 1]
        if not fresh or not fresh[0].samples_seen > 0:
            return ""
        less = 1 - self.best.samples_seen / fresh[0].samples_seen
        second = self.seconds / max(self.samples_seen, 1)  # for each sample
        seen = self.best.samples_seen, fresh[0].samples_seen
        best, others = (f"{n:,.0f} samples ({n * second:.2g} s)" for n in seen)
        return (
            f"λ={self.best.shrink:g} σ={self.best.noise_scale:g} visits {best}, random init {others}: {abs(less):.0%} "
            f"{'fewer' if less >= 0 else 'more'}; the trial took {self.wall_seconds:.1f} s, "
            f"{self.wall_seconds - self.seconds:.1f} of them compiling and preparing"
        )


GRID = ((1.0, 0.0), (0.0, 1.0), *((lam, sigma) for lam in (0.8, 0.6, 0.4, 0.2) for sigma in (0.1, 0.01)))


def tune_restart(
    seed: int,
    inputs: chex.ArrayTree,
    labels: chex.Array,
    since: Fit,
    *,
    network: Any,
    validation: Samples,
    grid: Sequence[tuple[float, float]] = GRID,
    seeds: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int = 128,
    convergence: Convergence | None = None,
    where: Callable | None = None,
    switch: Mapping[str, bool] | None = None,
    mask: str | None = None,
    layouts: Layouts | None = None,
    task: str | Task | None = None,
    weights: chex.Array | None = None,
    class_weights: str | Mapping[int, float] | None = None,
    trainable: Callable | None = None,
    augment: Callable | None = None,
) -> Tuned:
    """Choose λ and σ by trial: restart the last round's network with each pair, and train it on all samples.

    All settings and seeds are lanes of one program. The rule: of the settings whose accuracy is within one standard
    error of the best one's, the one that visited the fewest samples. The standard error is that of the mean over the
    seeds where there are three or more, else the binomial one of the validation samples (none where the metric is no
    fraction of right predictions: then the best setting is chosen). Lanes that diverged are out
    of the means; a setting with such a lane is chosen only where all have one.

    Args:
      seed: non-negative integer, the first of the seeds.
      inputs: [N, ...], all samples that have arrived.
      labels: [N] integers.
      since: the fit of the rounds before these samples arrived.
      network: as in `fit_rounds`, the network of `since`.
      validation: `(inputs, labels)` to compare by.
      grid: pairs (λ, σ); the warm start (1, 0) and random init (0, 1) are among the default's ten.
      seeds: how many orders of epochs and freshly drawn networks to try each setting with.
      optimizer: as in `fit_rounds`.
      batch_size: as in `fit_rounds`.
      convergence: as in `fit_rounds`.
      where: as in `fit_rounds`.
      switch: as in `fit_rounds`.
      mask: as in `fit_rounds`.
      layouts: as in `fit_rounds`.
      task: as in `fit_rounds`, by default that of `since`.
      weights: as in `fit_rounds`.
      class_weights: as in `fit_rounds`.
      trainable: as in `fit_rounds`.
      augment: as in `fit_rounds`.

    Returns:
      A `Tuned`; `best.shrink` and `best.noise_scale` are for the next `fit_rounds`.

    Raises:
      ValueError: as `fit_rounds`, a grid without a pair, or all lanes diverged.

    Warns:
      DivergenceWarning: lanes diverged: which, when, and what was not finite first.
    """
    start = time.perf_counter()
    check_grid(grid)
    check_count("seeds", seeds)
    check_since(since)
    check_seed(seed)
    if validation is None:
        raise ValueError("validation must be (inputs, labels): without them there is nothing to choose by")
    lams, sigmas = (np.repeat(np.float32(x), seeds) for x in zip(*grid, strict=True))
    tried, hparams = np.tile(seed + np.arange(seeds), len(grid)), HParams(shrink=lams, noise_scale=sigmas)
    setting = Setting(
        network, as_optimizer(optimizer), batch_size, convergence, switch, mask, task_since(task, since),
        class_weights, trainable, augment,
    )  # fmt: skip
    arrived, held, setting = arrays_of((inputs, labels, weights), validation, setting)
    prepared, lanes, _ = prepare(tried, hparams, arrived, held, setting)
    with released(prepared) as engine:
        grown_since(since, prepared.model, arrived.inputs, layouts)
        warn_of_majority(arrived, np.arange(arrived.count), setting.task, setting.convergence)
        restart = prepared.restart("shrink_perturb", setting, where, layouts)
        state = engine.place(stacked(evaluation_state(since.state), len(tried)))
        phase = sweeps.RoundPlan(engine, lanes, arrived.count, restart)
        _, results, _ = sweeps.train_round(phase, len(since.history) + 1, engine.place(lanes), state)
    _warn_of_lost(np.repeat(np.array(grid, float), seeds, axis=0), results)
    bounded = setting.task.counts
    tuned = _choose(grid, np.reshape(np.array(results, object), (len(grid), seeds, -1)), held.count, bounded)
    return tuned._replace(wall_seconds=time.perf_counter() - start)


def _warn_of_lost(pairs, results):
    """Warn of lanes that diverged; raise a ValueError where all did."""
    lost = [
        f"λ={lam:g} σ={sigma:g} seed {result.seed} {result.diverged}"
        for (lam, sigma), result in zip(pairs, results, strict=True)
        if result.stop_reason == "nan"
    ]
    if not lost:
        return
    shown = "; ".join(lost[:4]) + ("; …" if len(lost) > 4 else "")
    if len(lost) == len(results):
        raise ValueError(f"all {len(lost)} lanes diverged, so there is nothing to choose: {shown}")
    warnings.warn(f"{len(lost)} of {len(results)} lanes diverged: {shown}", DivergenceWarning, stacklevel=3)


def _choose(grid, results, num_validation, bounded=True):
    """Apply the rule of `tune_restart`; `results` [settings, seeds, fields]; a bounded metric is a fraction right."""
    field = {name: i for i, name in enumerate(RoundResult._fields)}
    reasons = results[..., field["stop_reason"]]
    lost = reasons == "nan"
    accuracy, seen = (
        np.ma.masked_array(results[..., field[name]].astype(float), lost)
        for name in ("validation_accuracy", "samples_seen")
    )
    means, costs = (x.mean(axis=1).filled(np.nan) for x in (accuracy, seen))
    converged, lost = np.isin(reasons, GOALS).sum(axis=1), lost.sum(axis=1)
    fields = zip(means, costs, converged, lost, strict=True)
    choices = [
        Choice(*map(float, pair), float(mean), float(cost), int(whole), int(gone))
        for pair, (mean, cost, whole, gone) in zip(grid, fields, strict=True)
    ]
    open_ = [i for i in range(len(grid)) if not lost[i]] or [i for i in range(len(grid)) if not np.isnan(means[i])]
    top = max(open_, key=lambda i: means[i])
    count = int(accuracy[top].count())
    binomial = math.sqrt(means[top] * (1 - means[top]) / num_validation) if bounded else 0.0
    error = float(accuracy[top].std(ddof=1) / math.sqrt(count)) if count >= 3 else binomial
    best = min((choices[i] for i in open_ if means[i] >= means[top] - error), key=lambda c: c.samples_seen)
    table = tuple(sorted(choices, key=lambda c: (math.isnan(c.accuracy), -c.accuracy)))
    total = int(results[..., field["samples_seen"]].astype(float).sum())
    return Tuned(best, table, error, total, float(results[0, 0, field["seconds"]]))
