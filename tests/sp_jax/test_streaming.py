"""Data larger than a device: streamed rounds are the resident ones bit for bit, and may stop in mid-epoch."""

import contextlib
import itertools
import logging

import jax
import numpy as np
import pytest
from helpers import IMAGES, SMALL, TRAINER, group

from sp_jax import diagnostics, models, restarts, sweeps, training
from sp_jax.engine import streamed
from sp_jax.plasticity.methods import METHODS
from sp_jax.storage.checkpoints import CheckpointError, Store
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams

BLOCK = 2 * 32 * (64 * 4 + 4) * 2  # bytes: two batches of `SMALL` for each of two lanes on a device
REASONS = Convergence(
    train_accuracy=np.float32([0.5, 1.1, 1.1, 1.1, 1.1]),
    patience=np.int32([99, 2, 99, 99, 99]),
    min_improvement=np.float32([0, 1, 0, 0, 0]),
    max_epochs=np.int32([40, 40, 3, 5, 40]),
    fixed=np.array([False, False, False, True, False]),
)


def both(trainer, data, num_lanes, *, block_bytes, **options):
    """The resident engine and the streamed one."""
    resident = sweeps.Engine(trainer, data, num_lanes, **options)
    return resident, streamed.StreamedEngine(trainer, data, num_lanes, block_bytes=block_bytes, **options)


def train(engine, lanes, arrivals, restart):
    """The state after the last round, and all results without their times."""
    state, placed, found = None, engine.place(lanes), []
    for round_, phase in enumerate(sweeps.rounds(engine, lanes, restart, arrivals, restart_first=True), 1):
        state, results, _ = sweeps.train_round(phase, round_, placed, state)
        found += [result._replace(seconds=0.0) for result in results]
    return engine.fetch(state, len(lanes.seed)), found


def assert_same(engines, lanes, arrivals, restart):
    (one, rows), (two, streamed) = (train(engine, lanes, arrivals, restart) for engine in engines)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert str(rows) == str(streamed)  # as text, in which a NaN is what it is
    return rows


@pytest.mark.slow
def test_streamed_rounds_are_the_resident_ones_bit_for_bit(monkeypatch):
    """Several rounds, partial last batches, two devices, lanes that stop for each of the reasons and make room."""
    monkeypatch.setattr("sp_jax.engine.engine.CHUNK_SECONDS", 1e-6)  # an epoch each
    engines = both(TRAINER, SMALL, 5, block_bytes=BLOCK, side_by_side=2)
    hparams = HParams(np.float32([0.01, 0.01, 0.01, 0.01, np.inf]), 0.0, 0.5, 0.1)
    lanes = sweeps.make_lanes(range(5), hparams, REASONS, 300)
    rows = assert_same(engines, lanes, (70, 150), restarts.make_restart(restarts.shrink_perturb))
    assert [row.stop_reason for row in rows[:5]] == ["threshold", "plateau", "cap", "fixed", "nan"]


@pytest.mark.slow
def test_a_resnet_has_its_statistics_recalibrated_from_the_stream():
    model = models.from_module(models.ResNet(3, width=2, stage_sizes=(1,)), IMAGES.inputs)
    engines = both(Trainer(model, training.sgd, 16), IMAGES, 1, block_bytes=2 * 16 * 200)
    restart = restarts.make_restart(restarts.shrink_perturb, statistics="recalibrate", model=model)
    lanes = sweeps.make_lanes([0], HParams(0.1, 0.0, 0.5, 0.1), Convergence.exactly(2), 90)
    assert_same(engines, lanes, (24, 40), restart)  # 16 + 8, 2 x 16 + 8


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["round", "never"])
def test_a_stream_is_shuffled_when_it_is_said(shuffle):
    lanes = sweeps.make_lanes([0], HParams(0.01, 0.0, 0.5, 0.1), Convergence.exactly(3), 300)
    engines = both(TRAINER._replace(shuffle=shuffle), SMALL, 1, block_bytes=BLOCK)
    assert_same(engines, lanes, (70, 150), restarts.make_restart(restarts.shrink_perturb))


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [{"batches_per_chunk": 3}, {"arrivals": (45, 100, 150)}])
def test_dash_sweeps_the_stream_for_the_hare_and_for_the_tortoise(chunks):
    trainer = TRAINER._replace(method=METHODS["hare_tortoise"], optimizer=training.sgd)
    engines = both(trainer, SMALL, 1, block_bytes=BLOCK)
    lanes = sweeps.make_lanes([0], HParams(0.01, 0.0, 0.3, method_strength=0.9), Convergence.exactly(2), 300)
    restart = restarts.make_dash(TRAINER.model, **chunks)
    assert_same(engines, lanes, (100, 150), restart)


def test_a_restart_that_does_not_say_what_it_needs_gets_none():
    def restart(key, state, fresh, *, shrink, noise_scale, batches=None):
        return restarts.make_dash(TRAINER.model)(key, state, fresh, shrink=0.3, noise_scale=0.0, batches=batches)

    engine = streamed.StreamedEngine(TRAINER, SMALL, 1)
    lanes = engine.place(group("warm_start", 1, 0, seeds=[0]).lanes)
    with pytest.raises(ValueError, match="DASH needs batches"):
        engine.begin(lanes, engine.init(lanes), restart, 1, 60)


@pytest.mark.slow
def test_gradient_norms_are_measured_on_streamed_data():
    resident, streamed = both(TRAINER, SMALL, 2, block_bytes=BLOCK)
    lanes = group("warm_start", 1, 0, seeds=[0, 1]).lanes
    measure, found = diagnostics.gradient_norms(TRAINER), []
    for engine in (resident, streamed):
        placed = engine.place(lanes)
        norms = engine.measure(measure, placed, engine.init(placed), np.int32(60), np.int32(190))
        found.append(engine.fetch(norms, 2))
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert (found[0]["gradient_norm_new"] > 0).all()


@pytest.mark.slow
def test_a_round_that_stops_in_the_middle_of_an_epoch_goes_on_to_the_same_parameters(tmp_path):
    lanes = group("warm_start", 1, 0, seeds=[0, 1]).lanes

    def begin():
        engine = streamed.StreamedEngine(TRAINER, SMALL, 2, block_bytes=1)  # a batch at least
        placed = engine.place(lanes)
        return engine, placed, engine.begin(placed, engine.init(placed), restarts.no_restart, 1, 190)

    def end(engine, placed, progress):
        return engine.fetch(engine.train(placed, progress, 1, 190), 2)

    whole = end(*begin())
    engine, placed, progress = begin()
    seen = [(int(p.epoch[0]), int(p.samples[0])) for p in engine.epoch(placed, progress, 1, 190)]
    assert seen == [(0, 32), (0, 64), (0, 96), (0, 128), (0, 160), (1, 0)]
    engine, placed, progress = begin()
    progress = next(p for p in engine.epoch(placed, progress, 1, 190) if p.samples[0] == 64)
    saved = {"lanes": engine.fetch(progress, 2)}
    Store(tmp_path).save(saved, {})
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    progress = Store(tmp_path).load(Store(tmp_path).resume()[0], like)["lanes"]
    other = streamed.StreamedEngine(TRAINER, SMALL, 2, block_bytes=BLOCK)  # four batches of a lane
    placed = other.place(lanes)
    jax.tree.map(np.testing.assert_array_equal, whole, end(other, placed, other.place(progress)))
    resident = sweeps.Engine(TRAINER, SMALL, 2)
    with pytest.raises(CheckpointError, match="in the middle of an epoch of a stream: go on with --stream"):
        resident.train(resident.place(lanes), resident.place(progress), 1, 190)


def test_a_streamed_run_that_is_stopped_after_any_block_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("sp_jax.engine.engine.CHUNK_SECONDS", 1e-6)  # a block each
    engine = streamed.StreamedEngine(TRAINER, SMALL, 2, block_bytes=1)
    lanes = sweeps.make_lanes([0, 1], HParams(0.01), Convergence.exactly(2), 300)
    groups = [sweeps.Group("g", sweeps.rounds(engine, lanes, restarts.no_restart, (60, 100)))]

    def train(folder, stop_after=None):
        chunks, looked = itertools.count(1), []
        watch = sweeps.Callbacks(
            on_chunk=lambda _, round_, p: looked.append((round_, int(p.epoch[0]), int(p.samples[0]))),
            stop=lambda: next(chunks) == stop_after,
        )
        store, found = Store(folder, every=0.0), []
        with contextlib.suppress(sweeps.Stopped):
            for finished in sweeps.run(groups, store=store, watch=watch):
                found += [(*result._replace(seconds=0.0),) for result in finished.results]
        return looked, found

    looked, whole = train(tmp_path / "whole")
    assert looked == [
        *((1, 0, 32), (1, 1, 0), (1, 1, 32), (1, 2, 0)),
        *((2, 0, 32), (2, 0, 64), (2, 0, 96), (2, 1, 0), (2, 1, 32), (2, 1, 64), (2, 1, 96), (2, 2, 0)),
    ]
    for stop_after in (1, 6, 9, 12):
        folder = tmp_path / str(stop_after)
        begun, first = train(folder, stop_after)
        rest, second = train(folder)
        assert begun + rest == looked + [(2, 2, 0)] * (stop_after == 12)
        assert first + second == whole


def test_all_rounds_are_one_compile_and_the_device_never_holds_the_data(caplog, monkeypatch):
    engine = streamed.StreamedEngine(TRAINER, SMALL, 2, block_bytes=BLOCK // 2)
    lanes = group("shrink_perturb", 0.5, 0.1, seeds=[0, 1]).lanes
    before, most, send = {id(x) for x in jax.live_arrays()}, [], engine.source._programs.send

    def watched(tree):
        sent = send(tree)
        held = [x for x in jax.live_arrays() if id(x) not in before and x.shape[-3:] == SMALL.inputs.shape[1:]]
        if isinstance(tree, Dataset):
            most.append(sum(x.nbytes for x in held) / sent.inputs.nbytes)
        return sent

    monkeypatch.setattr(engine.source._programs, "send", watched)
    compiled, restart = [], restarts.make_restart(restarts.shrink_perturb)
    placed, state = engine.place(lanes), None
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for round_, phase in enumerate(sweeps.rounds(engine, lanes, restart, (40, 100, 200)), 1):
            state, _, _ = sweeps.train_round(phase, round_, placed, state)
            messages = [record.getMessage() for record in caplog.records]
            compiled.append(sum(text.startswith("Compiling") and "on_device" in text for text in messages))
    # initialise, begin without a restart, order, train, evaluate; the restart joins in round 2; then nothing more
    assert compiled == [5, 6, 6]
    assert max(most) <= 2  # blocks
