"""Batch online learning with an MLP on CIFAR-10 (Section 8.2.3, Figures 19 and 20).

The paper: as `online`, with an MLP of three layers, ReLU, 100-dimensional hidden layers, no BatchNorm; numbers only
in pictures.

Quick: `mixture`, MLP 100-100 ReLU, three pairs; 25 s. Expect: the same order as `online`.

On CIFAR-10, 34 rounds, one seed, 14 cells of the paper's grid (command: experiments/docs/real_data.md), 2.5 hours on
one core: warm start 43.1 %, random init 46.4 %, (0.4, 0.1) 47.5 % at 0.77 of random init's samples, (0.8, 0.01) 46.4 %
at 0.40.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="online_mlp",
    paper="Figures 19, 20",
    summary="the grid of λ and σ for an MLP with ReLU, without BatchNorm, on CIFAR-10",
    schedule=schedules.online,
    presets={"quick": {"activation": "relu"}, "paper": {**presets.GRID, "dataset": "cifar10", "activation": "relu"}},
    figures=(("rounds", {}), ("pareto", {}), ("heat_maps", {})),
    claims=(2, 9),
)
