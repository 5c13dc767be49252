"""Batch online learning with weight decay on SVHN (Section 8.2.6, Figures 25 and 26).

The paper: as `online_weight_decay`, on SVHN.

Quick: `mixture_source`, MLP 100-100 tanh, three pairs; 25 s. Expect: warm start 60.0 %, random init 63.8 %, (0.6,
0.01) 76.8 % at 0.50x its cost.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online_weight_decay_svhn",
    paper="Figures 25, 26",
    summary="the grid of λ and σ with coupled L2 of 0.001 on SVHN",
    schedule=schedules.online,
    presets={
        "quick": {"dataset": "mixture_source", "weight_decay": 1e-3},
        "paper": {**presets.RESNET, **presets.GRID, "dataset": "svhn_cropped", "weight_decay": 1e-3},
    },
    figures=(("rounds", {}), ("pareto", {}), ("heat_maps", {})),
    claims=(5, 9),
)
