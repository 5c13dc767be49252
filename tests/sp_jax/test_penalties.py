"""What is added to the loss, against values worked by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sp_jax import models, penalties, training
from sp_jax.types import HParams, TrainState

ALL = {"none": penalties.none, "confidence": penalties.confidence, "adversarial": penalties.adversarial}
MASK = jnp.array([True, True])


def linear(x):
    """Two classes, logits (x, 0), no batch statistics."""
    return jnp.concatenate([x, jnp.zeros_like(x)], axis=1), {}


def test_confidence_by_hand():
    x, labels = jnp.array([[0.0], [np.log(3.0)]]), jnp.array([0, 0])
    losses, logits, _ = penalties.confidence(linear, x, labels, MASK, 0.1)
    entropy = np.array([np.log(2), -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))])
    np.testing.assert_allclose(losses, [np.log(2), np.log(4 / 3)] - 0.1 * entropy, rtol=1e-5)
    np.testing.assert_array_equal(logits, linear(x)[0])


def test_adversarial_by_hand():
    # label 0: the loss log(1 + exp(-x)) falls with x, so x moves down by ε; label 1: up
    x, labels = jnp.array([[1.0], [-2.0]]), jnp.array([0, 1])
    losses, logits, _ = penalties.adversarial(linear, x, labels, MASK, 0.25)
    softplus = lambda z: np.log1p(np.exp(z))  # noqa: E731
    expected = [(softplus(-1.0) + softplus(-0.75)) / 2, (softplus(-2.0) + softplus(-1.75)) / 2]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(logits, linear(x)[0])


def test_adversarial_strength_is_in_units_of_scaled_pixels():
    pixels, labels = jnp.array([[128], [0]], jnp.uint8), jnp.array([0, 1])
    by_pixels = penalties.adversarial(linear, pixels, labels, MASK, 2 / 255)[0]
    by_floats = penalties.adversarial(linear, models.scale_pixels(pixels), labels, MASK, 2 / 255)[0]
    np.testing.assert_array_equal(by_pixels, by_floats)


@pytest.mark.parametrize("name", ALL)
def test_strength_zero_is_the_plain_loss_and_strength_is_traced(name):
    x, labels = jnp.array([[0.3], [-0.8]]), jnp.array([0, 0])
    plain = penalties.none(linear, x, labels, MASK, 1.0)[0]
    strengths = jnp.array([0.0, 0.1])
    losses = jax.vmap(lambda strength: ALL[name](linear, x, labels, MASK, strength)[0])(strengths)
    np.testing.assert_allclose(losses[0], plain, rtol=1e-6)
    assert (name == "none") == bool(np.allclose(losses[1], plain))


@functools.cache
def network():
    model = models.from_module(models.ResNet(3, width=4, stage_sizes=(1,)), np.zeros((1, 8, 8, 3), np.float32))
    rng, (params, statistics) = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), params)
    return model, params, jax.tree.map(lambda x: np.ones(x.shape, np.float32), statistics)


@functools.cache
def program(penalty, count):
    trainer = training.Trainer(network()[0], training.sgd, count, penalty)
    return jax.jit(lambda *args: training.train_step(trainer, *args))


def step(penalty, inputs, strength, weight_decay=0.0, mask=None):
    _, params, stats = network()
    hparams = HParams(0.1, weight_decay, penalty_strength=strength)
    state = TrainState(params, stats, training.sgd(hparams).init(params))
    mask = jnp.ones(len(inputs), bool) if mask is None else mask
    return params, program(penalty, len(inputs))(hparams, state, inputs, jnp.arange(len(inputs)) % 3, mask)


@pytest.mark.parametrize("name", ["none", "confidence", pytest.param("adversarial", marks=pytest.mark.slow)])
def test_padding_changes_no_penalised_step(name):
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    mask = jnp.arange(6) < 4
    other = np.where(np.asarray(mask)[:, None, None, None], images, 50.0).astype(np.float32)
    one, two = (step(ALL[name], x, 0.05, mask=mask)[1] for x in (images, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, two)


def test_l2_is_coupled_to_the_gradient():
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    params, (plain, loss, _) = step(penalties.none, images, 0.0)
    _, (decayed, same_loss, _) = step(penalties.none, images, 0.0, weight_decay=0.01)
    assert float(loss) == pytest.approx(float(same_loss))
    expected = jax.tree.map(lambda new, old: new - 0.1 * 0.01 * old, plain.params, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), decayed.params, expected)


@pytest.mark.slow
def test_the_step_follows_the_penalised_gradient():
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    results = {name: step(ALL[name], images, 0.5)[1][0].params["head"]["kernel"] for name in ALL}
    assert not np.allclose(results["none"], results["confidence"], atol=1e-5)
    assert not np.allclose(results["none"], results["adversarial"], atol=1e-5)
