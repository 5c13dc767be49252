"""Diagnostics of the gap: gradient norms on parts of the data (Figure 5), similarity to the initialisation (Figure 11).

Functions of one lane, off the hot path: `sweeps.Engine.measure` runs them on all lanes.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax.training import Lane, Trainer
from sp_jax.types import Dataset, TrainState

BATCHES = 10  # gradients of so many batches are averaged


def gradient_norms(trainer: Trainer) -> Callable[..., dict[str, chex.Array]]:
    """Make a measure of the gradient norms of the old data and of the new data, separately (Figure 5).

    Returns:
      `measure(lane, state, data, num_old, num_visible)`: scalars `gradient_norm_old` and `gradient_norm_new`, the norm
      of the gradient of the mean cross-entropy of a batch, in train mode, averaged over the first ten batches of each.
    """

    def measure(lane: Lane, state: TrainState, data: Dataset, num_old: chex.Numeric, num_visible: chex.Numeric):
        def norm(start, stop):
            return _gradient_norm(trainer, lane, state, data, start, stop)

        return {"gradient_norm_old": norm(0, num_old), "gradient_norm_new": norm(num_old, num_visible)}

    def positions(num_train, num_old, num_visible):
        """Return the positions, in the order of arrival, of the samples that `measure` reads: a stream sends these."""
        del num_visible
        first = np.arange(BATCHES * trainer.batch_size)
        return np.minimum(np.concatenate([first, num_old + first]), num_train - 1)

    measure.positions = positions
    return measure


def _gradient_norm(trainer, lane, state, data, start, stop):
    """Return the mean over the first batches of the samples that arrived from `start` to `stop`; NaN without any."""
    size = trainer.batch_size

    def batch_norm(i):
        positions = start + i * size + jnp.arange(size)
        mask = positions < stop
        samples = data.take(lane.order[jnp.minimum(positions, lane.order.shape[0] - 1)])

        def mean_loss(params):
            outputs, _ = trainer.model.apply(params, state.batch_stats, samples.inputs, mask, True)
            losses = trainer.task.losses(outputs, samples.labels)
            return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(jnp.sum(mask), 1)

        return jnp.where(jnp.any(mask), optax.tree.norm(jax.grad(mean_loss)(state.params)), 0), jnp.any(mask)

    norms, counted = jax.lax.map(batch_norm, jnp.arange(BATCHES))
    return jnp.sum(norms) / jnp.sum(counted)


def similarity(params: chex.ArrayTree, start: chex.ArrayTree) -> dict[str, chex.Array]:
    """Compute the similarity of a solution to its initialisation, over all parameters together (Figures 11 and 33).

    Scalars, of two pytrees of one structure and shapes: `pearson` (the paper's), `cosine`, `spearman` (Pearson's of the
    ranks; equal values are ranked in the order in which they come) and `distance` (Euclidean, in units of the
    parameters).

    >>> found = similarity({"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([2.0, 4.0, 6.0])})
    >>> {name: round(float(value), 2) for name, value in found.items()}
    {'pearson': 1.0, 'cosine': 1.0, 'spearman': 1.0, 'distance': 3.74}
    """
    one, two = (jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (params, start))
    return {
        "pearson": _pearson(one, two),
        "cosine": _cosine(one, two),
        "spearman": _pearson(*(jnp.argsort(jnp.argsort(x)).astype(one.dtype) for x in (one, two))),
        "distance": jnp.linalg.norm(one - two),
    }


def measure_similarity(lane: Lane, states: tuple[chex.ArrayTree, chex.ArrayTree], data: Dataset):
    """Call `similarity` as `sweeps.Engine.measure` does; `states` are the parameters after and before a round."""
    del lane, data
    return similarity(*states)


def _pearson(x, y):
    return _cosine(x - jnp.mean(x), y - jnp.mean(y))


def _cosine(x, y):
    return jnp.vdot(x, y) / (jnp.linalg.norm(x) * jnp.linalg.norm(y))
