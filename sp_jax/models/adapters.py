"""Anyone's network as the two pure functions that training needs."""

import inspect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import errors, nnx
from flax import linen as nn

from sp_jax.types import Model

_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "is_train": True,
    "deterministic": False,
    "use_running_average": False,
}


def as_model(network: Any, example_inputs: chex.Array) -> Model:
    """Makes a network of any kind a `Model`.

    Args:
      network: a `Model`; a Flax Linen module; a pair of functions `init(key) -> params` and `apply(params, inputs) ->
        logits`, as of Haiku or bare JAX; or a function `make(rngs) -> nnx.Module`.
      example_inputs: [B, ...] of the shape and dtype of the data.

    Returns:
      A `Model`.

    Raises:
      ValueError: anything else, or a network that does not run on such inputs (see `from_module` too); one line.
    """
    forms = "a Linen module, a pair init(key) and apply(params, inputs), or a function make(rngs) of an NNX module"
    example = jax.ShapeDtypeStruct(example_inputs.shape, jax.dtypes.canonicalize_dtype(example_inputs.dtype))
    try:
        model = _adapt(network, example)
        jax.eval_shape(lambda key, x: model.apply(*model.init(key), x, None, False), jax.random.key(0), example)
    except Exception as error:  # whatever a stranger's network raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        shape = f"{example.dtype} of shape {example.shape}"
        raise ValueError(f"the network does not run on inputs {shape}: {reason} (expected {forms})") from error
    return model


def check_logits(model: Model, inputs: chex.Array, num_classes: int) -> int:
    """How many classes a network tells apart.

    Args:
      model: its two functions.
      inputs: [N, ...], for shape and dtype alone.
      num_classes: that the labels have.

    Returns:
      C, of logits [B, C].

    Raises:
      ValueError: the logits are no such array, or have too few classes.
    """
    example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))
    logits = jax.eval_shape(lambda x: model.apply(*model.init(jax.random.key(0)), x, None, False)[0], example)
    shape = getattr(logits, "shape", type(logits).__name__)
    if len(shape) != 2 or shape[0] != 1 or shape[1] < num_classes:
        expected = f"[B, {num_classes} or more] for labels 0 to {num_classes - 1}"
        raise ValueError(f"the network must give logits {expected}, got {shape}")
    return shape[1]


def _adapt(network, example):
    if isinstance(network, Model):
        return network
    if isinstance(network, nn.Module):
        return from_module(network, example)
    if isinstance(network, tuple) and len(network) == 2 and all(map(callable, network)):
        return from_functions(*network)
    if callable(network) and not isinstance(network, nnx.Module):
        return from_nnx(network)
    raise ValueError(f"got {type(network).__name__}")


def from_functions(init: Callable, apply: Callable) -> Model:
    """Makes two pure functions a `Model` without batch statistics.

    Args:
      init: `init(key) -> params`; the key is consumed.
      apply: `apply(params, inputs) -> logits`, [B, ...] to [B, classes]; samples must not meet.

    Returns:
      A `Model`.
    """
    return Model(
        lambda key: (init(key), {}),
        lambda params, batch_stats, inputs, mask=None, train=False: (apply(params, inputs), batch_stats),
    )


def from_module(module: nn.Module, example_inputs: chex.Array) -> Model:
    """Makes a Flax Linen module a `Model`.

    Args:
      module: called as `module(inputs)`, with those of `mask=` and `train=` (or `training=`, `is_training=`,
        `is_train=`, `deterministic=`, `use_running_average=`) that its `__call__` has; its collections are `params`
        and, where it has BatchNorm, `batch_stats`. A module with BatchNorm that takes no mask sees real samples once
        more in place of the padding of an epoch's last batch. A module with a method `links()` sows the activations of
        each of these layers, say `hidden_0`, as `hidden_0_units` into `intermediates`, as `sp_jax.models.MLP` does.
      example_inputs: [B, ...] of the shape and dtype of the data; B may be 1, the values do not matter.

    Returns:
      A `Model`.

    Raises:
      ValueError: a module that draws random numbers while it trains (dropout).
    """
    dtype = jax.dtypes.canonicalize_dtype(example_inputs.dtype)
    example = jnp.zeros((1, *example_inputs.shape[1:]), dtype)
    known = inspect.signature(type(module).__call__).parameters

    asked = [name for name in _MODES if name in known and getattr(module, name, None) is None]

    def arguments(mask, train):
        modes = {name: train is value for name, value in _MODES.items() if name in asked}
        return modes | ({"mask": mask} if "mask" in known else {})

    def init(key):
        variables = module.init(key, example, **arguments(jnp.ones(1, bool), False))
        return variables.get("params", {}), variables.get("batch_stats", {})

    def apply(params, batch_stats, inputs, mask=None, train=False):
        variables = {"params": params, "batch_stats": batch_stats}
        if not (train and jax.tree.leaves(batch_stats)):
            return module.apply(variables, inputs, **arguments(mask, train)), batch_stats
        inputs = inputs if "mask" in known else without_padding(inputs, mask)
        logits, updated = module.apply(variables, inputs, mutable=["batch_stats"], **arguments(mask, True))
        return logits, updated["batch_stats"]

    def activations(params, batch_stats, inputs, mask=None, train=False):
        variables = {"params": params, "batch_stats": batch_stats}
        collections = ["intermediates", "batch_stats"]
        _, found = module.apply(variables, inputs, mutable=collections, **arguments(mask, train))
        leaves = jax.tree_util.tree_leaves_with_path(found["intermediates"])
        names = [jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, _ in leaves]
        return {name.removesuffix("_units"): x for name, (_, x) in zip(names, leaves, strict=True)}

    try:
        jax.eval_shape(lambda key: apply(*init(key), example, jnp.ones(1, bool), True), jax.random.key(0))
    except errors.InvalidRngError:
        name = type(module).__name__
        raise ValueError(f"{name} draws random numbers while it trains (dropout): leave it out, or use NNX") from None
    links, layouts = (getattr(module, name, lambda x=x: x)() for name, x in (("links", ()), ("layouts", None)))
    return Model(init, apply, activations, links, layouts)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """Makes a Flax NNX module a `Model`.

    Args:
      make: `make(rngs) -> module`, called with the inputs alone; `train()` and `eval()` set its mode. What is no
        `nnx.Param` (BatchNorm's statistics, dropout's streams of random numbers) counts as batch statistics. Real
        samples stand once more in place of the padding of an epoch's last batch.

    Returns:
      A `Model`.
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key):
        _, params, others = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(others)

    def apply(params, batch_stats, inputs, mask=None, train=False):
        module = nnx.merge(graph, params, batch_stats)
        module.train() if train else module.eval()
        logits = module(without_padding(inputs, mask))
        return logits, nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[2]) if train else batch_stats

    return Model(init, apply)


def without_padding(inputs: chex.Array, mask: chex.Array | None) -> chex.Array:
    """The samples of a batch, the real ones (which come first) again in place of padding.

    Args:
      inputs: [B, ...].
      mask: [B] booleans, False marks padding, or None.

    Returns:
      [B, ...].
    """
    if mask is None:
        return inputs
    return inputs[jnp.arange(mask.shape[0]) % jnp.maximum(jnp.sum(mask), 1)]
