"""FIRE against the singular values."""

from functools import partial

import jax
import numpy as np
import pytest
from plasticity_reference import SHAPES, assert_close, draw, reference_fire

from sp_jax import plasticity
from sp_jax.transforms import filters


@pytest.mark.parametrize("iterations", [0, 3, 10])
def test_fire_against_singular_values(iterations):
    params = draw(4)
    new = jax.jit(lambda p: plasticity.orthogonalize(p, iterations=iterations))(params)
    assert_close(new, reference_fire(params, iterations), rtol=1e-4, atol=1e-5)


def test_fire_makes_kernels_isometries_and_keeps_rotations():
    rng = np.random.default_rng(5)
    wide_kernel = rng.normal(size=(2, 40)).astype(np.float32)
    new = jax.jit(plasticity.orthogonalize)({"kernel": wide_kernel})["kernel"]
    np.testing.assert_allclose(np.linalg.svd(new)[1], np.sqrt(40 / 2), rtol=1e-5)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    stack = {"kernel": np.stack([rotation * 7, rotation * 1e-25, 0 * rotation])}
    fire = partial(plasticity.orthogonalize, kinds={"kernel": ("spatial", "in", "out")})
    turned = jax.jit(fire)(stack)["kernel"]
    np.testing.assert_allclose(turned, np.stack([rotation / 3, rotation / 3, 0 * rotation]), atol=1e-5)


def test_fire_in_the_layout_of_pytorch():
    params = {layer: leaves for layer, leaves in draw(5).items() if layer != "norm"}

    def turn(tree):
        return jax.tree.map(lambda x: np.transpose(x, {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[x.ndim]), tree)

    turned = jax.jit(lambda p: plasticity.orthogonalize(p, output_axis=0))(turn(params))
    assert_close(turned, turn(reference_fire(params)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"output_axis must be -1 .* or 0 .*, got 1"):
        plasticity.orthogonalize(params, output_axis=1)


def test_fire_touches_kernels_alone_and_takes_a_filter():
    params = draw(6, {layer: SHAPES[layer] for layer in ("norm", "dense", "head")})
    params |= {"embed": {"embedding": np.ones((3, 2), np.float32)}, "list_norm": {"weight": np.ones(4)}}
    for where, picked in ((None, ["dense", "head"]), (~filters.layer("head"), ["dense"])):
        new = plasticity.orthogonalize(params, where=where)
        for path, leaf in filters.by_path(params).items():
            layer, name = path.split("/")
            assert (new[layer][name] is leaf) == (name != "kernel" or layer not in picked)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        plasticity.orthogonalize(params, where=filters.biases)
