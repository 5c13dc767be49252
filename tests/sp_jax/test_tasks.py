"""Tasks, weights, windows, rules and augmentation, against loops written by hand."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import SMALL, TRAINER, some_slow

import sp_jax
from sp_jax import augmentation, restarts, sweeps, tasks, training
from sp_jax.engine import streamed
from sp_jax.fitting import arrays
from sp_jax.random import Purpose, key_for
from sp_jax.training import Convergence
from sp_jax.types import Dataset, HParams

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 5)).astype(np.float32)
TRUTH = RNG.normal(size=(5, 3)).astype(np.float32)
REAL = (X @ TRUTH + 0.1 * RNG.normal(size=(120, 3))).astype(np.float32)
WEIGHTS = np.float32(RNG.uniform(size=120) * (RNG.uniform(size=120) > 0.2))
LABELS = {
    "classification": REAL.argmax(1),
    "binary": (REAL[:, 0] > 0).astype(int),
    "multilabel": (REAL > 0).astype(int),
    "regression": REAL,
}
RATE, BATCH = 0.1, 32


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(task, z, y, variance):
    """Loss, metric and the loss's gradient in the outputs, of each sample."""
    if task == "classification":
        p, hot = softmax(z), np.eye(z.shape[1])[y]
        return -np.log(p[np.arange(len(y)), y]), z.argmax(1) == y, p - hot
    if task == "regression":
        return ((z - y) ** 2).mean(1), (1 - (z - y) ** 2 / variance).mean(1), 2 * (z - y) / z.shape[1]
    y = y.reshape(z.shape)
    loss = np.maximum(z, 0) - z * y + np.log1p(np.exp(-abs(z)))
    return loss.mean(1), ((z > 0) == (y > 0.5)).mean(1), (sigmoid(z) - y) / z.shape[1]


def loop(task, params, x, y, weights, epochs, variance, order_of):
    """SGD of a linear network, as one would write it."""
    w, b = (np.array(params[name], float) for name in ("kernel", "bias"))
    for epoch in range(epochs):
        order, loss, metric, total = order_of(epoch), 0.0, 0.0, 0.0
        for i in range(0, len(order), BATCH):
            chosen = order[i : i + BATCH]
            z = x[chosen].astype(float) @ w + b
            losses, right, gradient = by_hand(task, z, y[chosen], variance)
            share = weights[chosen].astype(float)
            loss, metric, total = loss + share @ losses, metric + share @ right, total + share.sum()
            gradient = gradient * (share / share.sum())[:, None]
            w, b = w - RATE * x[chosen].T.astype(float) @ gradient, b - RATE * gradient.sum(0)
    return {"kernel": w, "bias": b}, metric / total, loss / total


def epoch_order(window, count):
    """The engine's order of an epoch over the newest samples; the first of a round's samples come first."""
    placed = np.concatenate([np.arange(*window), np.zeros(128 - (window[1] - window[0]), int)])
    placed = jnp.asarray(np.where(np.arange(128) < count, placed, np.arange(128)))

    def of(epoch):
        key = key_for(0, Purpose.SHUFFLE, 1, epoch)
        return np.asarray(training.epoch_order(key, placed, count, 128))[:count]

    return of


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("task", some_slow(LABELS, *LABELS.keys() - {"binary"}))
def test_each_task_trains_as_a_loop_by_hand_does(task, weighted):
    y, window, weights = LABELS[task], (20, 90), WEIGHTS if weighted else np.ones(120, np.float32)
    outputs = 1 if task == "binary" else 3
    with jax.enable_x64(True):
        fit = sp_jax.fit_rounds(
            0, X, y, [90], window=70, network=nn.Dense(outputs, param_dtype=float), optimizer=optax.sgd(RATE),
            batch_size=BATCH, convergence=Convergence.exactly(3), task=task, weights=WEIGHTS if weighted else None,
            validation=(X[90:], y[90:]),
        )  # fmt: skip
        start = nn.Dense(outputs, param_dtype=float).init(key_for(0, Purpose.INIT, 0), jnp.zeros((1, 5)))["params"]
        order = epoch_order(window, 70)
        expected, metric, loss = loop(task, start, X, y, weights, 3, np.var(REAL.astype(float), axis=0), order)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dict(fit.state.params), expected)
    assert fit.history[0].train_loss == pytest.approx(loss, abs=1e-6)
    assert fit.history[0].train_accuracy == pytest.approx(metric, abs=1e-6)
    held = by_hand(task, X[90:] @ expected["kernel"] + expected["bias"], y[90:], np.var(REAL.astype(float), axis=0))
    assert fit.history[0].validation_loss == pytest.approx(held[0].mean(), abs=1e-6)
    assert fit.history[0].validation_accuracy == pytest.approx(held[1].mean(), abs=1e-6)


def fit(y=LABELS["classification"], arrivals=(60, 90), **options):
    options = {"network": nn.Dense(3), "batch_size": BATCH, "convergence": Convergence.exactly(2), **options}
    return sp_jax.fit_rounds(0, X, y, arrivals, **options)


@pytest.mark.slow
def test_a_weight_of_zero_is_as_if_the_sample_were_not_there():
    kept = np.flatnonzero(WEIGHTS)
    whole = fit(arrivals=None, weights=(WEIGHTS > 0).astype(int), batch_size=120)
    fewer = sp_jax.fit_rounds(
        0, X[kept], LABELS["classification"][kept], network=nn.Dense(3), batch_size=120,
        convergence=Convergence.exactly(2),
    )  # fmt: skip
    assert whole.history[0].train_loss == pytest.approx(fewer.history[0].train_loss, rel=1e-5)


@pytest.mark.slow
def test_class_weights_balance_what_is_rare():
    y = np.array([0] * 110 + [1] * 10)
    balanced = fit(y, None, network=nn.Dense(2), class_weights="balanced", batch_size=120)
    given = fit(y, None, network=nn.Dense(2), weights=np.where(y == 1, 11, 1), batch_size=120)
    assert balanced.history[0].train_loss == pytest.approx(given.history[0].train_loss, rel=1e-5)
    with pytest.raises(ValueError, match=r"class_weights has no weight for the classes \[1\]"):
        fit(y, None, network=nn.Dense(2), class_weights={0: 1.0})


def test_age_weighs_samples_by_their_half_life():
    aged = fit(arrivals=(60, 90), half_life=10.0)
    weights = 0.5 ** ((89 - np.arange(120)) / 10.0)
    by_weights = fit(arrivals=(90,), weights=np.where(np.arange(120) < 90, weights, 0), since=fit(arrivals=(60,),
        weights=np.where(np.arange(120) < 60, 0.5 ** ((59 - np.arange(120)) / 10.0), 0)))  # fmt: skip
    assert aged.history[1].train_loss == pytest.approx(by_weights.history[1].train_loss, rel=1e-4)


def test_the_visible_samples_of_a_round_may_be_any():
    newest = fit(arrivals=(60, 90), window=30)
    named = fit(arrivals=None, visible=[range(30, 60), range(60, 90)])
    assert [r.num_train for r in newest.history] == [30, 30]
    assert str([r._replace(seconds=0) for r in newest.history]) == str([r._replace(seconds=0) for r in named.history])


def test_windows_and_the_next_day_compile_nothing_new(caplog):
    def compiled(**options):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            found = fit(**options)
        return found, sum("Compiling" in r.getMessage() and "on_device" in r.getMessage() for r in caplog.records)

    first, count = compiled(arrivals=(50, 70, 90), window=40, task="regression", y=REAL)
    assert count == 5  # draw, begin, train, evaluate; the restart before round 2
    second, count = compiled(arrivals=(100, 110), window=40, task="regression", y=REAL, since=first)
    assert count == 0
    assert [r.num_train for r in second.history] == [40] * 5


RULES = {
    "best": (Convergence(monitor="validation_loss", patience=3, restore_best=True, max_epochs=60), "plateau"),
    "threshold of it": (Convergence(monitor="validation_loss", reaches=1.0), "threshold"),
    "train_loss": (Convergence(monitor="train_loss", reaches=0.9), "threshold"),
    "validation_accuracy": (Convergence(monitor="validation_accuracy", reaches=0.5), "threshold"),
    "steps": (Convergence.exactly(steps=7), "budget"),
    "samples": (Convergence.exactly(samples=150), "budget"),
    "whole epochs": (Convergence.exactly(samples=180), "budget"),
    "budget": (Convergence(max_steps=6), "budget"),
}  # fmt: skip


@pytest.mark.parametrize("name", some_slow(RULES, *RULES.keys() - {"best"}))
def test_each_rule_ends_a_round_on_the_devices_and_in_a_stream(name, monkeypatch):
    rule, reason = RULES[name]
    options = {"arrivals": (90,), "convergence": rule, "validation": (X[90:], LABELS["classification"][90:])}
    options |= {"optimizer": optax.sgd(1.0 if rule.restore_best else 0.2)}
    found = fit(**options)
    result = found.history[0]
    assert result.stop_reason == reason
    if rule.restore_best:
        assert result.epochs < 60
        best = min(fit(**options | {"convergence": Convergence.exactly(n)}).history[0].validation_loss
                   for n in range(1, result.epochs + 1))  # fmt: skip
        assert result.validation_loss == pytest.approx(best, rel=1e-3, abs=1e-3)
    seen = {"steps": 90 * 2 + 32, "samples": 150, "whole epochs": 180, "budget": 180}
    assert result.samples_seen == seen.get(name, result.epochs * 90)
    monkeypatch.setattr("sp_jax.engine.memory.of_devices", lambda: 100)
    streams = fit(**options)
    assert str(streams.history[0]._replace(seconds=0)) == str(result._replace(seconds=0))
    jax.tree.map(np.testing.assert_array_equal, streams.state.params, found.state.params)


def test_a_rule_on_validation_needs_validation():
    with pytest.raises(ValueError, match="the rule watches validation_loss: give validation"):
        fit(convergence=Convergence(monitor="validation_loss"))
    with pytest.raises(ValueError, match="monitor must be one of train_accuracy"):
        fit(convergence=Convergence(monitor="validation"))


@pytest.mark.slow
def test_lanes_of_a_regression_train_as_alone():
    first, rule = fit(REAL, (60,), task="regression"), Convergence.exactly(3)
    held = (X[90:], REAL[90:])
    tuned = sp_jax.tune_restart(
        0, X[:90], REAL[:90], first, network=nn.Dense(3), validation=held, grid=[(1, 0), (0.5, 0.1), (0, 1)],
        batch_size=BATCH, convergence=rule,
    )  # fmt: skip
    for choice in tuned.table:
        alone = sp_jax.fit_rounds(
            0, X[:90], REAL[:90], network=nn.Dense(3), validation=held, since=first, shrink=choice.shrink,
            noise_scale=choice.noise_scale, batch_size=BATCH, convergence=rule,
        )  # fmt: skip
        assert alone.history[-1].validation_accuracy == pytest.approx(choice.accuracy, abs=1e-5)
    line = r"visits 270 samples \(.* s\), random init 270 samples \(.* s\): 0% fewer; the trial took .* s, .* compiling"
    assert re.search(line, tuned.saving)
    assert tuned.wall_seconds > tuned.seconds


@pytest.mark.slow
def test_weighted_real_targets_stream_as_they_lie_on_the_devices():
    trainer = TRAINER._replace(task=tasks.regression(variance=2.0), augment=lambda key, x: x + jax.random.normal(key))
    targets = np.float32(np.asarray(SMALL.labels))[:, None]
    data = Dataset(np.asarray(SMALL.inputs, np.float32), targets, 0, "real", np.float32(RNG.uniform(size=len(targets))))
    lanes, found = sweeps.make_lanes([0, 1], HParams(0.01), Convergence.exactly(2), len(targets)), []
    trainer = trainer._replace(model=sp_jax.models.from_module(nn.Sequential([lambda x: x.reshape(len(x), -1),
        nn.Dense(1)]), data.inputs[:1]))  # fmt: skip
    for engine in (
        sweeps.Engine(trainer, data, 2),
        streamed.StreamedEngine(trainer, data, 2, block_bytes=2 * 32 * (64 * 4 + 8) * 2),
    ):
        phase = sweeps.RoundPlan(engine, lanes, 150, restarts.no_restart)
        state, results, _ = sweeps.train_round(phase, 1, engine.place(lanes), None)
        found.append((engine.fetch(state, 2), [r._replace(seconds=0) for r in results]))
    jax.tree.map(np.testing.assert_array_equal, found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.slow
def test_a_user_s_own_task():
    pinball = tasks.Task(
        "pinball",
        lambda outputs, y: jnp.maximum(0.9 * (y - outputs[:, 0]), -0.1 * (y - outputs[:, 0])),
        lambda outputs, y: (y <= outputs[:, 0]).astype(float),
    )
    found = fit(REAL[:, 0], (120,), network=nn.Dense(1), task=pinball, optimizer=optax.adam(0.03),
                convergence=Convergence.exactly(60))  # fmt: skip
    assert found.history[0].train_accuracy == pytest.approx(0.9, abs=0.06)  # the nine tenths below the quantile
    assert found.task is pinball


@pytest.mark.slow
def test_augmentation_draws_anew_each_step_and_the_same_for_a_lane_alone():
    images = RNG.integers(0, 255, size=(40, 8, 8, 3)).astype(np.uint8)
    labels, seen = np.arange(40) % 2, augmentation.flip_crop(jax.random.key(0), images)
    assert seen.dtype == np.uint8
    assert seen.shape == images.shape
    assert (np.asarray(seen) != images).any()
    np.testing.assert_array_equal(augmentation.crop(jax.random.key(1), images, margin=0), images)
    flat = nn.Sequential([lambda x: x.reshape(len(x), -1) / 255.0, nn.Dense(2)])
    how = {"network": flat, "batch_size": 16, "convergence": Convergence.exactly(2)}
    plain = sp_jax.fit_rounds(0, images, labels, **how)
    first = sp_jax.fit_rounds(0, images, labels, augment=augmentation.flip_crop, **how)
    again = sp_jax.fit_rounds(0, images, labels, augment=augmentation.flip_crop, **how)
    assert first.history[0].train_loss == again.history[0].train_loss != plain.history[0].train_loss


class Body(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(8, name="body")(x)))


def test_a_given_network_is_where_the_first_round_begins():
    given = jax.tree.map(np.asarray, Body().init(jax.random.key(7), X[:1])["params"])
    start = fit(network=Body(), params=given, convergence=Convergence.exactly(0), arrivals=(60,))
    jax.tree.map(np.testing.assert_array_equal, start.state.params, given)
    with pytest.raises(ValueError, match="not both"):
        fit(network=Body(), params=given, since=start)
    with pytest.raises(ValueError, match="give those of this one"):
        fit(params=given)


def test_what_is_frozen_has_no_gradient_no_state_and_no_restart():
    given = jax.tree.map(np.asarray, Body().init(jax.random.key(7), X[:1])["params"])
    found = fit(network=Body(), params=given, trainable=sp_jax.layer("head"))
    np.testing.assert_array_equal(found.state.params["body"]["kernel"], given["body"]["kernel"])
    assert (np.asarray(found.state.params["head"]["kernel"]) != given["head"]["kernel"]).any()
    moments = [x.shape for x in jax.tree.leaves(found.state.opt_state) if np.ndim(x) == 2]
    assert moments == [(8, 3), (8, 3)]


def test_a_fit_keeps_its_task_in_its_file(tmp_path):
    first = fit(REAL, (60,), task="regression")
    sp_jax.save_fit(tmp_path / "fit.safetensors", first)
    loaded = sp_jax.load_fit(tmp_path / "fit.safetensors", X, network=nn.Dense(3))
    assert loaded.task.name == "regression"
    assert loaded.task.numbers == first.task.numbers
    one, two = (fit(REAL, (90,), since=each) for each in (first, loaded))
    assert one.history[-1].train_accuracy == two.history[-1].train_accuracy


@pytest.mark.parametrize("task", some_slow(LABELS, "classification", "multilabel"))
def test_scores_are_those_of_the_outputs(task):
    y = LABELS[task]
    found = fit(y, (90,), task=task, network=nn.Dense(1 if task == "binary" else 3))
    scores, z = found.score(X[90:], y[90:]), np.asarray(found.predict(X[90:]), float)
    loss, metric, _ = by_hand(task, z, y[90:], np.var(y[90:].astype(float), axis=0))
    if task == "regression":
        assert scores["r2"] == pytest.approx(metric.mean(), rel=1e-5)
        assert scores["mae"] == pytest.approx(np.abs(z - y[90:]).mean(), rel=1e-5)
        return
    assert scores["log_loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(metric.mean())
    if task == "binary":
        pairs = [(z[i] > z[j]).item() for i in range(30) for j in range(30) if y[90 + i] > y[90 + j]]
        assert scores["auc"] == pytest.approx(np.mean(pairs))
    if task == "classification":
        assert scores["recall_2"] == pytest.approx((z.argmax(1) == 2)[y[90:] == 2].mean())


def frame(values):
    return pytest.importorskip("pandas").DataFrame(values, columns=list("abcde"))


def mapped(values, folder):
    np.save(folder / "x.npy", values)
    return np.load(folder / "x.npy", mmap_mode="r")


class Pairs:
    def __len__(self):
        return 90

    def __getitem__(self, i):
        return X[i], LABELS["classification"][i]


@pytest.mark.slow
def test_inputs_of_every_kind_are_the_same_samples(tmp_path, monkeypatch):
    expected = fit(arrivals=(90,)).history[0].train_loss
    y = LABELS["classification"]
    for inputs in (X.tolist(), jnp.asarray(X), frame(X), mapped(X, tmp_path)):
        assert (
            sp_jax.fit_rounds(
                0, inputs, y, (90,), network=nn.Dense(3), batch_size=BATCH, convergence=Convergence.exactly(2)
            )
            .history[0]
            .train_loss
            == expected
        )
    source = sp_jax.fit_rounds(
        0, Pairs(), None, network=nn.Dense(3), batch_size=BATCH, convergence=Convergence.exactly(2)
    )
    assert source.history[0].train_loss == pytest.approx(expected)
    monkeypatch.setattr("sp_jax.engine.memory.of_devices", lambda: 100)
    read = sp_jax.fit_rounds(0, mapped(X, tmp_path), y, (90,), network=nn.Dense(3), batch_size=BATCH,
                             convergence=Convergence.exactly(2))  # fmt: skip
    assert read.history[0].train_loss == expected


@pytest.mark.parametrize(
    ("library", "of"),
    [
        ("polars", lambda polars, x: polars.DataFrame(dict(zip("abcde", x.T, strict=True))) if x.ndim > 1 else
         polars.Series(x)),
        ("torch", lambda torch, x: torch.tensor(x, requires_grad=x.ndim > 1)),
    ],
)  # fmt: skip
def test_other_libraries_arrays_are_the_same_samples(library, of):
    library, y = pytest.importorskip(library), LABELS["classification"]
    expected, _ = arrays.as_arrays("samples", X, y, "classification")
    found, _ = arrays.as_arrays("samples", of(library, X), of(library, y), "classification")
    jax.tree.map(np.testing.assert_array_equal, tuple(found), tuple(expected))


def test_columns_that_are_no_numbers_are_named():
    words = frame(X).assign(b="word")
    with pytest.raises(ValueError, match="the columns b are not numbers"):
        sp_jax.fit_rounds(0, words, LABELS["classification"], network=nn.Dense(3))


class Words(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.Embed(50, 8)(x["tokens"]) * x["there"][..., None]
        h = nn.Dropout(0.1, deterministic=not train)(h.mean(1))
        return nn.Dense(2)(jnp.concatenate([h, x["features"]], axis=1))


@pytest.mark.slow
def test_dictionaries_of_inputs_with_dropout_train_on_the_devices_and_in_a_stream(monkeypatch):
    tokens, y = RNG.integers(0, 50, (64, 7)), np.arange(64) % 2
    inputs = {"tokens": tokens, "there": np.float32(tokens > 3), "features": X[:64]}
    how = {"network": Words(), "batch_size": 16, "convergence": Convergence.exactly(2), "validation": (inputs, y)}
    found = sp_jax.fit_rounds(0, inputs, y, [40, 64], **how)
    assert found.predict(inputs).shape == (64, 2)
    monkeypatch.setattr("sp_jax.engine.memory.of_devices", lambda: 100)
    streams = sp_jax.fit_rounds(0, inputs, y, [40, 64], **how)
    assert [r._replace(seconds=0) for r in streams.history] == [r._replace(seconds=0) for r in found.history]
    with pytest.raises(ValueError, match=r"'there'.* must be .* with N = 64 targets"):
        sp_jax.fit_rounds(0, inputs | {"there": tokens[:10] > 3}, y, **how)
