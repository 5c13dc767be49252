"""Class-incremental learning (not in the paper; Dohare et al. 2024): new classes in each round, the old ones stay.

A network that is trained on from round to round, by itself, with shrink-perturb or with continual backprop, beside one
that is drawn anew in each. Accuracy is that on the classes seen so far; outputs of classes to come are not masked.

Quick: `mixture`, two of its ten classes a round, MLP 100-100 ReLU, Adam, 30 epochs a round, five seeds. Expect: warm
start 66.0 %, random init 71.0 %, shrink-perturb 65.0 %, continual backprop 65.7 %. `paper`: CIFAR-100, five classes a
round, 200 epochs, ResNet-18, SGD 0.1 in batches of 90, weight decay 5e-4, flips and crops.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

VARY = (
    {"restart": (("warm_start", "random_init", "shrink_perturb"),)},
    {**presets.WARM, "method": ("continual_backprop",)},
)
STREAM = {"task_stream": "class_incremental", "pairs": ("0.6:0.01",), "vary": VARY, "activation": "relu"}

EXPERIMENT = Experiment(
    name="class_incremental",
    paper="(later methods)",
    summary="new classes in each round: trained on, with shrink-perturb, with continual backprop, from scratch",
    schedule=schedules.online,
    presets={
        "quick": {**STREAM, "classes_per_round": 2, "epochs": 30},
        "paper": {
            **STREAM, **presets.RESNET_SGD, "dataset": "cifar100", "width": 64, "learning_rate": 0.1, "epochs": 200,
            "batch_size": 90, "weight_decay": 5e-4, "augment": "flip_crop",
        },
    },
    figures=(("rounds", {"x": "round"}),),
)  # fmt: skip
