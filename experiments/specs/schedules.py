"""The schedules of the experiments: the rounds, and how many samples have arrived in each."""

from collections.abc import Callable
from dataclasses import replace

from experiments.config.fields import UsageError
from experiments.config.settings import RestartSetting, Settings
from experiments.specs.base import RoundSpec
from sp_jax.data import arrival

SMALL = 16_000  # a data set with fewer training samples arrives in sixteen rounds
Sizes = Callable[[str], int]


def online(settings: Settings, cell: RestartSetting, num_train: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule k more samples in each round (Section 2.2): 1,000, or a sixteenth of a small data set."""
    del cell
    count = num_train(settings.dataset)
    default = 1_000 if count >= SMALL else -(-count // 16)
    try:
        visible = arrival.online(count, settings.samples_per_round or default)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    return tuple(RoundSpec(settings, n) for n in visible)


def two_phase(settings: Settings, cell: RestartSetting, num_train: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule a fraction of the samples, then all (Section 2.1); the first phase may have settings of its own."""
    del cell
    if settings.trained != "all" and settings.optimizer_state == "keep":
        raise UsageError(
            f"--optimizer_state=keep does not fit --trained={settings.trained}: the head has its own optimiser"
        )
    count = _all(settings, num_train)
    rate = settings.first_learning_rate or settings.learning_rate
    size = settings.first_batch_size or settings.batch_size
    early = replace(settings, learning_rate=rate, batch_size=size, trained="all")
    first = RoundSpec(early, max(1, int(settings.first_fraction * count)), settings.first_epochs)
    second = {"all": ("all",), "head": ("head",), "head_then_all": ("head", "all")}[settings.trained]
    return (first, *(RoundSpec(replace(settings, trained=trained), count) for trained in second))


def long_run(settings: Settings, cell: RestartSetting, num_train: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule half, then all, for exactly so many epochs each; random init has all, for as many in sum (Figure 1)."""
    phases = two_phase(settings, cell, num_train)
    if settings.epochs is None:
        raise UsageError("figure1 trains exactly so many epochs: give --epochs")
    if cell.restart != "random_init":
        return phases
    return (RoundSpec(settings, phases[-1].num_visible, 2 * settings.epochs),)


def static(settings: Settings, cell: RestartSetting, num_train: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule all samples in each of `--rounds` rounds (Figure 12)."""
    del cell
    return (RoundSpec(settings, _all(settings, num_train)),) * (settings.rounds or 20)


def untrained(settings: Settings, cell: RestartSetting, num_train: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule all samples to convergence, then a restart after which nothing is trained (Figure 6)."""
    phases = static(replace(settings, rounds=2), cell, num_train)
    return (phases[0], phases[1]._replace(epochs=0))


def pretraining(settings: Settings, cell: RestartSetting, num_train: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule all samples of the source, then a fraction of the target's (Section 4.2)."""
    del cell
    source = replace(settings, dataset=settings.source)
    count = max(1, int(settings.fraction * _all(settings, num_train)))
    return (RoundSpec(source, num_train(settings.source)), RoundSpec(settings, count))


def _all(settings, num_train):
    """Return the number of all training samples; raise a UsageError where `samples_per_round` is given."""
    if settings.samples_per_round is not None:
        raise UsageError("--samples_per_round only fits the online experiments, here the rounds' samples are given")
    return num_train(settings.dataset)
