"""BatchNorm (Ioffe and Szegedy 2015) whose sums are computed by several cores of a CPU.

Flax's own sums all pixels of a batch at once, which XLA:CPU does on one core, and applies the mask to all of them. Here
each image is summed separately first, forward and backward, and the mask is applied to the images' sums.
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn


class BatchNorm(nn.Module):
    """Flax's `BatchNorm` of images: the same variables, the same numbers to rounding; not forward-differentiable."""

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None = None) -> chex.Array:
        """Normalise `[B, ..., C]`; `mask` [B] says which samples count in the statistics, by default all."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        variance = self.variable("batch_stats", "var", jnp.ones, channels)
        dtype = self.dtype or jnp.result_type(x, scale)
        if self.use_running_average:
            factor = scale * jax.lax.rsqrt(variance.value + self.epsilon)
            return _affine(x, mean.value, factor, bias).astype(dtype)
        weights = jnp.ones(len(x)) if mask is None else mask.astype(mean.value.dtype)
        y, *found = _normalize(self.epsilon, x, weights / weights.sum(), scale, bias)
        if not self.is_initializing():
            for old, new in zip((mean, variance), found, strict=True):
                old.value = self.momentum * old.value + (1 - self.momentum) * new
        return y.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(epsilon, x, weights, scale, bias):
    """Return `[B, ..., C]` normalised, and its mean and variance [C]; `weights` [B] sum to 1."""
    return _forward(epsilon, x, weights, scale, bias)[0]


def _forward(epsilon, x, weights, scale, bias):
    mean, squares = (_over_samples(weights, _means(y)) for y in (x, jnp.square(x)))
    variance = jnp.maximum(0, squares - jnp.square(mean))
    inverse = jax.lax.rsqrt(variance + epsilon)
    return (_affine(x, mean, scale * inverse, bias), mean, variance), (x, weights, scale, mean, inverse)


def _backward(epsilon, residuals, cotangents):
    del epsilon
    x, weights, scale, mean, inverse = residuals
    dy, dmean, dvariance = cotangents
    every, pixels = jnp.ones_like(weights), x[0, ..., 0].size
    centred, factor = x - _wide(mean, x), scale * inverse
    dbias, dfactor = (pixels * _over_samples(every, _means(z)) for z in (dy, dy * centred))
    dvariance -= dfactor * scale * inverse**3 / 2
    dmean -= factor * dbias
    share = jnp.expand_dims(weights / pixels, tuple(range(1, x.ndim)))
    dx = dy * _wide(factor, x) + share * (_wide(dmean, x) + centred * _wide(2 * dvariance, x))
    return dx.astype(x.dtype), jnp.zeros_like(weights), dfactor * inverse, dbias


_normalize.defvjp(_forward, _backward)


def _affine(x, mean, factor, bias):
    return (x - _wide(mean, x)) * _wide(factor, x) + _wide(bias, x)


def _wide(channels, x):
    """Reshape [C] to [1, ..., 1, C], with as many axes as x."""
    return jnp.expand_dims(channels, tuple(range(x.ndim - 1)))


def _means(x):
    """Return the mean of each sample over its pixels, [B, C], in at least float32."""
    return jnp.mean(x, tuple(range(1, x.ndim - 1)), dtype=jnp.promote_types(x.dtype, jnp.float32))


def _over_samples(weights, means):
    """Sum [B, C] weighted by [B], to [C]: a product, so that the compiler does not fuse this sum with that over pixels.
    A weight of 0 drops NaN too."""
    return jnp.dot(weights, jnp.where(weights[:, None] > 0, means, 0), precision="highest")
