"""Bidirectional recurrent network for text (Figure 13: "a two-layer bidirectional RNN")."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from sp_jax.layers import NORMS, Dense, LayerNorm, initializers, recurrence
from sp_jax.transforms import check_choice


class BiRNN(nn.Module):
    """Embedding, two layers of gated recurrent units in both directions, and a linear layer named `head`.

    The paper specifies only a "two-layer bidirectional RNN": units (GRU) and width are our choice. Padding has no
    influence: each direction runs over a text's own length. `norm="layer"` is LayerNorm, named `norm`, on what the last
    layer reads; "own" is none.
    """

    num_classes: int
    vocabulary: int
    width: int = 32  # of the embedding, and of each direction
    layers: int = 2
    initialization: str = "torch"
    dtype: Any = None
    precision: Any = None
    norm: str = "own"

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None = None, train: bool = False) -> chex.Array:
        """Map tokens `[B, T]`, 0 after a text's end, to logits `[B, num_classes]`; samples are independent."""
        del mask, train
        check_choice("norm", self.norm, NORMS)
        lengths = jnp.maximum(jnp.sum(x > 0, axis=1), 1)
        with jax.default_matmul_precision(self.precision):
            h = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="embedding", **self._embedding_init())(x)
            for i in range(self.layers):
                cells = [self._cell(f"{way}_{i}", h.shape[-1]) for way in ("forward", "backward")]
                h, last = recurrence.both_ways(cells, h, lengths, self.dtype)
            if self.norm == "layer":
                last = LayerNorm(dtype=self.dtype, name="norm")(last)
            self.sow("intermediates", "features", last)
            return Dense(self.num_classes, self.initialization, dtype=self.dtype, name="head")(last)

    def _embedding_init(self):
        """Return the embedding's initialiser as a keyword argument; PyTorch's is N(0, 1)."""
        return {"embedding_init": nn.initializers.normal(1.0)} if self.initialization != "flax" else {}

    def _cell(self, name, features):
        init = initializers(self.initialization, self.width)
        orthogonal = {"kernel_init": nn.initializers.orthogonal()}
        return Cell(self.width, init, init | (orthogonal if self.initialization == "flax" else {}), name=name)(features)

    def layouts(self) -> dict[str, dict[int, int | tuple[int, ...]]]:
        """Return the layouts (`sp_jax.transforms.layouts`): plain axes, except where the units of both directions are
        read side by side; LayerNorm over more of them is another function."""
        cells = [f"{way}_{i}" for way in ("forward", "backward") for i in range(1, self.layers)]
        upper = [f"{cell}/{gate}/kernel" for cell in cells for gate in ("ir", "iz", "in")]
        norm = {"norm": {-1: (2 * self.width,)}} if self.norm == "layer" else {}
        return {"": {-1: -1, -2: -1}} | {name: {-2: (2, -1)} for name in ("head/kernel", *upper)} | norm


class Cell(nn.Module):
    """The parameters of a gated recurrent unit, named and drawn as those of Flax's `GRUCell`."""

    width: int
    input_init: dict
    recurrent_init: dict

    @nn.compact
    def __call__(self, features: int) -> dict:
        """Return a kernel and, but for hr and hz, a bias of each gate."""
        of_inputs = {name: Gate(self.width, self.input_init, name=name)(features) for name in ("ir", "iz", "in")}
        return of_inputs | {
            name: Gate(self.width, self.recurrent_init, name == "hn", name=name)(self.width)
            for name in ("hr", "hz", "hn")
        }


class Gate(nn.Module):
    """The parameters of a linear layer."""

    width: int
    initial: dict  # of the kernel and the bias
    use_bias: bool = True

    @nn.compact
    def __call__(self, features: int) -> dict:
        """Return a kernel [F, W], and a bias [W]."""
        kernel = {"kernel": self.param("kernel", self.initial["kernel_init"], (features, self.width))}
        if not self.use_bias:
            return kernel
        return kernel | {"bias": self.param("bias", self.initial["bias_init"], (self.width,))}
