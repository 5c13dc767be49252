"""Basic batch updating (Section 2.1, Table 1): train to convergence on half of the data, then on all of it.

The paper: {ResNet-18, MLP of three layers with tanh, logistic regression} x {SGD, Adam} on CIFAR-10, CIFAR-100 and
SVHN, learning rate 0.001, batches of 128, five seeds. One run is one cell of that table: `--dataset`, `--model`,
`--optimizer`. Quick: `mixture` with the MLP and Adam; seconds on two cores.
"""

from experiments.settings import Settings, UsageError
from experiments.spec import Experiment
from sp_jax.data import arrival


def arrivals(settings: Settings, num_train: int) -> tuple[int, ...]:
    """Half, then all."""
    if settings.samples_per_round is not None:
        raise UsageError("--samples_per_round does not fit two_phase, which has half of the data, then all of it")
    return arrival.two_phase(num_train)


EXPERIMENT = Experiment(
    name="two_phase",
    paper="Table 1",
    summary="half of the data to convergence, then all of it; warm start, random init and shrink-perturb",
    arrivals=arrivals,
    presets={
        "quick": {},
        "paper": {"dataset": "cifar10", "model": "resnet18", "width": 16},
    },
    figure="final",
)
