"""Where lanes run: pools of a whole grid, regrouping, several devices a lane."""

import math

import jax
import numpy as np
import pytest
from helpers import IMAGES, MAKE, SMALL, TRAINER, group, phases, train

from sp_jax import models, restarts, sweeps, training, transforms
from sp_jax.engine import program, streamed
from sp_jax.training import Convergence, Trainer
from sp_jax.types import HParams


@pytest.mark.parametrize("num_devices", [1, 2, 3])
@pytest.mark.parametrize("side_by_side", [1, 2, 4])
def test_regrouping_leaves_no_device_a_batch_more_than_it_must_have(num_devices, side_by_side):
    rng = np.random.default_rng(0)
    slots = 6 * num_devices * side_by_side
    for chance in (0.0, 0.1, 0.5, 0.9, 1.0):
        running = rng.random(slots) < chance
        order = program.regrouped(running, num_devices, side_by_side)
        best = math.ceil(math.ceil(running.sum() / side_by_side) / num_devices)
        if order is not None:
            assert sorted(order) == list(range(slots))
            busy = running[order].reshape(num_devices, -1, side_by_side).any(axis=2).sum(axis=1)
            before = running.reshape(num_devices, -1, side_by_side).any(axis=2).sum(axis=1)
            assert busy.max() == best < before.max()
        else:
            assert running.reshape(num_devices, -1, side_by_side).any(axis=2).sum(axis=1).max() == best


GRID = [group("warm_start", 1, 0), group("random_init", 0, 1), group("shrink_perturb", 0.5, 0.1)]


@pytest.fixture(scope="module")
def by_groups():
    return train(GRID)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "pools"), [(9, [3, 9]), (6, [3, 6, 3]), (4, [3, 3, 3, 3])])
def test_a_grid_trains_as_one_pool_where_there_is_room(room, pools, by_groups):
    engine = sweeps.Engine(TRAINER, SMALL, room)
    found = list(sweeps.run(phases(engine, GRID, (60, 120))))
    trained = {(f.results[0].round, f.results[0].seconds): f.results[0].lanes for f in found if f.trained}
    assert list(trained.values()) == pools
    for f in found:
        alone = by_groups[f.group.name, f.results[0].round]
        assert [r._replace(seconds=0.0, lanes=3) for r in f.results] == alone


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [1, 2])
def test_lanes_that_stop_make_room_and_come_home(side_by_side, monkeypatch):
    monkeypatch.setattr("sp_jax.engine.engine.CHUNK_SECONDS", 1e-6)  # an epoch each
    count, epochs = 7, np.int32([9, 9, 1, 2, 1, 1, 3])
    engine = sweeps.Engine(TRAINER, SMALL, count, side_by_side=side_by_side)
    moves = []
    move = engine._move
    monkeypatch.setattr(engine, "_move", lambda lanes, order: moves.append(order) or move(lanes, order))
    lanes = sweeps.make_lanes(range(count), HParams(0.01), Convergence.exactly(1), 300)
    lanes = lanes.replace(convergence=lanes.convergence.replace(max_epochs=epochs))
    seen = []
    watch = sweeps.Callbacks(lambda g, r, p: seen.append(p.epoch))
    (found,) = sweeps.run([sweeps.Group("uneven", (sweeps.RoundPlan(engine, lanes, 100),))], watch=watch)
    assert [r.epochs for r in found.results] == epochs.tolist()
    assert moves
    for at, epoch in enumerate(seen, 1):  # what the host sees is in the lanes' own order
        np.testing.assert_array_equal(epoch, np.minimum(epochs, at))
    for seed, result in enumerate(found.results):
        alone = sweeps.make_lanes([seed], HParams(0.01), Convergence.exactly(int(epochs[seed])), 300)
        single = sweeps.Engine(TRAINER, SMALL, 1)
        (expected,) = sweeps.run([sweeps.Group("alone", (sweeps.RoundPlan(single, alone, 100),))])
        assert result.train_loss == pytest.approx(expected.results[0].train_loss, rel=1e-5)
        assert result.validation_loss == pytest.approx(expected.results[0].validation_loss, rel=1e-5)
    assert engine.used == epochs.sum()
    assert engine.used <= engine.spent < 0.8 * count * 9  # without regrouping each waits for the slowest


def test_idle_lanes_are_never_trained():
    engine = sweeps.Engine(TRAINER, SMALL, 40)
    lanes = engine.place(group("warm_start", 1, 0).lanes)
    state = engine.fetch(engine.init(lanes))
    assert all((x[3:] == 0).all() for x in jax.tree.leaves(state.params))
    assert np.abs(state.params["head"]["kernel"][:3]).min(axis=(1, 2)).all()
    (found,) = sweeps.run([sweeps.Group("few", (sweeps.RoundPlan(engine, group("warm_start", 1, 0).lanes, 60),))])
    assert engine.used == sum(r.epochs for r in found.results)


def batch_norm_trainer(**options):
    return Trainer(
        models.from_module(models.ResNet(3, width=4, stage_sizes=(1, 1)), IMAGES.inputs), training.sgd, 16, **options
    )


@pytest.mark.slow
def test_a_batch_over_two_devices_trains_as_on_one():
    """BatchNorm's statistics, the partial last batch (40 = 2 x 16 + 8) and the loss are those of the whole batch."""
    lanes = sweeps.make_lanes(range(2), HParams(0.1), Convergence.exactly(3), 90)
    found = {}
    for count in (1, 2):
        engine = sweeps.Engine(batch_norm_trainer(), IMAGES, 2, devices_per_lane=count, devices=jax.devices()[:2])
        placed = engine.place(lanes)
        phase = sweeps.RoundPlan(engine, lanes, 40)
        state, results, _ = sweeps.train_round(phase, 1, placed, None)
        found[count] = engine.fetch(state), results
        if count == 2:
            text = engine._programs.once("train", None)._compiled.as_text()
            assert "all-reduce" in text  # the gradients of two halves of a batch
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found[1][0], found[2][0])
    for one, two in zip(found[1][1], found[2][1], strict=True):
        assert one.train_loss == pytest.approx(two.train_loss, rel=1e-4)
        assert (one.epochs, one.train_accuracy) == (two.epochs, pytest.approx(two.train_accuracy, abs=0.03))


@pytest.mark.parametrize(("count", "message"), [(3, "does not divide the 2 devices"), (0, "does not divide the 2")])
def test_devices_that_cannot_be_divided_are_an_error(count, message):
    with pytest.raises(ValueError, match=message):
        sweeps.Engine(TRAINER, SMALL, 2, devices_per_lane=count)
    with pytest.raises(ValueError, match="does not divide the batch size 33"):
        sweeps.Engine(TRAINER._replace(batch_size=33), SMALL, 2, devices_per_lane=2)


def test_restarts_may_differ_between_lanes():
    engine = sweeps.Engine(TRAINER, SMALL, 3)
    lanes = engine.place(group("shrink_perturb", 0.5, 0.1).lanes)
    state = engine.init(lanes)
    kinds = [MAKE["random_init"], restarts.no_restart, MAKE["shrink_perturb"]]
    mixed = engine.fetch(engine.begin(lanes, state, kinds, 2, 60).state.params)
    for i, kind in enumerate(kinds):
        alone = engine.fetch(engine.begin(lanes, state, kind, 2, 60).state.params)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b[i]), mixed, alone)


@pytest.mark.parametrize(
    ("side_by_side", "devices"),
    [(2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 1), (1, 2), (2, 1)))],
)
def test_a_lane_that_is_lost_stops_for_good_and_the_others_are_the_same_to_the_bit(devices, side_by_side):
    """Its learning rate is beyond all bounds; λ = 0 heals it, once that is bounded again."""
    engine = sweeps.Engine(TRAINER, SMALL, 4, devices=jax.devices()[:devices], side_by_side=side_by_side)
    rates = {"sound": np.float32([0.01] * 4), "lost": np.float32([0.01, 1e38, 0.01, 0.01])}
    found = {}
    for name, rate in rates.items():
        lanes = sweeps.make_lanes(range(4), HParams(0.01, 0.0, 0.5, 0.1), Convergence.exactly(3), 300)
        lost = lanes.replace(hparams=lanes.hparams.replace(learning_rate=rate))
        healed = lanes.replace(hparams=lanes.hparams.replace(shrink=np.float32([0.5, 0, 0.5, 0.5])))
        state, rows = None, []
        for round_, each in enumerate((lost, lost, healed), 1):
            restart = MAKE["shrink_perturb"] if state is not None else restarts.no_restart
            phase = sweeps.RoundPlan(engine, each, 50 * round_, restart)
            state, results, _ = sweeps.train_round(phase, round_, engine.place(each), state)
            rows.append([(r.stop_reason, r.epochs) for r in results])
        found[name] = engine.fetch(state, 4), rows
    (sound, _), (mixed, rows) = found["sound"], found["lost"]
    assert [row[1] for row in rows] == [("nan", 1), ("nan", 0), ("fixed", 3)]
    others = np.array([0, 2, 3])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[others], b[others]), mixed, sound)
    assert all(row[i] == ("fixed", 3) for row in rows for i in others)


def test_an_engine_refuses_what_does_not_fit():
    engine = sweeps.Engine(TRAINER, SMALL, 2)
    lanes = sweeps.make_lanes(range(2), HParams(), Convergence(), 300)
    few = Trainer(models.from_module(models.MLP(3, (4,)), SMALL.inputs), training.adam, 32)
    for make, message in (
        (lambda: sweeps.Engine(few, SMALL, 1), r"must give logits \[B, 10 or more\] for labels 0 to 9, got \(1, 3\)"),
        (lambda: sweeps.Engine(TRAINER, SMALL, 0), "num_lanes must be a whole number, at least 1, got 0"),
        (lambda: sweeps.Engine(TRAINER, SMALL, 1, side_by_side=-1), "side_by_side must be a whole number"),
        (lambda: sweeps.Engine(TRAINER._replace(batch_size=0), SMALL, 1), "batch_size must be a whole number"),
        (lambda: streamed.StreamedEngine(TRAINER, SMALL, 1, block_bytes=0), "block_bytes must be a whole number"),
        (lambda: engine.place(sweeps.make_lanes(range(2), HParams(), Convergence(), 400)), "the data have 300: make"),
        (
            lambda: engine.place(sweeps.make_lanes(range(3), HParams(), Convergence(), 300)),
            "room for 1 to 2 lanes, got 3",
        ),
        (lambda: engine.begin(lanes, None, None, 1, 0), "num_visible must lie between 1 and the 200"),
        (lambda: engine.begin(lanes, None, None, 1, 201), "num_visible must lie between 1 and the 200"),
        (lambda: restarts.make_restart("warm_start"), "rule must be a function"),
        (lambda: transforms.shrink({"a": np.ones(2)}, shrink=0.5, where="a"), "where must be a filter"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_a_restart_says_what_it_reads_of_a_state():
    lanes = sweeps.make_lanes([0, 1], HParams(shrink=0.5, noise_scale=0.1), Convergence.exactly(1), len(SMALL.labels))
    engine = sweeps.Engine(TRAINER, SMALL, 2)
    state = engine.shapes(lanes)

    def read(rule, **policies):
        found = engine.reads(restarts.make_restart(rule, **policies), lanes, state)
        return {name for name in ("params", "opt_state") if any(jax.tree.leaves(getattr(found, name)))}

    assert read(restarts.random_init) == set()
    assert read(restarts.shrink_perturb) == {"params"}
    assert read(restarts.warm_start, optimizer_state="keep") == {"params", "opt_state"}
