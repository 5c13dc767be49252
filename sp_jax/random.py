"""Keys from (seed, purpose, round, epoch).

All settings of one seed share them, so differences between methods are paired.
"""

import enum
import functools

import chex
import jax


class Purpose(enum.IntEnum):
    """The purpose of a key; the numbers determine every result, so they never change."""

    ARRIVAL = 0  # the validation third and the order of arrival
    INIT = 1  # freshly drawn networks: round 0 is the first initialisation, round t that of the restart before round t
    SHUFFLE = 2  # the order of an epoch
    NOISE = 3  # Gaussian noise of a restart
    METHOD = 4  # draws of a method during training
    AUGMENT = 5  # of a batch's augmentation
    TASK = 6  # the tasks of a stream


def key_for(seed: chex.Numeric, purpose: Purpose, *counters: chex.Numeric) -> chex.PRNGKey:
    """Make the key of a seed for one purpose, and for counters such as round and epoch; integer scalars, which may be
    traced. It is typed, the same under `jit`, `vmap` and outside them."""
    return functools.reduce(jax.random.fold_in, (purpose.value, *counters), jax.random.key(seed))
