"""Adapters of users' networks to the two pure functions that training needs."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import errors, nnx
from flax import linen as nn

from sp_jax.models import foreign
from sp_jax.models.checks import UnknownSwitchError, check_switch
from sp_jax.models.modes import Modes, find_modes
from sp_jax.models.padding import without_padding
from sp_jax.transforms.filters import path_name
from sp_jax.types import Model

FORMS = "a Linen module, a pair init(key) and apply(params, inputs), or a function make(rngs) of an NNX module"


class NetworkError(ValueError):
    """A network that cannot be trained as it is; the message is one line with advice on what to write instead."""


def as_model(
    network: Any, example_inputs: chex.Array, *, switch: Mapping[str, bool] | None = None, mask: str | None = None
) -> Model:
    """Make a `Model` of a network of any kind.

    Args:
      network: a `Model`; a Flax Linen module; a pair of functions `init(key) -> params` and `apply(params, inputs) ->
        logits`, of bare JAX or Equinox; Haiku's `hk.transform(…)` or `hk.transform_with_state(…)`; or a function
        `make(rngs) -> nnx.Module`.
      example_inputs: [B, ...] of the shape and dtype of the data.
      switch: what the network calls its switch between training and evaluation, an argument of its call or an
        attribute, with the value that it has in training: `{"test": False}`. Usual names are known (see `from_module`).
      mask: of a Linen module, the argument that takes [B] booleans, False for padding; see `from_module`.

    Returns:
      A `Model`.

    Raises:
      ValueError: anything else, a network that does not run on such inputs, or whose switch is not found (see
        `from_module` too); one line.
    """
    example = jax.ShapeDtypeStruct(example_inputs.shape, jax.dtypes.canonicalize_dtype(example_inputs.dtype))
    try:
        model = _adapt(network, example, switch, mask)
        jax.eval_shape(lambda key, x: model.apply(*model.init(key), x, None, False), jax.random.key(0), example)
    except (NetworkError, UnknownSwitchError):
        raise
    except Exception as error:  # a user's network can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shape = f"{example.dtype} of shape {example.shape}"
        raise ValueError(f"the network does not run on inputs {shape}: {reason} (expected {FORMS})") from error
    return model


def _adapt(network, example, switch, mask):
    equinox, haiku = sys.modules.get("equinox"), sys.modules.get("haiku")  # imported already if the network is of these
    if isinstance(network, Model):
        return network
    if isinstance(network, nn.Module):
        return from_module(network, example, switch=switch, mask=mask)
    if haiku and isinstance(network, (haiku.Transformed, haiku.TransformedWithState)):
        return foreign.from_haiku(network, example, switch=switch)
    if isinstance(network, tuple) and len(network) == 2 and all(map(callable, network)):
        return from_functions(*network)
    if equinox and isinstance(network, equinox.Module):
        raise NetworkError(
            "an Equinox module is one draw, and each round draws afresh: give (make, apply), "
            "as (lambda key: eqx.nn.MLP(64, 10, 64, 1, key=key), lambda net, x: jax.vmap(net)(x))"
        )
    if isinstance(network, nnx.Module):
        raise NetworkError("an NNX module is one draw, and each round draws afresh: give lambda rngs: Net(rngs)")
    if callable(network):
        return _checked_nnx(network, example, switch)
    raise ValueError(f"got {type(network).__name__}")


def from_functions(init: Callable, apply: Callable) -> Model:
    """Make a `Model` without batch statistics of two pure functions.

    `init(key)` gives parameters; the key is consumed, and leaves that are no arrays or numbers, as an Equinox module's
    activation functions, stay as they are. `apply(params, inputs)` maps [B, ...], independent samples, to logits [B,
    classes].
    """
    arrays, whole = foreign.split_static(init)
    return Model(
        lambda key: (arrays(key), {}),
        lambda params, batch_stats, inputs, mask=None, train=False: (apply(whole(params), inputs), batch_stats),
    )


def from_module(
    module: nn.Module, example_inputs: chex.Array, *, switch: Mapping[str, bool] | None = None, mask: str | None = None
) -> Model:
    """Make a `Model` of a Flax Linen module.

    Args:
      module: called as `module(inputs)`, with those of `train=` (or `training=`, `is_training=`, `is_train=`,
        `deterministic=`, `use_running_average=`) that its `__call__` has; its collections are `params` and, where it
        has BatchNorm, `batch_stats`. A module with a method `links()` sows the activations of each of these layers,
        say `hidden_0`, as `hidden_0_units` into `intermediates`, as `sp_jax.models.MLP` does.
      example_inputs: [B, ...] of the shape and dtype of the data; B may be 1, the values do not matter.
      switch: its switch between training and evaluation where it has another name, an argument of its call or an
        attribute, with the value that it has in training: `{"test": False}`.
      mask: the argument that takes [B] booleans, False for padding, which then influences nothing. By default `mask`,
        where a module with statistics has it and a trial shows that padding influences nothing; for a module without
        a mask, real samples repeated replace the padding of an epoch's last batch. `""` for none.

    Returns:
      A `Model`.

    Raises:
      ValueError: a module that draws random numbers while it trains (dropout); statistics or a dropout whose switch is
        not found; a `mask` without a default whose meaning is not known.
    """
    dtype = jax.dtypes.canonicalize_dtype(example_inputs.dtype)
    example = jnp.zeros((1, *example_inputs.shape[1:]), dtype)
    name, known = type(module).__name__, inspect.signature(type(module).__call__).parameters
    modes = find_modes(name, known, module, switch)
    masked = {"name": mask if mask is None or mask in known else _no_argument(name, mask)}

    def arguments(mask, train, inputs):
        if not masked["name"]:
            return modes.arguments(train)
        if mask is None and known[masked["name"]].default is inspect.Parameter.empty:
            mask = jnp.ones(len(inputs), bool)
        return modes.arguments(train) | {masked["name"]: mask}

    def at(train):
        return module.clone(**found) if (found := modes.attributes(train)) else module

    def init(key):
        variables = at(False).init(key, example, **arguments(jnp.ones(1, bool), False, example))
        return variables.get("params", {}), variables.get("batch_stats", {})

    def run(params, batch_stats, inputs, mask, train, **options):
        variables = {"params": params, "batch_stats": batch_stats}
        return at(train).apply(variables, inputs, **options, **arguments(mask, train, inputs))

    def call(params, batch_stats, inputs, mask, train):
        inputs = inputs if masked["name"] or not train else without_padding(inputs, mask)
        logits, updated = run(params, batch_stats, inputs, mask, train, mutable=["batch_stats"])
        return logits, updated.get("batch_stats", {})

    def apply(params, batch_stats, inputs, mask=None, train=False):
        if train and jax.tree.leaves(batch_stats):
            return call(params, batch_stats, inputs, mask, True)
        return run(params, batch_stats, inputs, mask, train), batch_stats

    def activations(params, batch_stats, inputs, mask=None, train=False):
        _, found = run(params, batch_stats, inputs, mask, train, mutable=["intermediates", "batch_stats"])
        leaves = jax.tree_util.tree_leaves_with_path(found["intermediates"])
        return {path_name(path[:-1]).removesuffix("_units"): x for path, x in leaves}

    if mask is None and "mask" in known:
        masked["name"] = _padding_mask(module, known["mask"], masked, init, call, example)
    if type(module).__module__ != "sp_jax.models" and not type(module).__module__.startswith("sp_jax.models."):
        _check_linen(name, module, modes, known, init, call, example)
    links, layouts = (getattr(module, name, lambda x=x: x)() for name, x in (("links", ()), ("layouts", None)))
    return Model(init, apply, activations, links, layouts)


def _no_argument(name, mask):
    if mask:
        raise NetworkError(f"{name} has no argument {mask!r} in its call, which mask= names")
    return ""


def _padding_mask(module, parameter, masked, init, call, example):
    """Return "mask" where that argument takes booleans of real samples; by trial for modules of other packages."""
    name = type(module).__name__
    if type(module).__module__.startswith("sp_jax.models."):
        return "mask"
    if jax.tree.leaves(_try(lambda: jax.eval_shape(init, jax.random.key(0))[1])):
        masked["name"] = "mask"
        if _try(lambda: _ignores_padding(init, call, example)):
            return "mask"
    if parameter.default is inspect.Parameter.empty:
        raise NetworkError(
            f"what the argument `mask` of {name} means is not known: write mask='mask' where it takes [B] booleans, "
            "False for samples that are padding, or give it a default"
        )
    return ""


def _ignores_padding(init, call, example):
    """Return whether the logits of real samples and the statistics are independent of padding marked by `mask`."""
    params, batch_stats = init(jax.random.key(0))
    noise = jax.random.randint(jax.random.key(1), (4, *example.shape[1:]), 0, 2).astype(example.dtype)
    mask = jnp.array([True, True, True, False])
    one, two = (call(params, batch_stats, noise.at[3].set(x), mask, True) for x in (noise[0], 1 - noise[0]))
    same = jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), (one[0][:3], one[1]), (two[0][:3], two[1]))
    return jax.tree.all(same)


def _try(function):
    try:
        return function()
    except Exception:  # any error only shows that the function does not accept such a call
        return None


def _check_linen(name, module, modes: Modes, known, init, call, example):
    """Raise an error where a module draws random numbers, or has a switch that was not found."""
    dropped, mask = [], jnp.ones(1, bool)

    def look(function, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__" and context.module.rate > 0:
            said = kwargs.get("deterministic", args[1] if len(args) > 1 else None)
            dropped.append(context.module.deterministic if said is None else said)
        return function(*args, **kwargs)

    def run(train):
        jax.eval_shape(lambda key: call(*init(key), example, mask, train), jax.random.key(0))

    try:
        with nn.intercept_methods(look):
            jax.eval_shape(init, jax.random.key(0))
            dropped.clear()
            run(True)
    except errors.InvalidRngError:
        raise NetworkError(f"{name} draws random numbers while it trains (dropout): leave it out, or use NNX") from None
    if dropped:  # an active dropout would have drawn random numbers
        raise UnknownSwitchError(f"{name} has a dropout that drops nothing while it trains")
    check_switch(name, init, call, jax.ShapeDtypeStruct(example.shape, example.dtype))
    for flag in modes.others(known, module):
        try:
            _run_turned(module, flag, known, init, modes.arguments(True), example)
        except errors.InvalidRngError:
            raise UnknownSwitchError(f"{name} draws random numbers (a dropout?) where {flag!r} is turned") from None
        except Exception:
            continue


def _run_turned(module, flag, known, init, arguments, example):
    """Call a module, abstractly (shapes only), with one of its boolean arguments or attributes negated."""
    arguments = arguments | ({flag: not known[flag].default} if flag in known else {})
    turned = module if flag in known else module.clone(**{flag: not getattr(module, flag)})

    def run(key):
        params, batch_stats = init(key)
        return turned.apply(
            {"params": params, "batch_stats": batch_stats}, example, mutable=["batch_stats"], **arguments
        )

    jax.eval_shape(run, jax.random.key(0))


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module], *, switch: Mapping[str, bool] | None = None) -> Model:
    """Make a `Model` of a Flax NNX module.

    Args:
      make: `make(rngs) -> module`, called with the inputs alone (and a switch that its `__call__` has); `train()` and
        `eval()` set its mode. Variables other than `nnx.Param` (BatchNorm's statistics, dropout's streams of random
        numbers) count as batch statistics. Real samples repeated replace the padding of an epoch's last batch.
      switch: as of `from_module`; an attribute is set in all modules that have it.

    Returns:
      A `Model`.

    Raises:
      ValueError: statistics or a dropout whose switch is not found (`as_model` looks).
    """
    return _nnx(make, switch)[0]


def _nnx(make, switch):
    """Return the model, the module's shapes, and an `apply` that returns the statistics in evaluation too."""
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, parameters = nnx.graphdef(abstract), inspect.signature(type(abstract).__call__).parameters
    modes = find_modes(type(abstract).__name__, parameters, abstract, switch)

    def init(key):
        _, params, others = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(others)

    def call(params, batch_stats, inputs, mask=None, train=False):
        module = nnx.merge(graph, params, batch_stats)
        module.train() if train else module.eval()
        if found := modes.attributes(train):
            module.set_attributes(**found)
        logits = module(without_padding(inputs, mask), **modes.arguments(train))
        return logits, nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2])

    def apply(params, batch_stats, inputs, mask=None, train=False):
        logits, updated = call(params, batch_stats, inputs, mask, train)
        return logits, updated if train else batch_stats

    return Model(init, apply), abstract, call


def _checked_nnx(make, example, switch):
    model, abstract, call = _nnx(make, switch)
    check_switch(type(abstract).__name__, model.init, call, example)
    foreign.check_nnx_dropout(abstract, model.init, call, example)
    return model
