"""UPGD against plain NumPy over several steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plasticity_reference import ReferenceUpgd, assert_close, assert_same, draw, lane, wide

from sp_jax import plasticity

RATE, DECAY = 0.1, 0.3  # of the step, of the weights


def test_upgd_with_sgd_and_weight_decay_is_upgd_w_against_numpy():
    params = jax.tree.map(jnp.asarray, draw(1))
    gradients, noises = [draw(10 + t) for t in range(5)], [draw(20 + t) for t in range(5)]
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE))

    def run(noise_scale):
        def step(carry, inputs):
            (params, utility), (gradient, noise) = carry, inputs
            utility = plasticity.weight_utility(utility, params, gradient)
            gradient = plasticity.upgd(gradient, utility, noise, noise_scale=noise_scale)
            updates, _ = optimizer.update(gradient, optimizer.init(params), params)
            params = optax.apply_updates(params, updates)
            return (params, utility), params

        inputs = jax.tree.map(lambda *x: jnp.stack(x), *zip(gradients, noises, strict=True))
        return jax.lax.scan(step, (params, plasticity.init_weight_utility(params)), inputs)[1]

    scales = np.float32([0.0, 0.001, 2.0])
    found = jax.jit(jax.vmap(run))(scales)
    for i, scale in enumerate(scales):
        reference, expected = ReferenceUpgd(params, 0.999), wide(params)
        for t in range(5):
            noise = jax.tree.map(lambda x, s=scale: np.float64(s) * x, noises[t])
            expected = reference.step(expected, gradients[t], noise, RATE, DECAY)
            assert_close(jax.tree.map(lambda x, t=t: x[t], lane(found, i)), expected, rtol=1e-4, atol=1e-5)


def test_no_utility_is_no_nan():
    """All zero: every weight takes half of its step; none useful: those that do harm take all of it."""
    gradient, noise = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    for utility, expected in (
        ([0.0, 0, 0], [0.5, 0.5, 0.5]),
        ([-1e-9, -3, 0], [1, 1, 0.5]),
        ([-1.0, -2, -4], [0.27, 0.12, 0.02]),
    ):
        new = jax.jit(plasticity.upgd)(gradient, {"w": jnp.array(utility)}, noise)["w"]
        np.testing.assert_allclose(new, expected, atol=0.005)


def test_trees_that_differ_raise():
    params, other = {"w": jnp.ones(2)}, {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"leaf 'w' has shape \(2,\) in params and \(3,\) in gradient"):
        plasticity.weight_utility(params, params, other)
    with pytest.raises(ValueError, match=r"leaf 'w' has shape \(2,\) in gradient and \(3,\) in noise"):
        plasticity.upgd(params, params, other)
    with pytest.raises(ValueError, match=r"noise_scale \(σ\) must be a finite scalar"):
        plasticity.upgd(params, params, params, noise_scale=-1.0)
    assert_same(plasticity.init_weight_utility({"n": jnp.int32(3)}), {"n": jnp.int32(3)})
