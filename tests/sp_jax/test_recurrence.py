"""Both directions of a recurrence in one product, beside Flax's own layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sp_jax.layers import recurrence
from sp_jax.models import BiRNN

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 7, 3)).astype(np.float32)
LENGTHS = np.array([7, 1, 4, 6, 2])


def cells(width):
    layer = nn.RNN(nn.GRUCell(width))
    return [layer.init(jax.random.key(i), X)["params"]["cell"] for i in range(2)]


def outcome(form, params, x, dtype=None):
    """States of the real tokens, the last ones, and the gradients of a sum of both."""
    real = (np.arange(X.shape[1]) < LENGTHS[:, None])[..., None]

    def value(params, x):
        states, last = form(dtype, params, x, LENGTHS)
        states = jnp.where(real, states, 0)
        return jnp.sum(jnp.sin(states)) + jnp.sum(last**2), (states, last)

    (_, found), gradient = jax.value_and_grad(value, (0, 1), has_aux=True)(params, x)
    return found, gradient


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "apart"), [(None, 1e-6), (jnp.bfloat16, 0.05)])
def test_states_and_gradients_are_flaxs(dtype, apart):
    params = cells(4)
    expected, found = (outcome(form, params, X, dtype) for form in (recurrence._by_flax, recurrence._joined))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=apart, rtol=apart), found, expected)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))


@pytest.mark.slow
def test_lanes_side_by_side_are_as_alone():
    params = jax.tree.map(lambda *x: jnp.stack(x), cells(4), cells(4)[::-1])
    found = jax.vmap(lambda p: outcome(recurrence._joined, p, X)[1][0])(params)
    for i in range(2):
        alone = outcome(recurrence._joined, jax.tree.map(lambda x, i=i: x[i], params), X)[1][0]
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-6), found, alone)


@pytest.mark.parametrize("init", ["torch", pytest.param("torch_tanh", marks=pytest.mark.slow), "flax"])
def test_the_network_has_the_parameters_of_flaxs_layers(init):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, h):
            cell = nn.GRUCell(8, name="forward_0")
            return nn.RNN(cell)(h)

    tokens = jnp.ones((1, 3), jnp.int32)
    found = BiRNN(2, 10, 8, initialization=init).init(jax.random.key(3), tokens)["params"]
    assert {*found} == {"embedding", "head", *(f"{way}_{i}" for way in ("forward", "backward") for i in range(2))}
    expected = Plain().init(jax.random.key(3), jnp.ones((1, 3, 8)))["params"]["forward_0"]
    assert jax.tree.map(jnp.shape, found["forward_0"]) == jax.tree.map(jnp.shape, expected)
    if init == "flax":
        jax.tree.map(np.testing.assert_array_equal, found["forward_0"], expected)
