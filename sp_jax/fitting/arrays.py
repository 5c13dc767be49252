"""Samples as users have them, as NumPy arrays: lists, NumPy, JAX and torch arrays, frames, dictionaries, sources."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.data import samples as checked
from sp_jax.errors import first_line
from sp_jax.tasks import Task, as_task, classification


class Arrays(NamedTuple):
    """Checked samples on the host, in the dtypes of the devices."""

    inputs: chex.ArrayTree  # [N, ...]
    targets: np.ndarray  # [N] or [N, K]
    weights: np.ndarray | None  # [N] float32

    @property
    def count(self) -> int:
        """N."""
        return len(self.targets)


def as_arrays(name: str, inputs: Any, targets: Any, task: "str | Task", weights: Any = None) -> tuple[Arrays, Task]:
    """Return samples as checked arrays, and their task.

    Args:
      name: of the samples, for messages.
      inputs: [N, ...] in an array of any library, lists, a frame of numeric columns (pandas, polars), or a mapping of
        such; or, where `targets` is None, a source of pairs (input, target): a Grain source, or a `tf.data.Dataset`.
      targets: [N] or [N, K].
      task: a name, or a `Task`.
      weights: [N], or None.

    Raises:
      ValueError: they are not valid for the task, or not finite; one line.
    """
    if targets is None:
        inputs, targets = _collected(name, inputs)
    inputs, targets = _tree(name, inputs), _leaf(name, targets)
    if not targets.size:
        raise ValueError(f"{name}: there are no samples")
    task = as_task(task, targets)
    if task is classification and not isinstance(inputs, Mapping):
        checked.check_samples(name, inputs, targets)
    else:
        _check_inputs(name, inputs, len(targets) if targets.ndim else 0)
    targets = task.check(name, targets)
    weights = None if weights is None else _weights(name, weights, len(targets))
    return Arrays(jax.tree.map(lambda x: _narrow(name, x), inputs), targets, weights), task


def with_class_weights(samples: Arrays, class_weights: Any) -> Arrays:
    """Return samples whose weights are multiplied by those of their classes.

    Args:
      samples: of a task with one label a sample.
      class_weights: from class to weight, or "balanced": all classes of the samples count the same together.

    Raises:
      ValueError: the targets are no classes, a class has no weight, or the weights are not valid.
    """
    targets = samples.targets
    if targets.ndim != 1 or not (targets == np.round(targets)).all():
        raise ValueError("class_weights are for classes: give weights, one for each sample, for other tasks")
    classes, which, counts = np.unique(targets.astype(int), return_inverse=True, return_counts=True)
    if isinstance(class_weights, str) and class_weights == "balanced":
        of_class = len(targets) / (len(classes) * counts)
    elif not isinstance(class_weights, Mapping):
        raise ValueError(f"class_weights must be 'balanced' or from class to weight, got {class_weights!r}")
    elif missing := [int(each) for each in classes if each not in class_weights]:
        raise ValueError(f"class_weights has no weight for the classes {missing}")
    else:
        try:
            of_class = np.array([class_weights[each] for each in classes.tolist()], float)
        except (TypeError, ValueError):
            raise ValueError(f"class_weights must be numbers, got {class_weights!r}") from None
    own = np.ones(len(targets), np.float32) if samples.weights is None else samples.weights
    return samples._replace(weights=_weights("class_weights", own * of_class[which], len(targets)))


def _collected(name, source):
    """Return inputs and targets of a source of pairs, stacked."""
    if hasattr(source, "as_numpy_iterator"):
        pairs = list(source.as_numpy_iterator())
    elif hasattr(source, "__len__") and hasattr(source, "__getitem__") and not isinstance(source, (np.ndarray, list)):
        pairs = [source[i] for i in range(len(source))]
    else:
        raise ValueError(f"{name}: without labels, inputs must be a source of pairs, got {type(source).__name__}")
    if not pairs or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{name}: a source must give pairs (input, target), one for each sample")
    return jax.tree.map(lambda *xs: np.stack(xs), *pairs)


def _tree(name, inputs):
    if isinstance(inputs, Mapping):
        if not inputs:
            raise ValueError(f"{name}: the dictionary of inputs is empty")
        if strange := [key for key in inputs if not isinstance(key, str)]:
            raise ValueError(f"{name}: the names in a dictionary of inputs must be texts, got {strange[0]!r}")
        return {key: _tree(f"{name} {key!r}", value) for key, value in inputs.items()}
    return _leaf(name, inputs)


def _leaf(name, values):
    """Return an array of any library as NumPy's; a memory-mapped one stays so."""
    if hasattr(values, "columns") and hasattr(values, "to_numpy"):
        values = _frame(name, values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    try:
        found = np.asanyarray(values)
    except ValueError:  # of lists that are not equally long
        raise ValueError(f"{name}: not all samples have the same shape; pad or crop them to one") from None
    except TypeError as error:  # of keys
        raise ValueError(f"{name}: no array of numbers: {first_line(error)}") from None
    if isinstance(found, np.ma.MaskedArray):
        if np.ma.is_masked(found):
            raise ValueError(f"{name}: some values are masked; fill them, or leave those samples out")
        found = found.data
    return found


def _frame(name, frame):
    columns = [str(column) for column in frame.columns]
    if twice := sorted({column for column in columns if columns.count(column) > 1}):
        raise ValueError(f"{name}: the columns {', '.join(twice)} stand there twice")
    found = {column: np.asarray(frame[key]) for column, key in zip(columns, frame.columns, strict=True)}
    kinds = (np.integer, np.floating, np.bool_)
    words = [column for column, x in found.items() if not any(np.issubdtype(x.dtype, kind) for kind in kinds)]
    if words:
        raise ValueError(f"{name}: the columns {', '.join(words)} are not numbers: encode them, or leave them out")
    return np.stack([x.astype(np.float32) for x in found.values()], axis=1)


def _check_inputs(name, inputs, count):
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        own = name + jax.tree_util.keystr(path)
        if leaf.ndim < 1 or len(leaf) != count or not count:
            raise ValueError(f"{own} must be [N, ...] with N = {count} targets, N >= 1, got {leaf.shape}")
        if not path and leaf.ndim < 2:
            raise ValueError(f"{own} must be of shape [N, features, ...], got {leaf.shape}")
        if not any(jnp.issubdtype(leaf.dtype, kind) for kind in (np.integer, np.floating, np.bool_)):
            raise ValueError(f"{own}: inputs must be pixels, tokens or floats, got {leaf.dtype}; convert them")
        parts = (leaf[i : i + checked.ROWS] for i in range(0, len(leaf), checked.ROWS))
        if jnp.issubdtype(leaf.dtype, np.floating) and not all(np.isfinite(part).all() for part in parts):
            raise ValueError(f"{own}: inputs hold NaN or infinite values; remove or replace them")


def _narrow(name, array):
    """Return an array in the devices' dtype; raise a ValueError where its values do not fit."""
    narrow = jax.dtypes.canonicalize_dtype(array.dtype)
    if narrow == array.dtype:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(narrow)
    if jnp.issubdtype(narrow, np.floating) and not np.isfinite(found).all():
        raise ValueError(f"{name}, as {narrow},: inputs hold NaN or infinite values; remove or replace them")
    if jnp.issubdtype(narrow, np.integer) and not (found == array).all():
        raise ValueError(f"{name}: integers beyond {narrow}; give smaller ones")
    return found


def _weights(name, weights, count):
    found = _leaf(name, weights)
    if found.shape != (count,) or not any(jnp.issubdtype(found.dtype, kind) for kind in (np.number, np.bool_)):
        raise ValueError(f"{name}: weights must be numbers [{count}], one for each sample, got {found.shape}")
    found = found.astype(np.float32)
    if not np.isfinite(found).all() or (found < 0).any() or not found.any():
        raise ValueError(f"{name}: weights must be finite, at least 0, and not all 0")
    return found


class Joined:
    """Two arrays, one after the other, without a copy: they may be memory-mapped."""

    def __init__(self, first: np.ndarray, second: np.ndarray):
        """Join [N, ...] and [M, ...]."""
        self.parts, self.dtype, self.ndim = (first, second), first.dtype, first.ndim
        self.shape, self.nbytes = (len(first) + len(second), *first.shape[1:]), first.nbytes + second.nbytes

    def __len__(self):
        """Return N + M."""
        return self.shape[0]

    def take(self, indices, axis=0, out=None, mode="clip"):
        """Take samples, as `np.take` does."""
        del axis, mode
        first, second = self.parts
        out = np.empty((len(indices), *self.shape[1:]), self.dtype) if out is None else out
        early = indices < len(first)
        out[early], out[~early] = first[indices[early]], second[indices[~early] - len(first)]
        return out

    def __getitem__(self, rows):
        """Return the rows of a slice or an array of indices."""
        return self.take(np.arange(len(self))[rows])
