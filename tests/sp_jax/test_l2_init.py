"""L2 Init: the gradient of the penalised loss, toward the first parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plasticity_reference import assert_close, draw, loss, wide

from sp_jax import plasticity


def test_l2_init_is_the_gradient_of_the_penalised_loss():
    first, params = draw(7), draw(8)

    def update(strength):
        optimizer = plasticity.l2_init(strength)
        return optimizer.update(jax.grad(loss)(params, 0.5), optimizer.init(first), params)[0]

    def penalised(params, strength):
        return loss(params, 0.5) + strength * plasticity.l2_init_penalty(params, first)

    strengths = np.float32([0.0, 0.01, 3.0])
    expected = jax.jit(jax.vmap(jax.grad(penalised), in_axes=(None, 0)))(params, strengths)
    assert_close(jax.jit(jax.vmap(update))(strengths), wide(expected))


def test_l2_init_penalty_is_the_sum_of_squares():
    first, params = draw(9), draw(10)
    squares = 0.0
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(first), strict=True):
        for x, y in zip(a.ravel(), b.ravel(), strict=True):
            squares += (float(x) - float(y)) ** 2
    np.testing.assert_allclose(jax.jit(plasticity.l2_init_penalty)(params, first), squares, rtol=1e-5)
    two = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "n": jnp.int32(9)}  # the square of the norms' sum is 49
    assert plasticity.l2_init_penalty(two, jax.tree.map(jnp.zeros_like, two)) == 25
    z = jnp.array([1 + 2j], jnp.complex64)
    gradient = jax.grad(lambda z: plasticity.l2_init_penalty({"z": z}, {"z": jnp.zeros_like(z)}))(z)
    optimizer = plasticity.l2_init(1.0)
    pull, _ = optimizer.update({"z": jnp.zeros_like(z)}, optimizer.init({"z": jnp.zeros_like(z)}), {"z": z})
    np.testing.assert_allclose(pull["z"], gradient)


def test_l2_init_remembers_the_first_parameters_through_donated_steps():
    params = jax.tree.map(jnp.asarray, draw(11))
    first = wide(params)
    optimizer = optax.inject_hyperparams(
        lambda strength: optax.chain(plasticity.l2_init(strength), optax.sgd(0.25)), hyperparam_dtype=jnp.float32
    )(strength=0.5)

    def step(params, state):
        updates, state = optimizer.update(optax.tree.ones_like(params), state, params)
        return optax.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    state = optimizer.init(params)
    for _ in range(3):
        params, state = donated(params, state)
    offset = 0.0
    for _ in range(3):
        offset -= 0.25 * (1 + 2 * 0.5 * offset)
    assert_close(params, jax.tree.map(lambda x: x + offset, first))
    with pytest.raises(ValueError, match=r"l2_init needs the parameters"):
        plasticity.l2_init(0.1).update(params, plasticity.l2_init(0.1).init(params))
