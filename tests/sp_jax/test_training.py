"""ONE lane: the engine's arithmetic against NumPy, masks, convergence, chunks."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import pytest
from flax import linen as nn

from sp_jax import models, training
from sp_jax.random import Purpose, key_for
from sp_jax.training import Convergence, Lane, Trainer
from sp_jax.types import Dataset, HParams, Progress, StopReason, TrainState


class ConvNet(nn.Module):
    """Convolution, BatchNorm, ReLU, mean over the image, linear, BatchNorm, linear."""

    @nn.compact
    def __call__(self, x, mask=None, train=False):
        x = models.Conv(4, name="conv")(x)
        image_mask = None if mask is None else mask[:, None, None, None]
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x, mask=image_mask)
        x = models.Dense(6, name="body")(nn.relu(x).mean((1, 2)))
        flat_mask = None if mask is None else mask[:, None]
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm_2")(x, mask=flat_mask)
        return models.Dense(3, name="head")(nn.tanh(x))


NETWORKS = {
    "logistic": (models.MLP(3, ()), [("flat", ""), ("dense", "head")]),
    "mlp": (
        models.MLP(3, (7, 5), activation=nn.relu),
        [("flat", ""), ("dense", "hidden_0"), ("relu", ""), ("dense", "hidden_1"), ("relu", ""), ("dense", "head")],
    ),
    "batch_norm": (
        ConvNet(),
        [("conv", "conv"), ("norm", "norm"), ("relu", ""), ("pool", ""), ("dense", "body"), ("norm", "norm_2"),
         ("tanh", ""), ("dense", "head")],
    ),
}  # fmt: skip
OPTIMIZERS = {
    "sgd": (training.sgd, numpy_reference.Sgd, 0.1),
    "adam": (training.adam, numpy_reference.Adam, 0.01),
}


def problem(dtype, num_samples=60):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, num_samples).astype(np.int32)
    centres = rng.normal(size=(3, 4, 4, 2))
    inputs = (centres[labels] + 0.3 * rng.normal(size=(num_samples, 4, 4, 2))).astype(dtype)
    return Dataset(inputs, labels, 3)


def lane_of(data, hparams=None, convergence=None, seed=0, train=50):
    order = np.random.default_rng(seed).permutation(len(data.labels)).astype(np.int32)
    return Lane(jnp.int32(seed), hparams or HParams(0.01), convergence or Convergence(), order[:train], order[train:])


def start(trainer, lane, dtype=jnp.float32):
    state = jax.jit(lambda lane: training.init_state(trainer, lane, 0))(lane)
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    return Progress.start(jax.tree.map(cast, state))


def both(name, optimizer, dtype, epochs, num_visible, batch_size=16, threshold=2.0, shuffle="epoch"):
    """The same round by the engine and by NumPy."""
    module, layers = NETWORKS[name]
    make, reference, learning_rate = OPTIMIZERS[optimizer]
    data = problem(dtype)
    convergence = Convergence(train_accuracy=threshold, max_epochs=epochs)
    lane = lane_of(data, HParams(learning_rate, 0.003), convergence)
    trainer = Trainer(models.from_module(module, data.inputs.astype(np.float32)), make, batch_size, shuffle=shuffle)
    progress = start(trainer, lane, dtype)
    copy = lambda tree: jax.tree.map(np.float64, tree)  # noqa: E731
    net = numpy_reference.Net(layers, copy(progress.state.params), copy(progress.state.batch_stats))
    orders = []
    for epoch in range(epochs):
        key = key_for(lane.seed, Purpose.SHUFFLE, 2, epoch if shuffle == "epoch" else 0)
        shuffled = lane.order if shuffle == "never" else training.epoch_order(key, lane.order, num_visible, 64)
        orders.append(np.asarray(shuffled)[:num_visible])
    result = numpy_reference.train_round(
        net, reference(learning_rate, 0.003), data.inputs.astype(np.float64), data.labels, orders, batch_size, threshold
    )
    run = jax.jit(lambda *args: training.train_round(trainer, *args))
    progress = run(lane, data, progress, 2, num_visible, 10_000)
    return progress, net, result


def pairs(*quick):
    """All networks with all optimisers, of which all but some take long together."""
    every = itertools.product(NETWORKS, OPTIMIZERS)
    return [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in quick)) for pair in every]


@pytest.mark.parametrize(("name", "optimizer"), pairs(("mlp", "adam")))
def test_a_whole_round_equals_numpy_in_float64(name, optimizer):
    with jax.enable_x64(True):
        progress, net, (epochs, accuracy, loss) = both(name, optimizer, np.float64, 40, 41, threshold=0.9)
        assert int(progress.epoch) == epochs < 40
        assert int(progress.stop_reason) == StopReason.THRESHOLD
        assert float(progress.train_accuracy) == pytest.approx(accuracy, abs=1e-12)
        assert float(progress.train_loss) == pytest.approx(loss, abs=1e-8)
        check = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)  # noqa: E731
        jax.tree.map(check, progress.state.params, net.params)
        jax.tree.map(check, progress.state.batch_stats, net.stats)


@pytest.mark.parametrize("shuffle", [pytest.param("round", marks=pytest.mark.slow), "never"])
def test_samples_are_shuffled_when_it_is_said(shuffle):
    progress, net, _ = both("logistic", "sgd", np.float32, 3, 41, shuffle=shuffle)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), progress.state.params, net.params)


def test_an_unknown_time_to_shuffle_is_one_line():
    with pytest.raises(ValueError, match="shuffle must be one of epoch, round, never, got 'daily'"):
        both("logistic", "sgd", np.float32, 3, 41, shuffle="daily")


@pytest.mark.parametrize(("name", "optimizer"), pairs(("logistic", "adam")))
def test_an_epoch_equals_numpy_in_float32(name, optimizer):
    progress, net, (_, accuracy, loss) = both(name, optimizer, np.float32, 1, 41)
    assert float(progress.train_accuracy) == pytest.approx(accuracy, abs=1e-6)
    assert float(progress.train_loss) == pytest.approx(loss, abs=1e-4)
    check = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)  # noqa: E731
    if name == "batch_norm" and optimizer == "adam":  # the bias before norm_2 changes nothing: its gradient is nothing
        for params in (progress.state.params, net.params):  # but rounding, of which Adam makes whole steps
            params["body"] = {"kernel": params["body"]["kernel"]}
    jax.tree.map(check, progress.state.params, net.params)
    jax.tree.map(check, progress.state.batch_stats, net.stats)


@pytest.mark.slow
def test_padding_changes_nothing_whatever_stands_there():
    data = problem(np.float32)
    trainer = Trainer(models.from_module(ConvNet(), data.inputs), training.adam, 16)
    lane = lane_of(data)
    state = start(trainer, lane).state
    mask = jnp.arange(16) < 9
    step = jax.jit(lambda inputs: training.train_step(trainer, lane.hparams, state, inputs, data.labels[:16], mask))
    one = step(data.inputs[:16])
    other = step(np.where(np.asarray(mask)[:, None, None, None], data.inputs[:16], 1e3).astype(np.float32))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


@pytest.mark.parametrize("num_visible", [1, 16, 37, 50])
def test_an_epoch_visits_each_sample_that_has_arrived_once(num_visible):
    order = jnp.asarray(np.random.default_rng(0).permutation(1_000)[:50])
    for key in jax.random.split(jax.random.key(0), 3):
        shuffled = training.epoch_order(key, order, num_visible, 64)
        assert shuffled.shape == (64,)
        assert sorted(shuffled[:num_visible].tolist()) == sorted(order[:num_visible].tolist())
    first, second = (
        training.epoch_order(key_for(0, Purpose.SHUFFLE, 1, epoch), order, 50, 50).tolist() for epoch in (0, 1)
    )
    assert first != second


@pytest.mark.slow
def test_chunks_change_nothing():
    data = problem(np.float32)
    trainer = Trainer(models.from_module(ConvNet(), data.inputs), training.adam, 16)
    lane = lane_of(data, convergence=Convergence(train_accuracy=0.97, max_epochs=60))
    run = jax.jit(lambda *args: training.train_round(trainer, *args))
    whole = run(lane, data, start(trainer, lane), 1, 41, 10_000)
    cut, limit = start(trainer, lane), 0
    while int(cut.stop_reason) == StopReason.RUNNING:
        limit += 3
        cut = run(lane, data, cut, 1, 41, limit)
    assert int(whole.epoch) > 3
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def book(convergence, accuracies, losses=None):
    """The stop reason after each of these epochs."""
    progress = Progress.start(TrainState({}, {}, ()))
    reasons = []
    for accuracy, loss in zip(accuracies, losses or [1.0] * len(accuracies), strict=True):
        progress = convergence.update(progress, jnp.float32(accuracy), jnp.float32(loss))
        reasons.append(StopReason(int(progress.stop_reason)).name.lower())
    return reasons


def test_convergence_says_why_it_stopped():
    assert book(Convergence(0.99), [0.5, 0.989, 0.99]) == ["running", "running", "threshold"]
    assert book(Convergence(max_epochs=2), [0.1, 0.2]) == ["running", "cap"]
    assert book(Convergence.exactly(2), [1.0, 1.0]) == ["running", "fixed"]
    assert book(Convergence(), [0.5, 0.5], [1.0, float("nan")]) == ["running", "nan"]
    assert book(Convergence.exactly(5), [0.5, 0.5], [1.0, float("inf")]) == ["running", "nan"]


def test_a_plateau_is_so_many_epochs_without_an_improvement_of_a_tenth_of_a_point():
    creeping = [0.5, 0.5005, 0.501, 0.5015, 0.502]  # two small steps make an improvement
    assert book(Convergence(patience=2), creeping) == ["running"] * 5
    assert book(Convergence(patience=2), [0.5, 0.5005, 0.5009]) == ["running", "running", "plateau"]
    assert book(Convergence(patience=3), [0.5, 0.4, 0.3, 0.2])[-1] == "plateau"


def test_evaluation_uses_running_statistics_and_every_sample_once():
    data = problem(np.float32)
    model = models.from_module(ConvNet(), data.inputs)
    lane = lane_of(data)
    state = start(Trainer(model, training.adam, 16), lane).state
    indices = jnp.arange(7, 60)
    result = training.evaluate(model, state, data, indices, batch_size=20)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jax.jit(ConvNet().apply)(variables, data.inputs[7:])
    log_p = jax.nn.log_softmax(logits)
    assert float(result.accuracy) == pytest.approx(float(np.mean(logits.argmax(1) == data.labels[7:])), abs=1e-6)
    assert float(result.loss) == pytest.approx(-float(np.mean(log_p[np.arange(53), data.labels[7:]])), abs=1e-5)
