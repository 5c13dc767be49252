"""What happens to the whole training state between two rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import some_slow

import sp_jax
from sp_jax import models, restarts
from sp_jax.types import TrainState


class Net(nn.Module):
    """Linear, BatchNorm, ReLU, linear."""

    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, mask=None, train=False):
        x = nn.Dense(4, name="body")(x)
        mask = None if mask is None else mask[:, None]
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, name="norm")(x, mask=mask)
        return nn.Dense(3, name="head")(nn.relu(x))


def state(seed, module=None, **stats):
    model = models.from_module(module or Net(), jnp.zeros((1, 5)))
    params, batch_stats = jax.jit(model.init)(jax.random.key(seed))
    batch_stats = jax.tree.map(lambda x: x + stats.get("shift", 0.0), batch_stats)
    opt_state = optax.adam(1e-3).init(params)
    opt_state = jax.tree.map(lambda x: x + stats.get("count", 0), opt_state)
    return model, TrainState(params, batch_stats, opt_state)


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


model, OLD = state(0, shift=3.0, count=5)
_, FRESH = state(1)
KEY = jax.random.key(2)


def test_warm_start_keeps_parameters_and_resets_the_rest():
    new = restarts.make_restart(restarts.warm_start)(KEY, OLD, FRESH, shrink=0.3, noise_scale=0.3)
    assert equal(new, TrainState(OLD.params, FRESH.batch_stats, FRESH.opt_state))


def test_policies_keep():
    restart = restarts.make_restart(restarts.warm_start, statistics="keep", optimizer_state="keep")
    assert equal(restart(KEY, OLD, FRESH, shrink=1, noise_scale=0), OLD)


@pytest.mark.parametrize("policy", ["reset", "keep"])
def test_random_init_is_the_fresh_state_whatever_the_policies(policy):
    restart = restarts.make_restart(restarts.random_init, statistics=policy, optimizer_state=policy)
    assert equal(restart(KEY, OLD, FRESH, shrink=0, noise_scale=1), FRESH)


def test_shrink_perturb_has_warm_start_and_random_init_as_its_edges():
    restart = restarts.make_restart(restarts.shrink_perturb)
    warm = restarts.make_restart(restarts.warm_start)(KEY, OLD, FRESH, shrink=1, noise_scale=0)
    assert equal(restart(KEY, OLD, FRESH, shrink=1.0, noise_scale=0.0), warm)
    assert equal(restart(KEY, OLD, FRESH, shrink=0.0, noise_scale=1.0), FRESH)


def test_shrink_perturb_touches_every_parameter_norms_and_biases_included():
    new = restarts.make_restart(restarts.shrink_perturb)(KEY, OLD, FRESH, shrink=0.4, noise_scale=0.1)
    expected = jax.tree.map(lambda p, f: 0.4 * p + 0.1 * f, OLD.params, FRESH.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new.params, expected)


def test_noise_only_of_one_scale_or_of_each_initialiser():
    fresh = restarts.make_restart(restarts.fresh_noise)(KEY, OLD, FRESH, shrink=0.1, noise_scale=0.5)
    expected = jax.tree.map(lambda p, f: p + 0.5 * f, OLD.params, FRESH.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), fresh.params, expected)
    big = TrainState({"k": jnp.zeros(20_000), "b": jnp.zeros(20_000)}, {}, ())
    gaussian = restarts.make_restart(restarts.gaussian_noise)(KEY, big, big, shrink=0.1, noise_scale=0.01)
    for leaf in gaussian.params.values():
        assert abs(float(jnp.std(leaf)) - 0.01) < 3e-4


def test_only_the_named_layer_changes():
    new = restarts.make_restart(restarts.only_layers("head"))(KEY, OLD, FRESH, shrink=0.0, noise_scale=1.0)
    assert equal(new.params["head"], FRESH.params["head"])
    assert equal(new.params["body"], OLD.params["body"])
    assert equal(new.params["norm"], OLD.params["norm"])
    with pytest.raises(ValueError, match="matches no floating leaf"):
        restarts.make_restart(restarts.only_layers("last"))(KEY, OLD, FRESH, shrink=0.5, noise_scale=0.1)


@pytest.mark.parametrize("momentum", some_slow([0.9, 0.99], 0.99))
def test_recalibrated_statistics_equal_numpy(momentum):
    model, old = state(0, Net(momentum))
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, 6, 5)).astype(np.float32) * 20 + 3
    masks = np.ones((4, 6), bool)
    masks[2, 4:] = False
    masks[3] = False
    restart = restarts.make_restart(restarts.warm_start, statistics="recalibrate", model=model)
    new = jax.jit(restart)(KEY, old, FRESH, shrink=1.0, noise_scale=0.0, batches=(inputs, masks))
    body = jax.tree.map(np.float64, old.params["body"])
    hidden = [inputs[i][masks[i]] @ body["kernel"] + body["bias"] for i in range(3)]
    weights = [6, 6, 4]
    mean = np.average([h.mean(0) for h in hidden], axis=0, weights=weights)
    variance = np.average([h.var(0) for h in hidden], axis=0, weights=weights)
    np.testing.assert_allclose(new.batch_stats["norm"]["mean"], mean, rtol=2e-5, atol=1e-4)
    np.testing.assert_allclose(new.batch_stats["norm"]["var"], variance, rtol=2e-5)


def test_a_network_without_statistics_has_nothing_to_recalibrate():
    assert sp_jax.recalibrate(model, OLD.params, {}, jnp.zeros((1, 2, 5)), jnp.ones((1, 2), bool)) == {}


@pytest.mark.parametrize("policy", ["reset", "reset_changed"])
def test_what_is_reset_of_an_optimiser_may_begin_with_the_restarted_parameters(policy):
    optimizer = optax.contrib.schedule_free_sgd(0.1)
    old = TrainState(OLD.params, OLD.batch_stats, optimizer.init(jax.tree.map(lambda x: x + 9, OLD.params)))
    fresh = TrainState(FRESH.params, FRESH.batch_stats, optimizer.init(FRESH.params))
    restart = restarts.make_restart(restarts.only_layers("head"), optimizer_state=policy, optimizer=optimizer)
    new = restart(KEY, old, fresh, shrink=0.5, noise_scale=0.1)
    assert equal(new.opt_state.z["head"], new.params["head"])
    kept = new.params if policy == "reset" else old.opt_state.z
    assert equal(new.opt_state.z["body"], kept["body"])


def test_unknown_policies_raise():
    with pytest.raises(ValueError, match="statistics must be one of reset, keep, recalibrate, got 'rest'"):
        restarts.make_restart(restarts.warm_start, statistics="rest")
    with pytest.raises(ValueError, match="optimizer_state must be one of reset, keep"):
        restarts.make_restart(restarts.warm_start, optimizer_state="adam")
    with pytest.raises(ValueError, match="needs the model"):
        restarts.make_restart(restarts.warm_start, statistics="recalibrate")
    restart = restarts.make_restart(restarts.warm_start, statistics="recalibrate", model=model)
    with pytest.raises(ValueError, match="needs batches"):
        restart(KEY, OLD, FRESH, shrink=1, noise_scale=0)
