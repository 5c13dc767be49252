"""ReDo against plain NumPy: how dormant units are, and what their replacement keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plasticity_reference import (
    ACTIVATIONS,
    LINKS,
    MASK,
    MLP_LINKS,
    MLP_SHAPES,
    UNITS,
    assert_close,
    assert_same,
    draw,
    lane,
    mlp,
    reference_dormancy,
    reference_replace,
)

from sp_jax import plasticity


@pytest.mark.parametrize("layer", ACTIVATIONS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_dormancy_against_numpy(layer, mask):
    activations = draw(20, ACTIVATIONS)[layer]
    activations[..., 0] = 0
    s = jax.jit(plasticity.dormancy)(activations, mask)
    np.testing.assert_allclose(s, reference_dormancy(activations, MASK | (mask is None)), rtol=1e-5)
    assert s[0] == 0
    np.testing.assert_array_equal(plasticity.dormancy(np.zeros_like(activations), mask), np.zeros(UNITS[layer]))


def test_redo_against_numpy_and_vmapped_over_the_threshold():
    params, fresh, activations = draw(21), draw(22), draw(23, ACTIVATIONS)
    thresholds, counts = np.float32([0.0, 0.85, 1.2, 9.0]), []
    activations["dense"][MASK, 2] = 0
    many = jax.jit(
        jax.vmap(lambda t: plasticity.redo(params, fresh, activations, LINKS, threshold=t, mask=jnp.asarray(MASK)))
    )(thresholds)
    for i, threshold in enumerate(thresholds):
        replaced = {layer: reference_dormancy(h, MASK) <= threshold for layer, h in activations.items()}
        counts.append(sum(r.sum() for r in replaced.values()))
        new, changed = lane(many, i)
        expected, expected_changed = reference_replace(params, fresh, replaced, LINKS)
        assert_close(new, expected, rtol=0, atol=0)
        assert_same(changed, expected_changed)
    assert counts[0] == 1
    assert counts[0] < counts[1] < counts[2] < counts[3] == sum(UNITS.values())


def test_redo_revives_dead_units_and_keeps_the_function():
    params, fresh = draw(29, MLP_SHAPES), draw(30, MLP_SHAPES)
    params["hidden_0"]["bias"][2] = params["hidden_1"]["bias"][0] = params["hidden_1"]["bias"][4] = -100.0
    before, activations = mlp(params)
    dead = {layer: (h == 0).all(0) for layer, h in activations.items()}
    assert dead["hidden_0"][2]
    assert dead["hidden_1"][[0, 4]].all()
    new, _ = jax.device_get(jax.jit(lambda h: plasticity.redo(params, fresh, h, MLP_LINKS, threshold=0.0))(activations))
    for layer in dead:
        assert (new[layer]["kernel"] != params[layer]["kernel"]).any(0)[dead[layer]].all()
        assert not new[layer]["bias"][dead[layer]].any()
    after, revived = mlp(new)
    np.testing.assert_array_equal(after, before)
    for layer in dead:
        assert revived[layer].any(0).all()
