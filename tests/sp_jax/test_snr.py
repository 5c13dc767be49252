"""Self-normalised resets against plain NumPy over many steps, with thresholds that adapt, and by hand."""

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
    ReferenceResets,
    assert_close,
    assert_same,
    draw,
    lane,
    mlp,
    wide,
)

from sp_jax import plasticity
from sp_jax.plasticity.snr import is_any_silent

STEPS, BATCH, UPDATES = 48, 50, (16, 32)
QS = np.float32([0.5, 0.92])


def batches():
    """Activations of 50 samples, of which 40 are real, in which some units are silent, some of them often."""
    rng, found = np.random.default_rng(3), []
    for _ in range(STEPS):
        seen = draw(rng.integers(1000), {layer: (BATCH, *shape[1:]) for layer, shape in ACTIVATIONS.items()})
        for layer, h in seen.items():
            often = np.linspace(0, 0.95, UNITS[layer])
            silent = rng.random(UNITS[layer]) < often
            h[..., silent] = np.minimum(h[..., silent], 0)
            h[40:] = 9  # padding
        found.append(seen)
    return found


@pytest.mark.slow
def test_resets_against_numpy_over_many_steps():
    params, mask = jax.tree.map(jnp.asarray, draw(25)), np.arange(BATCH) < 40
    fresh, activations = [draw(30 + t) for t in range(STEPS)], batches()

    def run(q):
        def step(carry, inputs):
            (params, state), (t, fresh, seen) = carry, inputs
            due = jnp.isin(t, jnp.array(UPDATES))
            updated = plasticity.update_thresholds(state, percentile=q)
            state = jax.tree.map(lambda new, old: jnp.where(due, new, old), updated, state)
            state = plasticity.observe_silence(state, seen, mask=jnp.asarray(mask))
            due = is_any_silent(state)
            params, state, changed = plasticity.replace_silent(state, params, fresh, LINKS)
            return (params, state), (params, changed, state, due)

        start = params, plasticity.init_silence(params, LINKS, threshold=300)
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *zip(range(STEPS), fresh, activations, strict=True))
        return jax.lax.scan(step, start, stacked)[1]

    outputs, thresholds = jax.jit(jax.vmap(run))(QS), set()
    for i, q in enumerate(QS):
        reference, expected, counts = ReferenceResets(LINKS, UNITS, 300), wide(params), []
        for t in range(STEPS):
            if t in UPDATES:
                reference.tasks_ended(q)
            expected, changed, replaced = reference.step(expected, fresh[t], activations[t], mask)
            new, new_changed, state, due = jax.tree.map(lambda x, t=t: x[t], lane(outputs, i))
            assert_close(new, expected, rtol=0, atol=0)
            assert_same(new_changed, changed)
            assert_close(state.age, {k: np.array(x) for k, x in reference.age.items()})
            assert_close(state.threshold, {k: np.array(x) for k, x in reference.threshold.items()})
            counts.append(sum(r.sum() for r in replaced.values()))
            assert due == (counts[-1] > 0)
        assert 5 < sum(counts) < 300
        thresholds |= {t for layer in reference.threshold.values() for t in layer}
    assert {100, 200, 400} < thresholds


@pytest.mark.slow
def test_lanes_are_those_of_one_at_a_time():
    params, fresh, seen = draw(1), draw(2), batches()[0]
    state = plasticity.observe_silence(plasticity.init_silence(params, LINKS, threshold=50), seen)

    def one(state):
        params_, state, changed = plasticity.replace_silent(
            plasticity.observe_silence(state, seen), params, fresh, LINKS
        )
        return params_, plasticity.update_thresholds(state), changed

    two = jax.tree.map(lambda a, b: jnp.stack([a, b]), state, plasticity.init_silence(params, LINKS))
    many = jax.jit(jax.vmap(one))(two)
    for i in range(2):
        assert_same(lane(many, i), jax.device_get(jax.jit(one)(lane(two, i))))


def test_thresholds_by_hand():
    """0.9 of the silences: an empty histogram, all short ones, 1 of 10 long, 2 of 10 long, none below the threshold."""
    ends = np.zeros((6, 200), np.int32)
    ends[1, 0], ends[2, [0, 4]], ends[3, [1, 5]], ends[4, 8], ends[5, 199] = 7, (9, 1), (8, 2), 3, 1
    old = jnp.array([100, 300, 800, 800, 900, 15_000])
    state = plasticity.SilenceState({"a": jnp.arange(6)}, {"a": old}, {"a": jnp.asarray(ends)})
    new = jax.jit(lambda q: plasticity.update_thresholds(state, percentile=q))(0.9)
    np.testing.assert_array_equal(new.threshold["a"], [100, 100, 100, 600, 1800, 20_000])
    np.testing.assert_array_equal(new.age["a"], state.age["a"])
    assert not new.histogram["a"].any()
    with pytest.raises(ValueError, match=r"percentile \(q\) must be a scalar in \[0, 1\]"):
        plasticity.update_thresholds(state, percentile=92.0)


@pytest.mark.slow
def test_ages_beyond_the_histogram_are_not_recorded():
    ages = jnp.array([1, 100, 101, 20_000, 20_001, 0])
    state = plasticity.SilenceState({"a": ages}, {}, {"a": jnp.zeros((6, 200), jnp.int32)})
    new = plasticity.observe_silence(state, {"a": jnp.ones((2, 6))})
    assert not new.age["a"].any()
    np.testing.assert_array_equal(np.argwhere(new.histogram["a"]), [[0, 0], [1, 0], [2, 1], [3, 199]])


@pytest.mark.slow
def test_padding_is_not_seen_and_a_silent_unit_keeps_the_function():
    params, fresh = draw(29, MLP_SHAPES), draw(30, MLP_SHAPES)
    params["hidden_0"]["bias"][2] = -100.0
    before, seen = mlp(params)
    state = plasticity.observe_silence(plasticity.init_silence(params, MLP_LINKS, threshold=8), seen)
    new, state, _ = jax.device_get(plasticity.replace_silent(state, params, fresh, MLP_LINKS))
    assert (new["hidden_0"]["kernel"] != params["hidden_0"]["kernel"])[:, 2].all()
    assert not new["hidden_1"]["kernel"][2].any()
    np.testing.assert_allclose(mlp(new)[0], before, rtol=1e-5)
    h = {layer: np.where(MASK.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan) for layer, x in draw(5, ACTIVATIONS).items()}
    state = plasticity.init_silence(draw(0), LINKS)
    found = [
        plasticity.observe_silence(state, {k: np.nan_to_num(x, nan=f) for k, x in h.items()}, mask=MASK) for f in (0, 9)
    ]
    assert_same(*found)
    with pytest.raises(ValueError, match=r"activations of 'conv': found shape \(\), expected \[B, ..., 4\]"):
        plasticity.observe_silence(state, {})
