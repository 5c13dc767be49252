"""Streams of tasks: what has arrived in a round, and what samples look like in it, as functions of seed and round.

A round is a task. The number of samples that it has is given beside the stream, as in all experiments; the stream says
which ones they are, what their inputs and labels look like, and what is held out. Seed and round are traced, so all
rounds and seeds are one program. The streams are those of the literature on the loss of plasticity:

Stream              A round has                                              After
------------------  -------------------------------------------------------  -------------------------------------------
`growing`           all samples so far (the default)                         Ash and Adams 2020, Section 2.2
`sliding_window`    the newest samples                                       Shin et al. 2024 ("limited access")
`class_incremental` all samples of a few more classes                        Dohare et al. 2024, CIFAR-100
`permuted_inputs`   the same samples, features permuted anew                 Goodfellow et al. 2013; Dohare et al. 2024
`random_labels`     the same samples, labels shuffled anew: memorisation     Lyle et al. 2023; Kumar et al. 2023
`label_noise`       all samples so far, wrong labels that become fewer       Lee et al. 2024
`drifting_inputs`   the same samples, on the way from one permutation to     (gradual changes, as in 2602.09234)
                    the next
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.data import arrival
from sp_jax.data.errors import DataError
from sp_jax.random import Purpose, key_for
from sp_jax.types import Dataset

NOISE = (0.5, 0.4, 0.4, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0)  # shares of wrong labels, in ten chunks (Lee et al. 2024)


class TaskStream(NamedTuple):
    """A data set as a sequence of tasks, one a round; by default all that has arrived, as it is.

    Rounds count from 1. All functions but `split` are traced; a `Dataset` that they return may have labels of its own
    for each seed, and a `look`, which its `take` applies.
    """

    arranged: Callable = lambda seed, round_, order: order  # [T] in the order of arrival -> [T], the round's first
    training: Callable = lambda seed, round_, data: data  # the data set as training sees it
    held_out: Callable = lambda seed, round_, data: data  # the data set as evaluation sees it
    held_out_count: Callable | None = None  # round -> how many of the validation samples count; None: all
    split: Callable | None = None  # (seed, labels [N]) -> order [T], validation [V]; None: `data.arrival.split`

    several: tuple["TaskStream", ...] = ()  # see `either`

    def at(self, which: chex.Numeric | None) -> "TaskStream":
        """Return one of several streams, by its number, which may be traced; the stream itself for None."""
        if which is None or not self.several:
            return self

        def arranged(seed, round_, order):
            made = [each.arranged(seed, round_, order) for each in self.several]
            return functools.reduce(lambda left, i: jnp.where(which == i, made[i], left), range(len(made)), order)

        looks = [_chosen([getattr(each, name) for each in self.several], which) for name in ("training", "held_out")]
        return TaskStream(arranged, *looks)

    def order(self, seeds: Sequence[int], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of arrival and the validation samples of some seeds: int32 indices, [L, T] and [L, V].

        Args:
          seeds: L non-negative integers.
          labels: [N], of all samples.
        """
        if self.split is None:
            return jax.tree.map(np.asarray, arrival.splits(np.int32(seeds), len(labels)))
        found = [self.split(seed, labels) for seed in seeds]
        return tuple(np.stack(each) for each in zip(*found, strict=True))


growing = TaskStream()


def either(*streams: TaskStream) -> TaskStream:
    """Make one stream of several, of which each lane has one (`Lane.which`): their lanes then share a program.

    Raises:
      ValueError: one of them has a split of its own, or counts held-out samples.
    """
    if any(each.split or each.held_out_count for each in streams):
        raise ValueError("streams with a split of their own, as class_incremental, do not share a program with others")
    return TaskStream(several=streams)


def _chosen(functions, which):
    """Return a function of (seed, round, data) that is the one of this number."""

    def seen(seed, round_, data):
        labels, looks, views = data.labels, [], []
        for i, function in enumerate(functions):
            own = function(seed, round_, data)
            labels = labels if own.labels is data.labels else jnp.where(which == i, own.labels, labels)
            if own.look is not None:
                looks, views = [*looks, own.look], [*views, (which == i, own.view)]
        data = data.replace(labels=labels)
        return data.replace(look=_Looks(tuple(looks)), view=tuple(views)) if looks else data

    return seen


class _Looks(NamedTuple):
    """Looks of several streams, of which those are applied whose view says so."""

    looks: tuple[Callable, ...]

    def __call__(self, view, inputs):
        for look, (chosen, own) in zip(self.looks, view, strict=True):
            inputs = jnp.where(chosen, look(own, inputs), inputs)
        return inputs


def sliding_window(size: int, step: int) -> TaskStream:
    """Make the stream in which a round has only the newest samples: those of the last `size` that have arrived.

    Args:
      size: w >= 1, the samples of a round; as many are visible, in the first rounds as many as have arrived.
      step: k >= 1, how many arrive in each round.

    >>> import jax.numpy as jnp
    >>> sliding_window(size=3, step=2).arranged(0, 2, jnp.arange(6))[:3]  # of the four that have arrived
    Array([1, 2, 3], dtype=int32)
    """

    def arranged(seed, round_, order):
        del seed
        return jnp.roll(order, -jnp.clip(round_ * step - size, 0, max(order.shape[0] - size, 0)))

    return TaskStream(arranged)


def class_incremental(data: Dataset, classes_per_round: int) -> TaskStream:
    """Make the stream in which each round brings new classes, in an order of the seed's own; the old ones stay.

    All classes have as many samples as the rarest, two thirds of them to train on: a round t has `classes_per_round`
    · t · (training samples of a class) samples. The validation samples are those of the classes seen so far. Outputs of
    classes to come are not masked: they take part in the softmax, as in Han et al. 2026; Dohare et al. 2024 mask them.

    Args:
      data: all samples, on the host.
      classes_per_round: of the classes, at least 1.

    Raises:
      DataError: a class has fewer than two samples, so that none can be held out.
    """
    num_classes, (train, held_out) = data.num_classes, class_sizes(data)

    def split(seed, labels):
        shuffled = np.asarray(jax.random.permutation(key_for(seed, Purpose.ARRIVAL), len(labels)))
        classes = np.asarray(jax.random.permutation(key_for(seed, Purpose.TASK), num_classes))
        of_class = [shuffled[labels[shuffled] == each] for each in classes]
        found = [x[:train] for x in of_class], [x[train : train + held_out] for x in of_class]
        return tuple(np.concatenate(each).astype(np.int32) for each in found)

    def count(round_):
        return held_out * jnp.minimum(classes_per_round * round_, num_classes)

    return TaskStream(held_out_count=count, split=split)


def class_sizes(data: Dataset) -> tuple[int, int]:
    """Return how many samples of each class `class_incremental` trains on, and how many it holds out.

    Raises:
      DataError: a class has fewer than two samples.
    """
    counts = np.bincount(np.asarray(data.labels), minlength=data.num_classes)
    if counts.min() < 2:
        raise DataError(
            f"{data.name}: class {counts.argmin()} has {counts.min()} samples; one to train on and one to hold out of "
            "each class are the least, where classes arrive one after the other"
        )
    train = arrival.num_training(int(counts.min()))
    return train, int(counts.min()) - train


def permuted_inputs() -> TaskStream:
    """Make the stream of permuted inputs: each round permutes the features of all samples in its own way."""
    return drifting_inputs(1)


def drifting_inputs(period: int) -> TaskStream:
    """Make the stream that goes over from one permutation of the features to the next in `period` rounds, linearly.

    Round t = 1 + i · period + j has inputs (1 - j / period) · P_i x + (j / period) · P_{i+1} x; `period=1` is
    `permuted_inputs`. Pixels are rounded.
    """

    def looked(seed, round_, data):
        task, part = jnp.divmod(round_ - 1, period)
        features = int(np.prod(data.batch(1).inputs.shape[1:]))
        orders = [
            jax.random.permutation(key_for(seed, Purpose.TASK, task + i), features) for i in range(1 + (period > 1))
        ]
        return data.replace(look=_permuted, view=(tuple(orders), part / period))

    return TaskStream(training=looked, held_out=looked)


def _permuted(view, inputs):
    """Permute features, [..., features]; between two permutations mix them."""
    (first, *second), share = view
    here = inputs[..., first]
    if not second:
        return here
    mixed = (1 - share) * here.astype(float) + share * inputs[..., second[0]].astype(float)
    return (jnp.round(mixed) if jnp.issubdtype(inputs.dtype, jnp.integer) else mixed).astype(inputs.dtype)


def random_labels() -> TaskStream:
    """Make the stream of memorisation: in each round the true labels are shuffled over all samples.

    Each class keeps its number of labels, as in Kumar et al. 2023. Validation samples cannot be learnt: accuracy there
    is chance, what counts is the training accuracy.
    """

    def shuffled(seed, round_, data):
        return data.replace(labels=jax.random.permutation(key_for(seed, Purpose.TASK, round_), data.labels))

    return TaskStream(training=shuffled, held_out=shuffled)


def label_noise(rounds: int) -> TaskStream:
    """Make the stream in which a share of the labels is wrong: half at first, none in the last of `rounds` rounds.

    The share is that of `NOISE`, spread over the rounds. In each round the wrong labels are drawn anew, over all
    samples and from the other classes. Labels are right where they are held out.
    """
    shares = np.float32(NOISE)[np.arange(rounds) * len(NOISE) // rounds]
    shares[-1] = NOISE[-1]

    def noisy(seed, round_, data):
        which, other = jax.random.split(key_for(seed, Purpose.TASK, round_))
        wrong = jax.random.uniform(which, data.labels.shape) < jnp.asarray(shares)[jnp.minimum(round_, rounds) - 1]
        moved = jax.random.randint(other, data.labels.shape, 1, max(data.num_classes, 2), data.labels.dtype)
        return data.replace(labels=jnp.where(wrong, (data.labels + moved) % data.num_classes, data.labels))

    return TaskStream(training=noisy)
