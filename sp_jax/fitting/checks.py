"""Checks of what `fit_rounds` and `tune_restart` are given, each one line, before the first step."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from sp_jax import training, transforms
from sp_jax.engine import check_count
from sp_jax.engine.program import layout
from sp_jax.errors import first_line
from sp_jax.fitting.arrays import Arrays
from sp_jax.fitting.evaluation_weights import evaluation_state, keepers
from sp_jax.tasks import Task
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams, TrainState


def check_convergence(rule):
    """Raise a ValueError where a rule could never end a round, or is not a `Convergence`."""
    if not isinstance(rule, Convergence):
        raise ValueError(f"convergence must be a sp_jax.training.Convergence, got {rule!r}")
    if rule.monitor not in training.MONITORS:
        raise ValueError(f"monitor must be one of {', '.join(training.MONITORS)}, got {rule.monitor!r}")
    for name in ("max_samples", "max_steps"):
        if getattr(rule, name) is not None:
            check_count(name, getattr(rule, name))
    for name in ("train_accuracy", "min_improvement", "reaches"):
        if not isinstance(getattr(rule, name), (int, float, np.number)):
            raise ValueError(f"{name} must be a number, got {getattr(rule, name)!r}")
    if not rule.min_improvement >= 0:
        raise ValueError(f"min_improvement must be at least 0, got {rule.min_improvement}")
    if not 0 < rule.train_accuracy <= 1:
        raise ValueError(f"train_accuracy is a fraction: it must lie in (0, 1], got {rule.train_accuracy}")
    whole = all(isinstance(n, (int, np.integer)) for n in (rule.patience, rule.max_epochs))
    if not whole or rule.patience < 1 or rule.max_epochs < (0 if rule.fixed else 1):
        found = f"at least 1, got {rule.patience} and {rule.max_epochs}; Convergence.exactly(0) trains none"
        raise ValueError(f"patience and max_epochs must be whole numbers, {found}")


def check_arrivals(arrivals, count: int) -> list[int]:
    """Return the counts of the rounds; raise a ValueError where they do not increase or exceed the samples."""
    if not (arrivals is None or np.ndim(arrivals) == 1):
        raise ValueError(f"arrivals must be a sequence of counts, got {arrivals}")
    arrivals = [count] if arrivals is None else list(arrivals)
    whole = all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in arrivals)
    if not (arrivals and whole) or sorted(set(arrivals)) != arrivals or arrivals[0] < 1 or arrivals[-1] > count:
        raise ValueError(f"arrivals must be increasing counts between 1 and the {count:,} samples, got {arrivals}")
    return [int(n) for n in arrivals]


def check_seed(seed):
    """Raise a ValueError where a seed is not a non-negative int32."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**31:
        raise ValueError(f"seeds must lie between 0 and 2**31 - 1, got {seed!r}")


def check_grid(grid):
    """Raise a ValueError where a grid has no pair, or one out of range."""
    if np.ndim(grid) != 2 or np.shape(grid)[1] != 2 or not len(grid):
        raise ValueError(f"the grid must have at least one pair (λ, σ), as [(0.6, 0.01)], got {grid!r}")
    for lam, sigma in grid:
        transforms.check_shrink(lam)
        transforms.check_noise_scale(sigma)


def check_signature(restart):
    """Raise a ValueError where a function cannot be called as a restart is."""
    try:
        inspect.signature(restart).bind(None, None, None, shrink=None, noise_scale=None, batches=None)
    except (TypeError, ValueError) as error:
        call = "(key, state, fresh, *, shrink, noise_scale, batches=None)"
        raise ValueError(f"restart must be a function from sp_jax.make_restart, or take {call}: {error}") from None


def words(tree, of="of ") -> str:
    """Return the dtypes and shapes of samples, whatever their number, by their names."""
    named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    return ", ".join(f"{name}{' ' if name else ''}{x.dtype} {of}{np.shape(x)[1:]}" for name, x in named.items())


def check_augment(augment, inputs):
    """Raise a ValueError where a batch would not be the same after its augmentation, but for the values."""
    try:
        found = jax.eval_shape(augment, jax.random.key(0), inputs)
    except Exception as error:  # a user's function can raise anything
        reason = first_line(error)
        raise ValueError(f"augment(key, inputs) does not run on a batch {words(inputs)}: {reason}") from error
    if layout(found) != layout(inputs):
        raise ValueError(f"augment must return inputs of the same shapes and dtypes, {words(inputs)}")


def check_step(trainer: Trainer, data: Dataset):
    """Trace a step; raise a ValueError of one line, before compiling, where the optimiser does not fit the network."""
    optimizer, batch = trainer.optimizer(None), data.batch(trainer.batch_size)

    def step(key, batch):
        params, batch_stats = trainer.model.init(key)
        state = TrainState(params, batch_stats, optimizer.init(params))
        inputs = batch.inputs if trainer.augment is None else trainer.augment(key, batch.inputs)
        mask = jnp.ones(trainer.batch_size, bool)
        state, _, _ = training.train_step(trainer, HParams(), state, inputs, batch.labels, mask, batch.weights)
        return evaluation_state(state)

    try:
        state = jax.eval_shape(step, jax.random.key(0), batch)
    except Exception as error:  # a user's optimiser can raise anything
        reason = first_line(error)
        if "fast" in reason:
            reason = "optax.lookahead trains optax.LookaheadParams in place of the parameters; leave lookahead out"
        if "grad requires real" in reason:
            raise ValueError(
                "the network has integer parameters, which cannot be trained: make them constants"
            ) from error
        raise ValueError(f"the optimiser does not run on this network: {reason}") from error
    if keepers(state.opt_state) and jax.tree.leaves(state.batch_stats):
        warnings.warn(
            "the optimiser keeps other weights for evaluation than it trains, but the statistics (BatchNorm) are those "
            "of the trained ones: recalibrate them (sp_jax.recalibrate), or use a network without",
            stacklevel=4,
        )


def warn_of_majority(samples: Arrays, chosen: np.ndarray, task: Task, rule: Convergence) -> None:
    """Warn where predicting the most common class already reaches the training accuracy that ends a round.

    Args:
      samples: all, weighted or not.
      chosen: indices of those of the round.
      task: what the network predicts.
      rule: when the round ends.
    """
    targets = samples.targets[chosen]
    if not task.counts or targets.ndim != 1:
        return
    if len(targets) > 1 and (targets == targets[0]).all():
        only = f"all {len(targets):,} samples are of one class, {targets[0]:g}"
        warnings.warn(f"{only}: there is nothing to tell apart; wait for samples of another", stacklevel=3)
    if rule.fixed or rule.monitor != "train_accuracy":
        return
    weights = None if samples.weights is None else samples.weights[chosen]
    counts = np.bincount(targets.astype(int), weights=weights)
    share = counts.max() / max(counts.sum(), np.finfo(float).tiny)
    if rule.train_accuracy <= share < 1:
        warnings.warn(
            f"of the {len(chosen):,} samples {share:.1%} are of one class: guessing it reaches train_accuracy="
            f"{float(rule.train_accuracy):g}, so a round may end before the others are learnt; set a higher "
            "train_accuracy, or Convergence.exactly(epochs)",
            stacklevel=3,
        )
