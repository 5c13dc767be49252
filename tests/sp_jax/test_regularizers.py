"""Spectral and Parseval regularisation against plain NumPy, and against singular values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plasticity_reference import (
    SHAPES,
    as_matrix,
    assert_close,
    assert_same,
    draw,
    lane,
    reference_parseval,
    reference_spectral,
    wide,
)

import sp_jax
from sp_jax import plasticity

KERNELS = [layer for layer in SHAPES if layer != "norm"]


@pytest.mark.parametrize("k", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_spectral_regularisation_against_numpy_over_steps(k):
    params = jax.tree.map(lambda x: jnp.asarray(x / 4), draw(1))
    start = plasticity.init_singular_vectors(jax.random.key(0), params)

    def run(rate):
        def step(carry, _):
            params, vectors = carry
            vectors = plasticity.power_iteration(params, vectors)
            gradient = jax.grad(lambda p: plasticity.spectral_penalty(p, vectors, power=k))(params)
            params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
            return (params, vectors), (params, vectors)

        return jax.lax.scan(step, (params, start), length=6)[1]

    rates = np.float32([0.0, 0.01])
    found = jax.jit(jax.vmap(run))(rates)
    for i, rate in enumerate(rates):
        expected, left = wide(params), {layer: np.float64(start.left[f"{layer}/kernel"][0]) for layer in KERNELS}
        for t in range(6):
            gradient, left, right = reference_spectral(expected, left, k)
            expected = jax.tree.map(lambda p, g, rate=rate: p - np.float64(rate) * g, expected, gradient)
            new, vectors = jax.tree.map(lambda x, t=t: x[t], lane(found, i))
            assert_close(new, expected, rtol=1e-4, atol=1e-5)
            for layer in KERNELS:
                np.testing.assert_allclose(vectors.left[f"{layer}/kernel"][0], left[layer], atol=1e-4)
                np.testing.assert_allclose(vectors.right[f"{layer}/kernel"][0], right[layer], atol=1e-4)


def test_the_spectral_penalty_is_of_the_largest_singular_values():
    params = draw(2)
    vectors = plasticity.init_singular_vectors(jax.random.key(1), params)
    vectors = jax.jit(lambda v: jax.lax.fori_loop(0, 200, lambda _, v: plasticity.power_iteration(params, v), v))(
        vectors
    )
    expected, norm = 0.0, wide(params)["norm"]
    for layer in KERNELS:
        sigma = np.linalg.svd(as_matrix(params[layer]["kernel"]), compute_uv=False)[0]
        expected += (sigma**2 - 1) ** 2 + (np.float64(params[layer].get("bias", 0)) ** 2).sum() ** 2
    expected += ((norm["scale"] ** 2 - 1) ** 2).sum() + (norm["bias"] ** 4).sum()
    np.testing.assert_allclose(jax.jit(plasticity.spectral_penalty)(params, vectors), expected, rtol=1e-4)


@pytest.mark.slow
def test_kernels_of_zero_have_no_nan():
    params = jax.tree.map(np.zeros_like, draw(3))
    vectors = plasticity.init_singular_vectors(jax.random.key(0), params)
    new = plasticity.power_iteration(params, vectors)
    assert_same(new, vectors)
    gradient = jax.jit(jax.grad(lambda p: plasticity.spectral_penalty(p, new) + plasticity.parseval_penalty(p)))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("scale", [2.0, 1.0])
def test_parseval_regularisation_against_numpy(scale):
    params = draw(4)
    gradient = jax.jit(jax.grad(lambda p, s: plasticity.parseval_penalty(p, scale=s)))(params, scale)
    assert_close(gradient, reference_parseval(params, scale), rtol=1e-4, atol=1e-2)
    two = jax.tree.map(lambda a, b: np.stack([a, b]), params, draw(5))
    many = jax.jit(jax.vmap(plasticity.parseval_penalty))(two)
    np.testing.assert_allclose(many, [plasticity.parseval_penalty(lane(two, i)) for i in range(2)], rtol=1e-5)


def test_parseval_pulls_all_singular_values_to_the_gain_where_it_can():
    """Five outputs of twelve inputs reach it, twelve of five do not."""
    reach, most = {"kernel": draw(6, (12, 5)) / 4}, {"kernel": draw(7, (5, 12)) / 4}
    params = {"body": reach, "wide": most, "head": {"kernel": draw(8, (12, 3))}}
    step = jax.grad(lambda p: plasticity.parseval_penalty(p) / 64**2)
    new = jax.jit(lambda p: jax.lax.fori_loop(0, 3000, lambda _, p: jax.tree.map(lambda x, g: x - g, p, step(p)), p))(
        params
    )
    singular = np.linalg.svd(new["body"]["kernel"], compute_uv=False)
    np.testing.assert_allclose(singular, np.sqrt(2) * np.ones(5), rtol=1e-3)
    left = plasticity.parseval_penalty({"body": new["wide"], "head": params["head"]})
    assert left > (64 / 12) ** 2 * (12 - 5) * 4 * 0.99
    assert_same(new["head"], jax.tree.map(jnp.asarray, params["head"]))


def test_stacked_layers_are_matrices_of_their_own_and_ambiguous_kernels_are_refused():
    kernels, kinds = draw(9, (3, 6, 4)), {"scanned": ("stacked", "in", "out")}
    params, head = {"scanned": {"kernel": kernels}}, {"head": {"kernel": draw(10, (4, 2))}}
    together = plasticity.parseval_penalty(params | head, kinds=kinds)
    alone = sum(plasticity.parseval_penalty({"a": {"kernel": kernel}} | head) for kernel in kernels)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    turned = jax.tree.map(lambda x: np.swapaxes(x, -1, -2), head | {"a": {"kernel": kernels[0]}})
    np.testing.assert_allclose(
        plasticity.parseval_penalty(turned, output_axis=0),
        plasticity.parseval_penalty(head | {"a": {"kernel": kernels[0]}}), rtol=1e-5,
    )  # fmt: skip
    for function in (
        lambda p: plasticity.parseval_penalty(p | head),
        lambda p: plasticity.init_singular_vectors(jax.random.key(0), p),
        plasticity.clip_weights,
    ):
        with pytest.raises(ValueError, match=r"'scanned/kernel' of shape \(3, 6, 4\) may be a convolution") as error:
            function(params)
        assert "\n" not in str(error.value)


def test_parseval_needs_a_head_or_a_filter():
    params = {"body": {"kernel": np.ones((4, 4))}, "output": {"kernel": np.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"none is named 'head'.*the paths are: body/kernel, output/kernel") as error:
        plasticity.parseval_penalty(params)
    assert "\n" not in str(error.value)
    chosen = plasticity.parseval_penalty(params, where=~sp_jax.layer("output"))
    assert chosen == plasticity.parseval_penalty({"body": params["body"], "head": params["output"]})
    with pytest.raises(ValueError, match="matches no floating leaf"):
        plasticity.parseval_penalty({"head": params["output"]})


@pytest.mark.slow
def test_other_leaves_and_small_dtypes():
    params = draw(11)
    small, other = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params), {"other": {"n": jnp.int32(7)}}
    wide_again = jax.tree.map(lambda x: x.astype(jnp.float32), small)
    vectors = plasticity.init_singular_vectors(jax.random.key(0), wide_again)
    for penalty in (plasticity.parseval_penalty, lambda p: plasticity.spectral_penalty(p, vectors)):
        assert penalty(small | other) == penalty(wide_again)
        assert penalty(small).dtype == jnp.float32
