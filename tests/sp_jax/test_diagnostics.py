"""Gradient norms against gradients by hand, similarity against NumPy and SciPy."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from sp_jax import data, diagnostics, models, restarts, sweeps, training
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams

rng = np.random.default_rng(0)
DATA = Dataset(rng.normal(size=(90, 4)).astype(np.float32), np.arange(90, dtype=np.int32) % 3, 3, "tiny")
MODEL = models.from_module(models.MLP(3, ()), DATA.inputs)
TRAINER = Trainer(MODEL, training.sgd, 8)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def norm_by_hand(params, indices):
    x, y = DATA.inputs[indices], np.eye(3)[DATA.labels[indices]]
    error = (softmax(x @ params["head"]["kernel"] + params["head"]["bias"]) - y) / len(indices)
    return np.sqrt(np.sum((x.T @ error) ** 2) + np.sum(error.sum(0) ** 2))


@pytest.mark.parametrize(("num_old", "num_visible"), [(20, 45), (3, 60)])
def test_gradient_norms_are_the_mean_over_batches_of_each_part(num_old, num_visible):
    engine = sweeps.Engine(TRAINER, DATA, 2)
    lanes = sweeps.make_lanes(range(2), HParams(), Convergence(), 90)
    placed = engine.place(lanes)
    state = engine.init(placed)
    measure = diagnostics.gradient_norms(TRAINER)
    found = engine.fetch(engine.measure(measure, placed, state, np.int32(num_old), np.int32(num_visible)))
    for lane in range(2):
        params = jax.tree.map(lambda x, i=lane: np.asarray(x)[i], engine.fetch(state).params)
        for part, (start, stop) in {"old": (0, num_old), "new": (num_old, num_visible)}.items():
            order = lanes.order[lane][start:stop]
            batches = [order[i : i + 8] for i in range(0, len(order), 8)]
            expected = np.mean([norm_by_hand(params, batch) for batch in batches])
            assert found[f"gradient_norm_{part}"][lane] == pytest.approx(expected, rel=1e-4)


def test_a_part_without_samples_has_no_norm():
    lane = jax.tree.map(lambda x: jnp.asarray(x[0]), sweeps.make_lanes([0], HParams(), Convergence(), 90))
    found = diagnostics.gradient_norms(TRAINER)(
        lane, training.init_state(TRAINER, lane, 0), jax.device_put(DATA), 60, 60
    )
    assert np.isnan(found["gradient_norm_new"])
    assert found["gradient_norm_old"] > 0


def test_similarity_is_that_of_numpy_and_scipy():
    one = {"a": rng.normal(size=(7, 5)).astype(np.float32), "b": rng.normal(size=11).astype(np.float32) + 1}
    two = jax.tree.map(lambda x: 0.5 * x + rng.normal(size=x.shape).astype(np.float32), one)
    found = diagnostics.similarity(jax.tree.map(jnp.asarray, one), jax.tree.map(jnp.asarray, two))
    x, y = (np.concatenate([tree["a"].ravel(), tree["b"]]).astype(float) for tree in (one, two))
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic, rel=1e-5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic, rel=1e-5)
    assert found["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-5)
    assert found["distance"] == pytest.approx(np.linalg.norm(x - y), rel=1e-5)
    same = diagnostics.similarity(one, one)
    assert [float(same[name]) for name in ("pearson", "cosine", "spearman", "distance")] == pytest.approx([1, 1, 1, 0])


FEATURES = np.float32(np.random.default_rng(3).normal(size=(12, 5)) @ np.diag([3.0, 1.0, 0.5, 0.0, 0.0]))


def test_ranks_against_numpy():
    values = np.linalg.svd(FEATURES.astype(np.float64), compute_uv=False)
    shares = values[values > 1e-9] / values.sum()
    entropy = -np.sum(shares * np.log(shares))
    assert float(diagnostics.effective_rank(FEATURES)) == pytest.approx(np.exp(entropy), rel=1e-4)
    assert float(diagnostics.stable_rank(FEATURES)) == pytest.approx(np.sum(values**2) / values[0] ** 2, rel=1e-4)
    least = int(np.argmax(np.cumsum(values) >= 0.99 * values.sum())) + 1
    assert int(diagnostics.top_singular_values(FEATURES)) == least
    for rank in (diagnostics.effective_rank, diagnostics.stable_rank, diagnostics.top_singular_values):
        assert float(rank(jnp.zeros((4, 3)))) == 0


def test_dormant_units_are_counted_over_all_layers_and_padding_is_not_looked_at():
    activations = {"a": jnp.array([[0.0, 1.0], [0.0, 1.0], [9.0, 0.0]]), "b": jnp.array([[1.0] * 6] * 3)}
    mask = jnp.array([True, True, False])
    assert float(diagnostics.dormant_share(activations, mask=mask)) == pytest.approx(1 / 8)
    assert float(diagnostics.dormant_share(activations)) == 0


def test_sharpness_is_the_largest_eigenvalue_of_the_hessian():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    hessian = (turn @ np.diag([-7.0, 4.0, 2.0, 1.0, 0.5, 0.0]) @ turn.T).astype(np.float32)

    def loss(params):
        x = jnp.concatenate([params["a"], params["b"]])
        return x @ hessian @ x / 2

    params = {"a": jnp.ones(2), "b": jnp.ones(4)}
    assert float(diagnostics.sharpness(loss, params, jax.random.key(0), steps=60)) == pytest.approx(-7, rel=1e-3)


@pytest.mark.slow
def test_signs_of_lost_plasticity_in_the_engine_are_those_by_hand():
    """All measures of a lane after a round, each from its definition."""
    dataset = data.mixture()
    model = models.from_module(models.MLP(10, (8, 8), nn.relu), dataset.inputs)
    trainer = Trainer(model, training.adam, 32)
    engine = sweeps.Engine(trainer, dataset, 1)
    lanes = sweeps.make_lanes([0], HParams(), Convergence.exactly(1), len(dataset.labels))
    placed = engine.place(lanes)
    before = engine.init(placed)
    start = jax.tree.map(lambda x: np.asarray(x)[0], before.params)
    progress = engine.train(placed, engine.begin(placed, before, restarts.no_restart, 1, 100), 1, 100)
    names = [name for name in diagnostics.MEASURES if name != "online_accuracy"]
    measure = diagnostics.plasticity(trainer, names)
    again = engine.init(placed)
    found = engine.fetch(engine.measure(measure, placed, (progress.state, again.params), np.int32(100)))
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[0]), progress.state.params)
    inputs, labels = dataset.inputs[lanes.order[0, :100]], dataset.labels[lanes.order[0, :100]]
    given = (params, {}, inputs, None, True)
    features = model.features(*given)
    moved = float(optax.tree.norm(optax.tree.sub(params, start)))

    def loss(params):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model.apply(params, *given[1:])[0], labels))

    expected = {
        "dormant": diagnostics.dormant_share(model.activations(*given)),
        "effective_rank": diagnostics.effective_rank(features),
        "stable_rank": diagnostics.stable_rank(features),
        "top_singular_values": diagnostics.top_singular_values(features),
        "weight_norm": optax.tree.norm(params), "update_norm": moved, "distance": moved,
        "gradient_norm": optax.tree.norm(jax.grad(loss)(params)),
    }  # fmt: skip
    for name, value in expected.items():
        assert float(found[name][0]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    eigenvalues = np.linalg.eigvalsh(jax.hessian(lambda x: loss(unravel(x)))(flat))
    assert float(found["sharpness"][0]) == pytest.approx(eigenvalues[np.argmax(np.abs(eigenvalues))], rel=0.1)


def test_measures_that_a_network_does_not_allow_are_refused():
    model = models.from_functions(lambda key: {"w": jnp.zeros((64, 10))}, lambda p, x: x.reshape(len(x), -1) @ p["w"])
    trainer = Trainer(model, training.adam, 32)
    for names, words in ((["dormant"], "no links"), (["stable_rank"], "last features")):
        with pytest.raises(ValueError, match=words):
            diagnostics.plasticity(trainer, names)
    diagnostics.plasticity(trainer, ["weight_norm"])
