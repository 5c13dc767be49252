"""What a solution keeps of its initialisation (Section 3.1, Figures 11 and 33).

The paper: CIFAR-10, SGD, the hyperparameters of Figure 3; Pearson correlation of warm-started solutions with their
start, ResNet-18 and logistic regression. Cosine, Spearman and distance are companions.

Quick: `textures`, a ResNet of two blocks and logistic regression, rates {0.03, 0.1, 0.3} in each phase, 60 epochs at
most, 3 seeds; minutes. Expect: see `experiments/results/forgetting_quick`.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

SIMILARITIES = ("pearson", "cosine", "spearman", "distance")


def _grid(sizes, rates):
    first = {"first_batch_size": sizes, "first_learning_rate": rates}
    return ({"model": ("resnet18", "logistic"), **first, "batch_size": sizes, "learning_rate": rates, **presets.WARM},)


EXPERIMENT = Experiment(
    name="forgetting",
    paper="Figures 11, 33",
    summary="correlation of a warm-started solution with its start over hyperparameters; ResNet and logistic",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.QUICK_RESNET, "max_epochs": 60, "vary": _grid((32,), (0.03, 0.1, 0.3))},
        "paper": {**presets.RESNET_SGD, "seeds": 3, "vary": _grid(presets.BATCH_SIZES, presets.LEARNING_RATES)},
    },
    figures=tuple(("scatter", {"x": name, "panels": "model"}) for name in SIMILARITIES),
    claims=(13,),
    similarity=True,
)
