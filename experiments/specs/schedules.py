"""The schedules of the experiments: the rounds, and how many samples have arrived in each."""

from collections.abc import Callable
from dataclasses import replace

from experiments.config.fields import UsageError
from experiments.config.settings import RestartSetting, Settings
from experiments.config.streams import STREAMS, Amount
from experiments.specs.base import RoundSpec

Sizes = Callable[[Settings], Amount]  # of the data set of some settings


def online(settings: Settings, cell: RestartSetting, sizes: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule the rounds of the stream of tasks: by default k more samples in each round (Section 2.2)."""
    del cell
    arrivals = STREAMS[settings.task_stream].arrivals(settings, sizes(settings))
    return tuple(RoundSpec(settings, n) for n in arrivals)


def two_phase(settings: Settings, cell: RestartSetting, sizes: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule a fraction of the samples, then all (Section 2.1); the first phase may have settings of its own."""
    del cell
    if settings.trained != "all" and settings.optimizer_state == "keep":
        raise UsageError(
            f"--optimizer_state=keep does not fit --trained={settings.trained}: the head has its own optimiser"
        )
    count = _all(settings, sizes)
    rate = settings.first_learning_rate or settings.learning_rate
    size = settings.first_batch_size or settings.batch_size
    early = replace(settings, learning_rate=rate, batch_size=size, trained="all")
    first = RoundSpec(early, max(1, int(settings.first_fraction * count)), settings.first_epochs)
    second = {"all": ("all",), "head": ("head",), "head_then_all": ("head", "all")}[settings.trained]
    return (first, *(RoundSpec(replace(settings, trained=trained), count) for trained in second))


def long_run(settings: Settings, cell: RestartSetting, sizes: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule half, then all, for exactly so many epochs each; random init has all, for as many in sum (Figure 1)."""
    phases = two_phase(settings, cell, sizes)
    if settings.epochs is None:
        raise UsageError("figure1 trains exactly so many epochs: give --epochs")
    if cell.restart != "random_init":
        return phases
    return (RoundSpec(settings, phases[-1].num_visible, 2 * settings.epochs),)


def static(settings: Settings, cell: RestartSetting, sizes: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule all samples in each of `--rounds` rounds (Figure 12)."""
    del cell
    return (RoundSpec(settings, _all(settings, sizes)),) * (settings.rounds or 20)


def untrained(settings: Settings, cell: RestartSetting, sizes: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule all samples to convergence, then a restart after which nothing is trained (Figure 6)."""
    phases = static(replace(settings, rounds=2), cell, sizes)
    return (phases[0], phases[1]._replace(epochs=0))


def pretraining(settings: Settings, cell: RestartSetting, sizes: Sizes) -> tuple[RoundSpec, ...]:
    """Schedule all samples of the source, then a fraction of the target's (Section 4.2)."""
    del cell
    source = replace(settings, dataset=settings.source)
    count = max(1, int(settings.fraction * _all(settings, sizes)))
    return (RoundSpec(source, sizes(source).samples), RoundSpec(settings, count))


def _all(settings, sizes):
    """Return the number of all training samples; raise a UsageError where rounds of another kind are asked for."""
    if settings.samples_per_round is not None:
        raise UsageError("--samples_per_round only fits the online experiments, here the rounds' samples are given")
    if settings.task_stream != "growing":
        raise UsageError(f"--task_stream={settings.task_stream} only fits the online experiments")
    return sizes(settings).samples
