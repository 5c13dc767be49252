"""Preparation of `fit_rounds` and `tune_restart`: arrays, network and optimiser are checked before the first step."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax import models, restarts, training, transforms
from sp_jax.engine import Engine, check_count, lanes_of, memory
from sp_jax.engine.program import layout
from sp_jax.engine.streamed import StreamedEngine
from sp_jax.errors import first_line
from sp_jax.fitting import frozen, kept
from sp_jax.fitting.arrays import Arrays, Joined, as_arrays, with_class_weights
from sp_jax.fitting.evaluation_weights import evaluation_state, keepers
from sp_jax.plasticity.methods import Method
from sp_jax.tasks import Task, classification
from sp_jax.training import Convergence, Lane, Trainer
from sp_jax.types import Dataset, HParams, Model

Samples = tuple[chex.ArrayTree, chex.Array] | tuple[chex.ArrayTree, chex.Array, chex.Array]
METHOD = Method(evaluated=evaluation_state)
RESTARTS = {
    "warm_start": restarts.warm_start,
    "random_init": restarts.random_init,
    "shrink_perturb": restarts.shrink_perturb,
}


class Setting(NamedTuple):
    """The user's choices for all rounds."""

    network: Any
    optimizer: optax.GradientTransformation
    batch_size: int
    convergence: Convergence | None
    switch: Mapping[str, bool] | None = None
    mask: str | None = None
    task: str | Task = classification
    class_weights: Any = None
    trainable: Callable | None = None
    augment: Callable | None = None


class Prepared(NamedTuple):
    """What a configuration needs, whatever the samples: kept from call to call."""

    model: Model
    engine: Engine
    untrained: frozenset[str]  # paths of parameters and statistics that training leaves as they are
    room: tuple[int, int]  # samples and validation samples that the programs are compiled for
    num_classes: int
    made: dict  # restarts, by their settings

    def restart(self, restart, setting: Setting, where, layouts=None, renamed=None):
        """Return a restart of the configuration, the same object for equal settings: it is part of a program."""
        if callable(restart):
            _check_signature(restart)
            return self.made.setdefault(kept.fingerprint(restart), restart)
        if restart not in RESTARTS:
            known = ", ".join(RESTARTS)
            raise ValueError(f"restart must be one of {known}, or a function from sp_jax.make_restart, got {restart!r}")
        if where is None and restart != "warm_start" and self.untrained:
            key, where = "trained", lambda path: path not in self.untrained
        else:
            key = kept.fingerprint(where)
        key = (restart, key, kept.fingerprint(layouts), kept.fingerprint(renamed))
        if key not in self.made:
            how = {"layouts": layouts, "renamed": renamed, "where": where, "optimizer": optimizer_of(setting)}
            self.made[key] = restarts.make_restart(RESTARTS[restart], shapes="grow", model=self.model, **how)
        return self.made[key]


def arrays_of(samples: Samples, validation: Samples | None, setting: Setting) -> tuple[Arrays, Arrays | None, Setting]:
    """Return the samples and the validation samples as checked arrays, and the setting with its task and rule.

    Raises:
      ValueError: anything that does not fit; one line.
    """
    check_count("batch_size", setting.batch_size)
    arrived, task = as_arrays("inputs and labels", *samples[:2], setting.task, *samples[2:])
    held = None
    if validation is not None:
        if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
            raise ValueError(f"validation must be a pair (inputs, labels), got {type(validation).__name__}")
        held, _ = as_arrays("validation", *validation[:2], task, *validation[2:])
        for name in ("inputs", "targets"):
            theirs, ours = getattr(held, name), getattr(arrived, name)
            if _spec(theirs) != _spec(ours):
                raise ValueError(f"validation {name} are {_words(theirs, 'of shape ')}, the others {_words(ours)}")
    if setting.class_weights is not None:
        arrived, held = (each and with_class_weights(each, setting.class_weights) for each in (arrived, held))
    rule = setting.convergence or (Convergence() if task.counts else Convergence(patience=10))
    check_convergence(rule)
    if rule.validates and held is None:
        raise ValueError(f"the rule watches {rule.monitor}: give validation=(inputs, labels)")
    return arrived, held, setting._replace(task=task, convergence=rule)


def _spec(tree):
    """Return the structure of samples, their shapes and dtypes, whatever their number."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(x)[1:], x.dtype) for x in leaves)


def _words(tree, of="of "):
    named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
    return ", ".join(f"{name}{' ' if name else ''}{x.dtype} {of}{np.shape(x)[1:]}" for name, x in named.items())


def prepare(
    seeds, hparams: HParams, arrived: Arrays, held: Arrays | None, setting: Setting
) -> tuple[Prepared, Lane, Callable[[chex.Array], None]]:
    """Return the configuration, fed with the samples; the lanes; and a function that gives them other weights [N].

    Raises:
      ValueError: anything that does not fit; one line.
    """
    if max(seeds) >= 2**31:
        raise ValueError(f"seeds must lie between 0 and 2**31 - 1, got {min(seeds)} to {max(seeds)}")
    held = Arrays(*jax.tree.map(lambda x: x[:1], tuple(arrived))) if held is None else held  # is not reported
    if arrived.weights is not None or held.weights is not None:
        arrived, held = (each if each.weights is not None else equal(each) for each in (arrived, held))
    rule, size = setting.convergence, min(setting.batch_size, arrived.count)
    streams = sum(x.nbytes for x in jax.tree.leaves(tuple(arrived))) > memory.of_devices() // 2
    classes = 0 if setting.task is not classification else int(max(arrived.targets.max(), held.targets.max())) + 1
    static = (rule.monitor, rule.restore_best, rule.max_samples is None, rule.max_steps is None)
    compiled = setting._replace(batch_size=size, convergence=static)
    key = (kept.fingerprint(tuple(compiled)), _spec(tuple(arrived)), classes, len(seeds), streams)
    fresh = []

    def make(room):
        fresh.append(_made(_laid_out(arrived, held, room, streams), arrived, setting, size, len(seeds), room, streams))
        return fresh[0]

    sizes, each = (arrived.count, held.count), sum(x.nbytes for x in jax.tree.leaves(tuple(arrived))) // arrived.count
    prepared = kept.once((*key, jax.config.jax_enable_x64), sizes, make, sample_bytes=each)

    engine, room = prepared.engine, prepared.room
    if not fresh:
        engine.feed(_laid_out(arrived, held, room, streams).replace(num_classes=prepared.num_classes))

    def reweigh(weights):
        both = np.concatenate([weights, held.weights]) if streams else _in_room(weights, held.weights, room)
        engine.feed(engine.data.replace(weights=both))  # the inputs stay where they are

    return prepared, _lanes(seeds, hparams, rule, room, arrived.count, held.count, streams), reweigh


def equal(samples: Arrays) -> Arrays:
    """Return samples with a weight of 1 each."""
    return samples._replace(weights=np.ones(samples.count, np.float32))


def _made(data, arrived, setting, size, num_lanes, room, streams):
    """Make what a configuration needs, its network and optimiser checked."""
    example = jax.tree.map(lambda x: x[:1], arrived.inputs)
    model = models.as_model(setting.network, example, switch=setting.switch, mask=setting.mask)
    if setting.task is classification:
        num_classes = models.check_logits(model, arrived.inputs, data.num_classes)
    else:
        num_classes = models.check_outputs(model, arrived.inputs, setting.task, arrived.targets)[-1]
    models.check_independent(model, arrived.inputs)
    model = model if setting.trainable is None else frozen.stopped(model, setting.trainable)
    optimizer, task = optimizer_of(setting), setting.task
    trainer = Trainer(model, lambda hparams: optimizer, size, method=METHOD, weigh_last_batch=True, task=task)
    trainer = trainer._replace(augment=setting.augment)
    if setting.augment is not None:
        _check_augment(setting.augment, data.batch(size).inputs)
    _check_step(trainer, data)
    data, kind = data.replace(num_classes=num_classes), StreamedEngine if streams else Engine
    engine = kind(trainer, data, num_lanes)
    return Prepared(model, engine, frozenset(untrained(trainer, data)), room, num_classes, {})


def _check_signature(restart):
    """Raise a ValueError where a function cannot be called as a restart is."""
    try:
        inspect.signature(restart).bind(None, None, None, shrink=None, noise_scale=None, batches=None)
    except (TypeError, ValueError) as error:
        call = "(key, state, fresh, *, shrink, noise_scale, batches=None)"
        raise ValueError(f"restart must be a function from sp_jax.make_restart, or take {call}: {error}") from None


def _check_augment(augment, inputs):
    """Raise a ValueError where a batch would not be the same after its augmentation, but for the values."""
    try:
        found = jax.eval_shape(augment, jax.random.key(0), inputs)
    except Exception as error:  # a user's function can raise anything
        reason = first_line(error)
        raise ValueError(f"augment(key, inputs) does not run on a batch {_words(inputs)}: {reason}") from error
    if layout(found) != layout(inputs):
        raise ValueError(f"augment must return inputs of the same shapes and dtypes, {_words(inputs)}")


def _laid_out(arrived, held, room, streams):
    """Return all samples as one data set: those that arrived, up to their room, then those of the validation."""

    both, classes = (tuple(arrived), tuple(held)), int(max(arrived.targets.max(), held.targets.max())) + 1
    if streams:
        inputs = jax.tree.map(Joined, arrived.inputs, held.inputs)
        targets, weights = jax.tree.map(lambda *parts: np.concatenate(parts), *(each[1:] for each in both))
    else:
        inputs, targets, weights = jax.tree.map(lambda *parts: _in_room(*parts, room), *both)
    return Dataset(inputs, targets, classes, "inputs and labels", weights)


def _in_room(one, two, room):
    """Return two arrays, each at the beginning of its room, the rest zeros."""
    out = np.zeros((sum(room), *one.shape[1:]), one.dtype)
    out[: len(one)], out[room[0] : room[0] + len(two)] = one, two
    return out


def _lanes(seeds, hparams, rule, room, count, num_held, streams):
    first = count if streams else room[0]  # where the validation samples begin
    order = np.minimum(np.arange(room[0]), first - 1)
    held = first + np.minimum(np.arange(room[1]), num_held - 1)
    lanes = lanes_of(seeds, hparams, rule, *(np.tile(x, (len(seeds), 1)) for x in (order, held)))
    return lanes.replace(num_validation=np.full(len(seeds), num_held, np.int32))


def optimizer_of(setting: Setting) -> optax.GradientTransformation:
    """Return the optimiser of what is trained."""
    if setting.trainable is None:
        return setting.optimizer
    return training.only(lambda hparams: setting.optimizer, setting.trainable)(None)


def stacked(state, count: int):
    """Return a state as that of so many lanes."""

    def leaf(x):  # NumPy compiles nothing
        numpy = jnp if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np
        return numpy.repeat(numpy.asarray(x)[None], count, axis=0)

    return jax.tree.map(leaf, state)


def task_since(task, since) -> Any:
    """Return the task of a call: that of the fit before where none is named, or the same by name."""
    if since is not None and (task is None or task == since.task.name):
        return since.task
    return classification if task is None else task


@contextlib.contextmanager
def released(prepared: Prepared):
    """Let go of the samples in the end: the programs are kept, the samples are not."""
    try:
        yield prepared.engine
    finally:
        prepared.engine.feed(None)


def as_optimizer(optimizer: Any) -> optax.GradientTransformation:
    """Return an optimiser as optax's own pair of functions: Adam at 0.001 for None, the transformation of a
    `MultiSteps`.

    Raises:
      ValueError: it is not an optimiser.
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if optimizer is not None and not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(f"optimizer must be an optax optimiser, as optax.adam(1e-3), got {optimizer}")
    return optimizer or optax.adam(1e-3)


def _check_step(trainer: Trainer, data: Dataset):
    """Trace a step; raise a ValueError of one line, before compiling, where the optimiser does not fit the network."""
    optimizer, batch = trainer.optimizer(None), data.batch(trainer.batch_size)

    def step(key, batch):
        params, batch_stats = trainer.model.init(key)
        state = training.TrainState(params, batch_stats, optimizer.init(params))
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


def untrained(trainer: Trainer, data: Dataset) -> set[str]:
    """Return the paths of parameters that are not trained, and of statistics that no step updates (a frozen part).

    Args:
      trainer: the static configuration.
      data: for shapes and dtypes alone.
    """
    params, batch_stats = jax.eval_shape(trainer.model.init, jax.random.key(0))
    batch = data.batch(2)

    def loss(params, batch_stats, inputs, labels):
        outputs, _ = trainer.model.apply(params, batch_stats, inputs, jnp.ones(2, bool), True)
        return jnp.mean(trainer.task.losses(outputs, labels))

    found = frozen.frozen_leaves(loss, trainer.optimizer(None), params, batch_stats, batch.inputs, batch.labels)
    return found | models.fixed_statistics(trainer.model, data.inputs)


def warn_of_majority(samples: Arrays, chosen: np.ndarray, setting: Setting) -> None:
    """Warn where predicting the most common class already reaches the training accuracy that ends a round.

    Args:
      samples: all, weighted or not.
      chosen: indices of those of the round.
      setting: its task, and when a round ends.
    """
    rule, targets = setting.convergence, samples.targets[chosen]
    if not setting.task.counts or targets.ndim != 1:
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
