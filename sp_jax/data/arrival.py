"""The arrival of data: which third is held out, the order of arrival of the rest, how much each round has."""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from sp_jax.random import Purpose, key_for


def num_training(num_samples: int) -> int:
    """Return how many samples are fitted (Section 2.1): two thirds, rounded down (CIFAR-10: 33,333 of 50,000)."""
    return 2 * num_samples // 3


def split(seed: chex.Numeric, num_samples: int) -> tuple[chex.Array, chex.Array]:
    """Return a seed's order of arrival and its random third for validation ("a held-out, randomly-chosen third of
    available data", Section 2.1): int32 indices, [2N // 3] and [N - 2N // 3]. The seed may be traced."""
    shuffled = jax.random.permutation(key_for(seed, Purpose.ARRIVAL), num_samples).astype(jnp.int32)
    return jnp.split(shuffled, [num_training(num_samples)])


@partial(jax.jit, static_argnums=1)
def splits(seeds: chex.Array, num_samples: int) -> tuple[chex.Array, chex.Array]:
    """Return the `split` of each of some seeds [L]: int32 indices, [L, 2N // 3] and [L, N - 2N // 3]."""
    return jax.vmap(lambda seed: split(seed, num_samples))(seeds)


def online(num_train: int, samples_per_round: int) -> tuple[int, ...]:
    """Return the arrivals of batch online learning (Section 2.2): k more samples each round, up to all T of them.

    Raises:
      ValueError: k is not between 1 and T.

    >>> online(33_333, 1_000)[-2:], len(online(33_333, 1_000))
    ((33000, 33333), 34)
    """
    if not 1 <= samples_per_round <= num_train:
        raise ValueError(
            f"samples_per_round must lie between 1 and the {num_train:,} training samples, got {samples_per_round:,}"
        )
    return (*range(samples_per_round, num_train, samples_per_round), num_train)


def two_phase(num_train: int) -> tuple[int, ...]:
    """Return the arrivals of two phases (Section 2.1): half of the T >= 2 training samples, then all of them.

    >>> two_phase(33_333)
    (16666, 33333)
    """
    return (num_train // 2, num_train)
