"""BatchNorm statistics of parameters that did not gather them: recalibration on data (Section 4, Figure 6)."""

import functools

import chex
import jax
import jax.numpy as jnp

from sp_jax.transforms.filters import is_changeable
from sp_jax.types import Model

LARGE = 2.0**20  # a trial value so large that the batch's own statistic hardly affects the momentum
CLOSE = 1e-3  # relative: how much a running mean's update may differ from a linear one by rounding


def recalibrate(
    model: Model, params: chex.ArrayTree, batch_stats: chex.ArrayTree, inputs: chex.Array, masks: chex.Array
) -> chex.ArrayTree:
    """Return the BatchNorm statistics of these parameters: the mean over the batches of each batch's mean and
    variance, weighted by its real samples (the cumulative average; running statistics would remember where they began).

    Anything but a running mean stays as it is: a statistic whose update is not new = m·old + (1 - m)·(of the batch), as
    the vectors of a spectral norm, a maximum, a count, or Haiku's averages, which are corrected for their initial bias.

    Args:
      model: its update is tried on three values of the statistics to find each one's momentum.
      params: the learned parameters.
      batch_stats: any statistics of the model, for structure and dtypes; values of running means do not matter.
      inputs: [K, B, ...], K batches.
      masks: [K, B] booleans, False marks padding; a batch of padding alone counts nothing.

    Returns:
      A pytree like `batch_stats`.

    Raises:
      AssertionError: `masks` is not [K, B] for `inputs` of [K, B, ...].
    """
    inputs, masks = jnp.asarray(inputs), jnp.asarray(masks)
    chex.assert_equal_shape_prefix([inputs, masks], 2)
    chex.assert_rank(masks, 2)
    leaves, structure = jax.tree.flatten(batch_stats)
    picked = [is_changeable(leaf) for leaf in leaves]  # the others are an NNX module's random streams
    if not any(picked):
        return batch_stats

    statistics = [leaf for p, leaf in zip(picked, leaves, strict=True) if p]

    def updated(values, x, mask):
        """Return the picked statistics after a batch, given their values before it."""
        left = iter(values)
        start = [next(left) if p else leaf for p, leaf in zip(picked, leaves, strict=True)]
        new = jax.tree.leaves(model.apply(params, structure.unflatten(start), x, mask, True)[1])
        return [value for p, value in zip(picked, new, strict=True) if p]

    def of_batch(chosen, x, mask):
        """Return each statistic of the batch itself, and the updates from 0 and from LARGE that it follows from."""
        low, high = (
            updated([jnp.where(c, value, s) for c, s in zip(chosen, statistics, strict=True)], x, mask)
            for value in (0, LARGE)
        )
        return [z / (1 - (o - z) / LARGE) for z, o in zip(low, high, strict=True)], low, high

    def are_running(chosen):
        """Return which of the statistics are running means, tested together on the first batch; [S] booleans."""
        x, mask = inputs[0], masks[0]
        own, low, high = of_batch(chosen, x, mask)
        of_one, again = (
            updated([jnp.where(c, value, s) for c, value, s in zip(chosen, values, statistics, strict=True)], x, mask)
            for values in ([1.0] * len(statistics), own)
        )
        return jnp.stack([_is_running_mean(*each) for each in zip(own, low, high, of_one, again, strict=True)])

    def one_batch(total, batch):
        x, mask = batch
        weight, (own, _, _) = jnp.sum(mask), of_batch(running, x, mask)
        return [t + jnp.where(weight > 0, weight * s, 0) for t, s in zip(total, own, strict=True)], weight

    every = jnp.ones(len(statistics), bool)
    together = are_running(every)
    # One that is not a running mean may distort the others' test, so then each is tested alone.
    alone = functools.partial(jax.lax.map, lambda i: are_running(jnp.arange(len(statistics)) == i)[i])
    running = jax.lax.cond(jnp.all(together), lambda: together, lambda: alone(jnp.arange(len(statistics))))
    total, weights = jax.lax.scan(one_batch, [jnp.zeros_like(s) for s in statistics], (inputs, masks))
    means = [t / jnp.sum(weights) for t in total]
    left = iter([jnp.where(r, mean, s).astype(s.dtype) for r, mean, s in zip(running, means, statistics, strict=True)])
    return structure.unflatten([next(left) if p else leaf for p, leaf in zip(picked, leaves, strict=True)])


def _is_running_mean(own, low, high, of_one, again):
    """Return whether an update is linear in the old value with a momentum in [0, 1), and leaves a value that equals the
    batch's own statistic unchanged."""
    momentum = (high - low) / LARGE
    linear = jnp.abs(of_one - (low + momentum)) <= CLOSE * (jnp.abs(low) + 1)
    still = jnp.abs(again - own) <= CLOSE * (jnp.abs(own) + 1)
    return jnp.all(linear & still & (momentum >= 0) & (momentum < 1 - 1e-6))
