"""Networks of the paper, and the two functions that training needs of any network."""

from sp_jax.models.adapters import as_model, check_logits, from_functions, from_module, from_nnx
from sp_jax.models.birnn import BiRNN
from sp_jax.models.layers import Conv, Dense, convolution, scale_pixels
from sp_jax.models.mlp import MLP
from sp_jax.models.resnet import ResNet

__all__ = [
    "MLP",
    "BiRNN",
    "Conv",
    "Dense",
    "ResNet",
    "as_model",
    "check_logits",
    "convolution",
    "from_functions",
    "from_module",
    "from_nnx",
    "scale_pixels",
]
