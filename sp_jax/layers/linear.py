"""Parts that the networks share: pixel scaling, PyTorch's initialisation, linear layers and convolutions."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from sp_jax.layers.convolution import convolution
from sp_jax.transforms import check_choice

INITS = ("torch", "torch_tanh", "flax")
_TANH_GAIN = 5 / 3  # torch.nn.init.calculate_gain("tanh")


def scale_pixels(inputs: chex.Array, dtype: Any = None) -> chex.Array:
    """Scale uint8 pixels [B, ...] to [-1, 1], in `dtype` or float32; floats stay as they are, or become `dtype`."""
    if inputs.dtype == jnp.uint8:
        inputs = inputs.astype(jnp.float32) / 127.5 - 1
    return inputs if dtype is None else inputs.astype(dtype)


def initializers(init: str, fan_in: int) -> dict[str, Callable]:
    """Return the `kernel_init` and `bias_init` of a linear layer or convolution, as keyword arguments of Flax's layers.

    The paper's networks, and so its noise, are PyTorch's: weights and biases uniform in ±1/sqrt(fan_in). Flax's own are
    LeCun normal with biases of zero, so shrink-perturb with them is not the same experiment. "torch_tanh" has the same
    biases, and the weights of PyTorch's `kaiming_uniform_` with tanh's gain of 5/3, which are 2.9 times as large. The
    fan-in is a linear layer's inputs, for a convolution times the kernel's height and width.

    Raises:
      ValueError: `init` is none of "torch", "torch_tanh" and "flax".
    """
    check_choice("init", init, INITS)
    if init == "flax":
        return {"kernel_init": nn.initializers.lecun_normal(), "bias_init": nn.initializers.zeros}
    bound = fan_in**-0.5
    of_kernel = bound * (3**0.5 * _TANH_GAIN if init == "torch_tanh" else 1)
    return {"kernel_init": _uniform(of_kernel), "bias_init": _uniform(bound)}


def _uniform(bound):
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """A linear layer, `[B, ..., D] -> [B, ..., features]`."""

    features: int
    initialization: str = "torch"
    use_bias: bool = True
    dtype: Any = None
    precision: Any = None

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map `[B, ..., D]` to `[B, ..., features]`."""
        init = initializers(self.initialization, x.shape[-1])
        kernel = self.param("kernel", init["kernel_init"], (x.shape[-1], self.features))
        bias = self.param("bias", init["bias_init"], (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = jnp.matmul(x, kernel, precision=self.precision)
        return x if bias is None else x + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


class Conv(nn.Module):
    """A convolution without bias, `[B, H, W, C] -> [B, H/stride, W/stride, features]`, padded as PyTorch's
    `padding=size // 2` (on both sides alike; not the asymmetric 'SAME' of stride 2)."""

    features: int
    size: int = 3
    stride: int = 1
    initialization: str = "torch"
    dtype: Any = None
    precision: Any = None

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map `[B, H, W, C]` to `[B, H/stride, W/stride, features]`."""
        channels = x.shape[-1]
        kernel_init = initializers(self.initialization, self.size**2 * channels)["kernel_init"]
        kernel = self.param("kernel", kernel_init, (self.size, self.size, channels, self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return convolution(x, kernel, stride=self.stride, precision=self.precision)
