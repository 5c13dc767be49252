"""Training in rounds on one's own arrays (Section 2.2)."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np
import optax

from sp_jax import restarts, sweeps, transforms
from sp_jax.divergence import DivergenceWarning, check_finite, first_not_finite
from sp_jax.engine import check_count
from sp_jax.fitting.checks import check_arrivals, check_seed, warn_of_majority
from sp_jax.fitting.evaluation_weights import evaluation_state
from sp_jax.fitting.fit import DivergedError, Fit, check_since, grown_since
from sp_jax.fitting.preparing import (
    Samples,
    Setting,
    arrays_of,
    as_optimizer,
    equal,
    prepare,
    released,
    stacked,
    task_since,
)  # fmt: skip
from sp_jax.tasks import Task
from sp_jax.training import Convergence
from sp_jax.transforms import arithmetic
from sp_jax.transforms.layouts import Layouts
from sp_jax.types import HParams, TrainState

IF_DIVERGED = ("raise", "random_init")


def fit_rounds(
    seed: int,
    inputs: chex.ArrayTree,
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
    task: str | Task | None = None,
    weights: chex.Array | None = None,
    class_weights: str | Mapping[int, float] | None = None,
    window: int | None = None,
    visible: Sequence[Sequence[int]] | None = None,
    half_life: float | None = None,
    params: chex.ArrayTree | None = None,
    trainable: Callable | None = None,
    augment: Callable | None = None,
) -> Fit:
    """Train in rounds: samples arrive, restart, train until converged (Section 2.2).

    The first round trains a freshly drawn network, or restarts that of `since`, so each call continues from the last
    one. All rounds of a call share one compiled program, and so do later calls of the same configuration in a process,
    until the samples are half as many again.

    Args:
      seed: non-negative integer, for initialisations, noise and the order of epochs.
      inputs: [N, ...] in an array of any library, or lists, in the order of arrival; a frame of numeric columns
        (pandas, polars); or a dictionary of such, which the network takes as its one argument. What fills more than
        half of the devices' memory is streamed from where it lies, so it may be memory-mapped.
      labels: [N] integers from 0 on, or the task's targets; None where `inputs` is a source of pairs (Grain,
        `tf.data`), which is read as a whole.
      arrivals: how many of the samples have arrived in each round, increasing, at most N; by default one round of all.
      network: a Flax module, or whatever `sp_jax.models.as_model` takes. It may have grown since `since` (a class more,
        a wider layer): the new entries are then freshly drawn, and `Fit.grown` tells where.
      optimizer: an optax optimiser; by default Adam at 0.001. Its state is drawn anew in each round. The weights that
        it keeps for evaluation, if any, are scored, predicted with, saved and restarted.
      restart: before each round: "warm_start", "random_init", "shrink_perturb", or a function from
        `sp_jax.make_restart` (with `shapes="grow"` where the network has grown).
      shrink: λ in [0, 1].
      noise_scale: σ >= 0.
      validation: `(inputs, labels)` or `(inputs, labels, weights)` to measure each round on; without them its accuracy
        is NaN.
      batch_size: B; a larger one than N is taken as N.
      convergence: when a round ends; by default the paper's 99 % training accuracy, a plateau, or 1,000 epochs (of a
        task that counts no right predictions, a plateau of 10 epochs).
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
      task: "classification", "binary", "multilabel", "regression", or a `sp_jax.tasks.Task`; by default that of
        `since`, else classification. A `RoundResult`'s accuracies are then the task's metric.
      weights: [N] >= 0: loss and metric are weighted means, Σ weight · loss / Σ weight of a batch; 0 leaves one out.
      class_weights: from class to weight, or "balanced"; multiplies the weights, those of the validation too.
      window: only the newest so many samples are visible in a round.
      visible: in place of `arrivals`, the indices of the visible samples of each round.
      half_life: samples so many places older than a round's newest count half.
      params: start the first round from these parameters (or Flax variables), as they are; not with `since`.
      trainable: which parameters are trained, a filter; the others have no gradient, no optimiser state, no restart.
      augment: `augment(key, inputs)` of a batch in training, to inputs of the same shapes (`sp_jax.augmentation`).

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
    _check(seed, restart, shrink, noise_scale, since, if_diverged, where, params, layouts, renamed)
    setting = Setting(
        network, as_optimizer(optimizer), batch_size, convergence, switch, mask, task_since(task, since),
        class_weights, trainable, augment,
    )  # fmt: skip
    arrived, held, setting = arrays_of((inputs, labels, weights), validation, setting)
    rounds = list(_rounds(arrivals, window, visible, half_life, arrived.count))
    arrived = arrived if half_life is None or arrived.weights is not None else equal(arrived)
    hparams = HParams(shrink=shrink, noise_scale=noise_scale)
    prepared, lanes, reweigh = prepare([seed], hparams, arrived, held, setting)
    with released(prepared) as engine:
        keeps = not callable(restart) and restart != "random_init"  # a custom restart does its own checks
        how, few = {"layouts": layouts, "renamed": renamed}, arrived.inputs if keeps else None
        grown = grown_since(since, prepared.model, few, **how) if since else {}
        restart = prepared.restart(restart, setting, where, **how)
        start = _started(prepared.model, params) if params is not None else since and since.state
        fit = Fit(prepared.model, start, since.history if since else (), grown, setting.task)
        if start is None and len(rounds) == 1:
            engine.expect(restart, engine.place(lanes))  # tomorrow's call begins with it
        for chosen in rounds:
            warn_of_majority(arrived, chosen, setting.task, setting.convergence)
            if half_life is not None:
                reweigh(_aged(arrived.weights, chosen, half_life))
            own = restart if params is None or fit.history else prepared.restart("warm_start", setting, None)
            if if_diverged == "random_init" and fit.state is not None and first_not_finite(fit.state):
                own = prepared.restart("random_init", setting, None)
            own = restarts.no_restart if fit.state is None else own
            phase = sweeps.RoundPlan(engine, _seeing(lanes, chosen), len(chosen), own)
            fit = _fit_round(phase, fit, measured=held is not None)
    return fit


def _check(seed, restart, shrink, noise_scale, since, if_diverged, where, params, layouts, renamed):
    transforms.check_shrink(shrink)
    transforms.check_noise_scale(noise_scale)
    check_seed(seed)
    arithmetic.check_choice("if_diverged", if_diverged, IF_DIVERGED)
    for name, names in (("layouts", layouts), ("renamed", renamed)):
        if names is not None and not isinstance(names, Mapping):
            raise ValueError(f"{name} must be a dictionary, by paths, got {names!r}")
    if renamed and since is None:
        raise ValueError("renamed names layers of `since`: give that, too")
    if since is None:
        return
    check_since(since)
    if params is not None:
        raise ValueError("give params to start from, or the fit since which samples have arrived, not both")
    if if_diverged == "raise" and not _forgets(restart, shrink, where):
        check_finite("`since`", since.state, f"give the fit of the day before, or if_diverged={IF_DIVERGED[1]!r}")


def _rounds(arrivals, window, visible, half_life, count) -> Iterator[np.ndarray]:
    """Yield the indices of the samples that are visible in each round."""
    if window is not None:
        check_count("window", window)
    if half_life is not None and not (isinstance(half_life, (int, float, np.number)) and half_life > 0):
        raise ValueError(f"half_life must be a number of samples above 0, got {half_life!r}")
    if visible is None:
        for stop in check_arrivals(arrivals, count):
            yield np.arange(0 if window is None else max(0, stop - window), stop)
        return
    if arrivals is not None or window is not None:
        raise ValueError("visible says which samples a round has: leave arrivals and window out")
    if not len(visible):
        raise ValueError("visible must be the indices of at least one round")
    for indices in visible:
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError("visible must be, for each round, at least one index of a sample")
        if chosen.min() < 0 or chosen.max() >= count or len(np.unique(chosen)) < len(chosen):
            raise ValueError(f"visible must be different indices from 0 to {count - 1:,}")
        yield chosen


def _seeing(lanes, chosen):
    """Return lanes that have the chosen samples first."""
    order = np.array(lanes.order)
    order[:, : len(chosen)] = chosen
    return lanes.replace(order=order)


def _aged(weights, chosen, half_life):
    """Return weights [N] that halve with each `half_life` places before a round's newest sample."""
    age = np.maximum(chosen.max() - np.arange(len(weights)), 0)
    return (weights * 0.5 ** (age / half_life)).astype(np.float32)


def _started(model, params):
    """Return the state of a network that is given."""
    variables = params if isinstance(params, Mapping) and "params" in params else {"params": params}
    fresh, stats = model.init(jax.random.key(0))
    stats = variables.get("batch_stats", stats)
    arithmetic.check_same(variables["params"], fresh, names=("params", "the network"), advice="give those of this one")
    return TrainState(variables["params"], stats, ())


def _fit_round(phase, fit, *, measured):
    """Train one more round; warn where it diverged, raise a DivergedError where it could not begin."""
    engine = phase.engine
    state = None if fit.state is None else engine.place(stacked(evaluation_state(fit.state), 1))
    state, results, _ = sweeps.train_round(phase, len(fit.history) + 1, engine.place(phase.lanes), state)
    result = results[0] if measured else results[0]._replace(validation_accuracy=math.nan, validation_loss=math.nan)
    if result.stop_reason == "nan":
        what = f"round {result.round} (seed {result.seed}) diverged {result.diverged}"
        if result.epochs == 0:
            last = fit.history[-1] if fit.history else None
            sound = None if last is None or last.stop_reason == "nan" else fit
            raise DivergedError(f"{what}: give if_diverged='random_init' to draw it anew, or other settings", sound)
        warnings.warn(f"{what}; this network predicts nothing and is not saved", DivergenceWarning, stacklevel=3)
    return fit._replace(state=jax.tree.map(lambda x: x[0], state), history=(*fit.history, result))


def _forgets(restart, shrink, where):
    """Return whether a restart ignores the old parameters."""
    return where is None and (restart == "random_init" or (restart == "shrink_perturb" and shrink == 0))
