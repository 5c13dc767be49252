"""Streams of tasks: what is visible, what it looks like, and that seeds and rounds are one program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import some_slow

from experiments.config import streams
from experiments.config.settings import Settings
from sp_jax import data, models, restarts, sweeps, training
from sp_jax.data import task_streams
from sp_jax.data.errors import DataError
from sp_jax.engine.streamed import StreamedEngine
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams

rng = np.random.default_rng(0)
PIXELS = Dataset(rng.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8), np.repeat(np.arange(6, dtype=np.int32), 10), 6)
MODEL = models.from_module(models.MLP(6, (8,), nn.relu), PIXELS.inputs)
MADE = {
    "growing": task_streams.growing,
    "sliding_window": task_streams.sliding_window(10, 5),
    "class_incremental": task_streams.class_incremental(PIXELS, 2),
    "permuted_inputs": task_streams.permuted_inputs(),
    "random_labels": task_streams.random_labels(),
    "label_noise": task_streams.label_noise(10),
    "drifting_inputs": task_streams.drifting_inputs(3),
}


def seen(stream, round_, seed=0, dataset=PIXELS):
    """Inputs [N, features] and labels of all samples in a round."""
    found = stream.training(seed, round_, dataset.flat()).take(np.arange(len(dataset)))
    return np.asarray(found.inputs).reshape(len(dataset), -1), np.asarray(found.labels)


def test_the_table_of_streams_is_that_of_the_flag():
    assert set(MADE) == set(streams.STREAMS)


def test_a_window_has_the_newest_samples_and_never_more_than_have_arrived():
    stream, order = task_streams.sliding_window(size=10, step=4), np.arange(23)
    for round_, newest in ((1, 4), (2, 8), (3, 12), (4, 16), (6, 23)):
        visible = min(10, newest)
        found = np.asarray(stream.arranged(0, round_, jnp.asarray(order)))[:visible]
        assert sorted(found.tolist()) == list(range(newest - visible, newest)), round_


def test_classes_come_in_an_order_of_the_seeds_own_and_all_are_of_one_size():
    stream = MADE["class_incremental"]
    order, held_out = stream.order([0, 1, 2], PIXELS.labels)
    assert order.shape == (3, 36)
    assert held_out.shape == (3, 24)
    for each, held in zip(order, held_out, strict=True):
        assert not set(each) & set(held)
        classes = [PIXELS.labels[each[12 * i : 12 * (i + 1)]] for i in range(3)]
        assert all(len(set(found)) == 2 and np.bincount(found).max() == 6 for found in classes)
        of_held = PIXELS.labels[held[:8]]
        assert set(of_held) == set(classes[0])  # the first eight of the validation samples are of the first two classes
    assert len({tuple(PIXELS.labels[each]) for each in order}) > 1
    assert [int(stream.held_out_count(t)) for t in (1, 2, 3, 9)] == [8, 16, 24, 24]


def test_a_class_of_one_sample_cannot_be_held_out():
    rare = Dataset(PIXELS.inputs[:21], PIXELS.labels[:21], 3, "rare")
    with pytest.raises(DataError, match=re.escape("rare: class 2 has 1 samples")):
        task_streams.class_incremental(rare, 2)


@pytest.mark.parametrize("kind", ["pixels", "floats"])
def test_inputs_are_permuted_by_one_order_for_all_samples_and_another_in_each_round(kind):
    dataset = PIXELS if kind == "pixels" else PIXELS.replace(inputs=PIXELS.inputs.astype(np.float32))
    plain, orders = dataset.inputs.reshape(60, -1), []
    for round_ in (1, 2, 3):
        inputs, labels = seen(MADE["permuted_inputs"], round_, dataset=dataset)
        assert inputs.dtype == dataset.inputs.dtype
        order = [int(np.flatnonzero((plain == column[:, None]).all(0))[0]) for column in inputs.T]
        assert sorted(order) == list(range(16))
        np.testing.assert_array_equal(labels, dataset.labels)
        orders.append(tuple(order))
    assert len(set(orders)) == 3
    again, _ = seen(MADE["permuted_inputs"], 2, dataset=dataset)
    np.testing.assert_array_equal(again, plain[:, orders[1]])
    other_seed, _ = seen(MADE["permuted_inputs"], 2, seed=1, dataset=dataset)
    assert (other_seed != again).any()


def test_inputs_drift_from_one_permutation_to_the_next():
    stream, ends = MADE["drifting_inputs"], [seen(MADE["permuted_inputs"], task)[0].astype(float) for task in (1, 2)]
    for round_, share in ((1, 0), (2, 1 / 3), (3, 2 / 3), (4, 1)):
        expected = np.round((1 - share) * ends[0] + share * ends[1])
        np.testing.assert_allclose(seen(stream, round_)[0], expected, atol=1)  # halves may be rounded either way


def test_random_labels_are_the_true_ones_shuffled():
    first, second = (seen(MADE["random_labels"], round_)[1] for round_ in (1, 2))
    for found in (first, second):
        np.testing.assert_array_equal(np.bincount(found), np.bincount(PIXELS.labels))
    assert (first != second).any()
    assert (first != PIXELS.labels).any()


def test_wrong_labels_become_fewer_and_are_right_where_they_are_held_out():
    many = Dataset(np.zeros((20_000, 2), np.float32), rng.integers(0, 5, 20_000).astype(np.int32), 5, "many")
    stream = task_streams.label_noise(10)
    for round_, share in enumerate((*task_streams.NOISE, 0.0, 0.0), 1):
        wrong = np.mean(seen(stream, round_, dataset=many)[1] != many.labels)
        assert abs(wrong - share) < 0.015
    assert (seen(task_streams.label_noise(1), 1, dataset=many)[1] == many.labels).all()
    np.testing.assert_array_equal(stream.held_out(0, 1, many).labels, many.labels)


def run(stream, rounds=3, num_visible=30, seeds=(0, 1), side_by_side=None):
    """Train some rounds on a stream; return the engine, the states and the results of each round."""
    engine = sweeps.Engine(
        Trainer(MODEL, training.sgd, 8, stream=stream), PIXELS, len(seeds), side_by_side=side_by_side
    )
    hparams, rule = HParams(learning_rate=0.1), Convergence.exactly(2)
    lanes = sweeps.lanes_of(seeds, hparams, rule, *stream.order(seeds, PIXELS.labels))
    placed, state, found = engine.place(lanes), None, []
    for round_ in range(1, rounds + 1):
        before = restarts.make_restart(restarts.warm_start) if round_ > 1 else restarts.no_restart
        plan = sweeps.RoundPlan(engine, lanes, num_visible, before)
        state, results, _ = sweeps.train_round(plan, round_, placed, state)
        found.append(results)
    return engine, state, found


@pytest.mark.parametrize(
    "name", some_slow(["permuted_inputs", "random_labels", "class_incremental"], "permuted_inputs", "random_labels")
)
def test_a_round_trains_on_what_the_stream_shows_and_nothing_else(name):
    """The same as training by hand on the data set as it looks in each round."""
    stream = MADE[name]
    _, state, found = run(stream, rounds=2, num_visible=24, seeds=(3,))
    order, held_out = (x[0] for x in stream.order([3], PIXELS.labels))
    plain = Trainer(MODEL, training.sgd, 8)
    by_hand = None
    for round_ in (1, 2):
        inputs, labels = seen(stream, round_, seed=3)
        dataset = Dataset(inputs.reshape(PIXELS.inputs.shape), labels, 6)
        lane = jax.tree.map(
            lambda x: jnp.asarray(x[0]),
            sweeps.lanes_of([3], HParams(learning_rate=0.1), Convergence.exactly(2), order[None], held_out[None]),
        )
        fresh = training.init_state(plain, lane, 0)
        start = fresh if by_hand is None else by_hand.replace(opt_state=fresh.opt_state)
        done = training.train_round(plain, lane, dataset, lane.convergence.start(start), round_, 24, 10)
        by_hand = done.state
        count = len(held_out) if stream.held_out_count is None else int(stream.held_out_count(round_))
        evaluation = training.evaluate(MODEL, by_hand, dataset, held_out[:count])
        assert found[round_ - 1][0].validation_accuracy == pytest.approx(float(evaluation.accuracy), abs=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6),
        jax.device_get(state.params),
        by_hand.params,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_lanes_side_by_side_are_those_alone_and_all_rounds_are_one_compile(name):
    engine, state, found = run(MADE[name], seeds=(0, 1), side_by_side=2)
    compiled = engine.compile_seconds
    _, alone, other = run(MADE[name], seeds=(1,))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b[0], rtol=1e-4, atol=1e-5),
        *(jax.device_get(each.params) for each in (state, alone)),
    )
    assert [r[1].train_accuracy for r in found] == pytest.approx([r[0].train_accuracy for r in other])
    lanes = engine.place(
        sweeps.lanes_of((0, 1), HParams(), Convergence.exactly(1), *MADE[name].order((0, 1), PIXELS.labels))
    )
    progress = engine.begin(lanes, state, restarts.make_restart(restarts.no_restart), 9, 30)
    engine.evaluate(lanes, engine.train(lanes, progress, 9, 30).state, 9)
    assert engine.compile_seconds - compiled < 5  # a restart that was not there; no program of training


def test_lanes_of_several_streams_share_a_program_and_are_those_alone():
    names = ("growing", "permuted_inputs", "random_labels", "drifting_inputs", "label_noise", "sliding_window")
    together = task_streams.either(*(MADE[name] for name in names))
    for i, name in enumerate(names):
        dataset, order = PIXELS.flat(), jnp.arange(60)
        for function in ("training", "held_out"):
            one, two = (getattr(each, function)(1, 4, dataset).take(order) for each in (together.at(i), MADE[name]))
            np.testing.assert_array_equal(one.inputs, two.inputs)
            np.testing.assert_array_equal(one.labels, two.labels)
        np.testing.assert_array_equal(together.at(i).arranged(1, 4, order), MADE[name].arranged(1, 4, order))
    with pytest.raises(ValueError, match="split of their own"):
        task_streams.either(MADE["growing"], MADE["class_incremental"])


def test_online_accuracy_is_the_mean_over_all_epochs_of_a_round():
    engine = sweeps.Engine(Trainer(MODEL, training.sgd, 8), PIXELS, 1)
    lanes = sweeps.make_lanes([0], HParams(learning_rate=0.1), Convergence.exactly(4), len(PIXELS))
    placed, seen = engine.place(lanes), []
    progress = engine.begin(placed, engine.init(placed), restarts.no_restart, 1, 30)
    engine.train(placed, progress, 1, 30, on_epoch=lambda p: seen.append(float(engine.fetch(p.train_accuracy)[0])))
    _, results, _ = sweeps.train_round(sweeps.RoundPlan(engine, lanes, 30), 1, placed, None)
    assert results[0].online_accuracy == pytest.approx(np.mean(seen[1:]), abs=1e-6)


def test_a_round_that_is_not_said_is_refused_where_it_matters():
    engine, state, _ = run(MADE["permuted_inputs"], rounds=1)
    lanes = engine.place(sweeps.make_lanes([0, 1], HParams(), Convergence(), len(PIXELS)))
    with pytest.raises(ValueError, match="say which, as round_=1"):
        engine.evaluate(lanes, state)


def test_streams_of_tasks_do_not_stay_on_the_host():
    trainer = Trainer(MODEL, training.sgd, 8, stream=MADE["random_labels"])
    with pytest.raises(ValueError, match="must lie"):
        StreamedEngine(trainer, PIXELS, 1)


def test_samples_that_tune_and_those_that_count_have_none_in_common_and_no_seed_either():
    parts = {name: set(streams.part(name, 101).tolist()) for name in streams.PARTS}
    assert len(parts["tuning"]) == len(parts["final"]) == 50
    assert not parts["tuning"] & parts["final"]
    assert parts["tuning"] | parts["final"] <= parts["all"]
    labels = np.zeros(101, int)
    for name in ("tuning", "final"):
        settings = Settings(samples=name)
        indices = streams.indices(settings, task_streams.growing, labels, settings.lane_seeds)
        assert set(np.concatenate(indices, axis=1).ravel().tolist()) <= parts[name]
    assert not set(Settings(samples="tuning").lane_seeds) & set(Settings(samples="final", seeds=1000).lane_seeds)


def test_arrivals_of_each_stream():
    amount = streams.Amount(90, 9)
    found = {name: row.arrivals(Settings(task_stream=name, rounds=3), amount) for name, row in streams.STREAMS.items()}
    assert found["growing"][:3] == (6, 12, 18)
    assert found["sliding_window"] == (6,) * 15
    assert found["class_incremental"] == (50, 90)
    assert found["permuted_inputs"] == found["random_labels"] == found["drifting_inputs"] == (90, 90, 90)
    assert found["label_noise"] == tuple(range(9, 91, 9))
    wide = Settings(task_stream="sliding_window", window_size=20, samples_per_round=10)
    assert streams.STREAMS["sliding_window"].arrivals(wide, amount) == (10, *(20,) * 8)


def test_the_embedded_mixture_can_be_any_stream():
    dataset = data.mixture()
    for name in streams.STREAMS:
        settings = Settings(task_stream=name)
        assert streams.amount(settings, dataset).samples > 0
        streams.stream(settings, dataset).order([0], dataset.labels)
