"""Soft weight rescaling and weight clipping against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plasticity_reference import (
    LINKS,
    MLP_LINKS,
    MLP_SHAPES,
    assert_close,
    assert_same,
    draw,
    lane,
    mlp,
    reference_clipping,
    reference_rescaling,
    wide,
)

from sp_jax import plasticity
from sp_jax.plasticity import Link


def test_soft_rescaling_against_numpy_over_steps():
    params, first, strengths = jax.tree.map(jnp.asarray, draw(1)), draw(2), np.float32([0.0, 1e-3, 0.3, 1.0])
    updates = [draw(10 + t) for t in range(4)]

    def run(strength):
        def step(params, update):
            params = jax.tree.map(jnp.add, params, update)
            params = plasticity.soft_rescaling(params, plasticity.weight_norms(first), strength=strength, links=LINKS)
            return params, params

        return jax.lax.scan(step, params, jax.tree.map(lambda *x: jnp.stack(x), *updates))[1]

    found = jax.jit(jax.vmap(run))(strengths)
    for i, strength in enumerate(strengths):
        expected = wide(params)
        for t, update in enumerate(updates):
            expected = reference_rescaling(jax.tree.map(np.add, expected, wide(update)), first, np.float64(strength))
            assert_close(jax.tree.map(lambda x, t=t: x[t], lane(found, i)), expected, rtol=1e-4, atol=1e-5)


def test_at_zero_nothing_changes_and_at_one_norms_are_the_first():
    params, first = jax.tree.map(jnp.asarray, draw(3)), draw(4)
    norms = plasticity.weight_norms(first)
    assert_same(plasticity.soft_rescaling(params, norms, strength=0.0, links=LINKS), params)
    new = plasticity.soft_rescaling(params, norms, strength=1.0, links=LINKS)
    assert_close(plasticity.weight_norms(new), wide(norms))
    zero = jax.tree.map(jnp.zeros_like, params)
    assert_same(plasticity.soft_rescaling(zero, norms, strength=0.5, links=LINKS), zero)


def test_a_network_of_relus_changes_by_one_factor():
    """With links; without them, biases follow their own layer alone."""
    params, norms = draw(5, MLP_SHAPES), plasticity.weight_norms(draw(6, MLP_SHAPES))
    before = plasticity.weight_norms(params)
    new = jax.device_get(plasticity.soft_rescaling(params, norms, strength=0.4, links=MLP_LINKS))
    factor = np.prod([(0.4 * norms[path] + 0.6 * norm) / norm for path, norm in before.items()])
    np.testing.assert_allclose(mlp(new)[0], factor * mlp(params)[0], rtol=1e-4)
    alone = jax.device_get(plasticity.soft_rescaling(params, norms, strength=0.4))
    for layer in MLP_SHAPES:
        own = reference_rescaling(params, {layer: {"kernel": norms[f"{layer}/kernel"]}}, 0.4, order=(layer,))
        assert_close(alone[layer], own[layer])


def test_what_comes_before_is_not_guessed():
    """A layer that reads two others keeps to its own ratio; a circle of links ends."""
    params = {layer: {"kernel": np.ones((4, 4)), "bias": np.ones(4)} for layer in ("a", "b", "c")}
    norms = {f"{layer}/kernel": jnp.float32(norm) for layer, norm in (("a", 2), ("b", 8), ("c", 40))}  # of 4
    two = plasticity.soft_rescaling(params, norms, strength=1.0, links=[Link("a", "c"), Link("b", "c")])
    assert [float(two[layer]["bias"][0]) for layer in "abc"] == [0.5, 2, 10]
    chain = plasticity.soft_rescaling(params, norms, strength=1.0, links=[Link("a", "b"), Link("b", "c")])
    assert [float(chain[layer]["bias"][0]) for layer in "abc"] == [0.5, 1, 10]
    circle = plasticity.soft_rescaling(params, norms, strength=1.0, links=[Link("a", "b"), Link("b", "a")])
    assert np.isfinite(circle["a"]["bias"]).all()
    cell = {"cell": {"kernel_i": np.ones((4, 4)), "kernel_h": np.ones((4, 4)), "bias": np.ones(4)}}
    new = plasticity.soft_rescaling(cell, {"cell/kernel_i": 2.0, "cell/kernel_h": 8.0}, strength=1.0)["cell"]
    assert [float(np.ravel(new[name])[0]) for name in ("kernel_i", "kernel_h", "bias")] == [0.5, 2, 1]
    with pytest.raises(ValueError, match=r"initial_norms are of \['a/kernel'\], expected weight_norms"):
        plasticity.soft_rescaling(params, {"a/kernel": 1.0})
    with pytest.raises(ValueError, match=r"strength \(λ\) must be a scalar in \[0, 1\]"):
        plasticity.soft_rescaling(params, norms, strength=2.0)


def test_weight_clipping_against_numpy():
    params, bounds = jax.tree.map(jnp.asarray, draw(7)), np.float32([0.0, 0.5, 1.0, 100.0])
    many = jax.jit(jax.vmap(lambda bound: plasticity.clip_weights(params, bound=bound)))(bounds)
    for i, bound in enumerate(bounds):
        assert_close(lane(many, i), reference_clipping(params, float(bound)), rtol=1e-6)
    assert_same(lane(many, 3), jax.device_get(params))
    assert_same(lane(many, 0)["norm"], jax.device_get(params["norm"]))


def test_clipping_leaves_alone_what_has_no_fan_in():
    params = {
        "cell": {"kernel_i": 9 * np.ones((4, 2)), "kernel_h": 9 * np.ones((16, 2)), "bias": 9 * np.ones(2)},
        "embedding": {"embedding": 9 * np.ones((7, 2))}, "free": {"bias": 9 * np.ones(2)}, "n": np.int32(9),
    }  # fmt: skip
    new = plasticity.clip_weights(params)
    assert [np.ravel(new["cell"][name])[0] for name in ("kernel_i", "kernel_h", "bias")] == [0.5, 0.25, 9]
    assert all((x == 9).all() for x in jax.tree.leaves([new["embedding"], new["free"], new["n"]]))
    first = {"conv": {"weight": 9 * np.ones((2, 4, 3, 3)), "bias": 9 * np.ones(2)}}
    turned = plasticity.clip_weights(first, output_axis=0)["conv"]
    np.testing.assert_allclose([turned["weight"][0, 0, 0, 0], turned["bias"][0]], 1 / 6)
