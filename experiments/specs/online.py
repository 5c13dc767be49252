"""Batch online learning (Sections 2.2 and 8.2.1; Figures 2, 7, 8, 15, 16): k samples arrive, restart, train, repeat.

The paper: CIFAR-10 in rounds of 1,000, ResNet-18, Adam 0.001, batches of 128, five seeds; λ in {1, .8, .6, .4, .2, 0}
x σ in {1, .1, .01, .001, .0001, 0}: 36 cells, of which it prints 28; the others were too small to train (they end by
`plateau`).

Quick: `mixture` in rounds of 250, MLP 100-100 tanh, three pairs of λ and σ; 25 s. Expect: warm start 57.0 %, random
init 62.1 %, (0.6, 0.01) 76.1 % at half the cost.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online",
    paper="Figures 2, 7, 8, 15, 16",
    summary="k samples arrive in each round; accuracy and cost of warm start, random init and shrink-perturb",
    schedule=schedules.online,
    presets={"quick": {}, "paper": {**presets.RESNET, **presets.GRID}},
    figures=(("rounds", {}), ("pareto", {}), ("heat_maps", {})),
    claims=(2, 9),
)
