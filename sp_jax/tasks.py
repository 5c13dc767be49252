"""Tasks: what a network is to predict, as a loss and a metric of each sample.

The paper's is `classification`; the others train by the same engine. Rounds report the mean loss and the mean metric,
in training and on the validation samples; the metric's is larger where the network is better, and where it is a
fraction of what is right, 99 % ends a round (Section 2.1).

A user's own:

>>> pinball = Task("pinball", lambda outputs, y: pinball_loss(outputs[:, 0], y), lambda outputs, y: outputs[:, 0] >= y)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax


def cross_entropy(logits: chex.Array, labels: chex.Array) -> chex.Array:
    """Return the cross-entropy of each sample, nats, computed in at least float32.

    Args:
      logits: [B, classes].
      labels: [B] integers.

    Returns:
      [B].
    """
    return optax.losses.softmax_cross_entropy_with_integer_labels(_precise(logits), labels)


def _precise(outputs):
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


class Task(NamedTuple):
    """What is predicted, and how well; two functions of a batch."""

    name: str
    losses: Callable[[chex.Array, chex.Array], chex.Array]  # (outputs [B, ...], targets [B, ...]) -> [B], minimised
    metric: Callable[[chex.Array, chex.Array], chex.Array]  # likewise; more is better
    counts: bool = False  # whether the metric is 0 or 1 for each sample, as of right predictions
    # `check(name, targets)` raises a ValueError where they are not valid, and returns them in the devices' dtype.
    check: Callable[[str, np.ndarray], np.ndarray] = lambda name, targets: _finite(name, targets)
    # `outputs(shape, targets)` returns what outputs of this shape [1, ...] should be instead; "" where they fit.
    outputs: Callable[[tuple, np.ndarray], str] = lambda shape, targets: ""
    numbers: tuple[tuple[str, Any], ...] = ()  # that make the task again, with its name


def _finite(name, targets, kinds=(np.integer, np.floating, np.bool_)):
    """Return targets [N] or [N, K] as float32; raise a ValueError where they are not finite numbers."""
    if targets.ndim not in (1, 2) or not any(jnp.issubdtype(targets.dtype, kind) for kind in kinds):
        raise ValueError(f"{name}: targets must be numbers [N] or [N, K], got {targets.dtype} of {targets.shape}")
    if not np.isfinite(targets.astype(float)).all():
        raise ValueError(f"{name}: targets hold NaN or infinite values; remove those samples")
    return targets.astype(jax.dtypes.canonicalize_dtype(float))


def _labels(name, labels):
    """Return labels [N] as int32; raise a ValueError where they are not integers from 0 on."""
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        found = f" from {labels.min()}" if jnp.issubdtype(labels.dtype, np.number) and labels.size else ""
        raise ValueError(f"{name}: labels must be integers [N] from 0 on, got {labels.dtype} {labels.shape}{found}")
    if labels.max() >= 2**31:
        raise ValueError(f"{name}: labels must be below 2**31, got {labels.max()}: number the classes from 0 on")
    return labels.astype(np.int32)


def _truths(name, targets):
    found = _finite(name, targets)
    if not np.isin(found, (0, 1)).all():
        raise ValueError(f"{name}: targets must be 0 or 1, got values from {found.min():g} to {found.max():g}")
    return found


def _classes(shape, labels):
    count = int(labels.max()) + 1
    fit = len(shape) == 2 and shape[0] == 1 and shape[1] >= count
    return "" if fit else f"logits [B, {count} or more] for labels 0 to {count - 1}"


def _like_targets(shape, targets):
    wanted = ((1, *targets.shape[1:]), (1, 1) if targets.ndim == 1 else None)
    return "" if shape in wanted else f"outputs [B{''.join(f', {n}' for n in targets.shape[1:])}]"


def _aligned(outputs, targets):
    """Return outputs in the shape of the targets, [B] or [B, K]."""
    return _precise(outputs).reshape(targets.shape)


def _over_columns(values):
    return jnp.mean(values.reshape(len(values), -1), axis=1)


classification = Task(
    "classification",
    cross_entropy,
    lambda logits, labels: jnp.argmax(logits, axis=-1) == labels,
    counts=True,
    check=_labels,
    outputs=_classes,
)
"""Integer classes: cross-entropy of logits [B, classes], right or wrong (the paper's)."""


def _sigmoid_losses(logits, targets):
    return _over_columns(optax.losses.sigmoid_binary_cross_entropy(_aligned(logits, targets), targets))


binary = Task(
    "binary",
    _sigmoid_losses,
    lambda logits, targets: (_aligned(logits, targets) > 0) == (targets > 0.5),
    counts=True,
    check=lambda name, targets: _one_column(name, _truths(name, targets)),
    outputs=_like_targets,
)
"""Targets 0 or 1, [N]: log loss of logits [B] or [B, 1], right or wrong at probability 1/2."""


def _one_column(name, targets):
    if targets.ndim != 1:
        raise ValueError(f"{name}: targets of a binary task are [N], got {targets.shape}; or task='multilabel'")
    return targets


multilabel = Task(
    "multilabel",
    _sigmoid_losses,
    lambda logits, targets: _over_columns(((_aligned(logits, targets) > 0) == (targets > 0.5)).astype(float)),
    check=_truths,
    outputs=_like_targets,
)
"""Several labels at once, targets 0 or 1, [N, K]: mean log loss of logits [B, K], the fraction of labels right."""


def regression(
    targets: chex.Array | None = None, *, huber: float | None = None, variance: Sequence[float] | float = 1.0
) -> Task:
    """Make the task of real targets, [N] or [N, K]: outputs of the same shape, or [B, 1].

    Args:
      targets: of the training samples: the metric is 1 - (squared error) / (their variance), averaged over columns;
        with the variance of the samples it is measured on, its mean would be R².
      huber: where the squared error becomes linear, in units of the targets; by default nowhere.
      variance: of the targets, a number or [K], where they are not given.

    Returns:
      A `Task` that minimises the mean squared error, averaged over columns, or Huber's loss.

    Raises:
      ValueError: a column of the targets is constant.
    """
    found = variance if targets is None else np.var(_finite("regression", np.asarray(targets)), axis=0, dtype=float)
    variance = np.asarray(found, np.float32)
    if not np.all(variance > 0):
        raise ValueError("regression: all targets of a column are equal: there is nothing to learn")

    def losses(outputs, targets):
        if huber is None:
            return _over_columns(jnp.square(_aligned(outputs, targets) - targets))
        return _over_columns(optax.losses.huber_loss(_aligned(outputs, targets), targets, delta=huber))

    def explained(outputs, targets):
        unexplained = jnp.square(_aligned(outputs, targets) - targets) / jnp.broadcast_to(variance, targets.shape)
        return _over_columns(1 - unexplained)

    numbers = (("variance", variance.tolist()), ("huber", huber))
    return Task("regression", losses, explained, outputs=_like_targets, numbers=numbers)


TASKS = {"classification": classification, "binary": binary, "multilabel": multilabel, "regression": regression()}


def note(task: Task) -> dict:
    """Return what a file says of a task, as plain JSON: its name, and the numbers of a regression's."""
    return {} if task is classification else {"task": {"name": task.name, **dict(task.numbers)}}


def noted(note: dict) -> Task:
    """Return the task that a file says; a user's own is had by its name alone, and has to be given again."""
    found = dict(note.get("task", {"name": "classification"}))
    name = found.pop("name")
    if name == "regression":
        return regression(variance=found["variance"], huber=found["huber"])
    return TASKS.get(name, classification)


def as_task(task: "str | Task", targets: chex.Array) -> Task:
    """Return the task of a name; that of regression measures by the variance of the targets.

    Args:
      task: a name of `TASKS`, or a `Task`.
      targets: [N] or [N, K], of the training samples.

    Raises:
      ValueError: no such task.
    """
    if task == "regression":
        return regression(targets)
    if isinstance(task, str) and task in TASKS:
        return TASKS[task]
    if not isinstance(task, Task):
        raise ValueError(f"task must be one of {', '.join(TASKS)}, or a sp_jax.tasks.Task, got {task!r}")
    return task
