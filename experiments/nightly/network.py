"""The network of a table: embeddings of its categories beside its numbers, then a multilayer perceptron."""

from collections.abc import Sequence

import chex
import jax.numpy as jnp
from flax import linen as nn

from sp_jax import models

WIDTH = 8  # of an embedding


class TableNetwork(nn.Module):
    """Maps rows [B, F + C] to [B, outputs]: F numbers, then C columns of buckets, which are exact in floats."""

    outputs: int
    numbers: int  # F
    hidden: Sequence[int] = (100, 100)
    buckets: int = 1024  # of each column of categories

    @nn.compact
    def __call__(self, rows: chex.Array) -> chex.Array:
        """Return [B, outputs]; samples are independent."""
        parts = [rows[:, : self.numbers]]
        for i in range(rows.shape[1] - self.numbers):
            chosen = rows[:, self.numbers + i].astype(jnp.int32)
            parts.append(nn.Embed(self.buckets, WIDTH, name=f"category_{i}")(chosen))
        mlp = models.MLP(self.outputs, self.hidden, activation=nn.relu, name="mlp")
        return mlp(jnp.concatenate(parts, axis=1))
