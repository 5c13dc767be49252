"""Our BatchNorm equals Flax's: values, running statistics and gradients, with and without a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sp_jax.layers import BatchNorm

X = jnp.asarray(np.random.default_rng(0).normal(1, 2, (6, 4, 4, 3)), jnp.float32)
PARAMS = {"scale": jnp.asarray([1.0, 0.5, 2.0]), "bias": jnp.asarray([0.1, 0.2, -0.3])}
STATS = {"mean": jnp.asarray([0.5, 0.0, 1.0]), "var": jnp.asarray([1.0, 2.0, 0.5])}
MASK = jnp.asarray([True, True, False, True, False, True])


def results(norm, x, mask, params=PARAMS):
    return norm.apply({"params": params, "batch_stats": STATS}, x, mask=mask, mutable=["batch_stats"])


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("average", [False, True])
def test_it_equals_flax(average, mask, dtype):
    options = {"use_running_average": average, "momentum": 0.9, "epsilon": 1e-5, "dtype": dtype}
    ours, flax = BatchNorm(**options), nn.BatchNorm(**options)
    chosen = mask if mask is None else mask[:, None, None, None]

    def loss(norm, mask):
        def of(x, params):
            y, found = results(norm, x, mask, params)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), (y, found["batch_stats"])

        return jax.grad(of, (0, 1), has_aux=True)(X, PARAMS)

    for one, other in zip(jax.tree.leaves(loss(ours, mask)), jax.tree.leaves(loss(flax, chosen)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(*(z.astype(jnp.float32) for z in (one, other)), atol=2e-5 if dtype is None else 0.05)


def test_gradients_of_the_statistics_equal_flax():
    def loss(norm):
        def of(x):
            y, found = results(norm, x, None)
            return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(found["batch_stats"]["var"] * found["batch_stats"]["mean"]))

        return jax.grad(of)(X)

    options = {"use_running_average": False, "momentum": 0.9, "epsilon": 1e-5}
    np.testing.assert_allclose(loss(BatchNorm(**options)), loss(nn.BatchNorm(**options)), atol=2e-5)


def test_the_variables_are_flaxs():
    options = {"use_running_average": False}
    ours, flax = (norm(**options).init(jax.random.key(0), X) for norm in (BatchNorm, nn.BatchNorm))
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


def test_padding_may_be_anything():
    x = X.at[2].set(jnp.nan)
    (y, found), (clean, same) = (results(BatchNorm(use_running_average=False), each, MASK) for each in (x, X))
    np.testing.assert_array_equal(y[MASK], clean[MASK])
    jax.tree.map(np.testing.assert_array_equal, found, same)
