"""Vision transformer for small images (Dosovitskiy et al. 2021; ViT-Tiny as in DeiT, Touvron et al. 2021)."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from sp_jax.layers import Dense, LayerNorm, scale_pixels

SPREAD = 0.02  # the standard deviation that DeiT draws positions and class token with


class ViT(nn.Module):
    """Patches of 4x4 pixels and a class token, blocks of attention and a perceptron, and a linear layer named `head`.

    The defaults are ViT-Tiny with patches for 32x32 images, 5,362,762 parameters for 10 classes: the sizes with which
    Hare and Tortoise (Lee et al. 2024) and FIRE (Han et al. 2026) train on CIFAR-100. Norms come first, positions are
    learnt, GELU is the exact one, LayerNorm's epsilon is 1e-6, and the class token alone is read, as in DeiT. Ours are
    the initialisers of the linear layers (`initialization`; DeiT's are normal), and patches, queries, keys and
    values as `Dense` layers, so that all their kernels are matrices. The programs of the two papers also normalise the
    patches before and after their linear layer, leave out the biases of queries, keys and values, draw positions and
    class token from N(0, 1) and have an epsilon of 1e-5; that of the first drops 10 % of the units.

    FIRE's authors make the kernels of queries and keys alone orthogonal:
    `sp_jax.restarts.make_fire(where=sp_jax.layer("query", "key"))`.
    """

    num_classes: int
    width: int = 192  # of a token
    depth: int = 12  # blocks
    heads: int = 3
    ratio: int = 4  # of the perceptrons' hidden units to the width
    patch: int = 4  # pixels
    initialization: str = "torch"
    dtype: Any = None
    precision: Any = None

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None = None, train: bool = False) -> chex.Array:
        """Map `[B, H, W, C]` to logits `[B, num_classes]`; samples are independent; `mask` and `train` have no effect.

        Raises:
          ValueError: a width that the heads do not divide, or images that the patches do not.
        """
        del mask, train
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be divided among {self.heads} heads")
        dense = partial(Dense, initialization=self.initialization, dtype=self.dtype, precision=self.precision)
        norm = partial(LayerNorm, dtype=self.dtype)
        x = dense(self.width, name="patches")(patches(scale_pixels(x, self.dtype), self.patch))
        x = Tokens(name="tokens")(x)
        for i in range(self.depth):
            x = Block(self.heads, self.ratio, self.precision, dense, norm, name=f"block_{i}")(x)
        x = norm(name="norm")(x[:, 0])
        self.sow("intermediates", "features", x)
        return dense(self.num_classes, name="head")(x)

    def links(self) -> tuple[tuple[str, str], ...]:
        """Return each hidden layer with the layer that reads its units, as `sp_jax.plasticity.Link`: the perceptrons'
        of the blocks. Tokens are read by several layers, and the units of attention act together."""
        return tuple((f"block_{i}/mlp_0", f"block_{i}/mlp_1") for i in range(self.depth))

    def layouts(self) -> dict[str, dict[int, int | tuple[int, ...]]]:
        """Return the layouts (`sp_jax.transforms.layouts`): classes and the perceptrons' units are plain axes. All
        others are as wide as a token; LayerNorm and the scale of attention over more are other functions."""
        norms = ["norm", *(f"block_{i}/norm_{j}" for i in range(self.depth) for j in (0, 1))]
        units = {incoming: {-1: -1} for incoming, _ in self.links()}
        read = {f"{outgoing}/kernel": {-2: -1} for _, outgoing in self.links()}
        return {"head": {-1: -1}} | units | read | {name: {-1: (self.width,)} for name in norms}


def patches(x: chex.Array, size: int) -> chex.Array:
    """Cut `[B, H, W, C]` into patches `[B, H/size * W/size, size * size * C]`, row by row, as Dosovitskiy et al. 2021.

    Raises:
      ValueError: images of other axes, or of a height or width that is no multiple of the size.
    """
    if x.ndim != 4 or x.shape[1] % size or x.shape[2] % size:
        raise ValueError(f"images must be [B, H, W, C] with H and W multiples of {size}, got {x.shape}")
    count, height, width, channels = x.shape
    x = x.reshape(count, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(count, -1, size * size * channels)


class Tokens(nn.Module):
    """A class token before the patches, and the positions of all."""

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map `[B, N, W]` to `[B, 1 + N, W]`."""
        count, number, width = x.shape
        draw = nn.initializers.normal(SPREAD)
        first = self.param("class_token", draw, (width,), jnp.float32).astype(x.dtype)
        positions = self.param("positions", draw, (1 + number, width), jnp.float32).astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(first, (count, 1, width)), x], axis=1) + positions[None]


class Block(nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to them."""

    heads: int
    ratio: int
    precision: Any
    dense: Any
    norm: Any

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map `[B, T, W]` to the same shape."""
        x = x + Attention(self.heads, self.precision, self.dense, name="attention")(self.norm(name="norm_0")(x))
        y = self.dense(self.ratio * x.shape[-1], name="mlp_0")(self.norm(name="norm_1")(x))
        y = nn.gelu(y, approximate=False)
        self.sow("intermediates", "mlp_0_units", y)
        return x + self.dense(x.shape[-1], name="mlp_1")(y)


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017) of linear layers `query`, `key`, `value` and `out`."""

    heads: int
    precision: Any
    dense: Any

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map `[B, T, W]` to the same shape; the softmax is in at least float32."""
        by_head = (*x.shape[:-1], self.heads, -1)
        query, key, value = (self.dense(x.shape[-1], name=n)(x).reshape(by_head) for n in ("query", "key", "value"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=self.precision) * query.shape[-1] ** -0.5
        shares = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))
        y = jnp.einsum("bhqk,bkhd->bqhd", shares.astype(value.dtype), value, precision=self.precision)
        return self.dense(x.shape[-1], name="out")(y.reshape(x.shape))
