"""Bidirectional recurrent network for text (Figure 13: "a two-layer bidirectional RNN")."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from sp_jax.models.layers import Dense, initializers


class BiRNN(nn.Module):
    """Embedding, two layers of gated recurrent units in both directions, and a linear layer named `head`.

    The paper specifies only a "two-layer bidirectional RNN": units (GRU) and width are our choice. Padding has no
    influence: each direction runs over a text's own length.
    """

    num_classes: int
    vocabulary: int
    width: int = 32  # of the embedding, and of each direction
    layers: int = 2
    initialization: str = "torch"
    dtype: Any = None
    precision: Any = None

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None = None, train: bool = False) -> chex.Array:
        """Map tokens `[B, T]`, 0 after a text's end, to logits `[B, num_classes]`; samples are independent."""
        del mask, train
        lengths = jnp.maximum(jnp.sum(x > 0, axis=1), 1)
        with jax.default_matmul_precision(self.precision):
            h = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="embedding", **self._embedding_init())(x)
            for i in range(self.layers):
                directions = (nn.RNN(self._cell(f"{way}_{i}")) for way in ("forward", "backward"))
                (forward, backward), h = nn.Bidirectional(*directions)(h, seq_lengths=lengths, return_carry=True)
            last = jnp.concatenate([forward, backward], axis=-1)
            return Dense(self.num_classes, self.initialization, dtype=self.dtype, name="head")(last)

    def _embedding_init(self):
        """Return the embedding's initialiser as a keyword argument; PyTorch's is N(0, 1)."""
        return {"embedding_init": nn.initializers.normal(1.0)} if self.initialization == "torch" else {}

    def _cell(self, name):
        if self.initialization == "flax":
            return nn.GRUCell(self.width, dtype=self.dtype, name=name)
        init = initializers(self.initialization, self.width)
        recurrent = {"recurrent_kernel_init": init["kernel_init"]}
        return nn.GRUCell(self.width, dtype=self.dtype, name=name, **init, **recurrent)

    def layouts(self) -> dict[str, dict[int, int | tuple[int, int]]]:
        """Return the layouts (`sp_jax.transforms.layouts`): plain axes, except where the units of both directions are
        read side by side."""
        cells = [f"{way}_{i}" for way in ("forward", "backward") for i in range(1, self.layers)]
        upper = [f"{cell}/{gate}/kernel" for cell in cells for gate in ("ir", "iz", "in")]
        return {"": {-1: -1, -2: -1}} | {name: {-2: (2, -1)} for name in ("head/kernel", *upper)}
