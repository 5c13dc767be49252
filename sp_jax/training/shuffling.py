"""The order of the samples in an epoch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp

SHUFFLES = ("epoch", "round", "never")  # when samples are put into another order


def epoch_order(key: chex.PRNGKey | None, order: chex.Array, num_visible: chex.Numeric, length: int) -> chex.Array:
    """Shuffle the samples of one epoch: those that have arrived come first, each once.

    Args:
      key: consumed; None keeps the order of arrival.
      order: [T] indices in the order of arrival.
      num_visible: int scalar, how many have arrived; may be traced.
      length: of the result, at least T.

    Returns:
      [length] indices; from position `num_visible` on they mean nothing.
    """
    sizes, padded = _sizes(order.shape[0]), jnp.pad(order, (0, length - order.shape[0]))
    if key is None:
        return padded

    def shuffled(size):
        bits = jax.random.bits(key, (size,), jnp.uint32) >> 1  # each number depends on its place alone
        unseen = jnp.arange(size) >= num_visible
        ranks = _argsort(jnp.where(unseen, jnp.uint32(0xFFFFFFFF), bits))
        return jax.lax.dynamic_update_slice(padded, order[:size][ranks], (0,))

    smallest = sum((num_visible <= size for size in sizes[1:]), 0)  # that holds all visible ones
    return jax.lax.switch(smallest, [partial(shuffled, size) for size in sizes])


def _sizes(count):
    """Return the numbers of samples that an epoch may sort: all, and those powers of 4 that are fewer.

    >>> _sizes(50_000)
    [50000, 16384, 4096, 1024]
    """
    return [count, *(4**k for k in range(12, 4, -1) if 4**k < count)]


def _argsort(keys):
    """Return `jnp.argsort` of uint32 keys [N]; on a CPU, where a sort of one array is many times faster than one of
    two, in passes over some bits of each key together with its place."""
    count, places = keys.shape[0], jnp.arange(keys.shape[0], dtype=jnp.uint32)
    bits = max(1, (count - 1).bit_length())  # of a place
    low = jnp.uint32((1 << bits) - 1)

    def passes(keys):
        def one(i, order):
            shift = (i * (32 - bits)).astype(jnp.uint32)
            return order[jnp.sort((keys[order] >> shift) << bits | places) & low]

        return jax.lax.fori_loop(0, -(-32 // (32 - bits)), one, places).astype(jnp.int32)

    return jax.lax.platform_dependent(keys, cpu=passes, default=lambda keys: jnp.argsort(keys).astype(jnp.int32))
