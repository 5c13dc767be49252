"""Noise without shrinking (Section 4, Table 4).

The paper: CIFAR-10, ResNet-18, SGD 0.001; N(0, σ²) added to the warm start, σ in {1e-2, 1e-3, 1e-4, 1e-5, 0};
accuracy and minutes. Beside it σ times a fresh network (`shrink_perturb` at λ = 1).

Quick: `mixture`, MLP, SGD 0.1, σ in {0, 1e-3, 1e-2, 1e-1, 2e-1}, 3 seeds; 17 s. Expect: random init 61.3 %, no noise
57.3 %; more noise costs more and is worse.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

NOISE = {"restart": ("random_init", "noise_only", "shrink_perturb"), "shrink": ("1",)}

EXPERIMENT = Experiment(
    name="noise_only",
    paper="Table 4",
    summary="noise N(0, σ²) without shrinking, and σ times a fresh network; accuracy and time",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.QUICK_SGD, **NOISE, "noise_scale": ("0", "1e-3", "1e-2", "1e-1", "2e-1")},
        "paper": {**presets.RESNET_SGD, **NOISE, "noise_scale": ("0", "1e-5", "1e-4", "1e-3", "1e-2")},
    },
    figures=(("against", {"x": "noise_scale"}),),
    claims=(6,),
)
