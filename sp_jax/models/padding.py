"""Batches without their padding, for networks that know no mask."""

import chex
import jax.numpy as jnp


def without_padding(inputs: chex.Array, mask: chex.Array | None) -> chex.Array:
    """Return the samples [B, ...] of a batch, with the padding (False in the mask [B]) replaced by the real ones, which
    come first, repeated; as they are without a mask."""
    if mask is None:
        return inputs
    return inputs[jnp.arange(mask.shape[0]) % jnp.maximum(jnp.sum(mask), 1)]
