"""Warm-starting the body alone (Section 4, Table 5).

The paper: ResNet-18, SGD 0.001, CIFAR-10, SVHN, CIFAR-100; LL: the first phase's body is frozen and the head trained
on all data; LL+WS: then everything is trained. BatchNorm's statistics are reset before LL and go on in it.

Quick: `mixture`, MLP, SGD 0.1, 300 epochs at most, 3 seeds; 13 s. Expect: LL 50.5 %, LL+WS 58.4 %, WS 57.3 %, RI 61.3
%.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

VARY = ({"trained": ("head", "head_then_all", "all"), **presets.WARM}, presets.RANDOM)
DATASETS = {"dataset": ("cifar10", "svhn_cropped", "cifar100")}

EXPERIMENT = Experiment(
    name="last_layer",
    paper="Table 5",
    summary="LL: the first phase's body frozen, the head trained; LL+WS: then everything; WS; RI",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.QUICK_SGD, "max_epochs": 300, "patience": 50, "vary": VARY},
        "paper": {**presets.RESNET_SGD, "vary": tuple({**DATASETS, **product} for product in VARY)},
    },
    figures=(("final", {}),),
    over=("trained",),
    claims=(7,),
)
