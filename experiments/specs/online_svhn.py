"""Batch online learning on SVHN (Section 8.2.2, Figures 17 and 18).

The paper: as `online`, on SVHN; numbers only in pictures.

Quick: `mixture_source`, otherwise as `online`; 25 s. Expect: warm start 58.5 %, random init 62.5 %, (0.6, 0.01) 76.9
% at 0.53x its cost.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online_svhn",
    paper="Figures 17, 18",
    summary="the grid of λ and σ on SVHN",
    schedule=schedules.online,
    presets={
        "quick": {"dataset": "mixture_source"},
        "paper": {**presets.RESNET, **presets.GRID, "dataset": "svhn_cropped"},
    },
    figures=(("rounds", {}), ("pareto", {}), ("heat_maps", {})),
    claims=(2, 9),
)
