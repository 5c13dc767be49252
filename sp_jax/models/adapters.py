"""Adapters of users' networks to the two pure functions that training needs."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
from flax import linen as nn
from flax import nnx

from sp_jax.errors import first_line
from sp_jax.models import foreign, padding
from sp_jax.models.checks import NetworkError, UnknownSwitchError, check_switch
from sp_jax.models.linen import from_module
from sp_jax.models.modes import find_modes
from sp_jax.models.padding import without_padding
from sp_jax.types import Model

FORMS = (
    "a Linen module, a pair init(key) and apply(params, inputs), or a function make(rngs) of an NNX module or "
    "make(key) of an Equinox module"
)


def as_model(
    network: Any, example_inputs: chex.ArrayTree, *, switch: Mapping[str, bool] | None = None, mask: str | None = None
) -> Model:
    """Make a `Model` of a network of any kind.

    Args:
      network: a `Model`; a Flax Linen module; a pair of functions `init(key) -> params` and `apply(params, inputs) ->
        logits`, of bare JAX or Equinox; Haiku's `hk.transform(…)` or `hk.transform_with_state(…)`; or a function
        `make(rngs) -> nnx.Module` or `make(key) -> equinox.Module` (of one sample, see `foreign.from_equinox`).
      example_inputs: [B, ...] of the shape and dtype of the data, or a pytree of such, as a dictionary of arrays.
      switch: what the network calls its switch between training and evaluation, an argument of its call or an
        attribute, with the value that it has in training: `{"test": False}`. Usual names are known (see `from_module`).
      mask: of a Linen module, the argument that takes [B] booleans, False for padding; see `from_module`.

    Returns:
      A `Model`.

    Raises:
      ValueError: anything else, a network that does not run on such inputs, or whose switch is not found (see
        `from_module` too); one line.
    """
    example = padding.shapes(example_inputs)
    try:
        model = _adapt(network, example, switch, mask)
        jax.eval_shape(lambda key, x: model.apply(*model.init(key), x, None, False), jax.random.key(0), example)
    except (NetworkError, UnknownSwitchError):
        raise
    except Exception as error:  # a user's network can raise anything
        reason = first_line(error)
        given = padding.described(example)
        raise ValueError(f"the network does not run on inputs {given}: {reason} (expected {FORMS})") from error
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
        if equinox and (make := foreign.equinox_maker(network)):
            return foreign.from_equinox(make, example, switch=switch)
        return _checked_nnx(network, example, switch)
    raise ValueError(f"got {type(network).__name__}")


def from_functions(init: Callable, apply: Callable) -> Model:
    """Make a `Model` without batch statistics of two pure functions.

    Args:
      init: `init(key) -> params`; the key is consumed. Leaves that are no arrays or numbers, as an Equinox module's
        activation functions, stay as they are.
      apply: `apply(params, inputs) -> logits`, [B, ...] (or a pytree of such) to [B, classes]; samples must be
        independent.

    Returns:
      A `Model`.
    """
    arrays, whole = foreign.split_static(init)
    return Model(
        lambda key: (arrays(key), {}),
        lambda params, batch_stats, inputs, mask=None, train=False: (apply(whole(params), inputs), batch_stats),
    )


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
