"""Shrink-perturb on data that stay the same (Section 4.1, Figure 12).

The paper: CIFAR-10, ResNet-18, Adam, all data, twenty rounds, σ = 0.01, four λ that it does not name in its text
(0.8, 0.6, 0.4, 0.2 here).

Quick: `mixture`, MLP, ten rounds, 3 seeds; 35 s. Expect: 62 % after the first round, 70.7 % to 78.9 % after the
tenth.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

SHRINK = {"restart": ("shrink_perturb",), "shrink": ("0.8", "0.6", "0.4", "0.2"), "noise_scale": ("0.01",)}

EXPERIMENT = Experiment(
    name="static",
    paper="Figure 12",
    summary="all data, to convergence, shrink-perturb, twenty times; four λ",
    schedule=schedules.static,
    presets={"quick": {**SHRINK, "seeds": 3, "rounds": 10}, "paper": {**presets.RESNET, **SHRINK, "rounds": 20}},
    figures=(("rounds", {"x": "round"}), ("pareto", {})),
    claims=(14,),
)
