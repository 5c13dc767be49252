"""Networks of the paper, and adapters of any network to the two functions that training needs.

>>> import jax, jax.numpy as jnp
>>> model = from_module(MLP(10, hidden=(100,)), jnp.ones((1, 8, 8, 1)))
>>> params, batch_stats = model.init(jax.random.key(0))
>>> logits, _ = model.apply(params, batch_stats, jnp.ones((3, 8, 8, 1)), None, False)
>>> logits.shape, batch_stats
((3, 10), {})
"""

from sp_jax.layers import Conv, Dense, convolution, scale_pixels
from sp_jax.models.adapters import as_model, from_functions, from_nnx
from sp_jax.models.birnn import BiRNN
from sp_jax.models.checks import (
    NetworkError,
    UnknownSwitchError,
    check_independent,
    check_logits,
    check_outputs,
    fixed_statistics,
)
from sp_jax.models.linen import from_module
from sp_jax.models.mlp import MLP
from sp_jax.models.resnet import ResNet
from sp_jax.models.vit import ViT

__all__ = [
    "MLP",
    "BiRNN",
    "Conv",
    "Dense",
    "NetworkError",
    "ResNet",
    "UnknownSwitchError",
    "ViT",
    "as_model",
    "check_independent",
    "check_logits",
    "check_outputs",
    "convolution",
    "fixed_statistics",
    "from_functions",
    "from_module",
    "from_nnx",
    "scale_pixels",
]
