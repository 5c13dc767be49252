"""Layers of the networks, each in the form that its platform runs fast; the numbers are those of Flax's own.

>>> from sp_jax.layers import BatchNorm, Conv, Dense, convolution, recurrence
"""

from sp_jax.layers import recurrence
from sp_jax.layers.activations import crelu
from sp_jax.layers.batch_norm import BatchNorm
from sp_jax.layers.convolution import convolution
from sp_jax.layers.layer_norm import NORMS, LayerNorm
from sp_jax.layers.linear import INITS, Conv, Dense, initializers, scale_pixels

__all__ = [
    "INITS", "NORMS", "BatchNorm", "Conv", "Dense", "LayerNorm", "convolution", "crelu", "initializers", "recurrence",
    "scale_pixels",
]  # fmt: skip
