"""Multilayer perceptron; without hidden layers it is multinomial logistic regression."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import chex
from flax import linen as nn

from sp_jax.layers import Dense, scale_pixels


class MLP(nn.Module):
    """Linear layers with an activation between them; the last one is named `head`, the others `hidden_0`, `hidden_1`, …

    Table 1 has two hidden layers and tanh, the appendix's Sections 8.2.3 and 8.2.4 "three layers, ReLU activations, and
    100-dimensional hidden layers". `hidden=()` is logistic regression.
    """

    num_classes: int
    hidden: Sequence[int] = (100, 100)
    activation: Callable = nn.tanh
    use_bias: bool = True
    initialization: str = "torch"
    dtype: Any = None
    precision: Any = None

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None = None, train: bool = False) -> chex.Array:
        """Map `[B, ...]` to logits `[B, num_classes]`; samples are independent; `mask` and `train` have no effect."""
        del mask, train
        made_of = {"initialization": self.initialization, "dtype": self.dtype, "precision": self.precision}
        dense = partial(Dense, use_bias=self.use_bias, **made_of)
        x = scale_pixels(x, self.dtype).reshape(x.shape[0], -1)
        for i, features in enumerate(self.hidden):
            x = self.activation(dense(features, name=f"hidden_{i}")(x))
            self.sow("intermediates", f"hidden_{i}_units", x)
        return dense(self.num_classes, name="head")(x)

    def links(self) -> tuple[tuple[str, str], ...]:
        """Return pairs of a hidden layer and the layer that reads its units, as `sp_jax.plasticity.Link`."""
        names = [*(f"hidden_{i}" for i in range(len(self.hidden))), "head"]
        return tuple(itertools.pairwise(names))

    def layouts(self) -> dict[str, dict[int, int]]:
        """Return the layouts (`sp_jax.transforms.layouts`): plain axes, except the first layer's inputs, as the layout
        of a flattened sample is not known here."""
        return {"": {-1: -1}} | {f"{reader}/kernel": {-2: -1} for _, reader in self.links()}
