"""Frozen parameters: those that the loss does not depend on, or that the optimiser does not change."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from sp_jax import tracing
from sp_jax.training import update
from sp_jax.transforms import filters
from sp_jax.transforms.filters import is_changeable, path_name
from sp_jax.types import Model

STEPS = 3  # trial steps of the optimiser: a warm-up may begin at zero


def frozen_leaves(
    loss: Callable, optimizer: optax.GradientTransformation, params: chex.ArrayTree, *batch: chex.Array
) -> set[str]:
    """Return the paths of the parameters that training leaves unchanged; none where all or nothing would be frozen.

    The loss, `loss(params, *batch)`, is traced, not run: a leaf behind `stop_gradient` has a gradient that depends on
    nothing. The optimiser is run on some gradients: leaves that it does not change in three steps, while it changes
    others, are frozen. Parameters and batch are `jax.ShapeDtypeStruct`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    reached = tracing.dependent(jax.grad(loss), params, *batch)

    def numbers(which, wanted):
        """Return a tree of any numbers but 0, other ones for each `which`: a sine compiles faster than a draw."""
        return structure.unflatten(
            jnp.sin(1 + which + jnp.arange(math.prod(x.shape))).reshape(x.shape).astype(x.dtype) if w
            else jnp.zeros(x.shape, x.dtype)
            for (_, x), w in zip(leaves, wanted, strict=True)
        )  # fmt: skip

    @jax.jit
    def moved():
        params = numbers(0, [is_changeable(x) for _, x in leaves])
        state, any_moved = optimizer.init(params), [False] * len(leaves)
        for i in range(STEPS):
            gradient = numbers(1 + i, reached)
            looked_at = {"value": jnp.ones(()), "grad": gradient, "value_fn": lambda params: jnp.ones(())}
            updates, state = update(optimizer, gradient, state, params, looked_at)
            any_moved = [a | jnp.any(u != 0) for a, u in zip(any_moved, jax.tree.leaves(updates), strict=True)]
        return any_moved

    found = [bool(x) for x in moved()]
    changeable = [is_changeable(leaf) for _, leaf in leaves]
    if not any(found):
        return set()
    return {path_name(p) for (p, _), m, c in zip(leaves, found, changeable, strict=True) if c and not m}


def stopped(model: Model, trainable: Callable) -> Model:
    """Return a model whose loss has no gradient in the leaves that are not trained.

    Args:
      model: its functions.
      trainable: a filter of the parameters (`sp_jax.filters`). The statistics of a frozen part still follow the data,
        unless the network itself runs it in evaluation mode.

    Returns:
      A `Model`.

    Raises:
      ValueError: the filter matches no leaf.
    """

    try:
        filters.pick(jax.eval_shape(model.init, jax.random.key(0))[0], trainable)
    except ValueError as error:
        raise ValueError(f"trainable: {error}") from None

    def apply(params, batch_stats, inputs, mask=None, train=False):
        picked = filters.pick(params, trainable)
        params = jax.tree.map(lambda x, trained: x if trained else jax.lax.stop_gradient(x), params, picked)
        return model.apply(params, batch_stats, inputs, mask, train)

    return model._replace(apply=apply)
