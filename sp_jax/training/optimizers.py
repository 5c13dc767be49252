"""Optimisers of the paper, as functions of a lane's settings, and how any of optax's is called."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from sp_jax.transforms import filters, optimizer_state
from sp_jax.types import HParams

Optimizer = Callable[[HParams], optax.GradientTransformation]


def adam(hparams: HParams) -> optax.GradientTransformation:
    """Make Adam with PyTorch's defaults (Section 2.2) and coupled L2: the decay is added to the gradient before Adam's
    moments."""
    return optax.chain(optax.add_decayed_weights(hparams.weight_decay), optax.adam(hparams.learning_rate))


def adam_per_entry(hparams: HParams) -> optax.GradientTransformation:
    """Make `adam` with a step count for each entry, which is reset with its moments: what continual backprop's authors
    train with (`sp_jax.transforms.optimizer_state`)."""
    decay = optax.add_decayed_weights(hparams.weight_decay)
    return optax.chain(decay, optimizer_state.adam_per_entry(hparams.learning_rate))


def sgd(hparams: HParams) -> optax.GradientTransformation:
    """Make stochastic gradient descent without momentum (Section 3), with coupled L2."""
    return optax.chain(optax.add_decayed_weights(hparams.weight_decay), optax.sgd(hparams.learning_rate))


def only(optimizer: Optimizer, where: Callable) -> Optimizer:
    """Make an optimiser that trains the leaves picked by a filter and leaves all others as they are (Table 5's LL).

    Args:
      optimizer: of the picked leaves.
      where: a filter on paths, as `filters.layer("head")`; a ValueError where it matches nothing.

    Returns:
      An `Optimizer`; gradients of frozen leaves are dropped, and the compiler drops their computation.
    """

    def labels(params):
        return jax.tree.map(lambda picked: "trained" if picked else "frozen", filters.pick(params, where))

    return lambda hparams: optax.partition({"trained": optimizer(hparams), "frozen": optax.set_to_zero()}, labels)


def at_epoch(hparams: HParams, epoch: chex.Numeric) -> HParams:
    """Return the settings of an epoch, counted from 0: where `decay_every` is not 0, η, η/10, η/100 (Figure 32).

    >>> [round(float(at_epoch(HParams(decay_every=20), epoch).learning_rate), 7) for epoch in (19, 20, 40, 60)]
    [0.001, 0.0001, 1e-05, 1e-05]
    """
    drops = jnp.clip(epoch // jnp.maximum(hparams.decay_every, 1), 0, 2)
    decayed = jnp.where(hparams.decay_every > 0, hparams.learning_rate * 0.1**drops, hparams.learning_rate)
    return hparams.replace(learning_rate=decayed)


def update(optimizer: optax.GradientTransformation, gradient, opt_state, params, looked_at: dict):
    """Return the updates and the state of an optimiser, which may depend on the loss (a plateau, Polyak's step, a line
    search).

    Args:
      optimizer: any; called without the loss first, since some accept no other arguments than the parameters.
      gradient: pytree like `params`.
      opt_state: its state.
      params: pytree of arrays.
      looked_at: `value`, `grad` and `value_fn`, as optax's optimisers name them.
    """
    try:
        return optimizer.update(gradient, opt_state, params)
    except TypeError as error:
        if "missing" not in str(error):
            raise
    return optax.with_extra_args_support(optimizer).update(gradient, opt_state, params, **looked_at)
