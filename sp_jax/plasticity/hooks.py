"""Whether the functions of a method fit the training state; each is traced, nothing is run."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax import tracing
from sp_jax.errors import first_line, with_kind
from sp_jax.plasticity.methods import Method
from sp_jax.transforms.filters import path_name
from sp_jax.types import Model, TrainState


def check_hooks(method: Method, model: Model, optimizer: optax.GradientTransformation, inputs: chex.ArrayTree) -> None:
    """Check a method of one's own on a model (`sp_jax.plasticity.methods` says what each function is given).

    Args:
      method: its functions.
      model: of `sp_jax.models`.
      optimizer: that the model is trained with.
      inputs: [B, ...], a batch, or a pytree of such; arrays or `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: a function does not run, or returns something of another structure, shape or dtype; `observe` changes
        more than memory; memory holds what is no array. One line, which names the function.
    """
    batch = len(jax.tree.leaves(inputs)[0])
    mask, strength = jax.ShapeDtypeStruct((batch,), bool), jax.ShapeDtypeStruct((), jnp.float32)

    def begin(key):
        params, batch_stats = model.init(key)
        memory = method.init(key, model, params, batch_stats)
        _check_memory(memory)
        return TrainState(params, batch_stats, optimizer.init(params), memory)

    state = _shapes("init", begin, jax.random.key(0))
    params = state.params

    def after_step(state, inputs, mask, strength):
        return method.after_step(model, optimizer, state, inputs, mask, strength)

    def restarted(state):
        return method.restarted(lambda state: state, state)

    _check("observe", method.observe, (state, params, strength), state)
    _check("gradient", method.gradient, (state, params, strength), params)
    _check("after_step", after_step, (state, inputs, mask, strength), state)
    _check("after_epoch", method.after_epoch, (state,), state)
    _check("restarted", restarted, (state,), state)
    _check("evaluated", method.evaluated, (state,), state)
    kept = state.replace(memory=())
    moved = tracing.changed(
        lambda kept, memory, *rest: method.observe(kept.replace(memory=memory), *rest).replace(memory=()),
        kept, state.memory, params, strength,
    )  # fmt: skip
    if any(moved):
        raise ValueError("the method's observe changes more than memory; what changes parameters is after_step")


def _check_memory(memory):
    for path, leaf in jax.tree_util.tree_leaves_with_path(memory):
        where = f"the method's init: memory {path_name(path)!r}"
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise ValueError(f"{where} is {type(leaf).__name__}; expected an array, as jnp.int32(0)")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"{where} is a key; keep its numbers, jax.random.key_data(key), and wrap them where needed"
            )


def _shapes(name: str, function: Callable, *args):
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:  # a user's function can raise anything
        line = first_line(error)
        line = line if line.startswith("the method's ") else f"the method's {name} does not run: {with_kind(error)}"
        raise ValueError(line) from error


def _check(name, function, args, expected):
    """Raise a ValueError where a function does not return what it must."""
    found = _shapes(name, function, *args)
    what = "the training state" if isinstance(expected, TrainState) else "a tree like the parameters"
    if jax.tree.structure(found) != jax.tree.structure(expected):
        kind = f"{type(found).__name__}" if type(found) is not type(expected) else "another structure"
        raise ValueError(f"the method's {name} returns {kind}; expected {what}, of the same structure")
    for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise ValueError(
                f"the method's {name} returns {path_name(path)!r} as {new.dtype} {new.shape}; expected {old.dtype} "
                f"{old.shape}"
            )
