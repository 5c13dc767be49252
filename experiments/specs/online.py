"""Batch online learning (Section 2.2, Figures 2, 7 and 8): k samples arrive, restart, train to convergence, repeat.

The paper: CIFAR-10 in rounds of 1,000, ResNet-18, Adam 0.001, batches of 128, five seeds. Quick: `mixture` in rounds of
250, a multilayer perceptron 100-100 with tanh, otherwise the same; under a minute on two cores.
"""

from experiments.settings import Settings, UsageError
from experiments.spec import Experiment
from sp_jax.data import arrival

SMALL = 16_000  # a data set with fewer training samples arrives in sixteen rounds


def arrivals(settings: Settings, num_train: int) -> tuple[int, ...]:
    """1,000 samples a round, or a sixteenth of a small data set."""
    default = 1_000 if num_train >= SMALL else -(-num_train // 16)
    try:
        return arrival.online(num_train, settings.samples_per_round or default)
    except ValueError as error:
        raise UsageError(f"--{error}") from None


EXPERIMENT = Experiment(
    name="online",
    paper="Figures 2, 7, 8",
    summary="k samples arrive in each round; accuracy and cost of warm start, random init and shrink-perturb",
    arrivals=arrivals,
    presets={
        "quick": {},
        "paper": {"dataset": "cifar10", "model": "resnet18", "width": 16, "activation": "relu"},
    },
    figure="rounds",
)
