"""Multilayer perceptron; without hidden layers it is multinomial logistic regression."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
from flax import linen as nn

from sp_jax.layers import NORMS, Dense, LayerNorm, crelu, scale_pixels
from sp_jax.transforms import check_choice


class MLP(nn.Module):
    """Linear layers with an activation between them; the last one is named `head`, the others `hidden_0`, `hidden_1`, …

    Table 1 has two hidden layers and tanh, the appendix's Sections 8.2.3 and 8.2.4 "three layers, ReLU activations, and
    100-dimensional hidden layers". `hidden=()` is logistic regression. `norm="layer"` is LayerNorm between each hidden
    layer and its activation (as Lyle et al. 2023, "Understanding Plasticity in Neural Networks"), named `norm_0`,
    `norm_1`, …; "own" is none. The activation `crelu` doubles what the next layer reads.
    """

    num_classes: int
    hidden: Sequence[int] = (100, 100)
    activation: Callable = nn.tanh
    use_bias: bool = True
    initialization: str = "torch"
    dtype: Any = None
    precision: Any = None
    norm: str = "own"

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None = None, train: bool = False) -> chex.Array:
        """Map `[B, ...]` to logits `[B, num_classes]`; samples are independent; `mask` and `train` have no effect."""
        del mask, train
        check_choice("norm", self.norm, NORMS)
        made_of = {"initialization": self.initialization, "dtype": self.dtype, "precision": self.precision}
        dense = partial(Dense, use_bias=self.use_bias, **made_of)
        x = scale_pixels(x, self.dtype).reshape(x.shape[0], -1)
        for i, features in enumerate(self.hidden):
            x = dense(features, name=f"hidden_{i}")(x)
            if self.norm == "layer":
                x = LayerNorm(use_bias=self.use_bias, dtype=self.dtype, name=f"norm_{i}")(x)
            x = self.activation(x)
            self.sow("intermediates", f"hidden_{i}_units", x)
        self.sow("intermediates", "features", x)
        return dense(self.num_classes, name="head")(x)

    def links(self) -> tuple[tuple[str, ...], ...]:
        """Return each hidden layer with the layer that reads its units, and the norm between them, as
        `sp_jax.plasticity.Link`; none with `crelu`, as each unit is read twice."""
        if self.activation is crelu:
            return ()
        norms = [(f"norm_{i}",) if self.norm == "layer" else () for i in range(len(self.hidden))]
        return tuple((*pair, *norm) for pair, norm in zip(itertools.pairwise(self._layers()), norms, strict=True))

    def layouts(self) -> dict[str, dict[int, int | tuple[int, ...]]]:
        """Return the layouts (`sp_jax.transforms.layouts`): plain axes, except the first layer's inputs, as the layout
        of a flattened sample is not known here; `crelu`, of which both halves grow; and LayerNorm, which over more
        units is another function."""
        units = (2, -1) if self.activation is crelu else -1
        read = {f"{reader}/kernel": {-2: units} for reader in self._layers()[1:]}
        fixed = {f"norm_{i}": {-1: (size,)} for i, size in enumerate(self.hidden)} if self.norm == "layer" else {}
        return {"": {-1: -1}} | read | fixed

    def _layers(self):
        return [*(f"hidden_{i}" for i in range(len(self.hidden))), "head"]
