"""DASH against plain NumPy, by hand, and in the layout of PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plasticity_reference import assert_close, assert_same, draw, lane, reference_dash, wide

from sp_jax import plasticity


def test_dash_hand_worked():
    params = {
        "conv": {"kernel": jnp.array([3.0, 4.0]).reshape(2, 1, 1, 1)},
        "dense": {"kernel": jnp.array([[1.0, 1.0, 0.0], [0.0, -1.0, 0.0]]), "bias": jnp.array([1.0, -2.0])},
        "point": {"kernel": jnp.array([2.0, -2.0, 0.0]).reshape(1, 1, 1, 3)},
        "norm": {"scale": jnp.array([5.0]), "bias": jnp.array([5.0])},
        "embed": {"embedding": jnp.array([[5.0]])},
    }
    average = {
        "conv": {"kernel": jnp.array([1.0, 0.0]).reshape(2, 1, 1, 1)},  # cosine 0.6
        "dense": {"kernel": jnp.array([[3.0, 1.0, 7.0], [4.0, 1.0, 7.0]]), "bias": jnp.array([0.0, 0.0])},  # 0.6, 0, 0
        "point": {"kernel": jnp.array([1e-30, 3.0, 1.0]).reshape(1, 1, 1, 3)},  # 1, -1, 0
        "norm": {"scale": jnp.array([-1.0]), "bias": jnp.array([-1.0])},
        "embed": {"embedding": jnp.array([[-1.0]])},
    }
    dash = partial(plasticity.dash, kinds={"conv": ("spatial", "spatial", "in", "out")})  # its window is not square
    new = jax.jit(dash)(params, average, shrink=0.25)
    np.testing.assert_allclose(new["conv"]["kernel"].ravel(), [1.8, 2.4], rtol=1e-6)
    np.testing.assert_allclose(new["dense"]["kernel"], [[0.6, 0.25, 0.0], [0.0, -0.25, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(new["dense"]["bias"], [0.25, -0.5])
    np.testing.assert_array_equal(new["point"]["kernel"].ravel(), [2.0, -0.5, 0.0])
    assert new["norm"] is not params["norm"]
    for layer in ("norm", "embed"):
        assert_same(new[layer], params[layer])


def test_dash_against_numpy_and_vmapped_over_shrink():
    params, average = draw(0), draw(1)
    shrinks = np.float32([0.0, 0.3, 0.9, 1.0])
    many = jax.jit(jax.vmap(lambda s: plasticity.dash(params, average, shrink=s)))(shrinks)
    for i, shrink in enumerate(shrinks):
        assert_close(lane(many, i), reference_dash(params, average, float(shrink)))
    assert_same(lane(many, 3), params)


def test_dash_in_the_layout_of_pytorch():
    params, average = draw(2), draw(3)

    def turn(tree):
        return jax.tree.map(lambda x: np.transpose(x, {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[x.ndim]), tree)

    def with_axes(tree):  # Equinox's bias of a convolution
        return tree | {"point": tree["point"] | {"bias": tree["point"]["bias"][:, None, None]}}

    turned = jax.jit(lambda p, g: plasticity.dash(p, g, output_axis=0))(
        with_axes(turn(params)), with_axes(turn(average))
    )
    assert_close(turned, with_axes(turn(reference_dash(params, average, 0.3))))
    with pytest.raises(ValueError, match=r"output_axis must be -1 .* or 0 .*, got 1"):
        plasticity.dash(params, average, output_axis=1)
    with pytest.raises(ValueError, match="shrink"):
        plasticity.dash(params, average, shrink=1.5)


def test_average_gradient_in_a_scan():
    gradients = [draw(seed) for seed in range(4)]
    expected = jax.tree.map(np.zeros_like, wide(gradients[0]))
    for g in gradients:
        expected = jax.tree.map(lambda a, b: 0.6 * a + 0.4 * -b, expected, wide(g))

    @jax.jit
    def run(decay):
        def step(average, gradient):
            return plasticity.average_gradient(average, gradient, decay=decay), None

        zeros = optax.tree.zeros_like(jax.tree.map(jnp.asarray, gradients[0]))
        return jax.lax.scan(step, zeros, jax.tree.map(lambda *x: jnp.stack(x), *gradients))[0]

    assert_close(run(0.4), expected)
