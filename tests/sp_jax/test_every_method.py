"""What holds of all later methods: small and large dtypes, leaves that are no numbers, documentation."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from plasticity_reference import (
    ACTIVATIONS,
    LINKS,
    UNITS,
    ReferenceContinualBackprop,
    ReferenceUpgd,
    assert_close,
    assert_same,
    draw,
    reference_clipping,
    reference_dash,
    reference_dormancy,
    reference_fire,
    reference_replace,
    reference_rescaling,
    some_units,
)

from sp_jax import plasticity


@pytest.mark.parametrize("optimizer", [plasticity.l2_init(0.1), plasticity.hare_tortoise(optax.adam(0.1), every=2)])
def test_what_methods_remember_can_be_saved(optimizer):
    params = jax.tree.map(jnp.asarray, draw(20))
    vectors = plasticity.init_singular_vectors(jax.random.key(0), params)
    others = plasticity.init_utility(params, LINKS), plasticity.init_silence(params, LINKS), vectors
    for state in (optimizer.init(params), *others):
        empty = jax.tree.map(jnp.zeros_like, state)
        assert_same(serialization.from_bytes(empty, serialization.to_bytes(state)), state)


OTHER_LEAVES = {"count": jnp.int32(7), "flag": jnp.array([True]), "key": jax.random.key(1), "none": None}


def apply_update(optimizer, params, gradient):
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), params)
    return updates


METHODS = {
    "average_gradient": lambda p, q, h: plasticity.average_gradient(p, q),
    "dash": lambda p, q, h: plasticity.dash(p, q),
    "orthogonalize": lambda p, q, h: plasticity.orthogonalize(p),
    "l2_init": lambda p, q, h: apply_update(plasticity.l2_init(0.3), p, q),
    "follow": lambda p, q, h: plasticity.follow(p, q),
    "replace_units": lambda p, q, h: plasticity.replace_units(p, q, some_units(0), LINKS)[0],
    "redo": lambda p, q, h: plasticity.redo(p, q, h, LINKS, threshold=1.0)[0],
    "continual_backprop": lambda p, q, h: plasticity.continual_backprop(
        plasticity.init_utility(p, LINKS), p, q, h, LINKS, rate=0.5, maturity=0
    )[0],
    "replace_silent": lambda p, q, h: plasticity.replace_silent(
        plasticity.observe_silence(plasticity.init_silence(p, LINKS, threshold=0), h), p, q, LINKS
    )[0],
    "upgd": lambda p, q, h: plasticity.upgd(
        p, plasticity.weight_utility(plasticity.init_weight_utility(q), q, p), q, noise_scale=0.1
    ),
    "soft_rescaling": lambda p, q, h: plasticity.soft_rescaling(
        p, plasticity.weight_norms(q), strength=0.3, links=LINKS
    ),
    "clip_weights": lambda p, q, h: plasticity.clip_weights(p, bound=0.5),
}


def some(*quick):
    """All methods, of which all but some take long together."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in METHODS]
    )


@some("dash", "continual_backprop")
def test_small_dtypes_are_computed_in_float32_and_rounded_once(name):
    trees = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (draw(40), draw(41), draw(42, ACTIVATIONS)))
    new = jax.jit(METHODS[name])(*trees)
    expected = jax.jit(METHODS[name])(*jax.tree.map(lambda x: x.astype(jnp.float32), trees))
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == jnp.bfloat16, new))
    assert_same(new, jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(trees[0]), strict=True))


@some("dash", "redo")
def test_float64_is_computed_in_float64(name):
    with jax.enable_x64(True):
        p, q, h = draw(43, dtype=np.float64), draw(44, dtype=np.float64), draw(45, ACTIVATIONS, np.float64)
        new = jax.device_get(jax.jit(METHODS[name])(p, q, h))
    every_sample = np.ones(6, bool)
    dormant = {layer: reference_dormancy(x, every_sample) <= 1 for layer, x in h.items()}
    backprop = ReferenceContinualBackprop(LINKS, UNITS, 0.99, 0.5, 0)
    expected = {
        "average_gradient": lambda: jax.tree.map(lambda a, g: 0.7 * a - 0.3 * g, p, q),
        "dash": lambda: reference_dash(p, q, 0.3),
        "orthogonalize": lambda: reference_fire(p),
        "l2_init": lambda: jax.tree.map(lambda a, g: g + 0.6 * (a - g), p, q),
        "follow": lambda: jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, p, q),
        "replace_units": lambda: reference_replace(p, q, some_units(0), LINKS)[0],
        "redo": lambda: reference_replace(p, q, dormant, LINKS)[0],
        "continual_backprop": lambda: backprop.step(p, q, h, every_sample)[0],
        "replace_silent": lambda: reference_replace(p, q, {k: np.ones(n, bool) for k, n in UNITS.items()}, LINKS)[0],
        "upgd": lambda: jax.tree.map(
            lambda new, w: w - new, ReferenceUpgd(q, 0.999).step(q, p, jax.tree.map(lambda x: 0.1 * x, q), 1, 0), q
        ),
        "soft_rescaling": lambda: reference_rescaling(p, q, 0.3),
        "clip_weights": lambda: reference_clipping(p, 0.5),
    }[name]()
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == np.float64, new))
    assert_close(new, expected, rtol=1e-11, atol=1e-12)


@some("l2_init", "redo")
def test_leaves_that_are_not_floating_stay(name):
    params, other, activations = draw(46) | {"other": OTHER_LEAVES}, draw(47), draw(48, ACTIVATIONS)
    changed = {"count": jnp.int32(0), "flag": jnp.array([False]), "key": jax.random.key(2), "none": None}
    new = jax.jit(METHODS[name])(params, other | {"other": changed}, activations)["other"]
    kept = changed if name == "l2_init" else OTHER_LEAVES  # l2_init returns the gradient
    assert jax.random.key_data(new.pop("key")).tolist() == jax.random.key_data(kept["key"]).tolist()
    assert_same(new, {leaf: kept[leaf] for leaf in ("count", "flag", "none")})


def test_wrapped_optimisers_leave_other_leaves_alone():
    params = {"w": jnp.ones(2), "count": jnp.int32(7)}
    optimizer = plasticity.hare_tortoise(optax.identity(), every=1)
    updates, state = optimizer.update({"w": jnp.ones(2), "count": jnp.int32(0)}, optimizer.init(params), params)
    assert state.slow["count"] == 7
    assert updates["count"] == 0


@pytest.mark.parametrize("name", plasticity.__all__)
def test_public_names_are_documented(name):
    value = getattr(plasticity, name)
    words = inspect.getdoc(value)
    if inspect.isfunction(value):
        assert "Returns:" in words or name == "check_links"
        for parameter in inspect.signature(value).parameters.values():
            assert re.search(rf"^  {parameter.name}: ", words, re.MULTILINE), parameter
            required = parameter.default is inspect.Parameter.empty
            assert required or parameter.kind is inspect.Parameter.KEYWORD_ONLY or name == "dormancy"
