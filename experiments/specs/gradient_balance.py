"""Gradient norms of old and new data (Section 4, Figure 5).

The paper: CIFAR-10, ResNet-18, SGD of a small rate; average gradient norms of the two halves in the second phase. The
batch norm of the gradient is ours: the mean over ten batches of each half after every epoch.

Quick: `textures`, a ResNet of two blocks, width 8, SGD 0.03, λ = 0.3, σ = 0.01, 3 seeds; about a minute. Expect: at
the start of the second phase new data's gradients are 1.5 times those of old data, after shrink-perturb about the
same.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

RESTARTS = {"restart": ("warm_start", "shrink_perturb"), "pairs": ("0.3:0.01",)}

EXPERIMENT = Experiment(
    name="gradient_balance",
    paper="Figure 5",
    summary="gradient norms of the old and the new half in the second phase, warm start against shrink-perturb",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.QUICK_RESNET, **RESTARTS, "learning_rate": 0.03, "max_epochs": 60},
        "paper": {**presets.RESNET_SGD, **RESTARTS},
    },
    figures=(("gradient_norms", {}),),
    claims=(8,),
    gradient_norms=True,
)
