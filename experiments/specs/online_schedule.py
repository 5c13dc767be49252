"""Batch online learning by SGD with a learning-rate schedule that restarts each round (Figure 32).

The paper: CIFAR-10, ResNet-18, rounds of 1,000; the schedule is not given. Ours: 0.1, 0.01 and 0.001, 30 epochs each.

Quick: `mixture`, MLP, rates 0.3, 0.03 and 0.003 of 20 epochs each, batches of 32, 3 seeds; about a minute. Expect: warm
start 54.3 %, random init 62.1 %, (0.6, 0.01) 64.5 %; every round costs the same, so nothing is saved.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online_schedule",
    paper="Figure 32",
    summary="SGD with rates 0.1, 0.01, 0.001 in each round in place of Adam",
    schedule=schedules.online,
    presets={
        "quick": {**presets.QUICK_SGD, "learning_rate": 0.3, "batch_size": 32, "decay_every": 20, "epochs": 60},
        "paper": {**presets.RESNET_SGD, "learning_rate": 0.1, "decay_every": 30, "epochs": 90},
    },
    figures=(("rounds", {}),),
    claims=(2,),
)
