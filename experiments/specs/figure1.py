"""Exactly so many epochs on half of the data, then on all of it, against all of it from the start (Figure 1).

The paper: CIFAR-10, ResNet-18, 350 epochs on half, 350 on all; random init has all the data for as many epochs (700
here). It does not name the optimiser: `paper` takes Section 3's SGD 0.001.

Quick: `mixture`, MLP 100-100 tanh, Adam, 100 + 100 epochs, 3 seeds; 15 s. Expect: both reach 100 % training accuracy,
the warm start ends at 59.2 % validation accuracy, random init at 62.0 %.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="figure1",
    paper="Figure 1",
    summary="half the data then all, for exactly so many epochs, against all from the start; curves",
    schedule=schedules.long_run,
    presets={
        "quick": {**presets.BASELINES, "epochs": 100, "seeds": 3, "curves": True},
        "paper": {**presets.RESNET_SGD, **presets.BASELINES, "epochs": 350, "curves": True},
    },
    figures=(("learning_curves", {}),),
)
