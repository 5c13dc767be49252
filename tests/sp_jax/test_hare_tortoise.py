"""Hare and Tortoise against plain NumPy, as an optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plasticity_reference import assert_close, assert_same, draw, loss, wide

from sp_jax import plasticity


@pytest.mark.parametrize("jit", [False, True])
def test_hare_tortoise_against_numpy(jit):
    params = jax.tree.map(jnp.asarray, draw(12))
    fast, slow, trace = wide(params), wide(params), jax.tree.map(np.zeros_like, wide(params))

    def run(decay, every):
        optimizer = plasticity.hare_tortoise(optax.sgd(0.1, momentum=0.9), decay=decay, every=every)

        def step(carry, x):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
            return (optax.apply_updates(params, updates), state), params["head"]["bias"]

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(1.0, 8.0))[0]

    new, state = (jax.jit(run) if jit else run)(0.75, 3)
    for step in range(1, 8):
        gradient = jax.tree.map(lambda w, step=step: step * np.cos(w * step), fast)
        trace = jax.tree.map(lambda t, g: 0.9 * t + g, trace, gradient)
        fast = jax.tree.map(lambda w, t: w - 0.1 * t, fast, trace)
        slow = jax.tree.map(lambda s, w: 0.75 * s + 0.25 * w, slow, fast)
        if step in (3, 6):
            fast = jax.tree.map(np.copy, slow)
    assert state.step == 7
    assert_close(new, fast, rtol=1e-3, atol=1e-4)  # the gradients' steepness multiplies rounding
    assert_close(state.slow, slow, rtol=1e-3, atol=1e-4)


def test_hare_tortoise_is_the_inner_optimiser_between_jumps():
    params, gradient = draw(13)["head"], draw(14)["head"]
    inner = optax.sgd(0.1, momentum=0.9)
    expected, _ = inner.update(gradient, inner.init(params), params)
    optimizer = plasticity.hare_tortoise(inner, every=2)
    state = optimizer.init(params)
    updates, state = optimizer.update(gradient, state, params)
    assert_same(updates, expected)
    params = optax.apply_updates(params, updates)
    updates, state = optimizer.update(gradient, state, params)
    assert_close(optax.apply_updates(params, updates), wide(state.slow), rtol=1e-6, atol=1e-6)


def test_hare_tortoise_keeps_slow_bfloat16_parameters_moving():
    params = {"w": jnp.ones(1, jnp.bfloat16)}
    optimizer = plasticity.hare_tortoise(optax.sgd(1.0), every=200)
    state, gradient = optimizer.init(params), {"w": jnp.full(1, -1.0, jnp.bfloat16)}
    updates, state = optimizer.update(gradient, state, params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(state.slow["w"], [1.001], rtol=1e-6)
    same = plasticity.follow(params, {"w": jnp.full(1, 2.0, jnp.bfloat16)}, decay=0.5)["w"]
    assert same.dtype == jnp.bfloat16
    assert same[0] == 1.5


def test_hare_tortoise_donates_and_raises():
    params = {"w": jnp.ones(2)}
    optimizer = plasticity.hare_tortoise(optax.sgd(1.0), decay=0.5, every=5)
    state = optimizer.init(params)
    step = jax.jit(lambda p, s: optimizer.update({"w": jnp.ones(2)}, s, p), donate_argnums=(0, 1))
    assert_close(step(params, state)[1].slow, {"w": np.array([0.5, 0.5])})
    with pytest.raises(ValueError, match=r"every must be a number of steps >= 1, got 0"):
        plasticity.hare_tortoise(optax.sgd(1.0), every=0)
    with pytest.raises(ValueError, match=r"hare_tortoise needs the parameters"):
        optimizer.update(state.slow, state)
