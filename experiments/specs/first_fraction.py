"""The gap over the fraction of data in the first phase (Figure 10).

The paper: CIFAR-10, ResNet-18, the first phase on the indicated fraction. `paper` takes Section 3's SGD.

Quick: `mixture`, MLP, Adam, fractions 0.1 to 0.9, five seeds; 20 s. Expect: random init 62.7 %, the warm start
59.3 % to 61.8 %, best at either end.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

VARY = ({"first_fraction": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), **presets.WARM}, presets.RANDOM)

EXPERIMENT = Experiment(
    name="first_fraction",
    paper="Figure 10",
    summary="the gap over the fraction of the data that the first phase has",
    schedule=schedules.two_phase,
    presets={"quick": {"vary": VARY}, "paper": {**presets.RESNET_SGD, "vary": VARY}},
    figures=(("against", {"x": "first_fraction"}),),
    over=("first_fraction",),
    claims=(12,),
)
