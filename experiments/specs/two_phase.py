"""One cell of Table 1, with shrink-perturb beside it (Section 2.1).

The paper: see `table1`. One run is one data set, model and optimiser: `--dataset`, `--model`, `--optimizer`.

Quick: `mixture`, MLP, Adam; seconds. Expect: random init above the warm start, shrink-perturb at or above random
init.
"""

from experiments.specs import schedules
from experiments.specs.base import Experiment

EXPERIMENT = Experiment(
    name="two_phase",
    paper="Table 1",
    summary="half of the data to convergence, then all of it; warm start, random init and shrink-perturb",
    schedule=schedules.two_phase,
    presets={"quick": {}, "paper": {"dataset": "cifar10", "model": "resnet18", "width": 16}},
    figures=(("final", {}),),
    claims=(1,),
)
