"""The arrival of data: which third is held out, the order of arrival of the rest, how much each round has."""

import chex
import jax
import jax.numpy as jnp

from sp_jax.random import Purpose, key_for


def num_training(num_samples: int) -> int:
    """Return how many samples are fitted (Section 2.1): two thirds, rounded down (CIFAR-10: 33,333 of 50,000)."""
    return 2 * num_samples // 3


def split(seed: chex.Numeric, num_samples: int) -> tuple[chex.Array, chex.Array]:
    """Draw a seed's random third for validation ("a held-out, randomly-chosen third of available data", Section 2.1)
    and its order of arrival.

    Args:
      seed: int scalar, may be traced.
      num_samples: N, all samples.

    Returns:
      `(order, validation)`: int32 indices of the training samples in the order of arrival, [2N // 3], and of the
      validation samples, [N - 2N // 3].
    """
    shuffled = jax.random.permutation(key_for(seed, Purpose.ARRIVAL), num_samples).astype(jnp.int32)
    return jnp.split(shuffled, [num_training(num_samples)])


def online(num_train: int, samples_per_round: int) -> tuple[int, ...]:
    """Return the arrivals of batch online learning (Section 2.2): k more samples each round, the rest in the last.

    >>> online(33_333, 1_000)[-2:], len(online(33_333, 1_000))
    ((33000, 33333), 34)

    Args:
      num_train: T, all training samples.
      samples_per_round: k, between 1 and T.

    Returns:
      How many samples have arrived in each round, increasing up to T.

    Raises:
      ValueError: k out of range.
    """
    if not 1 <= samples_per_round <= num_train:
        raise ValueError(
            f"samples_per_round must lie between 1 and the {num_train:,} training samples, got {samples_per_round:,}"
        )
    return (*range(samples_per_round, num_train, samples_per_round), num_train)


def two_phase(num_train: int) -> tuple[int, ...]:
    """Return the arrivals of two phases (Section 2.1): half of the training samples, then all of them.

    >>> two_phase(33_333)
    (16666, 33333)

    Args:
      num_train: T, all training samples, at least 2.

    Returns:
      `(T // 2, T)`.
    """
    return (num_train // 2, num_train)
