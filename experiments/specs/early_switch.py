"""How quickly generalisation is damaged (Section 3.2, Figure 4).

The paper: CIFAR-10, ResNet-18, SGD 0.001; a checkpoint of the first phase every five epochs, each used as a warm
start. 350 epochs of first phase here, as in Figure 1. Each switch trains its first phase anew: the same bits, at more
cost.

Quick: `mixture`, MLP, Adam, switches after 5, 10, …, 50 epochs, five seeds; 23 s. Expect: random init 62.7 %; on these
easy data the damage comes late: none until epoch 30, 2 points at epoch 50. (With SGD 0.1 all lies within a point.)
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment


def _switches(last):
    return ({"first_epochs": tuple(range(5, last + 1, 5)), **presets.WARM}, presets.RANDOM)


EXPERIMENT = Experiment(
    name="early_switch",
    paper="Figure 4",
    summary="a checkpoint of the first phase every five epochs, each used as a warm start",
    schedule=schedules.two_phase,
    presets={"quick": {"vary": _switches(50)}, "paper": {**presets.RESNET_SGD, "vary": _switches(350)}},
    figures=(("early_switch", {}),),
    over=("first_epochs",),
    claims=(4,),
)
