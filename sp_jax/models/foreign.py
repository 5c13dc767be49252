"""Adapters of Haiku's and Equinox's networks, which are not imported here, and a check of NNX's dropouts."""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sp_jax.models import padding, streams
from sp_jax.models.checks import NetworkError, UnknownSwitchError, changed_leaves, check_switch
from sp_jax.models.modes import find_modes
from sp_jax.types import Model


def split_static(init: Callable) -> tuple[Callable, Callable]:
    """Split the arrays that an initialiser draws from other leaves, such as an Equinox module's activation functions.

    Args:
      init: `init(key)` returns a pytree.

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


def from_haiku(network: Any, example: chex.ArrayTree, *, switch: Mapping[str, bool] | None = None) -> Model:
    """Make a `Model` of the result of `hk.transform` or `hk.transform_with_state`.

    Args:
      network: the pair of functions, with or without `rng` in its `apply`.
      example: [B, ...] of the shape and dtype of the data, or a pytree of such.
      switch: as of `sp_jax.models.from_module`: an argument of the transformed function.

    Returns:
      A `Model`; Haiku's state counts as batch statistics, and beside it is `rngs`, the stream of random numbers, where
      training draws some. Real samples repeated replace the padding of an epoch's last batch.

    Raises:
      ValueError: a network that draws random numbers in evaluation, too, or whose switch is not found.
    """
    function = getattr(network.init, "_original_fn", None)
    known = inspect.signature(function).parameters if function else {}
    modes = find_modes("the Haiku network", known, None, switch)
    taken = inspect.signature(network.apply).parameters
    stateful, takes_key = "state" in taken, "rng" in taken
    zeros, name = padding.zeros(example), "the Haiku network"

    def init(key):
        drawn = network.init(key, zeros, **modes.arguments(True))  # statistics begin where they are first updated
        return drawn if stateful else (drawn, {})

    def call(key, train, params, state, inputs):
        keys, arguments = (key,) if takes_key else (), modes.arguments(train)
        if stateful:
            return network.apply(params, state, *keys, inputs, **arguments)
        return network.apply(params, *keys, inputs, **arguments), state

    try:
        shapes = (*jax.eval_shape(init, jax.random.key(0)), padding.shapes(zeros))
        uses = streams.find_use(name, call, *shapes) if takes_key else (False, False)
        jax.eval_shape(functools.partial(call, streams.constant() if uses[1] else None, False), *shapes)
    except ValueError as error:
        if "No value for" in str(error):
            raise UnknownSwitchError("the Haiku network never begins its statistics, as it never trains") from error
        raise
    return _with_stream(name, init, call, uses, padding.shapes(zeros))


def _with_stream(name, init, call, uses, example):
    """Return a `Model` of `call(key, train, params, state, inputs)`, checked; the key comes from a stream.

    Args:
      name: of the network.
      init: `init(key)` returns parameters and a state, a mapping.
      call: returns outputs and the state after it.
      uses: whether training and evaluation need a key.
      example: [B, ...], shapes.
    """
    in_training, in_evaluation = uses

    def init_all(key):
        params, state = init(key)
        return params, ({**state, streams.NAME: streams.start(key)} if in_training else state)

    def call_all(params, held, inputs, mask=None, train=False):
        key, left, state = (streams.constant() if in_evaluation else None), {}, held
        if in_training:
            left = {streams.NAME: held[streams.NAME]}
            state = {part: value for part, value in held.items() if part != streams.NAME}
        if in_training and train:
            key, left[streams.NAME] = streams.take(held[streams.NAME])
        inputs = padding.without_padding(inputs, mask) if train else inputs
        outputs, state = call(key, train, params, state, inputs)
        return outputs, ({**state, **left} if in_training else state)

    def apply(params, held, inputs, mask=None, train=False):
        outputs, updated = call_all(params, held, inputs, mask, train)
        return outputs, updated if train else held

    check_switch(name, init_all, call_all, example)
    return Model(init_all, apply)


def equinox_maker(network: Callable) -> Callable | None:
    """Return `make(key) -> (equinox.Module, equinox.nn.State)` where calling the function with a key gives a module.

    Args:
      network: `make(key) -> equinox.Module`, also within `equinox.nn.make_with_state`; any other function gives None.
    """
    equinox, found = sys.modules["equinox"], []

    def made(key):
        found[:] = [network(key)]
        return ()

    try:
        jax.eval_shape(made, jax.random.key(0))
    except Exception:  # a function that takes something else, as that of an NNX module
        return None
    if isinstance(found[0], equinox.Module):
        return equinox.nn.make_with_state(network)
    is_pair = isinstance(found[0], tuple) and len(found[0]) == 2
    return network if is_pair and isinstance(found[0][1], equinox.nn.State) else None


def from_equinox(make: Callable, example: chex.ArrayTree, *, switch: Mapping[str, bool] | None = None) -> Model:
    """Make a `Model` of an Equinox module of one sample, which `jax.vmap` maps over the batch.

    Args:
      make: `make(key) -> (module, state)`, as `equinox.nn.make_with_state` gives it. The module is called as it was
        made in training, and within `equinox.nn.inference_mode` in evaluation: with a sample, its `state` where it has
        one (BatchNorm, whose `axis_name` names the batch), and `key=` where its call has that argument.
      example: [B, ...] of the shape and dtype of the data, or a pytree of such.
      switch: a further switch, an argument of its call, as of `sp_jax.models.from_module`.

    Returns:
      A `Model`. Its parameters are the module with its floating arrays alone; what counts as batch statistics is a
      dictionary: `state`, `buffers` (other arrays) and `rngs`, the stream of the samples' keys, where there are such.
      Real samples repeated replace the padding of an epoch's last batch.

    Raises:
      ValueError: a module that draws random numbers in evaluation, too, a dropout that drops nothing in training,
        statistics that stand still in training, or several names of the batch axis.
    """
    equinox = sys.modules["equinox"]

    def parts(key):
        module, state = make(key)
        arrays, static = equinox.partition(module, equinox.is_array)
        return *equinox.partition(arrays, equinox.is_inexact_array), state, static

    params, buffers, state, static = equinox.filter_eval_shape(parts, jax.random.key(0))
    module = equinox.combine(params, buffers, static)
    name, known = type(module).__name__, inspect.signature(type(module).__call__).parameters
    modes, axis = find_modes(name, known, None, switch), _batch_axis(name, module)
    state_structure = jax.tree.structure(state)
    has_buffers, has_state = bool(jax.tree.leaves(buffers)), bool(jax.tree.leaves(state))

    def init(key):
        params, buffers, state, _ = parts(key)
        held = {"buffers": buffers} if has_buffers else {}
        return params, (held | {"state": _numbered(state)} if has_state else held)

    def call(key, train, params, held, inputs):
        whole = equinox.combine(params, held["buffers"] if has_buffers else buffers, static)
        whole = whole if train else equinox.nn.inference_mode(whole)
        state = (_restored(state_structure, held["state"]),) if has_state else ()
        keys = {} if key is None or "key" not in known else {"key": jax.random.split(key, padding.count(inputs))}

        def one(x, keys, *state):
            found = whole(x, *state, **keys, **modes.arguments(train))
            return found if has_state else (found, ())

        mapped = jax.vmap(one, (0, 0) + (None,) * len(state), (0, None), **axis)
        outputs, state = mapped(inputs, keys, *state)
        return outputs, (held | {"state": _numbered(state)} if has_state else held)

    shapes = (*jax.eval_shape(init, jax.random.key(0)), padding.shapes(example))
    uses = streams.find_use(name, call, *shapes) if "key" in known else (False, False)
    dropouts = [each for each in _nodes(module, equinox.nn.Dropout) if each.p != 0]
    jax.eval_shape(functools.partial(call, streams.constant() if uses[0] else None, True), *shapes)
    if dropouts and not uses[0]:
        raise NetworkError(f"{name} has a dropout that drops nothing while it trains: make it with inference=False")
    return _with_stream(name, init, call, uses, shapes[-1])


def _numbered(state):
    """Return a state's arrays by their places; the state itself is valid only once."""
    return {str(i): x for i, x in enumerate(jax.tree.leaves(state))}


def _restored(structure, numbered):
    return jax.tree.unflatten(structure, [numbered[str(i)] for i in range(len(numbered))])


def _nodes(tree, kind):
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [x for x in found if isinstance(x, kind)]


def _batch_axis(name, module):
    """Return the keyword of `jax.vmap` that names the batch as the BatchNorms of an Equinox module do."""
    names = {each.axis_name for each in _nodes(module, sys.modules["equinox"].nn.BatchNorm)}
    if len(names) > 1:
        raise NetworkError(f"{name} has BatchNorms of several axes {sorted(map(str, names))}: give all one axis_name")
    return {"axis_name": names.pop()} if names else {}


def check_nnx_dropout(module: nnx.Module, init: Callable, call: Callable, example: chex.ArrayTree) -> None:
    """Raise an `UnknownSwitchError` where an NNX module has a dropout, and draws nothing while it trains."""
    dropouts = [each for _, each in nnx.iter_modules(module) if isinstance(each, nnx.Dropout) and each.rate > 0]
    params, others = jax.eval_shape(init, jax.random.key(0))
    moved = changed_leaves(lambda others, params, x: call(params, others, x, None, True)[1], others, params, example)
    if dropouts and not any(is_new for path, is_new in moved.items() if path.endswith("count")):
        raise UnknownSwitchError(f"{type(module).__name__} has a dropout that drops nothing while it trains")
