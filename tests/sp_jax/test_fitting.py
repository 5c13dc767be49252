"""Retraining one's own network on one's own arrays, and the choice of λ and σ."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import sp_jax
from sp_jax import models, plasticity, restarts
from sp_jax.fitting import tuning
from sp_jax.training import Convergence

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64) + (X[:, 0] > 1)
HELD = X[150:], Y[150:]
FEW = Convergence.exactly(3)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(16)(x)))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=not training, momentum=0.9)(nn.Dense(16)(x))))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.body, self.norm = nnx.Linear(6, 16, rngs=rngs), nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(nnx.relu(self.norm(self.body(x)))))


HAIKU = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 3])(x)))
NETWORKS = {
    "linen": Net(),
    "linen with BatchNorm": Normed(),
    "nnx": lambda rngs: Dropped(rngs),
    "haiku": (lambda key: HAIKU.init(key, X[:1]), HAIKU.apply),
    "functions": (lambda key: 0.1 * jax.random.normal(key, (6, 3)), lambda w, x: x @ w),
    "model": models.from_module(Net(), X),
}


def fit(arrivals=(50, 100, 150), **options):
    options = {"network": Net(), "validation": HELD, "batch_size": 32, "convergence": FEW, **options}
    return sp_jax.fit_rounds(0, X[:150], Y[:150], arrivals, **options)


@functools.cache
def monday():
    return fit([50])


@functools.cache
def week(restart="shrink_perturb"):
    return fit(restart=restart)


def equal(a, b):
    return jax.tree.all(jax.tree.map(jnp.array_equal, a, b))


QUICK = ("linen with BatchNorm", "functions")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in QUICK)]
)
def test_any_network_learns(name):
    found = fit(network=NETWORKS[name], optimizer=optax.adam(0.02), convergence=Convergence(0.97, max_epochs=100))
    assert [r.num_train for r in found.history] == [50, 100, 150]
    assert found.history[-1].validation_accuracy > 0.8
    right = jnp.argmax(found.predict(HELD[0]), axis=1) == HELD[1]
    np.testing.assert_allclose(jnp.mean(right), found.history[-1].validation_accuracy, rtol=1e-6)


def test_a_call_a_day_is_the_same_as_one_call_for_all_days():
    whole, today = week(), None
    for count in (50, 100, 150):
        today = fit([count], since=today)
    assert equal(today.state, whole.state)
    assert [r.round for r in today.history] == [1, 2, 3]
    assert [r._replace(seconds=0) for r in today.history] == [r._replace(seconds=0) for r in whole.history]


def test_numpy_and_jax_arrays_are_the_same():
    jaxed = sp_jax.fit_rounds(
        0, jnp.asarray(X[:150]), jnp.asarray(Y[:150]), (50, 100, 150), network=Net(), validation=HELD, batch_size=32,
        convergence=FEW,
    )  # fmt: skip
    assert equal(jaxed.state, week().state)


@pytest.mark.slow
def test_the_edges_of_shrink_perturb_are_the_baselines():
    assert equal(fit(shrink=1.0, noise_scale=0.0).state, week("warm_start").state)
    assert equal(fit(shrink=0.0, noise_scale=1.0).state, week("random_init").state)
    assert not equal(week().state, week("warm_start").state)


def test_the_first_round_of_a_call_restarts_what_came_before():
    """With no training after it, the state is λ·θ + σ·fresh for the fresh network of round 2."""
    tuesday = fit([100], since=monday(), convergence=Convergence.exactly(0), shrink=0.5, noise_scale=0.0)
    expected = jax.tree.map(lambda x: 0.5 * x, monday().state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), tuesday.state.params, expected)


class Classes(nn.Module):
    count: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.count)(nn.relu(nn.Dense(16, name="body")(x)))


three_classes = functools.cache(lambda: fit([50], network=Classes(3)))


@pytest.mark.slow
@pytest.mark.parametrize("restart", ["shrink_perturb", "warm_start"])
def test_a_network_with_a_class_more_goes_on_and_tells_what_grew(restart):
    monday = three_classes()
    options = {"network": Classes(4), "convergence": Convergence.exactly(0), "shrink": 0.5, "noise_scale": 0.1}
    tuesday = fit([100], since=monday, restart=restart, **options)
    assert tuesday.grown == {"Dense_0/bias": ((3,), (4,)), "Dense_0/kernel": ((16, 3), (16, 4))}
    assert monday.grown == {}
    fresh = fit([100], since=monday, restart="random_init", **options).state.params
    lam, sigma = (0.5, 0.1) if restart == "shrink_perturb" else (1.0, 0.0)
    expected = sp_jax.grow(monday.state.params, fresh, shrink=lam, noise_scale=sigma)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), tuesday.state.params, expected)
    with pytest.raises(ValueError, match=r"cannot grow from \(4,\) to \(3,\)"):
        fit([150], since=tuesday, network=Classes(3))


@pytest.mark.slow
def test_other_shapes_need_a_restart_that_grows():
    before = three_classes()
    for rule in (restarts.warm_start, restarts.shrink_perturb):
        with pytest.raises(ValueError, match=r"'Dense_0/bias' has shape \(3,\) .* choose shapes='grow' or 'redraw'"):
            fit([50], since=before, network=Classes(4), restart=sp_jax.make_restart(rule))


@pytest.mark.slow
def test_an_optimiser_that_keeps_a_copy_of_the_parameters_begins_with_those_of_the_restart():
    """Schedule-free's z and the tortoise: the fresh network's would pull the warm-started one away."""
    optimizer = plasticity.hare_tortoise(optax.contrib.schedule_free_sgd(0.05), every=10)
    monday = fit([50], optimizer=optimizer)
    options = {"since": monday, "convergence": Convergence.exactly(0), "optimizer": optimizer}
    for restart in ("warm_start", "shrink_perturb"):
        state = fit([100], restart=restart, **options).state
        assert equal(state.opt_state.slow, state.params)
        assert equal(state.opt_state.inner_state.z, state.params)


@pytest.mark.slow
def test_a_restart_may_be_a_function():
    own = sp_jax.make_restart(restarts.only_layers("Dense_1"), optimizer_state="keep")
    assert not equal(fit(restart=own).state, week("warm_start").state)


def test_only_what_has_arrived_is_trained_on():
    spoilt = X[:150].copy()
    spoilt[60:] = 1e6
    options = {"network": Normed(), "batch_size": 32, "convergence": FEW}
    clean = sp_jax.fit_rounds(0, X[:150], Y[:150], [60], **options)
    assert equal(clean.state, sp_jax.fit_rounds(0, spoilt, Y[:150], [60], **options).state)


def test_without_validation_samples_accuracy_is_nan():
    found = fit(validation=None)
    assert all(np.isnan(r.validation_accuracy) and np.isfinite(r.train_accuracy) for r in found.history)
    assert equal(found.state, week().state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrivals": [100, 50]}, r"arrivals must be increasing counts between 1 and the 150 samples, got \[100, 50\]"),
        ({"arrivals": [151]}, "arrivals must be increasing"),
        ({"arrivals": [0, 5]}, "arrivals must be increasing"),
        ({"arrivals": []}, "arrivals must be increasing"),
        ({"restart": "shrink"}, "restart must be one of warm_start, random_init, shrink_perturb, or a function"),
        ({"shrink": 1.5}, r"shrink \(λ\) must be a scalar in"),
        ({"noise_scale": -1}, r"noise_scale \(σ\) must be a finite"),
        ({"network": nn.Dense(2)}, r"must give logits \[B, 3 or more\] for labels 0 to 2, got \(1, 2\)"),
        ({"network": "resnet"}, "the network does not run .*: got str .expected a Linen module, a pair"),
        ({"network": Net}, "the network does not run .*expected a Linen module, a pair"),
        ({"network": hk.transform(lambda x: x @ x)}, "the network does not run on inputs float32 of shape"),
        ({"optimizer": optax.adam}, "optimizer must be an optax optimiser"),
        ({"arrivals": 100}, "arrivals must be a sequence of counts, got 100"),
        ({"network": nn.Dropout(0.5, deterministic=False)}, "Dropout draws random numbers in evaluation, too"),
        (
            {"validation": (X[:5], Y[:4])},
            r"validation must be of shapes \[N, features, ...\] and \[N\] with N >= 1, got \(5, 6\) and \(4,\)",
        ),
        ({"validation": (X[:5, :3], Y[:5])}, r"inputs are float32 of shape \(3,\), the others float32 of \(6,\)"),
        ({"validation": (X[:5].astype(np.uint8), Y[:5])}, "validation inputs are uint8 of shape"),
        ({"validation": (X[:5] * np.nan, Y[:5])}, "validation: inputs hold NaN"),
        ({"validation": (X[:5], Y[:5] - 5)}, "validation: labels must be integers from 0 on"),
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, at least 1, got 1.5"),
        ({"arrivals": [1.5, 3]}, "arrivals must be increasing counts"),
        ({"arrivals": ["a"]}, "arrivals must be increasing counts"),
        ({"shrink": "0.5"}, r"shrink \(λ\) must be a scalar in \[0, 1\], got '0.5'"),
        ({"noise_scale": None}, r"noise_scale \(σ\) must be a finite scalar >= 0, got None"),
        ({"shrink": 1j}, r"shrink \(λ\) must be a scalar"),
        ({"convergence": 0.99}, "convergence must be a sp_jax.training.Convergence, got 0.99"),
        ({"convergence": Convergence(99.0)}, r"train_accuracy is a fraction: it must lie in \(0, 1\], got 99.0"),
        (
            {"convergence": Convergence(max_epochs=0)},
            "patience and max_epochs must be whole numbers, at least 1, got 100 and 0",
        ),
        ({"since": "monday"}, "`since` must be what fit_rounds returned, got str"),
        ({"validation": X}, r"validation must be a pair \(inputs, labels\), got ndarray"),
        ({"validation": ([[1.0, 2.0], [3.0]], [0, 1])}, "validation: not all samples have the same shape"),
        ({"validation": (X[:5].astype(str), Y[:5])}, "validation: inputs must be pixels, tokens or floats"),
        ({"validation": (X[:5], Y[:5].astype(float))}, "validation: labels must be integers from 0 on, got float64"),
    ],
)
def test_mistakes_get_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        fit(**change)


def test_the_network_of_since_must_be_the_same():
    before = monday()
    with pytest.raises(ValueError, match=r"`since` holds another network: .* has no leaf 'Dense_0/bias'"):
        fit([50], since=before, network=nn.Dense(3))
    for seed in (-1, 1.5, 2**31):
        with pytest.raises(ValueError, match=r"seeds must lie between 0 and 2\*\*31 - 1, got"):
            sp_jax.fit_rounds(seed, X, Y, network=Net())


@pytest.mark.slow
def test_wide_numbers_are_narrowed_without_a_word():
    wide = sp_jax.fit_rounds(0, X.astype(np.float64), Y, network=Net(), batch_size=32, convergence=FEW)
    assert equal(wide.state, sp_jax.fit_rounds(0, X, Y, network=Net(), batch_size=32, convergence=FEW).state)


@pytest.mark.slow
def test_random_streams_pass_through_a_choice_and_a_recalibration():
    before = fit([50], network=NETWORKS["nnx"])
    model = models.as_model(NETWORKS["nnx"], X)
    grid, options = [(1.0, 0.0), (0.5, 0.1), (0.2, 0.1)], {"validation": HELD, "convergence": FEW}
    found = sp_jax.tune_restart(0, X, Y, before, network=NETWORKS["nnx"], grid=grid, **options)
    assert len(found.table) == 3
    masks = jnp.ones((2, 20), bool)
    new = sp_jax.recalibrate(model, before.state.params, before.state.batch_stats, X[:40].reshape(2, 20, 6), masks)
    assert equal(new["drop"], before.state.batch_stats["drop"])
    body = jax.tree.map(np.asarray, before.state.params["body"])
    hidden = X[:40].reshape(2, 20, 6) @ body["kernel"] + body["bias"]
    np.testing.assert_allclose(new["norm"]["var"], hidden.var(axis=1).mean(axis=0), rtol=1e-4)


def test_padding_never_reaches_a_network_that_takes_no_mask():
    inputs, mask = jnp.arange(6.0)[:, None], jnp.arange(6) < 4
    np.testing.assert_array_equal(models.padding.without_padding(inputs, mask)[:, 0], [0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(models.padding.without_padding(inputs, None), inputs)


@pytest.mark.slow
def test_each_choice_is_what_fit_rounds_would_have_given():
    before = fit([50, 100])
    grid = [(1.0, 0.0), (0.6, 0.01), (0.0, 1.0)]
    found = sp_jax.tune_restart(
        0, X[:150], Y[:150], before, network=Net(), validation=HELD, grid=grid, batch_size=32,
        convergence=Convergence(0.95, max_epochs=40),
    )  # fmt: skip
    for choice in found.table:
        alone = fit(
            [150], since=before, shrink=choice.shrink, noise_scale=choice.noise_scale,
            convergence=Convergence(0.95, max_epochs=40),
        ).history[-1]  # fmt: skip
        assert (choice.accuracy, choice.samples_seen) == (alone.validation_accuracy, alone.samples_seen)
        assert choice.converged == alone.converged
    assert found.samples_seen == sum(choice.samples_seen for choice in found.table)
    assert [c.accuracy for c in found.table] == sorted((c.accuracy for c in found.table), reverse=True)


def results(*cells):
    """[settings, seeds, fields] of (accuracy, samples visited)."""
    row = monday().history[0]
    made = [[row._replace(validation_accuracy=a, samples_seen=n) for a, n in cell] for cell in cells]
    return np.array(made, object)


def test_the_rule_is_the_cheapest_within_one_standard_error_of_the_best():
    grid = [(1.0, 0.0), (0.6, 0.01), (0.4, 0.1)]
    # The best is 0.80; with 100 validation samples its standard error is sqrt(0.8 * 0.2 / 100) = 0.04.
    tuned = tuning._choose(grid, results([(0.759, 10)], [(0.761, 20)], [(0.80, 30)]), 100)
    assert tuned.best[:2] == (0.6, 0.01)
    assert tuned.standard_error == pytest.approx(0.04)
    assert tuned.samples_seen == 60
    # Three seeds: deviation 0.01, so the standard error of the mean is 0.01 / sqrt(3).
    seeds = results([(0.78, 10)] * 3, [(0.793, 20)] * 3, [(0.79, 30), (0.80, 30), (0.81, 30)])
    tuned = tuning._choose(grid, seeds, 100)
    assert tuned.standard_error == pytest.approx(0.01 / 3**0.5)
    assert tuned.best[:2] == (0.4, 0.1)


def test_a_grid_is_checked_before_anything_runs():
    before = monday()
    for grid, message in (([], "at least one pair"), ([(2.0, 0.1)], "shrink"), ([(0.5, -1.0)], "noise_scale")):
        with pytest.raises(ValueError, match=message):
            sp_jax.tune_restart(0, X, Y, before, network=Net(), validation=HELD, grid=grid)


DROPPED = {"network": Dropped, "convergence": FEW, "validation": HELD}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A fit with statistics and random streams, and where it is saved."""
    path = tmp_path_factory.mktemp("saved") / "days" / "monday.safetensors"
    monday = sp_jax.fit_rounds(0, X[:100], Y[:100], **DROPPED)
    sp_jax.save_fit(path, monday)
    return monday, path


@pytest.mark.slow
def test_a_fit_that_was_saved_goes_on_as_if_it_had_stayed(saved):
    again = sp_jax.load_fit(saved[1], X, network=Dropped)
    tuesday, other = (sp_jax.fit_rounds(0, X[:150], Y[:150], since=each, **DROPPED) for each in (saved[0], again))
    np.testing.assert_array_equal(other.predict(X), tuesday.predict(X))
    assert [day._replace(seconds=0) for day in other.history] == [day._replace(seconds=0) for day in tuesday.history]


def test_a_fit_that_was_saved_predicts_the_same_and_what_is_none_is_named(saved, tmp_path):
    monday, path = saved
    again = sp_jax.load_fit(path, X, network=Dropped)
    np.testing.assert_array_equal(again.predict(X), monday.predict(X))
    with pytest.raises(
        ValueError, match=r"is another one: params/Dense_0/bias is missing, the model's is float32\[3\]"
    ):
        sp_jax.load_fit(path, X, network=Net())
    path = tmp_path / "network.safetensors"
    sp_jax.networks.save(path, sp_jax.models.as_model(Net(), X).init(jax.random.key(0))[0])
    with pytest.raises(ValueError, match="holds a network but no fit"):
        sp_jax.load_fit(path, X, network=Net())
    with pytest.raises(ValueError, match="there is no network"):
        sp_jax.load_fit(tmp_path / "none.safetensors", X, network=Net())
