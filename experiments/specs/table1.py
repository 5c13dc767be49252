"""Basic batch updating (Section 2.1, Tables 1 and 2): to convergence on half of the data, then on all of it.

The paper: {ResNet-18, MLP of three layers with tanh, logistic regression} x {SGD, Adam} x {CIFAR-10, SVHN,
CIFAR-100}, learning rate 0.001, batches of 128, five seeds. One column or more: `--dataset=cifar10
--model=mlp,logistic --optimizer=sgd,adam`.

Quick: `mixture`, MLP and logistic regression, SGD 0.1 and Adam 0.001, 300 epochs at most, 3 seeds; 25 s. Expect: MLP
61.3 % from random init and 57.3 % warm by SGD, 62.6 % and 60.2 % by Adam; logistic regression the same both ways.

On CIFAR-10 with at most 100 epochs a phase, five seeds, an hour of one core: MLP 41.2 % from random init and 42.8 %
warm by SGD (neither converged), 41.0 % and 39.0 % by Adam; logistic regression 41.0 % and 41.1 %, 36.4 % and 36.1 %.

    python -m experiments.run --experiment=table1 --preset=paper --dataset=cifar10 --model=logistic,mlp --max_epochs=100
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

PAPER = {
    "dataset": ("cifar10", "svhn_cropped", "cifar100"),
    "model": ("resnet18", "mlp", "logistic"),
    "optimizer": ("sgd", "adam"),
}
QUICK = (
    {"model": ("mlp", "logistic"), "optimizer": ("sgd",), "learning_rate": (0.1,)},
    {"model": ("mlp", "logistic"), "optimizer": ("adam",), "learning_rate": (0.001,)},
)

EXPERIMENT = Experiment(
    name="table1",
    paper="Tables 1, 2",
    summary="two phases: three models x two optimisers x three data sets; warm start and random init",
    schedule=schedules.two_phase,
    presets={
        "quick": {**presets.BASELINES, "seeds": 3, "max_epochs": 300, "patience": 50, "vary": QUICK},
        "paper": {**presets.BASELINES, "width": 16, "vary": (PAPER,)},
    },
    figures=(("final", {}),),
    claims=(1,),
)
