"""Batch online learning with weight decay on CIFAR-10 (Section 8.2.5, Figures 23 and 24).

The paper: as `online`, with an L2 penalty of 0.001, which here is coupled, as in the authors' program.

Quick: `mixture`, MLP 100-100 tanh, three pairs; 25 s. Expect: warm start 59.2 %, random init 62.8 %, (0.6, 0.01) 76.3
% at 0.49x its cost: weight decay does not close the gap.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online_weight_decay",
    paper="Figures 23, 24",
    summary="the grid of λ and σ with coupled L2 of 0.001 on CIFAR-10",
    schedule=schedules.online,
    presets={"quick": {"weight_decay": 1e-3}, "paper": {**presets.RESNET, **presets.GRID, "weight_decay": 1e-3}},
    figures=(("rounds", {}), ("pareto", {}), ("heat_maps", {})),
    claims=(5, 9),
)
