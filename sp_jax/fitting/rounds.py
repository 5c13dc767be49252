"""Retraining one's own network on one's own arrays as they grow: `fit_rounds` (Section 2.2), and `tune_restart` to
choose λ and σ (the grid of Figure 8, on the data at hand)."""

import math
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax import models, restarts, sweeps, transforms
from sp_jax.divergence import DivergenceWarning, check_finite, first_not_finite
from sp_jax.engine import check_count
from sp_jax.fitting import preparing
from sp_jax.fitting.evaluation_weights import evaluation_state
from sp_jax.fitting.preparing import Samples, Setting, as_optimizer
from sp_jax.storage import networks
from sp_jax.training import Convergence
from sp_jax.transforms import growth
from sp_jax.transforms.layouts import Layouts, merged
from sp_jax.types import HParams, Model, RoundResult, TrainState

RESTARTS = {
    "warm_start": restarts.warm_start,
    "random_init": restarts.random_init,
    "shrink_perturb": restarts.shrink_perturb,
}
IF_DIVERGED = ("raise", "random_init")


class Fit(NamedTuple):
    """A network after its newest round."""

    model: Model
    state: TrainState
    history: tuple[RoundResult, ...]  # of all rounds, those of `since` included
    grown: Mapping[str, tuple]  # path -> (old shape, new shape) of leaves larger than in `since`, as `sp_jax.grown`

    def predict(self, inputs: chex.Array) -> chex.Array:
        """Return logits [B, classes] of inputs [B, ...], in evaluation mode, with the weights that the optimiser keeps
        for evaluation where it does (schedule-free, Hare and Tortoise).

        Raises:
          ValueError: the network diverged in its last round.
        """
        if self.diverged:
            raise ValueError(f"this network has diverged and predicts nothing: {self.diverged}")
        state = evaluation_state(self.state)
        return self.model.apply(state.params, state.batch_stats, jnp.asarray(inputs), None, False)[0]

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


def fit_rounds(
    seed: int,
    inputs: chex.Array,
    labels: chex.Array,
    arrivals: Sequence[int] | None = None,
    *,
    network: Any,
    optimizer: optax.GradientTransformation | None = None,
    restart: str | restarts.Restart = "shrink_perturb",
    shrink: float = 0.6,
    noise_scale: float = 0.01,
    validation: Samples | None = None,
    batch_size: int = 128,
    convergence: Convergence | None = None,
    since: Fit | None = None,
    if_diverged: str = "raise",
    where: Callable | None = None,
    switch: Mapping[str, bool] | None = None,
    mask: str | None = None,
    layouts: Layouts | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Fit:
    """Train in rounds: samples arrive, restart, train until converged (Section 2.2).

    The first round trains a freshly drawn network, or restarts that of `since`, so each call continues from the last
    one. All rounds of a call share one compiled program.

    Args:
      seed: non-negative integer, for initialisations, noise and the order of epochs.
      inputs: [N, ...] NumPy or JAX array, or lists, in the order of arrival.
      labels: [N] integers from 0 on.
      arrivals: how many of the samples have arrived in each round, increasing, at most N; by default one round of all.
      network: a Flax module, or whatever `sp_jax.models.as_model` takes. It may have grown since `since` (a class more,
        a wider layer): the new entries are then freshly drawn, and `Fit.grown` tells where.
      optimizer: an optax optimiser; by default Adam at 0.001. Its state is drawn anew in each round. The weights that
        it keeps for evaluation, if any, are scored, predicted with, saved and restarted.
      restart: before each round: "warm_start", "random_init", "shrink_perturb", or a function from
        `sp_jax.make_restart` (with `shapes="grow"` where the network has grown).
      shrink: λ in [0, 1].
      noise_scale: σ >= 0.
      validation: `(inputs, labels)` to measure each round on; without them its accuracy is NaN.
      batch_size: B; a larger one than N is taken as N.
      convergence: when a round ends; by default the paper's 99 % training accuracy, a plateau, or 1,000 epochs.
      since: what this function returned for earlier rounds.
      if_diverged: what to do where a round begins with a network that is not finite, since the one before diverged:
        `"raise"`, or draw it anew, `"random_init"`.
      where: which parameters (and statistics) a restart by name may change, a filter (`sp_jax.filters`) or a function
        of a path; the others stay. By default all that are trained: those that the optimiser never changes, or that
        the loss does not depend on, stay, with random init too.
      switch: what the network calls its switch between training and evaluation, as `sp_jax.models.as_model` has it.
      mask: the network's argument that takes [B] booleans of real samples, as `as_model` has it.
      layouts: where the network has grown, how its axes are made up that pack two meanings, as `sp_jax.grown` has it
        (a custom `restart` gets them from `make_restart`). Without them it is checked on a few samples that the grown
        network computes the old function where all new entries are zero; `{}` skips the check.
      renamed: where its layers have other names than in `since`, from old to new, as `sp_jax.grown` has it.

    Returns:
      A `Fit`: model, state and the history, a `RoundResult` for each round (`samples_seen` is its cost).

    Raises:
      ValueError: arrays, arrivals or settings that do not fit; one line.
      DivergedError: a round cannot begin (`if_diverged`).

    Warns:
      DivergenceWarning: a round diverged: which, in which epoch, and what was not finite first.

    >>> import numpy as np
    >>> from flax import linen as nn
    >>> x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    >>> monday = fit_rounds(0, x[:32], (x[:32, 0] > 0).astype(int), network=nn.Dense(2), batch_size=8)
    >>> tuesday = fit_rounds(0, x, (x[:, 0] > 0).astype(int), network=nn.Dense(2), batch_size=8, since=monday)
    >>> [(day.round, day.num_train) for day in tuesday.history]
    [(1, 32), (2, 64)]
    """
    transforms.check_shrink(shrink)
    transforms.check_noise_scale(noise_scale)
    preparing.check_seed(seed)
    transforms.check_choice("if_diverged", if_diverged, IF_DIVERGED)
    if since is not None:
        _check_since(since)
        if if_diverged == "raise" and not _forgets(restart, shrink, where):
            check_finite("`since`", since.state, f"give the fit of the day before, or if_diverged={IF_DIVERGED[1]!r}")
    hparams = HParams(shrink=shrink, noise_scale=noise_scale)
    setting = Setting(network, as_optimizer(optimizer), batch_size, convergence or Convergence(), switch, mask)
    model, engine, lanes, inputs = preparing.prepare([seed], hparams, (inputs, labels), validation, setting)
    arrivals = preparing.check_arrivals(arrivals, len(inputs))
    how = {"layouts": layouts, "renamed": renamed}
    keeps = not callable(restart) and restart != "random_init"  # a custom restart does its own checks
    grown = _grown(since, model, inputs if keeps else None, **how) if since else {}
    if where is None and not callable(restart) and restart != "warm_start" and (since or len(arrivals) > 1):
        where = _where_trained(engine, inputs)
    restart = _restart(restart, model, setting, where, **how)
    heal = _restart("random_init", model, setting, None) if if_diverged == "random_init" else None
    fit = Fit(model, since.state if since else None, since.history if since else (), grown)
    placed = engine.place(lanes)
    for num_visible in arrivals:
        preparing.warn_of_majority(labels, num_visible, setting.convergence)
        phase = sweeps.RoundPlan(engine, lanes, num_visible, restarts.no_restart if fit.state is None else restart)
        if heal and fit.state is not None and first_not_finite(fit.state):
            phase = phase._replace(restart=heal)
        fit = _fit_round(phase, placed, fit, measured=validation is not None)
    return fit


def _fit_round(phase, placed, fit, *, measured):
    """Train one more round; warn where it diverged, raise a DivergedError where it could not begin."""
    state = None if fit.state is None else _stacked(evaluation_state(fit.state), 1)
    state, results, _ = sweeps.train_round(
        phase, len(fit.history) + 1, placed, None if state is None else phase.engine.place(state)
    )
    result = results[0] if measured else results[0]._replace(validation_accuracy=math.nan, validation_loss=math.nan)
    if result.stop_reason == "nan":
        what = f"round {result.round} (seed {result.seed}) diverged {result.diverged}"
        if result.epochs == 0:
            last = fit.history[-1] if fit.history else None
            sound = None if last is None or last.stop_reason == "nan" else fit
            raise DivergedError(f"{what}: give if_diverged='random_init' to draw it anew, or other settings", sound)
        warnings.warn(f"{what}; this network predicts nothing and is not saved", DivergenceWarning, stacklevel=3)
    return fit._replace(state=jax.tree.map(lambda x: x[0], state), history=(*fit.history, result))


def _stacked(state, count):
    return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], count, axis=0), state)


def _forgets(restart, shrink, where):
    """Return whether a restart ignores the old parameters."""
    return where is None and (restart == "random_init" or (restart == "shrink_perturb" and shrink == 0))


def _where_trained(engine, inputs):
    """Make a filter of all trained leaves; None where these are all leaves."""
    left = preparing.untrained(engine.trainer, inputs)
    return (lambda path: path not in left) if left else None


def save_fit(path: str | pathlib.Path, fit: Fit) -> None:
    """Save a fit, until the next samples arrive, in one safetensors file, atomically.

    The optimiser's state is left out, since each round draws it anew (Section 2.2).

    Args:
      path: of the file; its folder is made, an older file is replaced.
      fit: what `fit_rounds` returned.

    Raises:
      ValueError: it cannot be written, or it has diverged, and then the older file stays; one line.
    """
    _check_since(fit)
    check_finite("the fit", fit.state, f"it is not saved, and {path} stays as it was")
    state = evaluation_state(fit.state)
    history = [result._asdict() for result in fit.history]
    networks.save(path, state.params, state.batch_stats, note={"history": history})


def load_fit(
    path: str | pathlib.Path,
    inputs: chex.Array,
    *,
    network: Any,
    switch: Mapping[str, bool] | None = None,
    mask: str | None = None,
) -> Fit:
    """Read the fit that `save_fit` wrote, for the next `fit_rounds` to take as `since` (Section 2.2).

    Args:
      path: of the file.
      inputs: [B, ...] as those of `fit_rounds`, for shape and dtype alone.
      network: the network of the fit, as it was; `fit_rounds` may then be given a larger one.
      switch, mask: as in `fit_rounds`.

    Returns:
      The `Fit`, its optimiser's state empty.

    Raises:
      ValueError: no such file, or it is damaged, or holds another network; one line.

    >>> import tempfile
    >>> from flax import linen as nn
    >>> x, y = np.eye(4, dtype="float32"), np.arange(4) % 2
    >>> monday = fit_rounds(0, x, y, network=nn.Dense(2))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "fit.safetensors"
    >>> save_fit(path, monday)
    >>> len(load_fit(path, x, network=nn.Dense(2)).history)
    1
    """
    model = models.as_model(network, np.asarray(inputs)[:1], switch=switch, mask=mask)
    saved = networks.load(path, like=jax.eval_shape(model.init, jax.random.key(0)))
    if "history" not in saved.note:
        raise ValueError(f"{path} holds a network but no fit: it was not written by save_fit")
    history = tuple(RoundResult(**result) for result in saved.note["history"])
    return Fit(model, TrainState(saved.params, saved.batch_stats, ()), history, {})


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
    seconds: float  # wall time, compiling left out


GRID = ((1.0, 0.0), (0.0, 1.0), *((lam, sigma) for lam in (0.8, 0.6, 0.4, 0.2) for sigma in (0.1, 0.01)))


def tune_restart(
    seed: int,
    inputs: chex.Array,
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
) -> Tuned:
    """Choose λ and σ by trial: restart the last round's network with each pair, and train it on all samples.

    All settings and seeds are lanes of one program. The rule: of the settings whose accuracy is within one standard
    error of the best one's, the one that visited the fewest samples. The standard error is that of the mean over the
    seeds where there are three or more, else the binomial one of the validation samples. Lanes that diverged are out
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
      optimizer, batch_size, convergence, where, switch, mask, layouts: as in `fit_rounds`.

    Returns:
      A `Tuned`; `best.shrink` and `best.noise_scale` are for the next `fit_rounds`.

    Raises:
      ValueError: as `fit_rounds`, a grid without a pair, or all lanes diverged.

    Warns:
      DivergenceWarning: lanes diverged: which, when, and what was not finite first.
    """
    preparing.check_grid(grid)
    check_count("seeds", seeds)
    _check_since(since)
    preparing.check_seed(seed)
    if validation is None:
        raise ValueError("validation must be (inputs, labels): without them there is nothing to choose by")
    lams, sigmas = (np.repeat(np.float32(x), seeds) for x in zip(*grid, strict=True))
    tried = np.tile(seed + np.arange(seeds), len(grid))
    setting = Setting(network, as_optimizer(optimizer), batch_size, convergence or Convergence(), switch, mask)
    hparams = HParams(shrink=lams, noise_scale=sigmas)
    model, engine, lanes, inputs = preparing.prepare(tried, hparams, (inputs, labels), validation, setting)
    _grown(since, model, inputs, layouts)
    preparing.warn_of_majority(labels, len(inputs), setting.convergence)
    where = _where_trained(engine, inputs) if where is None else where
    state = engine.place(_stacked(evaluation_state(since.state), len(tried)))
    phase = sweeps.RoundPlan(engine, lanes, len(inputs), _restart("shrink_perturb", model, setting, where, layouts))
    _, results, _ = sweeps.train_round(phase, len(since.history) + 1, engine.place(lanes), state)
    _warn_of_lost(np.repeat(np.array(grid, float), seeds, axis=0), results)
    return _choose(grid, np.reshape(np.array(results, object), (len(grid), seeds, -1)), len(validation[1]))


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


def _choose(grid, results, num_validation):
    """Apply the rule of `tune_restart`; `results` [settings, seeds, fields]."""
    field = {name: i for i, name in enumerate(RoundResult._fields)}
    reasons = results[..., field["stop_reason"]]
    lost = reasons == "nan"
    accuracy, seen = (
        np.ma.masked_array(results[..., field[name]].astype(float), lost)
        for name in ("validation_accuracy", "samples_seen")
    )
    means, costs = (x.mean(axis=1).filled(np.nan) for x in (accuracy, seen))
    converged, lost = np.isin(reasons, ("threshold", "fixed")).sum(axis=1), lost.sum(axis=1)
    fields = zip(means, costs, converged, lost, strict=True)
    choices = [
        Choice(*map(float, pair), float(mean), float(cost), int(whole), int(gone))
        for pair, (mean, cost, whole, gone) in zip(grid, fields, strict=True)
    ]
    open_ = [i for i in range(len(grid)) if not lost[i]] or [i for i in range(len(grid)) if not np.isnan(means[i])]
    top = max(open_, key=lambda i: means[i])
    count = int(accuracy[top].count())
    binomial = math.sqrt(means[top] * (1 - means[top]) / num_validation)
    error = float(accuracy[top].std(ddof=1) / math.sqrt(count)) if count >= 3 else binomial
    best = min((choices[i] for i in open_ if means[i] >= means[top] - error), key=lambda c: c.samples_seen)
    table = tuple(sorted(choices, key=lambda c: (math.isnan(c.accuracy), -c.accuracy)))
    total = int(results[..., field["samples_seen"]].astype(float).sum())
    return Tuned(best, table, error, total, float(results[0, 0, field["seconds"]]))


def _restart(restart, model, setting, where, layouts=None, renamed=None):
    if callable(restart):
        return restart
    if restart not in RESTARTS:
        known = ", ".join(RESTARTS)
        raise ValueError(f"restart must be one of {known}, or a function from sp_jax.make_restart, got {restart!r}")
    how = {"layouts": layouts, "renamed": renamed, "where": where}
    return restarts.make_restart(RESTARTS[restart], shapes="grow", model=model, optimizer=setting.optimizer, **how)


def _grown(since, model, inputs, layouts=None, renamed=None):
    """Return which leaves are larger than in `since`; checked on some inputs, or unchecked where `inputs` is None."""
    old, fresh = since.state.params, jax.eval_shape(model.init, jax.random.key(0))[0]
    declared = merged(model.layouts, layouts)
    try:
        if inputs is None:
            return growth.differences(old, fresh, renamed=renamed)
        found = growth.grown(old, fresh, layouts=declared, renamed=renamed)
        if found and layouts is None:
            growth.check_function(since.model, old, since.state.batch_stats, model, declared, renamed, inputs[:8])
    except ValueError as error:
        raise ValueError(f"`since` holds another network: {error}") from error
    return found


def _check_since(since):
    if not isinstance(since, Fit):
        raise ValueError(f"`since` must be what fit_rounds returned, got {type(since).__name__}")
