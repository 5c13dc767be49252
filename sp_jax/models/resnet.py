"""ResNet-18 for 32x32 images (He et al. 2016, in the form common for CIFAR): 3x3 stem, no max-pool, padding 1."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import chex
import jax.numpy as jnp
from flax import linen as nn

from sp_jax.layers import NORMS, BatchNorm, Conv, Dense, LayerNorm, scale_pixels
from sp_jax.transforms import check_choice


class ResNet(nn.Module):
    """Basic blocks in stages (Section 2.1); each stage after the first halves the image and doubles the width.

    `width=64` is the standard ResNet-18 (11,173,962 parameters for 10 classes), 16 the authors' own (701,466). The last
    layer is named `head`. BatchNorm's running variance is the biased one; PyTorch's is n / (n - 1) times it, n in the
    thousands. `norm="layer"` is LayerNorm over the channels of each pixel in place of every BatchNorm.
    """

    num_classes: int
    width: int = 64
    stage_sizes: Sequence[int] = (2, 2, 2, 2)
    initialization: str = "torch"
    dtype: Any = None
    precision: Any = None
    norm: str = "own"

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None = None, train: bool = False) -> chex.Array:
        """Map `[B, H, W, C]` to logits `[B, num_classes]`; `mask` [B] keeps padding out of the batch statistics."""
        conv = partial(Conv, initialization=self.initialization, dtype=self.dtype, precision=self.precision)
        norm = self._norm(train)

        x = conv(self.width, name="stem")(scale_pixels(x, self.dtype))
        x = nn.relu(norm(name="stem_norm")(x, mask=mask))
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"stage_{stage}_block_{block}"
                x = Block(self.width * 2**stage, stride, conv, norm, name=name)(x, mask)
        x = jnp.mean(x, axis=(1, 2))
        self.sow("intermediates", "features", x)
        return Dense(self.num_classes, self.initialization, dtype=self.dtype, precision=self.precision, name="head")(x)

    def _norm(self, train):
        """Return what makes a norm of a name."""
        check_choice("norm", self.norm, NORMS)
        if self.norm == "layer":
            return partial(LayerNorm, dtype=self.dtype)
        return partial(BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)

    def links(self) -> tuple[tuple[str, str, str], ...]:
        """Return each hidden layer with the layer that reads its units, as `sp_jax.plasticity.Link`: the inner channels
        of the blocks. All other channels join a shortcut, so several layers read them."""
        return tuple((f"{name}/conv_0", f"{name}/conv_1", f"{name}/norm_0") for _, name in self._blocks())

    def layouts(self) -> dict[str, dict[int, int | tuple[int, ...]]]:
        """Return the layouts (`sp_jax.transforms.layouts`): inputs and units of all layers are plain axes; but
        LayerNorm over more of them is another function."""
        plain = {"": {-1: -1, -2: -1}}
        if self.norm != "layer":
            return plain
        norms = {f"{name}/{norm}": stage for stage, name in self._blocks() for norm in ("norm_0", "norm_1")}
        shortcuts = {f"{name}/shortcut_norm": stage for stage, name in self._blocks() if stage and name[-2:] == "_0"}
        sizes = {"stem_norm": 0} | norms | shortcuts
        return plain | {name: {-1: (self.width * 2**stage,)} for name, stage in sizes.items()}

    def _blocks(self):
        """Return the stage and the name of each block."""
        return [(s, f"stage_{s}_block_{b}") for s, blocks in enumerate(self.stage_sizes) for b in range(blocks)]


class Block(nn.Module):
    """Two 3x3 convolutions beside an identity, or a 1x1 convolution where the shape changes."""

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: chex.Array, mask: chex.Array | None) -> chex.Array:
        """Map `[B, H, W, C]` to `[B, H/stride, W/stride, features]`."""
        y = self.conv(self.features, stride=self.stride, name="conv_0")(x)
        y = nn.relu(self.norm(name="norm_0")(y, mask=mask))
        self.sow("intermediates", "conv_0_units", y)
        y = self.conv(self.features, name="conv_1")(y)
        y = self.norm(name="norm_1")(y, mask=mask)
        if x.shape != y.shape:
            x = self.conv(self.features, size=1, stride=self.stride, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x, mask=mask)
        return nn.relu(x + y)
