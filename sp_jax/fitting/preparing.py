"""Preparation of `fit_rounds` and `tune_restart`: arrays, network and optimiser are checked before the first step."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax import models, restarts, training
from sp_jax.engine import Engine, check_count, lanes_of, memory
from sp_jax.engine.streamed import StreamedEngine
from sp_jax.fitting import frozen, kept
from sp_jax.fitting.arrays import Arrays, Joined, as_arrays, with_class_weights
from sp_jax.fitting.checks import check_augment, check_convergence, check_signature, check_step, words
from sp_jax.fitting.evaluation_weights import evaluation_state
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
            check_signature(restart)
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
                raise ValueError(f"validation {name} are {words(theirs, 'of shape ')}, the others {words(ours)}")
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
        check_augment(setting.augment, data.batch(size).inputs)
    check_step(trainer, data)
    data, kind = data.replace(num_classes=num_classes), StreamedEngine if streams else Engine
    engine = kind(trainer, data, num_lanes)
    return Prepared(model, engine, frozenset(untrained(trainer, data)), room, num_classes, {})


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
