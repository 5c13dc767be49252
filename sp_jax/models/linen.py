"""The adapter of Flax Linen modules: switches, masks, collections of variables, and random numbers in training."""

import copy
import functools
import inspect
import re
from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from sp_jax.models import padding, streams
from sp_jax.models.checks import NetworkError, UnknownSwitchError, changed_leaves, check_switch
from sp_jax.models.modes import find_modes
from sp_jax.types import Model

STATISTICS = "batch_stats"
FEATURES = "features"  # what a module sows the inputs of its last layer as
LOOKED_AT = ("intermediates", "perturbations")  # collections that a call fills for those who look into it


def from_module(
    module: nn.Module,
    example_inputs: chex.ArrayTree,
    *,
    switch: Mapping[str, bool] | None = None,
    mask: str | None = None,
) -> Model:
    """Make a `Model` of a Flax Linen module.

    Args:
      module: called as `module(inputs)`, with those of `train=` (or `training=`, `is_training=`, `is_train=`,
        `deterministic=`, `use_running_average=`) that its `__call__` has. A module with a method `links()` sows the
        activations of each of these layers, say `hidden_0`, as `hidden_0_units` into `intermediates`, and one that sows
        the inputs of its last layer [B, F] there as `features` has these in the `Model`, as `sp_jax.models.MLP` does.
      example_inputs: [B, ...] of the shape and dtype of the data, or a pytree of such (a dictionary of arrays), which
        is the module's one argument; B may be 1, the values do not matter.
      switch: its switch between training and evaluation where it has another name, an argument of its call or an
        attribute, with the value that it has in training: `{"test": False}`.
      mask: the argument that takes [B] booleans, False for padding, which then influences nothing. By default `mask`,
        where a module with statistics has it and a trial shows that padding influences nothing; for a module without
        a mask, real samples repeated replace the padding of an epoch's last batch. `""` for none.

    Returns:
      A `Model`. Its second tree is the collection `batch_stats`; beside the layers in it lie, each under its name, the
      module's other collections (but those that calls grow, as sown values), and `rngs`, the stream of random numbers
      that it asks for in training (dropout): all of its `make_rng` streams follow from it. Training updates them.

    Raises:
      ValueError: a module that draws random numbers in evaluation, too; statistics or a dropout whose switch is not
        found; a `mask` without a default whose meaning is not known.
    """
    found = _Linen(module, padding.zeros(example_inputs), switch, mask)
    is_ours = type(module).__module__ == "sp_jax.models" or type(module).__module__.startswith("sp_jax.models.")
    if mask is None and "mask" in found.known:
        found.mask = "mask" if is_ours else _padding_mask(found)
    if not is_ours:
        _check(found, found.explore())
    links, layouts = (getattr(module, name, lambda x=x: x)() for name, x in (("links", ()), ("layouts", None)))
    features = found.features if is_ours or found.sows_features() else None
    return Model(found.init, found.apply, found.activations, links, layouts, features)


class _Linen:
    """A module, and what its calls take and change beside the parameters."""

    def __init__(self, module, example, switch, mask):
        self.module, self.example, self.name = module, example, type(module).__name__
        self.known = inspect.signature(type(module).__call__).parameters
        self.modes = find_modes(self.name, self.known, module, switch)
        self.mask = mask if mask is None or mask in self.known else _no_argument(self.name, mask)
        self.collections = ()  # beside the parameters and `batch_stats`
        self.asked = {True: (), False: ()}  # the streams of random numbers that training and evaluation ask for

    def arguments(self, mask, train, inputs):
        """Return the arguments of a call beside the inputs."""
        if not self.mask:
            return self.modes.arguments(train)
        if mask is None and self.known[self.mask].default is inspect.Parameter.empty:
            mask = jnp.ones(padding.count(inputs), bool)
        return self.modes.arguments(train) | {self.mask: mask}

    def at(self, train):
        """Return the module with its attributes switched."""
        return self.module.clone(**attributes) if (attributes := self.modes.attributes(train)) else self.module

    def draw(self, key):
        """Return all variables of a fresh network."""
        return self.at(False).init(key, self.example, **self.arguments(jnp.ones(1, bool), False, self.example))

    def init(self, key):
        """Initialise, as of a `Model`."""
        variables = self.draw(key)
        apart = {name: variables[name] for name in self.collections}
        if self.asked[True]:
            apart[streams.NAME] = streams.start(key)
        return variables.get("params", {}), _beside(variables.get(STATISTICS, {}), apart)

    def variables(self, params, held):
        """Return the collections of a call."""
        apart = (*self.collections, *([streams.NAME] if self.asked[True] else []))
        if not apart:
            return {"params": params, STATISTICS: held}
        statistics = {name: value for name, value in held.items() if name not in apart}
        return {"params": params, STATISTICS: statistics} | {name: held[name] for name in self.collections}

    def keys(self, held, train, key):
        """Return the keyword `rngs` of a call, and what is kept apart of the stream after it; in evaluation of `key`,
        a constant by default."""
        left = {}
        if train and self.asked[True]:
            key, left[streams.NAME] = streams.take(held[streams.NAME])
        key = streams.constant() if key is None else key
        made = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.asked[train])}
        return ({"rngs": made} if made else {}), left

    def call(self, params, held, inputs, mask=None, train=False, key=None):
        """Apply, as of a `Model`, but the second tree is updated in evaluation, too."""
        inputs = inputs if self.mask or not train else padding.without_padding(inputs, mask)
        rngs, left = self.keys(held, train, key)
        outputs, updated = self.at(train).apply(
            self.variables(params, held),
            inputs,
            mutable=[STATISTICS, *self.collections],
            **rngs,
            **self.arguments(mask, train, inputs),
        )
        apart = {name: updated.get(name, held[name]) for name in self.collections}
        if self.asked[True]:
            apart[streams.NAME] = left.get(streams.NAME, held[streams.NAME])
        return outputs, _beside(updated.get(STATISTICS, {}), apart)

    def apply(self, params, held, inputs, mask=None, train=False, key=None):
        """Apply, as of a `Model`."""
        if train and jax.tree.leaves(held):
            return self.call(params, held, inputs, mask, True)
        rngs, _ = self.keys(held, False, key)
        arguments = self.arguments(mask, train, inputs)
        mutable = list(self.collections) or False  # what evaluation writes there is left out
        found = self.at(train).apply(self.variables(params, held), inputs, mutable=mutable, **rngs, **arguments)
        return (found[0] if mutable else found), held

    def sown(self, params, held, inputs, mask, train):
        """Return the collection `intermediates` of a call."""
        rngs, _ = self.keys(held, train, None)
        arguments = self.arguments(mask, train, inputs)
        mutable = ["intermediates", STATISTICS, *self.collections]
        _, found = self.at(train).apply(self.variables(params, held), inputs, mutable=mutable, **rngs, **arguments)
        return found.get("intermediates", {})

    def activations(self, params, held, inputs, mask=None, train=False):
        """Return the sown activations, as of a `Model`."""
        sown = self.sown(params, held, inputs, mask, train)
        leaves = jax.tree_util.tree_leaves_with_path({name: x for name, x in sown.items() if name != FEATURES})
        names = [jax.tree_util.keystr(path[:-1], simple=True, separator="/") for path, _ in leaves]
        return {name.removesuffix("_units"): x for name, (_, x) in zip(names, leaves, strict=True)}

    def features(self, params, held, inputs, mask=None, train=False):
        """Return the sown inputs of the last layer, as of a `Model`."""
        (found,) = self.sown(params, held, inputs, mask, train)[FEATURES]
        return found

    def sows_features(self):
        """Return whether the module itself sows, once, one array [B, F] of features, by a trial."""

        def trial(key):
            return self.features(*self.init(key), padding.zeros(self.example, 2))

        found = _try(lambda: jax.eval_shape(trial, jax.random.key(0)))
        return getattr(found, "ndim", 0) == 2 and found.shape[0] == 2

    def explore(self):
        """Find, by tracing, the collections, and the streams of random numbers that calls ask for.

        Returns:
          The streams of the dropouts that drop nothing in training.
        """
        self.collections, self.asked = (), {True: (), False: ()}
        found = jax.eval_shape(self.draw, jax.random.key(0))
        self.collections = tuple(sorted(set(found) - {"params", STATISTICS, *LOOKED_AT}))
        before, after, idle = self.traced(True)
        if idle:  # they may look whether they are given a stream
            asked, self.asked[True] = self.asked[True], tuple(sorted({*self.asked[True], *idle}))
            before, after, still_idle = self.traced(True)
            idle, self.asked[True] = still_idle, asked if still_idle else self.asked[True]
        if self.collections:
            self.collections = tuple(name for name in self.collections if _alike(before[name], after[name]))
        self.traced(False)
        return idle

    def traced(self, train):
        """Trace a call until it has all the streams that it asks for; they are noted.

        Returns:
          The shapes of the second tree before and after it, and the streams of its dropouts that drop nothing.
        """
        idle = []

        def look(function, args, kwargs, context):
            if isinstance(context.module, nn.Dropout) and context.method_name == "__call__" and context.module.rate > 0:
                said = kwargs.get("deterministic", args[1] if len(args) > 1 else None)
                if context.module.deterministic if said is None else said:
                    idle.append(context.module.rng_collection)
            return function(*args, **kwargs)

        while True:
            params, held = jax.eval_shape(self.init, jax.random.key(0))
            example, mask = padding.shapes(self.example, 2), jax.ShapeDtypeStruct((2,), bool)
            idle.clear()
            try:
                with nn.intercept_methods(look):
                    call = functools.partial(self.call, train=train)
                    return held, jax.eval_shape(call, params, held, example, mask)[1], idle
            except errors.InvalidRngError as error:
                self.asked[train] = tuple(sorted({*self.asked[train], _missing_stream(self, train, error)}))


def _no_argument(name, mask):
    if mask:
        raise NetworkError(f"{name} has no argument {mask!r} in its call, which mask= names")
    return ""


def _beside(statistics, apart):
    return {**statistics, **apart} if apart else statistics


def _alike(before, after):
    return jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)


def _stream_asked_for(error):
    """Return which stream a call asked for in vain; "" where the error does not say."""
    asked = re.search('needs PRNG for "([^"]*)"', str(error))
    return asked[1] if asked else ""


def _missing_stream(found, train, error):
    """Return which stream a call needs; raise a NetworkError where it has that one."""
    name = _stream_asked_for(error)
    if name and name not in found.asked[train]:
        return name
    raise NetworkError(
        f"{found.name} draws random numbers of the stream {name!r} where it has none: "
        "pass it on in split_rngs= of nn.scan, nn.vmap or the like"
    ) from None


def _padding_mask(found):
    """Return "mask" where that argument takes booleans of real samples; by trial for modules of other packages."""
    variables = _try(lambda: jax.eval_shape(found.draw, jax.random.key(0))) or {}
    if jax.tree.leaves(variables.get(STATISTICS)):
        found.mask = "mask"
        if _try(lambda: _ignores_padding(found)):
            return "mask"
    if found.known["mask"].default is inspect.Parameter.empty:
        raise NetworkError(
            f"what the argument `mask` of {found.name} means is not known: write mask='mask' where it takes [B] "
            "booleans, False for samples that are padding, or give it a default"
        )
    return ""


def _try(function):
    try:
        return function()
    except Exception:  # any error only shows that the function does not accept such a call
        return None


def _ignores_padding(found):
    """Return whether the logits of real samples and the statistics are independent of padding marked by `mask`."""
    found.explore()
    params, held = jax.jit(found.init)(jax.random.key(0))
    call = jax.jit(functools.partial(found.call, train=True))
    noise = jax.tree.map(
        lambda x: jax.random.randint(jax.random.key(1), (4, *x.shape[1:]), 0, 2).astype(x.dtype), found.example
    )
    mask, other = jnp.array([True, True, True, False]), jax.tree.map(lambda x: (1 - x[0]).astype(x.dtype), noise)
    first = jax.tree.map(lambda x: x[0], noise)
    one, two = (
        call(params, held, jax.tree.map(lambda x, new: x.at[3].set(new), noise, new), mask) for new in (first, other)
    )
    same = jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), (one[0][:3], one[1]), (two[0][:3], two[1]))
    return jax.tree.all(same)


def _check(found, idle):
    """Raise an error where a module draws random numbers in evaluation, or has a switch that was not found."""
    params, held = jax.eval_shape(found.init, jax.random.key(0))
    example = padding.shapes(found.example)
    if idle:
        raise UnknownSwitchError(f"{found.name} has a dropout that drops nothing while it trains")
    if found.asked[False] and streams.depends(
        lambda key, params, held, x: found.apply(params, held, x, key=key)[0], params, held, example
    ):
        raise UnknownSwitchError(f"{found.name} draws random numbers in evaluation, too")
    variables = jax.eval_shape(found.draw, jax.random.key(0))
    if same := sorted({*found.collections, streams.NAME} & set(variables.get(STATISTICS, {})) & set(held)):
        raise NetworkError(f"{found.name} has a layer and a collection of variables {same[0]!r}: rename the layer")
    _check_statistics(found, example)
    for flag in found.modes.others(found.known, found.module):
        try:
            moved = _moved_where_turned(found, flag, params, held, example)
        except errors.InvalidRngError as error:
            if _stream_asked_for(error) in found.asked[True]:  # it has that one: what is turned hides it
                continue
            what = f"{found.name} draws random numbers (a dropout?) where {flag!r} is turned"
            raise UnknownSwitchError(what) from None
        except Exception:  # what is turned may be no switch, and the module then not run
            continue
        if moved:
            raise UnknownSwitchError(f"{found.name} updates {moved[0]!r} only where {flag!r} is turned")


def _check_statistics(found, example):
    """Check the switch by the collection `batch_stats` alone: others may hold constants."""

    def statistics(held):
        return found.variables({}, held)[STATISTICS]

    def init(key):
        params, held = found.init(key)
        return (params, held), statistics(held)

    def call(both, moved, inputs, mask, train):
        params, held = both
        outputs, held = found.call(params, {**held, **moved}, inputs, mask, train)
        return outputs, statistics(held)

    check_switch(found.name, init, call, example)


def _moved_where_turned(found, flag, params, held, example):
    """Return the paths, of the collections that are not `batch_stats`, that a call in training leaves, and updates
    with one of its boolean arguments or attributes negated."""

    def updated(module, arguments):
        other = copy.copy(found)
        other.at = lambda train: module
        other.arguments = lambda *how: found.arguments(*how) | arguments

        def call(held, params, x):
            new = other.call(params, held, x, None, True)[1]
            return jax.tree.map(lambda old, new: new, held, new)

        return changed_leaves(call, held, params, example)

    module = found.at(True)
    if flag in found.known:
        turned = updated(module, {flag: not found.known[flag].default})
    else:
        turned = updated(module.clone(**{flag: not getattr(module, flag)}), {})
    if not (found.collections and any(turned.values())):
        return []
    usual = updated(module, {})
    return [path for path in turned if turned[path] > usual[path] and path.split("/")[0] in found.collections]
