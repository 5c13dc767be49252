"""Batches without their padding, for networks that know no mask."""

import chex
import jax.numpy as jnp


def without_padding(inputs: chex.Array, mask: chex.Array | None) -> chex.Array:
    """Returns the samples of a batch, the real ones (which come first) again in place of padding.

    Args:
      inputs: [B, ...].
      mask: [B] booleans, False marks padding, or None.

    Returns:
      [B, ...].
    """
    if mask is None:
        return inputs
    return inputs[jnp.arange(mask.shape[0]) % jnp.maximum(jnp.sum(mask), 1)]
