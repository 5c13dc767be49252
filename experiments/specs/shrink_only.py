"""Shrinking without training (Section 4, Figure 6).

The paper: CIFAR-10, a ResNet and an MLP with and without bias, fitted, then shrunk by λ. BatchNorm's statistics are
recalibrated on training data; `keep` is beside it.

Quick: `textures`, MLP 100-100 ReLU and a ResNet of two blocks, width 8, 3 seeds; about a minute. Expect: the MLP
without bias keeps its accuracy to the last bit (Proposition 1), the one with bias loses 4 points at λ = 0.6, the
ResNet nothing down to 0.3.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

SHRINK = {
    "restart": ("shrink_perturb",), "noise_scale": ("0",), "activation": "relu",
    "shrink": ("1", "0.9", "0.8", "0.7", "0.6", "0.5", "0.4", "0.3", "0.2", "0.1", "0.05", "0.02"),
}  # fmt: skip
MLP = {"model": ("mlp",), "bias": (True, False)}
RESNET = {"model": ("resnet18",), "statistics": ("recalibrate", "keep")}

EXPERIMENT = Experiment(
    name="shrink_only",
    paper="Figure 6",
    summary="accuracy after shrinking by λ, nothing trained: ResNet, MLP with and without bias",
    schedule=schedules.untrained,
    presets={
        "quick": {**presets.QUICK_RESNET, **SHRINK, "vary": (MLP, RESNET)},
        "paper": {**SHRINK, "dataset": "cifar10", "vary": (MLP, RESNET)},
    },
    figures=(("against", {"x": "shrink"}),),
    claims=(10,),
)
