"""Pre-training on another data set (Sections 4.2 and 8.2.7, Figures 9 and 27 to 31).

The paper: ResNet-18, Adam 0.001, pairs of CIFAR-10, SVHN and CIFAR-100, a fraction of the target; shrink-perturb
(0.3, 1e-4) and, at σ in {1e-5, …, 1e-1}, several λ (0.3, 0.6, 0.9 here). Any two sets of one image shape: `--source`,
`--dataset`; the head is drawn anew where the number of classes differs.

Quick: `mixture_source`, then `mixture`, MLP, 3 seeds; 35 s. Expect: with all of the target (0.3, 1e-4) 70.1 %, warm
start 65.1 %, random init 62.6 %; with 5 % of it warm start 43.4 %, shrink-perturb 24.1 %: the claim that it is never
worse does not hold there.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

SHRINK = {"shrink": ("0.3", "0.6", "0.9"), "noise_scale": ("1e-5", "1e-4", "1e-3", "1e-2", "1e-1")}
QUICK, PAPER = ({"fraction": (0.05, 0.1, 0.25, 0.5, 1.0)},), ({"fraction": (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)},)

EXPERIMENT = Experiment(
    name="pretraining",
    paper="Figures 9, 27-31",
    summary="a source, then a fraction of a target: random init, warm start, shrink-perturb",
    schedule=schedules.pretraining,
    presets={
        "quick": {"seeds": 3, "pairs": ("0.3:1e-4", "0.6:1e-4", "0.3:1e-2"), "vary": QUICK},
        "paper": {**presets.RESNET, "source": "svhn_cropped", **SHRINK, "vary": PAPER},
    },
    figures=(("against", {"x": "fraction"}),),
    over=("fraction",),
    claims=(11,),
)
