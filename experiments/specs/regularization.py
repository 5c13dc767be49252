"""Regularisation in both phases (Section 3.3, Table 3).

The paper: CIFAR-10, ResNet-18, SGD 0.001; L2, adversarial training and confidence penalty, strengths 1e-1 to 1e-4. It
does not say in which units ε is: ours is in those of the scaled pixels, which lie in [-1, 1].

Quick: `mixture`, MLP, SGD 0.1, 300 epochs at most, 3 seeds; 50 s. Expect: a gap of about 4 points everywhere but at
L2 1e-2, which is not trained to the threshold, and 1e-1, which cannot learn.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

PENALTIES = (
    {"weight_decay": presets.STRENGTHS},
    {"penalty": ("adversarial", "confidence"), "penalty_strength": presets.STRENGTHS},
)

EXPERIMENT = Experiment(
    name="regularization",
    paper="Table 3",
    summary="L2, adversarial training and confidence penalty of four strengths, in both phases",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.QUICK_SGD, **presets.BASELINES, "max_epochs": 300, "patience": 50, "vary": PENALTIES},
        "paper": {**presets.RESNET_SGD, **presets.BASELINES, "vary": PENALTIES},
    },
    figures=(("regularization", {}),),
    over=("weight_decay", "penalty", "penalty_strength"),
    claims=(5,),
)
