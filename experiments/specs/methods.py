"""Shrink-perturb beside the later methods (not in the paper): the batch online experiment of Section 2.2 with each.

Between rounds: DASH (λ = α = 0.3, one gradient for each arrival) and FIRE. While a round trains, from a warm start: L2
Init (c = 1e-3 of the 1e-2 to 1e-5 that its paper sweeps), Hare and Tortoise (μ = 0.999, a jump after the first epoch of
a round and every ten; the tortoise is evaluated), ReDo (τ = 0.025, a search every 1,000 steps) and continual backprop
(ρ = 1e-4, an Adam with a step count for each entry). None is tuned here; `--method_strength` sets another. Ours, in all
of them: a new optimiser and new running statistics in each round, as Ash and Adams have it. `sp_jax.plasticity` lists
how each differs from its authors' program.

Quick: `mixture` in rounds of 250, MLP 100-100 ReLU, Adam, five seeds; 80 s. Expect: warm start 68.6 %, random init
70.5 %, (0.6, 0.01) 77.2 % at 0.42 of random init's samples, FIRE 77.3 % at 0.65, DASH 75.5 % at 0.59; what acts while
a round trains stays near the warm start. `paper`: CIFAR-10 in rounds of 1,000, ResNet-18.

On CIFAR-10 with the MLP, `--dataset=cifar10 --samples_per_round=2500 --rounds=6 --seeds=3`, an hour on one core: warm
start 42.8 %, random init 44.5 %, (0.6, 0.01) 43.9 %, FIRE 45.5 %.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

PAIRS = ("0.6:0.01", "0.4:0.1")
VARY = (
    {"restart": (("warm_start", "random_init", "shrink_perturb", "dash", "fire"),)},
    {**presets.WARM, "method": ("l2_init", "hare_tortoise", "redo", "continual_backprop")},
)

EXPERIMENT = Experiment(
    name="methods",
    paper="(later methods)",
    summary="shrink-perturb beside DASH, FIRE, L2 Init, Hare and Tortoise, ReDo and continual backprop",
    schedule=schedules.online,
    presets={
        "quick": {"activation": "relu", "pairs": PAIRS, "vary": VARY},
        "paper": {**presets.RESNET, "pairs": PAIRS, "vary": VARY},
    },
    figures=(("final", {}), ("pareto", {})),
)
