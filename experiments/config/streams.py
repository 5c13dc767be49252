"""The data of an experiment: which samples, and in what stream of tasks; one row for each stream.

A row says what the stream is made by and how many samples each of its rounds has. A new stream is a function of
`sp_jax.data.task_streams` and a row here.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.config import fields
from experiments.config.fields import UsageError, setting
from sp_jax.data import arrival, task_streams
from sp_jax.data.errors import DataError
from sp_jax.types import Dataset

SMALL = 16_000  # a data set with fewer training samples arrives in sixteen rounds
TASKS = 20  # rounds of a stream whose tasks never end


class Amount(NamedTuple):
    """How much there is to train on."""

    samples: int  # T
    classes: int


class StreamChoice(NamedTuple):
    """A stream of tasks."""

    make: Callable[["DataSettings", Dataset], task_streams.TaskStream]
    arrivals: Callable[[Any, Amount], tuple[int, ...]]  # the samples of each round
    settings: tuple[str, ...] = ()  # those of `DataSettings` that are its own
    moves_inputs: bool = False  # it permutes or mixes features
    compiles: tuple[str, ...] = ()  # settings of the host that are compiled into it all the same


def _online(settings, amount):
    """Return k more samples in each round (Section 2.2): 1,000, or a sixteenth of a small data set."""
    default = 1_000 if amount.samples >= SMALL else -(-amount.samples // 16)
    try:
        return arrival.online(amount.samples, settings.samples_per_round or default)
    except ValueError as error:
        raise UsageError(f"--{error}") from None


def _newest(settings, amount):
    return tuple(min(_window(settings, amount), visible) for visible in _online(settings, amount))


def _window(settings, amount):
    return settings.window_size or _online(settings, amount)[0]


def _by_class(settings, amount):
    if settings.samples_per_round is not None:
        raise UsageError("--samples_per_round does not fit --task_stream=class_incremental: see --classes_per_round")
    each, step = amount.samples // amount.classes, settings.classes_per_round
    if step >= amount.classes:
        raise UsageError(f"--classes_per_round={step} leaves one round of the {amount.classes} classes; choose fewer")
    return tuple(each * min(seen, amount.classes) for seen in range(step, amount.classes + step, step))


def _the_same(settings, amount):
    count = settings.samples_per_round or amount.samples
    if count > amount.samples:
        raise UsageError(f"--samples_per_round={count:,}: there are {amount.samples:,} training samples")
    return (count,) * (settings.rounds or TASKS)


def _in_chunks(settings, amount):
    size = settings.samples_per_round or -(-amount.samples // settings.noise_rounds)
    return _online(dataclasses.replace(settings, samples_per_round=size), amount)


STREAMS = {
    "growing": StreamChoice(lambda settings, data: task_streams.growing, _online),
    "sliding_window": StreamChoice(
        lambda settings, data: task_streams.sliding_window(
            _window(settings, amount(settings, data)), _online(settings, amount(settings, data))[0]
        ),
        _newest, settings=("window_size",), compiles=("samples_per_round",),
    ),
    "class_incremental": StreamChoice(
        lambda settings, data: task_streams.class_incremental(data, settings.classes_per_round),
        _by_class, settings=("classes_per_round",),
    ),
    "permuted_inputs": StreamChoice(
        lambda settings, data: task_streams.permuted_inputs(), _the_same, moves_inputs=True
    ),
    "random_labels": StreamChoice(lambda settings, data: task_streams.random_labels(), _the_same),
    "label_noise": StreamChoice(
        lambda settings, data: task_streams.label_noise(settings.noise_rounds),
        _in_chunks, settings=("noise_rounds",),
    ),
    "drifting_inputs": StreamChoice(
        lambda settings, data: task_streams.drifting_inputs(settings.task_period),
        _the_same, settings=("task_period",), moves_inputs=True,
    ),
}  # fmt: skip
PARTS = ("all", "tuning", "final")  # of the samples; the last two have none in common


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The data of an experiment."""

    # fmt: off
    dataset: str = setting("mixture", fields.DATA,
        help="mixture, textures, reviews (synthetic, embedded), TFDS's: cifar10, imdb_reviews, …, or a path.npz of "
        "arrays inputs and labels.")
    samples: str = setting("all", fields.DATA, fields.ON_HOST, choices=PARTS,
        help="Which of them: {choices}; tuning and final are two halves, and tuning has seeds of its own.")
    source: str = setting("mixture_source", fields.DATA, fields.ON_HOST,
        help="What pretraining begins with: a data set of inputs like those of --dataset.")
    fraction: float = setting(1.0, fields.DATA, fields.ON_HOST, unit="fraction",
        help="pretraining: of the target's samples, in (0, 1].")
    task_stream: str = setting("growing", fields.DATA, fields.ON_HOST, choices=STREAMS,
        help="What a round has, and what its samples look like: one of {choices}.")
    with_streams: tuple[str, ...] | None = setting(None, fields.DATA, choices=STREAMS, one=True, unset="none",
        help="Streams that share their programs, --task_stream among them.")
    window_size: int | None = setting(None, fields.DATA, unit="samples", positive=True,
        unset="as many as arrive in a round", help="sliding_window: of the newest samples.")
    classes_per_round: int = setting(5, fields.DATA, unit="classes", positive=True,
        help="class_incremental: how many are new in a round.")
    noise_rounds: int = setting(10, fields.DATA, unit="rounds", positive=True,
        help="label_noise: after so many no label is wrong.")
    task_period: int = setting(10, fields.DATA, unit="rounds", positive=True,
        help="drifting_inputs: from one permutation to the next.")
    # fmt: on


def stream(settings: DataSettings, data: Dataset) -> task_streams.TaskStream:
    """Make the stream of some settings, on a data set.

    Raises:
      UsageError: it cannot be made of these samples.
    """
    try:
        if settings.with_streams:
            return task_streams.either(*(STREAMS[name].make(settings, data) for name in settings.with_streams))
        return STREAMS[settings.task_stream].make(settings, data)
    except ValueError as error:
        raise UsageError(f"--task_stream={settings.task_stream}: {error}") from None


def of_others(names: Collection[str]) -> dict[str, str]:
    """Return the settings of the streams that are not among these, each with its stream."""
    return {own: name for name, row in STREAMS.items() if name not in names for own in row.settings}


def check_own(given: Collection[str], names: Collection[str]) -> None:
    """Raise a `UsageError` where a flag that was given is of a stream that is not among those that are used."""
    for flag, name in of_others(names).items():
        if flag in given:
            raise UsageError(f"--{flag} is of --task_stream={name}, not of {', '.join(sorted(names))}; leave it out")


def which(settings: DataSettings) -> int | None:
    """Return the number of the stream among those that share its programs; None where it has its own."""
    return settings.with_streams.index(settings.task_stream) if settings.with_streams else None


def compiled(settings: DataSettings) -> dict[str, Any]:
    """Return what is compiled into a program beside the settings that say so themselves: whether there are as many
    samples as in the whole data set, the stream where it does not share its program, and what that compiles in."""
    shared = bool(settings.with_streams)
    names = settings.with_streams or (settings.task_stream,)
    more = {name: getattr(settings, name) for each in names for name in STREAMS[each].compiles}
    return {"whole": settings.samples == "all", "task_stream": None if shared else settings.task_stream, **more}


def amount(settings: DataSettings, data: Dataset) -> Amount:
    """Return how much of a data set there is to train on: two thirds of the part that `samples` says.

    Raises:
      UsageError: of a stream by classes, a class has too few samples.
    """
    if settings.task_stream != "class_incremental":
        return Amount(arrival.num_training(len(part(settings.samples, len(data)))), data.num_classes)
    try:
        return Amount(data.num_classes * task_streams.class_sizes(data)[0], data.num_classes)
    except DataError as error:
        raise UsageError(f"--task_stream=class_incremental: {error}") from None


def part(name: str, num_samples: int) -> np.ndarray:
    """Return the indices of a part of the samples: all, or one of two halves at random, always the same."""
    if name == "all":
        return np.arange(num_samples)
    half, shuffled = num_samples // 2, np.random.default_rng(0).permutation(num_samples)
    return shuffled[:half] if name == "tuning" else shuffled[half : 2 * half]


def indices(
    settings: DataSettings, made: task_streams.TaskStream, labels: np.ndarray, seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of arrival [L, T] and the validation samples [L, V] of some seeds; `labels` [N] are all."""
    own = part(settings.samples, len(labels))
    return tuple(own[each] for each in made.order(seeds, np.asarray(labels)[own]))
