"""Validation of samples: one shape, finite, labels in range. A suspicious class distribution is only logged."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.data.errors import DataError
from sp_jax.types import Dataset

logger = logging.getLogger(__name__)

ROWS = 65_536  # checked at a time: memory-mapped inputs are never held in memory as a whole


def check(data: Dataset) -> None:
    """Check all of a data set; arrays partly held by other hosts are not checked.

    Raises:
      DataError: as `check_samples`, or labels of no class.
    """
    if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in (data.inputs, data.labels)):
        return
    check_samples(data.name, data.inputs, data.labels)
    highest = int(np.max(data.labels))
    if highest >= data.num_classes:
        raise DataError(f"{data.name}: labels must lie in [0, {data.num_classes}), found {highest}")
    _tell_of_classes(data)


def check_samples(name: str, inputs: chex.Array, labels: chex.Array) -> None:
    """Raise a DataError where samples are not [N, ...] finite numbers with [N] labels from 0 on."""
    shapes = f"{np.shape(inputs)} and {np.shape(labels)}"
    if np.ndim(inputs) < 2 or np.shape(labels) != np.shape(inputs)[:1] or not len(labels):
        raise DataError(f"{name} must be of shapes [N, features, ...] and [N] with N >= 1, got {shapes}")
    if not _is(inputs, np.integer, np.floating, np.bool_):
        raise DataError(f"{name}: inputs must be pixels, tokens or floats, got {inputs.dtype}; convert them")
    if not _is(labels, np.integer) or np.min(labels) < 0:
        found = f" from {np.min(labels)}" if _is(labels, np.number) else ""
        raise DataError(f"{name}: labels must be integers from 0 on, got {labels.dtype}{found}")
    parts = (inputs[i : i + ROWS] for i in range(0, len(inputs), ROWS))
    if _is(inputs, np.floating) and not all(np.isfinite(part).all() for part in parts):
        raise DataError(f"{name}: inputs hold NaN or infinite values; remove or replace them")


def _is(array, *kinds):
    return any(jnp.issubdtype(array.dtype, kind) for kind in kinds)


def _tell_of_classes(data):
    """Log a line where a class has no sample, or one class has all."""
    absent = np.flatnonzero(np.bincount(np.asarray(data.labels), minlength=data.num_classes) == 0)
    if len(absent) == data.num_classes - 1 > 0:
        logger.warning("%s: all samples are of one class, %d: there is nothing to learn", data.name, data.labels[0])
    elif len(absent):
        shown = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
        logger.warning("%s: %d of %d classes have no sample: %s", data.name, len(absent), data.num_classes, shown)
