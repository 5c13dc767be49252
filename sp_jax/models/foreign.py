"""Adapters of Haiku's and Equinox's networks, which are not imported here, and a check of NNX's dropouts."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sp_jax.models.checks import UnknownSwitchError, changed_leaves, check_switch
from sp_jax.models.modes import find_modes
from sp_jax.models.padding import without_padding
from sp_jax.types import Model


def split_static(init: Callable) -> tuple[Callable, Callable]:
    """Split the arrays that `init(key)` draws from other leaves, such as an Equinox module's activation functions.

    Returns:
      `arrays(key)`, the tree with None in place of all else, and `whole(arrays)`, the tree as it was.
    """
    found = []

    def arrays(key):
        tree = init(key)
        static = jax.tree.map(lambda x: None if _is_array(x) else x, tree)
        found[:] = [static] if jax.tree.leaves(static) else [None]
        return jax.tree.map(lambda x: jnp.asarray(x) if _is_array(x) else None, tree)

    def whole(params):
        if not found:
            jax.eval_shape(arrays, jax.random.key(0))
        if found[0] is None:
            return params
        return jax.tree.map(lambda x, other: other if x is None else x, params, found[0], is_leaf=lambda x: x is None)

    return arrays, whole


def _is_array(x):
    return isinstance(x, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def from_haiku(network: Any, example: chex.Array, *, switch: Mapping[str, bool] | None = None) -> Model:
    """Make a `Model` of the result of `hk.transform` or `hk.transform_with_state`, with or without `rng`.

    Haiku's state counts as batch statistics. Real samples repeated replace the padding of an epoch's last batch.
    `switch` is as of `sp_jax.models.from_module`: an argument of the transformed function.

    Raises:
      ValueError: a network that draws random numbers, or whose switch is not found.
    """
    function = getattr(network.init, "_original_fn", None)
    known = inspect.signature(function).parameters if function else {}
    modes = find_modes("the Haiku network", known, None, switch)
    taken = inspect.signature(network.apply).parameters
    stateful, rng = "state" in taken, (None,) if "rng" in taken else ()
    zeros = jnp.zeros((1, *example.shape[1:]), example.dtype)

    def init(key):
        drawn = network.init(key, zeros, **modes.arguments(True))  # statistics begin where they are first updated
        return drawn if stateful else (drawn, {})

    def call(params, batch_stats, inputs, mask=None, train=False):
        inputs, arguments = without_padding(inputs, mask) if train else inputs, modes.arguments(train)
        if stateful:
            return network.apply(params, batch_stats, *rng, inputs, **arguments)
        return network.apply(params, *rng, inputs, **arguments), batch_stats

    def apply(params, batch_stats, inputs, mask=None, train=False):
        logits, updated = call(params, batch_stats, inputs, mask, train)
        return logits, updated if train else batch_stats

    try:
        jax.eval_shape(lambda key, x: call(*init(key), x), jax.random.key(0), zeros)
    except ValueError as error:
        if "No value for" in str(error):
            raise UnknownSwitchError("the Haiku network never begins its statistics, as it never trains") from error
        raise
    check_switch("the Haiku network", init, call, jax.ShapeDtypeStruct(zeros.shape, zeros.dtype))
    return Model(init, apply)


def check_nnx_dropout(module: nnx.Module, init: Callable, call: Callable, example: jax.ShapeDtypeStruct) -> None:
    """Raise an `UnknownSwitchError` where an NNX module has a dropout, and draws nothing while it trains."""
    dropouts = [each for _, each in nnx.iter_modules(module) if isinstance(each, nnx.Dropout) and each.rate > 0]
    params, others = jax.eval_shape(init, jax.random.key(0))
    moved = changed_leaves(lambda others, params, x: call(params, others, x, None, True)[1], others, params, example)
    if dropouts and not any(is_new for path, is_new in moved.items() if path.endswith("count")):
        raise UnknownSwitchError(f"{type(module).__name__} has a dropout that drops nothing while it trains")
