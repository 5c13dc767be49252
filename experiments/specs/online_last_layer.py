"""Shrink-perturb of the last layer only (Section 4, Figure 14).

The paper: as `online`, changing the head alone; λ and σ are not given in its text.

Quick: `mixture`, MLP 100-100 tanh; 50 s. Expect: head only 53 % to 56 %, below the warm start's 57.0 %; the whole
network 76.1 %.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

RESTARTS = {"restart": ("warm_start", "random_init", "last_layer", "shrink_perturb")}

EXPERIMENT = Experiment(
    name="online_last_layer",
    paper="Figure 14",
    summary="shrink-perturb of the head alone, then everything is trained",
    schedule=schedules.online,
    presets={
        "quick": {**RESTARTS, "pairs": ("0.6:0.01", "0.2:0.01")},
        "paper": {**presets.RESNET, **RESTARTS, "pairs": presets.PAIRS},
    },
    figures=(("rounds", {}), ("pareto", {})),
    claims=(7,),
)
