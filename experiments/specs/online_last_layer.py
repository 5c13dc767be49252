"""Shrink-perturb of the last layer only (Section 4, Figure 14).

The paper: as `online`, changing the head alone; λ and σ are not given in its text.

Quick: `mixture`, MLP 100-100 tanh; 50 s. Expect: head only 53 % to 56 %, below the warm start's 57.0 %; the whole
network 76.1 %.

    python -m experiments.run --experiment=online_last_layer
    python -m experiments.run --experiment=online_last_layer --preset=paper
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online_last_layer",
    paper="Figure 14",
    summary="shrink-perturb of the head alone, then everything is trained",
    schedule=schedules.online,
    presets={
        "quick": {
            "restart": ("warm_start", "random_init", "last_layer", "shrink_perturb"),
            "pairs": ("0.6:0.01", "0.2:0.01"),
        },
        "paper": {
            **presets.RESNET,
            "restart": ("warm_start", "random_init", "last_layer", "shrink_perturb"),
            "pairs": ("0.8:0.01", "0.6:0.01", "0.4:0.01", "0.2:0.01"),
        },
    },
    figures=(("rounds", {}), ("pareto", {})),
    claims=(7,),
)
