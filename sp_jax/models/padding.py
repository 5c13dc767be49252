"""Batches without their padding, for networks that know no mask."""

import chex
import jax.numpy as jnp


def without_padding(inputs: chex.Array, mask: chex.Array | None) -> chex.Array:
    """Return the samples of a batch, with the padding replaced by the real ones (which come first), repeated.

    Args:
      inputs: [B, ...].
      mask: [B] booleans, False marks padding, or None.

    Returns:
      [B, ...].
    """
    if mask is None:
        return inputs
    return inputs[jnp.arange(mask.shape[0]) % jnp.maximum(jnp.sum(mask), 1)]
