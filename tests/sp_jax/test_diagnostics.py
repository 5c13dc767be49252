"""Gradient norms against gradients by hand, similarity against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sp_jax import diagnostics, models, sweeps, training
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
