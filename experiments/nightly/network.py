"""The network of a table: embeddings of its categories beside its numbers, then a multilayer perceptron."""

from collections.abc import Mapping, Sequence

import chex
import jax.numpy as jnp
from flax import linen as nn

from sp_jax import models

WIDTH = 8  # of an embedding


class TableNetwork(nn.Module):
    """Maps `{"numbers": [B, F] floats, "categories": [B, C] integers}`, one of them or both, to [B, outputs]."""

    outputs: int
    hidden: Sequence[int] = (100, 100)
    buckets: int = 1024  # of each column of categories
    packed: int | None = None  # of one array [B, F + C], how many columns are numbers

    @nn.compact
    def __call__(self, inputs: Mapping[str, chex.Array]) -> chex.Array:
        """Return [B, outputs]; samples are independent."""
        if self.packed is not None:
            inputs = {"numbers": inputs[:, : self.packed], "categories": inputs[:, self.packed :].astype(jnp.int32)}
        parts = [inputs["numbers"]] if "numbers" in inputs else []
        for i in range(inputs["categories"].shape[1] if "categories" in inputs else 0):
            parts.append(nn.Embed(self.buckets, WIDTH, name=f"category_{i}")(inputs["categories"][:, i]))
        mlp = models.MLP(self.outputs, self.hidden, activation=nn.relu, name="mlp")
        return mlp(jnp.concatenate(parts, axis=1))
