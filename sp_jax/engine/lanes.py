"""Lanes: the seeds and settings that train side by side, as one `Lane` of arrays."""

from collections.abc import Sequence
from dataclasses import fields as fields_of

import chex
import jax
import numpy as np

from sp_jax.data import arrival
from sp_jax.training import Convergence, Lane
from sp_jax.types import HParams


def make_lanes(seeds: Sequence[int], hparams: HParams, convergence: Convergence, num_samples: int) -> Lane:
    """Make the lanes of one setting, one for each seed.

    Args:
      seeds: L non-negative integers.
      hparams: scalars, the same for all lanes.
      convergence: scalars, the same for all lanes.
      num_samples: N, of the data set; each seed has its own split and order of them.

    Returns:
      A `Lane` of [L, ...] NumPy arrays.
    """
    return lanes_of(seeds, hparams, convergence, *arrival.splits(np.int32(seeds), num_samples))


def lanes_of(
    seeds: Sequence[int], hparams: HParams, convergence: Convergence, order: chex.Array, validation: chex.Array
) -> Lane:
    """Make lanes on samples whose order is given.

    Args:
      seeds: L non-negative integers.
      hparams: scalars, the same for all lanes, or [L].
      convergence: scalars, the same for all lanes, or [L].
      order: [L, T] indices of the training samples in the order of arrival.
      validation: [L, V] indices of the validation samples.

    Returns:
      A `Lane` of [L, ...] NumPy arrays.
    """
    settings = (_repeat(record, len(seeds)) for record in (hparams, convergence))
    indices = (np.asarray(order, np.int32), np.asarray(validation, np.int32))
    return Lane(np.int32(seeds), *settings, *indices, np.ones(len(seeds), bool))


def _repeat(record, count):
    """Repeat each field of a record that is not None for all lanes, in the dtype of its default; counts have none."""
    dtypes = {bool: bool, int: np.int32, float: np.float32, type(None): np.int32}
    traced = (f for f in fields_of(record) if f.metadata.get("pytree_node", True))
    given = [f for f in traced if getattr(record, f.name) is not None]
    fields = {f.name: np.full(count, getattr(record, f.name), dtypes[type(f.default)]) for f in given}
    return record.replace(**fields)


def part_of(tree: chex.ArrayTree, start: int, stop: int) -> chex.ArrayTree:
    """Return some of the lanes of [L, ...]."""
    return jax.tree.map(lambda x: x[start:stop], tree)


def stacked(trees: Sequence[chex.ArrayTree]) -> chex.ArrayTree:
    """Return the lanes of all trees, on the host, as one tree of [L, ...]."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *xs: np.concatenate(xs), *trees)


def check_count(name: str, value: int) -> None:
    """Raise a ValueError where a count is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
