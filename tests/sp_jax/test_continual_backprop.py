"""Continual backprop against plain NumPy over many steps, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from plasticity_reference import (
    ACTIVATIONS,
    LINKS,
    MASK,
    MLP_LINKS,
    MLP_SHAPES,
    UNITS,
    ReferenceContinualBackprop,
    assert_close,
    assert_same,
    draw,
    lane,
    mlp,
    wide,
)

from sp_jax import plasticity
from sp_jax.plasticity import Link
from sp_jax.plasticity.continual_backprop import is_any_due


def test_continual_backprop_against_numpy_over_many_steps():
    steps, options = 12, {"decay": 0.9, "rate": 0.23, "maturity": 1}
    params = jax.tree.map(jnp.asarray, draw(25))
    fresh, learned = [draw(30 + t) for t in range(steps)], [draw(90 + t) for t in range(steps)]
    activations = [draw(60 + t, ACTIVATIONS) for t in range(steps)]

    def run(options):
        def step(carry, inputs):
            params, state = carry
            params, inputs = jax.tree.map(jnp.add, params, inputs[0]), inputs[1:]
            due = is_any_due(state, rate=options["rate"], maturity=options["maturity"])
            params, state, changed = plasticity.continual_backprop(
                state, params, *inputs, LINKS, mask=jnp.asarray(MASK), **options
            )
            return (params, state), (params, changed, state, due)

        inputs = jax.tree.map(lambda *x: jnp.stack(x), *zip(learned, fresh, activations, strict=True))
        return jax.lax.scan(step, (params, plasticity.init_utility(params, LINKS)), inputs)[1]

    outputs = jax.jit(run)(options)
    reference, expected, counts = ReferenceContinualBackprop(LINKS, UNITS, **options), wide(params), []
    for t in range(steps):
        expected = jax.tree.map(np.add, expected, learned[t])
        expected, changed, replaced = reference.step(expected, fresh[t], activations[t], MASK)
        new, new_changed, state, due = lane(outputs, t)
        assert_close(new, expected, rtol=1e-4, atol=1e-5)
        assert_same(new_changed, changed)
        assert_close(state.utility, reference.u)
        assert_close(state.mean_activation, reference.f)
        assert_close(state.age, reference.age)
        assert_close(state.pending, reference.pending, atol=1e-5)
        counts.append(sum(r.sum() for r in replaced.values()))
        assert due == (counts[-1] > 0)
    assert counts[0] == 0
    assert 8 < sum(counts) < 40
    assert max(counts) > 1


def test_continual_backprop_hand_worked():
    params = {
        "body": {"kernel": jnp.array([[1.0, 2.0, 3.0]]), "bias": jnp.array([4.0, 5.0, 6.0])},
        "head": {"kernel": jnp.array([[1.0, -3.0], [0.5, 0.5], [2.0, 2.0]]), "bias": jnp.array([10.0, 20.0])},
    }
    fresh, links = jax.tree.map(lambda x: jnp.full_like(x, 0.125), params), [Link("body", "head")]
    state = plasticity.init_utility(params, links)

    @jax.jit
    def step(state, params, activations):
        options = {"decay": 0.5, "rate": 0.25, "maturity": 0}
        return plasticity.continual_backprop(state, params, fresh, activations, links, **options)

    first = {"body": jnp.array([[-1.0, 4.0, 1.0], [3.0, 4.0, 1.0]])}  # E|h| 2, 4, 1; E h 1, 4, 1; mean|w_out| 2, 0.5, 2
    new, state, changed = step(state, params, first)
    np.testing.assert_array_equal(state.utility["body"], [2.0, 1.0, 1.0])
    np.testing.assert_array_equal(state.mean_activation["body"], [0.5, 2.0, 0.5])
    assert state.pending["body"] == 0.75
    assert_same(new, params)
    assert not any(x.any() for x in jax.tree.leaves(changed))
    second = {"body": jnp.array([[0.0, 1.0, 4.0]])}  # contributions 0, 0.5, 8: u 1, 0.75, 4.5 before correction by 0.75
    new, state, _ = step(state, params, second)
    np.testing.assert_array_equal(state.utility["body"], [1.0, 0.0, 4.5])
    np.testing.assert_array_equal(state.mean_activation["body"], [0.25, 0.0, 2.25])
    np.testing.assert_array_equal(state.age["body"], [2, 0, 2])
    assert state.age["body"].dtype == jnp.int32
    assert state.pending["body"] == 0.5
    np.testing.assert_array_equal(new["body"]["kernel"], [[1.0, 0.125, 3.0]])
    np.testing.assert_array_equal(new["body"]["bias"], [4.0, 0.0, 6.0])
    np.testing.assert_array_equal(new["head"]["kernel"], [[1.0, -3.0], [0.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(new["head"]["bias"], [11.0, 21.0], rtol=1e-6)  # f 1.5 / 0.75 times 0.5


def test_the_bias_absorbs_a_constant_unit_exactly():
    params, fresh = draw(31, MLP_SHAPES), draw(32, MLP_SHAPES)
    params["hidden_0"]["kernel"][:, 3], params["hidden_0"]["bias"][3] = 0.0, 0.75
    params["hidden_1"]["kernel"][3] = 1e-3  # so that it is of least use
    before, hidden = mlp(params)
    state = plasticity.init_utility(params, MLP_LINKS[:1])
    step = jax.jit(
        lambda state: plasticity.continual_backprop(
            state, params, fresh, hidden, MLP_LINKS[:1], decay=0.9, rate=1 / 6, maturity=2
        )
    )
    for number in range(1, 4):
        new, state, changed = jax.device_get(step(state))
        assert changed["hidden_0"]["bias"][3] == (number == 3)
    np.testing.assert_array_equal(changed["hidden_0"]["bias"], np.arange(6) == 3)
    np.testing.assert_array_equal(new["hidden_0"]["kernel"][:, 3], fresh["hidden_0"]["kernel"][:, 3])
    assert not new["hidden_1"]["kernel"][3].any()
    assert not changed["hidden_1"]["bias"].any()
    np.testing.assert_allclose(mlp(new)[0], before, rtol=1e-5, atol=1e-5)
    forgotten = new | {"hidden_1": new["hidden_1"] | {"bias": params["hidden_1"]["bias"]}}
    assert np.abs(mlp(forgotten)[0] - before).max() > 1e-4


def test_continual_backprop_vmapped_over_its_scalars():
    params, fresh, activations = draw(26), draw(27), draw(28, ACTIVATIONS)
    state = plasticity.init_utility(params, LINKS)
    options = {"decay": [0.0, 0.5, 0.9], "rate": [1.0, 0.5, 0.0], "maturity": [0.0, 1.0, 0.0]}

    def call(options):
        return plasticity.continual_backprop(state, params, fresh, activations, LINKS, **options)

    many = jax.jit(jax.vmap(call))(jax.tree.map(jnp.float32, options, is_leaf=lambda x: isinstance(x, list)))
    counts = []
    for i in range(3):
        one = {name: values[i] for name, values in options.items()}
        expected, changed, replaced = ReferenceContinualBackprop(LINKS, UNITS, **one).step(
            params, fresh, activations, np.ones(6, bool)
        )
        new, _, new_changed = lane(many, i)
        assert_close(new, expected)
        assert_same(new_changed, changed)
        counts.append(sum(r.sum() for r in replaced.values()))
    assert counts == [sum(UNITS.values()), 0, 0]
