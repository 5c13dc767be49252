"""Preparation of `fit_rounds` and `tune_restart`: arrays, network and optimiser are checked before the first step."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax import models, training, transforms
from sp_jax.data import samples as checked
from sp_jax.engine import Engine, check_count, lanes_of
from sp_jax.fitting import frozen
from sp_jax.fitting.evaluation_weights import evaluation_state, keepers
from sp_jax.penalties import cross_entropy
from sp_jax.plasticity.methods import Method
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams, Model

Samples = tuple[chex.Array, chex.Array]


class Setting(NamedTuple):
    """The user's choices for all rounds."""

    network: Any
    optimizer: optax.GradientTransformation
    batch_size: int
    convergence: Convergence
    switch: Mapping[str, bool] | None = None
    mask: str | None = None


def prepare(seeds, hparams, samples: Samples, validation: Samples | None, setting: Setting):
    """Return the model, an engine with all samples on the devices, the lanes, and the inputs.

    Raises:
      ValueError: anything that does not fit; one line.
    """
    check_count("batch_size", setting.batch_size)
    check_convergence(setting.convergence)
    if max(seeds) >= 2**31:
        raise ValueError(f"seeds must lie between 0 and 2**31 - 1, got {min(seeds)} to {max(seeds)}")
    arrived = as_arrays("inputs and labels", samples)
    held = tuple(x[:1] for x in arrived)  # without validation one sample, whose evaluation is not reported
    held = held if validation is None else as_arrays("validation", validation)
    ours, theirs = ((np.shape(x)[1:], x.dtype) for x in (arrived[0], held[0]))
    if ours != theirs:
        raise ValueError(f"validation inputs are {theirs[1]} of shape {theirs[0]}, the others {ours[1]} of {ours[0]}")
    count = len(arrived[0])
    inputs, labels = (np.concatenate(parts) for parts in zip(arrived, held, strict=True))
    model = models.as_model(setting.network, inputs[:1], switch=setting.switch, mask=setting.mask)
    num_classes = models.check_logits(model, inputs, int(labels.max()) + 1)
    models.check_independent(model, inputs[:count])
    method, size = Method(evaluated=evaluation_state), min(setting.batch_size, count)
    trainer = Trainer(model, lambda hparams: setting.optimizer, size, method=method, weigh_last_batch=True)
    _check_step(trainer, inputs)
    engine = Engine(trainer, Dataset(inputs, labels, num_classes, "inputs and labels"), len(seeds))
    order, held_out = np.split(np.tile(np.arange(len(inputs)), (len(seeds), 1)), [count], axis=1)
    return model, engine, lanes_of(seeds, hparams, setting.convergence, order, held_out), inputs[:count]


def as_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """Return an optimiser as optax's own pair of functions: Adam at 0.001 for None, a `MultiSteps`'s transformation.

    Raises:
      ValueError: it is not an optimiser.
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax optimiser, as optax.adam(1e-3), got {optimizer}")
    return optimizer or optax.adam(1e-3)


def _check_step(trainer: Trainer, inputs):
    """Trace a step; raise a ValueError of one line, before compiling, where the optimiser does not fit the network."""
    size, optimizer = trainer.batch_size, trainer.optimizer(None)
    batch = (
        jax.ShapeDtypeStruct((size, *inputs.shape[1:]), inputs.dtype),
        jax.ShapeDtypeStruct((size,), jnp.int32),
        jax.ShapeDtypeStruct((size,), bool),
    )

    def step(key, *batch):
        params, batch_stats = trainer.model.init(key)
        state = training.TrainState(params, batch_stats, optimizer.init(params))
        return evaluation_state(training.train_step(trainer, HParams(), state, *batch)[0])

    try:
        state = jax.eval_shape(step, jax.random.key(0), *batch)
    except Exception as error:  # a user's optimiser can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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


def untrained(trainer: Trainer, inputs) -> set[str]:
    """Return the paths of parameters that are not trained, and of statistics that no step updates (a frozen part)."""
    model: Model = trainer.model
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    batch = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), inputs.dtype), jax.ShapeDtypeStruct((2,), jnp.int32)

    def loss(params, batch_stats, inputs, labels):
        logits, _ = model.apply(params, batch_stats, inputs, jnp.ones(2, bool), True)
        return jnp.mean(cross_entropy(logits, labels))

    found = frozen.frozen_leaves(loss, trainer.optimizer(None), params, batch_stats, *batch)
    return found | models.fixed_statistics(model, inputs)


def warn_of_majority(labels, num_visible: int, rule: Convergence) -> None:
    """Warn where predicting the commonest class of the labels [N] so far reaches the accuracy that ends a round."""
    share = np.bincount(np.asarray(labels[:num_visible])).max() / num_visible
    if not rule.fixed and rule.train_accuracy <= share < 1:
        warnings.warn(
            f"of the {num_visible:,} samples {share:.1%} are of one class: guessing it reaches train_accuracy="
            f"{float(rule.train_accuracy):g}, so a round may end before the others are learnt; set a higher "
            "train_accuracy, or Convergence.exactly(epochs)",
            stacklevel=3,
        )


def check_arrivals(arrivals, count: int) -> list[int]:
    """Return the counts of the rounds; raise a ValueError where they do not increase or exceed the samples."""
    if not (arrivals is None or np.ndim(arrivals) == 1):
        raise ValueError(f"arrivals must be a sequence of counts, got {arrivals}")
    arrivals = [count] if arrivals is None else list(arrivals)
    whole = all(isinstance(n, (int, np.integer)) for n in arrivals)
    if not (arrivals and whole) or sorted(set(arrivals)) != arrivals or arrivals[0] < 1 or arrivals[-1] > count:
        raise ValueError(f"arrivals must be increasing counts between 1 and the {count:,} samples, got {arrivals}")
    return [int(n) for n in arrivals]


def as_arrays(name: str, samples: Samples) -> Samples:
    """Return inputs and labels as NumPy arrays, in the dtypes of the devices; raise a ValueError where they are not
    valid or not finite."""
    if not isinstance(samples, (tuple, list)) or len(samples) != 2:
        raise ValueError(f"{name} must be a pair (inputs, labels), got {type(samples).__name__}")
    try:
        inputs, labels = (np.asarray(x) for x in samples)
    except ValueError:  # of lists that are not equally long
        raise ValueError(f"{name}: not all samples have the same shape; pad or crop them to one") from None
    checked.check_samples(name, inputs, labels)
    narrow = jax.dtypes.canonicalize_dtype(inputs.dtype)
    if narrow != inputs.dtype:
        with np.errstate(over="ignore"):
            inputs = inputs.astype(narrow)
        checked.check_samples(f"{name}, as {narrow},", inputs, labels)
    return inputs, labels.astype(np.int32)


def check_seed(seed):
    """Raise a ValueError where a seed is not a non-negative int32."""
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**31:
        raise ValueError(f"seeds must lie between 0 and 2**31 - 1, got {seed!r}")


def check_grid(grid):
    """Raise a ValueError where a grid has no pair, or one out of range."""
    if np.ndim(grid) != 2 or np.shape(grid)[1] != 2 or not len(grid):
        raise ValueError(f"the grid must have at least one pair (λ, σ), as [(0.6, 0.01)], got {grid!r}")
    for lam, sigma in grid:
        transforms.check_shrink(lam)
        transforms.check_noise_scale(sigma)


def check_convergence(rule):
    """Raise a ValueError where a rule could never end a round, or is not a `Convergence`."""
    if not isinstance(rule, Convergence):
        raise ValueError(f"convergence must be a sp_jax.training.Convergence, got {rule!r}")
    if not 0 < rule.train_accuracy <= 1:
        raise ValueError(f"train_accuracy is a fraction: it must lie in (0, 1], got {rule.train_accuracy}")
    if rule.patience < 1 or rule.max_epochs < (0 if rule.fixed else 1):
        found = f"{rule.patience} and {rule.max_epochs}"
        raise ValueError(f"patience and max_epochs must be at least 1, got {found}; Convergence.exactly(0) trains none")
