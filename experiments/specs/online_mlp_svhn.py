"""Batch online learning with an MLP on SVHN (Section 8.2.4, Figures 21 and 22).

The paper: as `online_mlp`, on SVHN; all its numbers are in Figure 21.

Quick: `mixture_source`, MLP 100-100 ReLU, three pairs; 25 s. Expect: the same order as `online`.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online_mlp_svhn",
    paper="Figures 21, 22",
    summary="the grid of λ and σ for an MLP with ReLU, without BatchNorm, on SVHN",
    schedule=schedules.online,
    presets={
        "quick": {"dataset": "mixture_source", "activation": "relu"},
        "paper": {**presets.GRID, "dataset": "svhn_cropped", "activation": "relu"},
    },
    figures=(("rounds", {}), ("pareto", {}), ("heat_maps", {})),
    claims=(2, 9),
)
