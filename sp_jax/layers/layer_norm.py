"""LayerNorm (Ba et al. 2016), which keeps no statistics: a sample's numbers depend on that sample alone."""

import chex
from flax import linen as nn

NORMS = ("own", "layer")  # of a network: its own normalisation (or none), or LayerNorm in its place


class LayerNorm(nn.LayerNorm):
    """Flax's `LayerNorm` over the last axis, called as `BatchNorm` is; the variance is computed as PyTorch does."""

    use_fast_variance: bool = False

    def __call__(self, x: chex.Array, mask: chex.Array | None = None) -> chex.Array:
        """Normalise each [C] of `[B, ..., C]`; `mask` has no effect."""
        del mask
        return super().__call__(x)
