"""Retraining one's own network on one's own arrays as they grow: `fit_rounds` (Section 2.2), and `tune_restart` to
choose λ and σ (the grid of Figure 8, on the data at hand)."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax import growth, models, networks, restarts, sweeps, transforms
from sp_jax.data import samples as checked
from sp_jax.engine import Engine, check_count, lanes_of
from sp_jax.layouts import Layouts, merged
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams, Model, RoundResult, TrainState

RESTARTS = {
    "warm_start": restarts.warm_start,
    "random_init": restarts.random_init,
    "shrink_perturb": restarts.shrink_perturb,
}
Samples = tuple[chex.Array, chex.Array]


class Fit(NamedTuple):
    """A network after its newest round."""

    model: Model
    state: TrainState
    history: tuple[RoundResult, ...]  # of all rounds, those of `since` included
    grown: Mapping[str, tuple]  # path -> (old shape, new shape) of what is larger than in `since`, as `sp_jax.grown`

    def predict(self, inputs: chex.Array) -> chex.Array:
        """Logits [B, classes] of inputs [B, ...], in evaluation mode."""
        return self.model.apply(self.state.params, self.state.batch_stats, jnp.asarray(inputs), None, False)[0]


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
    layouts: Layouts | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Fit:
    """Trains in rounds: samples arrive, restart, train until converged (Section 2.2).

    The first round trains a freshly drawn network, or restarts that of `since`: each day's call goes on where the last
    one ended. All rounds of a call share one compiled program.

    Args:
      seed: non-negative integer, for initialisations, noise and the order of epochs.
      inputs: [N, ...] NumPy or JAX array, or lists, in the order of arrival.
      labels: [N] integers from 0 on.
      arrivals: how many of the samples have arrived in each round, increasing, at most N; by default one round of all.
      network: a Flax module, or whatever `sp_jax.models.as_model` takes. It may have grown since `since` (a class more,
        a wider layer): what is new is then freshly drawn, and `Fit.grown` tells where.
      optimizer: an optax optimiser; by default Adam at 0.001. Its state is drawn anew in each round.
      restart: before each round: "warm_start", "random_init", "shrink_perturb", or a function from
        `sp_jax.make_restart` (with `shapes="grow"` where the network has grown).
      shrink: λ in [0, 1].
      noise_scale: σ >= 0.
      validation: `(inputs, labels)` to measure each round on; without them its accuracy is NaN.
      batch_size: B; a larger one than N is taken as N.
      convergence: when a round ends; by default the paper's 99 % training accuracy, a plateau, or 1,000 epochs.
      since: what this function returned for earlier rounds.
      layouts: where the network has grown, how its axes are made up that pack two meanings, as `sp_jax.grown` has it
        (a `restart` of your own is given them by `make_restart`). Without them it is checked by a few samples that the
        grown network is the old one where all that is new is zero; `{}` goes on unchecked.
      renamed: where its layers have other names than in `since`, from old to new, as `sp_jax.grown` has it.

    Returns:
      A `Fit`: model, state and the history, a `RoundResult` for each round (`samples_seen` is its cost).

    Raises:
      ValueError: arrays, arrivals or settings that do not fit; one line.

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
    _check_seed(seed)
    if since is not None:
        _check_since(since)
    hparams = HParams(shrink=shrink, noise_scale=noise_scale)
    setting = _Setting(network, optimizer or optax.adam(1e-3), batch_size, convergence or Convergence())
    model, engine, lanes = _prepare([seed], hparams, (inputs, labels), validation, setting)
    arrivals = _check_arrivals(arrivals, lanes.order.shape[1])
    how = {"layouts": layouts, "renamed": renamed}
    keeps = not callable(restart) and restart != "random_init"  # a restart of one's own checks for itself
    restart, state, grown = _restart(restart, model, setting, **how), None, {}
    if since:
        grown = _grown(since, model, inputs if keeps else None, **how)
        state = engine.place(jax.tree.map(lambda x: x[None], since.state))
    history, placed = list(since.history if since else ()), engine.place(lanes)
    for num_visible in arrivals:
        phase = sweeps.Phase(engine, lanes, num_visible, restarts.no_restart if state is None else restart)
        state, results, _ = sweeps.train_round(phase, len(history) + 1, placed, state)
        history += results
        if validation is None:
            history[-1] = results[0]._replace(validation_accuracy=math.nan, validation_loss=math.nan)
    return Fit(model, jax.tree.map(lambda x: x[0], state), tuple(history), grown)


def save_fit(path: str | pathlib.Path, fit: Fit) -> None:
    """Keeps a fit until the next samples arrive, in one safetensors file, whole or not at all.

    The optimiser's state is left out, since each round draws it anew (Section 2.2).

    Args:
      path: of the file; its folder is made, an older file is replaced.
      fit: what `fit_rounds` returned.

    Raises:
      ValueError: it cannot be written; one line.
    """
    _check_since(fit)
    history = [result._asdict() for result in fit.history]
    networks.save(path, fit.state.params, fit.state.batch_stats, note={"history": history})


def load_fit(path: str | pathlib.Path, inputs: chex.Array, *, network: Any) -> Fit:
    """The reverse of `save_fit`: what the next `fit_rounds` takes as `since` (Section 2.2).

    Args:
      path: of the file.
      inputs: [B, ...] as those of `fit_rounds`, for shape and dtype alone.
      network: the network of the fit, as it was; `fit_rounds` may then be given a larger one.

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
    model = models.as_model(network, np.asarray(inputs)[:1])
    saved = networks.load(path, like=jax.eval_shape(model.init, jax.random.key(0)))
    if "history" not in saved.note:
        raise ValueError(f"{path} holds a network but no fit: it was not written by save_fit")
    history = tuple(RoundResult(**result) for result in saved.note["history"])
    return Fit(model, TrainState(saved.params, saved.batch_stats, ()), history, {})


class Choice(NamedTuple):
    """One setting that `tune_restart` tried."""

    shrink: float  # λ
    noise_scale: float  # σ
    accuracy: float  # fraction, on the validation samples, mean over the seeds
    samples_seen: float  # until converged, mean over the seeds
    converged: int  # of the seeds


class Tuned(NamedTuple):
    """What `tune_restart` found."""

    best: Choice
    table: tuple[Choice, ...]  # as the grid was given; best accuracy first
    standard_error: float  # of the best accuracy, a fraction
    samples_seen: int  # what all of it cost
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
    layouts: Layouts | None = None,
) -> Tuned:
    """Chooses λ and σ by trying: restarts the last round's network with each, and trains it on all samples.

    All settings and seeds are lanes of one program. The rule: of the settings whose accuracy is within one standard
    error of the best one's, the one that visited the fewest samples. The standard error is that of the mean over the
    seeds where there are three or more, else the binomial one of the validation samples.

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
      layouts: as in `fit_rounds`.

    Returns:
      A `Tuned`; `best.shrink` and `best.noise_scale` are for the next `fit_rounds`.

    Raises:
      ValueError: as `fit_rounds`, or a grid without a pair.
    """
    _check_grid(grid)
    check_count("seeds", seeds)
    _check_since(since)
    _check_seed(seed)
    if validation is None:
        raise ValueError("validation must be (inputs, labels): without them there is nothing to choose by")
    lams, sigmas = (np.repeat(np.float32(x), seeds) for x in zip(*grid, strict=True))
    tried = np.tile(seed + np.arange(seeds), len(grid))
    setting = _Setting(network, optimizer or optax.adam(1e-3), batch_size, convergence or Convergence())
    hparams = HParams(shrink=lams, noise_scale=sigmas)
    model, engine, lanes = _prepare(tried, hparams, (inputs, labels), validation, setting)
    _grown(since, model, inputs, layouts)
    state = engine.place(jax.tree.map(lambda x: jnp.repeat(x[None], len(tried), axis=0), since.state))
    phase = sweeps.Phase(engine, lanes, len(inputs), _restart("shrink_perturb", model, setting, layouts))
    _, results, _ = sweeps.train_round(phase, len(since.history) + 1, engine.place(lanes), state)
    return _choose(grid, np.reshape(np.array(results, object), (len(grid), seeds, -1)), len(validation[1]))


def _choose(grid, results, num_validation):
    """The rule of `tune_restart`; `results` [settings, seeds, fields]."""
    field = {name: i for i, name in enumerate(RoundResult._fields)}
    accuracy = results[..., field["validation_accuracy"]].astype(float)
    seen = results[..., field["samples_seen"]].astype(float)
    converged = np.isin(results[..., field["stop_reason"]], ("threshold", "fixed")).sum(axis=1)
    means = accuracy.mean(axis=1)
    top, count = int(np.argmax(means)), accuracy.shape[1]
    binomial = math.sqrt(means[top] * (1 - means[top]) / num_validation)
    error = float(accuracy[top].std(ddof=1) / math.sqrt(count)) if count >= 3 else binomial
    choices = [
        Choice(float(lam), float(sigma), float(means[i]), float(seen[i].mean()), int(converged[i]))
        for i, (lam, sigma) in enumerate(grid)
    ]
    best = min((c for c in choices if c.accuracy >= means[top] - error), key=lambda c: c.samples_seen)
    table = tuple(sorted(choices, key=lambda c: -c.accuracy))
    return Tuned(best, table, error, int(seen.sum()), float(results[0, 0, field["seconds"]]))


class _Setting(NamedTuple):
    network: Any
    optimizer: optax.GradientTransformation
    batch_size: int
    convergence: Convergence


def _prepare(seeds, hparams, samples, validation, setting):
    """The model, an engine with all samples on the devices, and the lanes."""
    check_count("batch_size", setting.batch_size)
    _check_convergence(setting.convergence)
    if max(seeds) >= 2**31:
        raise ValueError(f"seeds must lie between 0 and 2**31 - 1, got {min(seeds)} to {max(seeds)}")
    if not isinstance(setting.optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax optimiser, as optax.adam(1e-3), got {setting.optimizer}")
    arrived = _as_arrays("inputs and labels", samples)
    held = tuple(x[:1] for x in arrived)  # one is never none, though nobody asks for it
    held = held if validation is None else _as_arrays("validation", validation)
    ours, theirs = ((np.shape(x)[1:], jax.dtypes.canonicalize_dtype(x.dtype)) for x in (arrived[0], held[0]))
    if ours != theirs:
        raise ValueError(f"validation inputs are {theirs[1]} of shape {theirs[0]}, the others {ours[1]} of {ours[0]}")
    count = len(arrived[0])
    inputs, labels = (np.concatenate(parts) for parts in zip(arrived, held, strict=True))
    inputs, labels = (x.astype(jax.dtypes.canonicalize_dtype(x.dtype)) for x in (inputs, labels))
    model = models.as_model(setting.network, inputs[:1])
    num_classes = models.check_logits(model, inputs, int(labels.max()) + 1)
    trainer = Trainer(model, lambda hparams: setting.optimizer, min(setting.batch_size, count))
    engine = Engine(trainer, Dataset(inputs, labels.astype(np.int32), num_classes, "inputs and labels"), len(seeds))
    order, held_out = np.split(np.tile(np.arange(len(inputs)), (len(seeds), 1)), [count], axis=1)
    return model, engine, lanes_of(seeds, hparams, setting.convergence, order, held_out)


def _restart(restart, model, setting, layouts=None, renamed=None):
    if callable(restart):
        return restart
    if restart not in RESTARTS:
        known = ", ".join(RESTARTS)
        raise ValueError(f"restart must be one of {known}, or a function from sp_jax.make_restart, got {restart!r}")
    how = {"layouts": layouts, "renamed": renamed}
    return restarts.make_restart(RESTARTS[restart], shapes="grow", model=model, optimizer=setting.optimizer, **how)


def _grown(since, model, inputs, layouts=None, renamed=None):
    """Which leaves are larger than in `since`; checked by some inputs, None where the restart does not grow them."""
    old, fresh = since.state.params, jax.eval_shape(model.init, jax.random.key(0))[0]
    declared = merged(model.layouts, layouts)
    try:
        if inputs is None:
            return growth.differences(old, fresh, renamed=renamed)
        found = growth.grown(old, fresh, layouts=declared, renamed=renamed)
        if found and layouts is None:
            some = np.asarray(inputs[:8])
            growth.check_function(since.model, old, since.state.batch_stats, model, declared, renamed, some)
    except ValueError as error:
        raise ValueError(f"`since` holds another network: {error}") from error
    return found


def _check_arrivals(arrivals, count):
    if not (arrivals is None or np.ndim(arrivals) == 1):
        raise ValueError(f"arrivals must be a sequence of counts, got {arrivals}")
    arrivals = [count] if arrivals is None else list(arrivals)
    whole = all(isinstance(n, (int, np.integer)) for n in arrivals)
    if not (arrivals and whole) or sorted(set(arrivals)) != arrivals or arrivals[0] < 1 or arrivals[-1] > count:
        raise ValueError(f"arrivals must be increasing counts between 1 and the {count:,} samples, got {arrivals}")
    return [int(n) for n in arrivals]


def _as_arrays(name, samples):
    """Inputs and labels as NumPy arrays, checked."""
    if not isinstance(samples, (tuple, list)) or len(samples) != 2:
        raise ValueError(f"{name} must be a pair (inputs, labels), got {type(samples).__name__}")
    try:
        inputs, labels = (np.asarray(x) for x in samples)
    except ValueError:  # of lists that are not equally long
        raise ValueError(f"{name}: not all samples have the same shape; pad or crop them to one") from None
    checked.check_samples(name, inputs, labels)
    return inputs, labels


def _check_seed(seed):
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**31:
        raise ValueError(f"seeds must lie between 0 and 2**31 - 1, got {seed!r}")


def _check_since(since):
    if not isinstance(since, Fit):
        raise ValueError(f"`since` must be what fit_rounds returned, got {type(since).__name__}")


def _check_grid(grid):
    if np.ndim(grid) != 2 or np.shape(grid)[1] != 2 or not len(grid):
        raise ValueError(f"the grid must have at least one pair (λ, σ), as [(0.6, 0.01)], got {grid!r}")
    for lam, sigma in grid:
        transforms.check_shrink(lam)
        transforms.check_noise_scale(sigma)


def _check_convergence(rule):
    if not isinstance(rule, Convergence):
        raise ValueError(f"convergence must be a sp_jax.training.Convergence, got {rule!r}")
    if not 0 < rule.train_accuracy <= 1:
        raise ValueError(f"train_accuracy is a fraction: it must lie in (0, 1], got {rule.train_accuracy}")
    if rule.patience < 1 or rule.max_epochs < (0 if rule.fixed else 1):
        found = f"{rule.patience} and {rule.max_epochs}"
        raise ValueError(f"patience and max_epochs must be at least 1, got {found}; Convergence.exactly(0) trains none")
