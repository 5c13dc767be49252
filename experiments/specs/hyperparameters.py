"""Batch sizes and learning rates in either phase (Section 3.1, Figure 3).

The paper: CIFAR-10, ResNet-18, SGD, batch sizes {16, 32, 64, 128} x learning rates {0.001, 0.01, 0.1} in each phase,
12 x 12 warm and 12 random, three seeds. First phases that are the same are trained once.

Quick: `mixture`, MLP, batch sizes {32, 128} x rates {0.03, 0.1, 0.3}: 36 warm, 6 random, 3 seeds; 35 s. Expect: the
best random init 61.5 %; no warm setting is shown to match it (the best 60.1 %).
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment


def _grid(sizes, rates):
    second = {"batch_size": sizes, "learning_rate": rates}
    first = {"first_batch_size": sizes, "first_learning_rate": rates}
    return ({**first, **second, **presets.WARM}, {**second, **presets.RANDOM})


EXPERIMENT = Experiment(
    name="hyperparameters",
    paper="Figure 3",
    summary="batch size x learning rate in each phase, warm; and random init: accuracy over time to completion",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.QUICK_SGD, "vary": _grid((32, 128), (0.03, 0.1, 0.3))},
        "paper": {**presets.RESNET_SGD, "seeds": 3, "vary": _grid(presets.BATCH_SIZES, presets.LEARNING_RATES)},
    },
    figures=(("scatter", {"x": "samples_seen"}),),
    over=("first_batch_size", "first_learning_rate"),
    claims=(3,),
)
