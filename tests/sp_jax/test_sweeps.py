"""MANY lanes: the same as each alone, one compile for all rounds, rounds in sequence, checkpoints."""

import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ARRIVALS, MAKE, MODEL, SHORT, SMALL, TRAINER, Setting, group, phases, train

from sp_jax import data, models, restarts, sweeps, training
from sp_jax.random import Purpose, key_for
from sp_jax.storage.checkpoints import Store
from sp_jax.training import Convergence, Trainer
from sp_jax.transforms.filters import layer
from sp_jax.types import Dataset, HParams, StopReason


def values(results):
    return [list(result)[1:-2] for result in results]


def test_each_seed_has_its_own_split_that_all_its_settings_share():
    lanes = sweeps.make_lanes([0, 1, 0], HParams(), Convergence(), 50_000)
    assert lanes.order.shape == (3, 33_333)
    assert lanes.validation.shape == (3, 16_667)
    for i in range(3):
        assert len({*lanes.order[i].tolist(), *lanes.validation[i].tolist()}) == 50_000
    np.testing.assert_array_equal(lanes.order[0], lanes.order[2])
    assert (lanes.order[0] != lanes.order[1]).mean() > 0.99
    assert abs(np.isin(lanes.validation[0], lanes.validation[1]).mean() - 1 / 3) < 0.02


def test_a_vmapped_lane_sees_the_draws_of_the_lane_alone_bit_for_bit():
    lanes = sweeps.make_lanes(range(3), HParams(), SHORT, len(SMALL.labels))

    def draws(lane):
        key = key_for(lane.seed, Purpose.SHUFFLE, 2, 5)
        state = training.init_state(TRAINER, lane, 2)
        noise = jax.random.normal(key_for(lane.seed, Purpose.NOISE, 2), (7,))
        return state.params, training.epoch_order(key, lane.order, 77, 224), noise

    many = jax.jit(jax.vmap(draws))(lanes)
    for i in range(3):
        one = jax.jit(draws)(jax.tree.map(lambda x, i=i: x[i], lanes))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), many, one)


@pytest.fixture(scope="module")
def each_alone():
    groups = [group("shrink_perturb", 0.5, 0.1, seeds=[seed], name=str(seed)) for seed in range(3)]
    return train(groups)


@pytest.mark.parametrize(
    ("devices", "width"),
    [(2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 1), (1, 2), (1, 3), (2, 1), (2, 3)))],
)
def test_lanes_together_give_the_results_of_each_alone(width, devices, each_alone):
    options = {"side_by_side": width, "devices": jax.devices()[:devices]}
    together = train([group("shrink_perturb", 0.5, 0.1, name="all")], engine=options)
    for round_ in (1, 2, 3):
        for seed in range(3):
            (result,), other = each_alone[str(seed), round_], together["all", round_][seed]
            assert (other.epochs, other.stop_reason, other.seed) == (result.epochs, result.stop_reason, seed)
            assert other.train_accuracy == pytest.approx(result.train_accuracy, abs=1e-6)
            assert other.train_loss == pytest.approx(result.train_loss, rel=1e-4)
            assert other.validation_accuracy == pytest.approx(result.validation_accuracy, abs=0.011)


def test_the_edges_of_shrink_perturb_are_warm_start_and_random_init_bit_for_bit():
    found = train(
        [
            group("warm_start", 1, 0),
            group("random_init", 0, 1),
            group("shrink_perturb", 1, 0),
            group("shrink_perturb", 0, 1),
            group("shrink_perturb", 0.5, 0.01),
        ]
    )
    for round_ in (1, 2, 3):
        assert found["warm_start_1_0", round_] == found["shrink_perturb_1_0", round_]
        assert found["random_init_0_1", round_] == found["shrink_perturb_0_1", round_]
    for other in ("random_init_0_1", "shrink_perturb_0.5_0.01"):
        assert values(found["warm_start_1_0", 1]) == values(found[other, 1])  # nothing to restart from
        assert values(found["warm_start_1_0", 2]) != values(found[other, 2])


def test_random_init_forgets_the_rounds_before():
    short = train([group("random_init", 0, 1)], arrivals=(60, 200))
    other = train([group("random_init", 0, 1)], arrivals=(150, 200))
    assert values(short["random_init_0_1", 2]) == values(other["random_init_0_1", 2])


def test_each_round_draws_its_own_network_and_noise_and_its_validation_is_held_out():
    fresh, noisy = group("random_init", 0, 1), group("warm_start", 1, 1)
    noise = restarts.make_restart(restarts.gaussian_noise)
    engine = sweeps.Engine(TRAINER, SMALL, 3)
    lanes = engine.place(fresh.lanes)
    old = engine.init(lanes)
    drawn, added = [engine.fetch(old).params], []
    for round_ in (1, 2):
        new = engine.begin(lanes, old, MAKE["random_init"], round_, 60).state
        expected = jax.jit(jax.vmap(lambda lane, r=round_: training.init_state(TRAINER, lane, r)))(fresh.lanes)
        jax.tree.map(np.testing.assert_array_equal, engine.fetch(new).params, expected.params)
        drawn.append(engine.fetch(new).params)
        added.append(engine.fetch(engine.begin(engine.place(noisy.lanes), old, noise, round_, 60).state).params)
    kernels = [params["head"]["kernel"] for params in (*drawn, *added)]
    for i, one in enumerate(kernels):
        assert all((one != other).mean() > 0.99 for other in kernels[i + 1 :])
        assert (one[0] != one[1]).mean() > 0.99  # seeds
    found = engine.fetch(engine.evaluate(lanes, new))
    for i in range(3):
        state = jax.tree.map(lambda x, i=i: x[i], engine.fetch(new))
        held_out = fresh.lanes.validation[i]
        logits, _ = MODEL.apply(state.params, {}, SMALL.inputs[held_out], None, False)
        assert found.accuracy[i] == pytest.approx(float((logits.argmax(1) == SMALL.labels[held_out]).mean()), abs=1e-6)


def test_a_restart_before_the_first_round_is_a_setting():
    groups = [group("warm_start", 1, 0), group("shrink_perturb", 0.4, 0.1)]
    off, on = (train(groups, arrivals=(60,), restart_first=first) for first in (False, True))
    assert values(off["warm_start_1_0", 1]) == values(on["warm_start_1_0", 1])
    assert values(off["shrink_perturb_0.4_0.1", 1]) == values(off["warm_start_1_0", 1])
    assert values(on["shrink_perturb_0.4_0.1", 1]) != values(off["warm_start_1_0", 1])


def test_other_settings_do_not_share_the_first_round():
    found = train([group("warm_start", 1, 0), group("warm_start", 1, 0, learning_rate=0.001, name="slow")], (60,))
    assert values(found["warm_start_1_0", 1]) != values(found["slow", 1])


def test_results_say_what_happened():
    found = train([group("warm_start", 1, 0)])
    for round_, num_train in enumerate(ARRIVALS, 1):
        for seed, result in enumerate(found["warm_start_1_0", round_]):
            assert (result.seed, result.round, result.num_train, result.lanes) == (seed, round_, num_train, 3)
            assert result.samples_seen == result.epochs * num_train > 0
            assert result.stop_reason in ("threshold", "cap")
            assert result.converged == (result.train_accuracy >= np.float32(0.9))
            assert 0 <= result.validation_accuracy <= 1


def test_one_compile_for_all_rounds_and_settings(caplog):
    groups = [group("shrink_perturb", *pair) for pair in ((1, 0), (0.6, 0.01), (0, 1))]
    engine = sweeps.Engine(TRAINER, SMALL, 3)
    compiled = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for found in sweeps.run(phases(engine, groups, (40, 80, 120, 160, 200))):
            messages = [record.getMessage() for record in caplog.records]
            compiled.append(sum(text.startswith("Compiling") and "on_device" in text for text in messages))
            newest = (found.group.name, found.results[0].round)
    assert newest == ("shrink_perturb_0_1", 5)
    # initialise, begin without a restart, train, evaluate; the restart joins in round 2; then nothing more
    assert compiled[:4] == [4, 4, 4, 5]
    assert set(compiled[4:]) == {5}


def test_hyperparameters_may_be_of_any_kind_of_number():
    lanes = sweeps.make_lanes([0, 1], HParams(1, np.float32(0), jnp.float32(0.5), 1), Convergence(1), 30)
    dtypes = {field: x.dtype.name for field, x in vars(lanes.hparams).items()}
    assert dtypes.pop("decay_every") == "int32"
    assert set(dtypes.values()) == {"float32"}
    assert lanes.convergence.train_accuracy.dtype == np.float32


def test_a_diverging_lane_fails_alone():
    lanes = group("warm_start", 1, 0).lanes
    rates = np.float32([0.01, np.nan, 0.01])
    mixed = Setting("mixed", MAKE["warm_start"], lanes.replace(hparams=lanes.hparams.replace(learning_rate=rates)))
    found = train([mixed], arrivals=(60,))["mixed", 1]
    sound = train([group("warm_start", 1, 0)], arrivals=(60,))["warm_start_1_0", 1]
    assert found[1].stop_reason == "nan"
    assert [found[0], found[2]] == [sound[0], sound[2]]


@pytest.mark.slow
def test_a_resumed_run_gives_what_an_undisturbed_one_gives(tmp_path):
    groups = [group("warm_start", 1, 0), group("shrink_perturb", 0.5, 0.1), group("random_init", 0, 1)]
    whole = train(groups)
    engine = sweeps.Engine(TRAINER, SMALL, 3)
    stopped = {}
    for found in sweeps.run(phases(engine, groups), store=Store(tmp_path)):
        stopped[found.group.name, found.results[0].round] = [r._replace(seconds=0.0) for r in found.results]
        if len(stopped) == 5:  # in the middle of round 2
            break
    resumed = train(groups, store=Store(tmp_path), engine={})
    assert len(resumed) == 6  # a round is saved when all its groups have been taken
    assert stopped | resumed == whole
    assert train(groups, store=Store(tmp_path)) == {}
    more = train(groups, arrivals=(*ARRIVALS[:2], 180), store=Store(tmp_path / "empty"))
    assert len(more) == 9


def test_chunks_reach_the_host(monkeypatch):
    monkeypatch.setattr("sp_jax.engine.engine.CHUNK_SECONDS", 1e-6)  # an epoch each
    seen = []
    groups = [group("warm_start", 1, 0)]
    watch = sweeps.Callbacks(lambda g, r, p: seen.append((len(g), r, p.epoch.max(), p.stop_reason.copy())))
    found = train(groups, (60,), watch=watch)
    assert [epoch for _, _, epoch, _ in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == max(result.epochs for result in found["warm_start_1_0", 1])
    assert (seen[0][3] == StopReason.RUNNING).all()
    assert (seen[-1][3] != StopReason.RUNNING).all()
    monkeypatch.undo()
    assert train(groups, (60,)) == found


@pytest.mark.slow
def test_recalibrated_statistics_come_from_what_has_arrived():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
    images = Dataset(pixels, np.arange(90, dtype=np.int32) % 3, 3)
    module = models.ResNet(3, width=4, stage_sizes=(1,))
    model = models.from_module(module, images.inputs)
    restart = restarts.make_restart(restarts.warm_start, statistics="recalibrate", model=model)
    engine = sweeps.Engine(Trainer(model, training.adam, 16), images, 1)
    lanes = sweeps.make_lanes([0], HParams(), SHORT, 90)
    state = engine.init(engine.place(lanes))
    progress = engine.begin(engine.place(lanes), state, restart, 2, 40)
    seen = lanes.order[0][:40]
    params = engine.fetch(state).params
    stem = models.convolution(
        models.scale_pixels(jnp.asarray(images.inputs[seen])), jnp.asarray(params["stem"]["kernel"][0])
    )
    batches = [np.asarray(stem[i : i + 16]).reshape(-1, 4) for i in (0, 16, 32)]
    mean = np.average([b.mean(0) for b in batches], axis=0, weights=[16, 16, 8])
    found = engine.fetch(progress.state).batch_stats["stem_norm"]["mean"][0]
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-5)


def test_the_learning_rate_falls_by_tens_within_a_round_and_starts_anew_in_the_next():
    rates = [training.at_epoch(HParams(0.1, decay_every=3), epoch).learning_rate for epoch in range(12)]
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.01] * 3 + [0.001] * 6, rtol=1e-6)
    assert training.at_epoch(HParams(0.1), 500).learning_rate == np.float32(0.1)
    sgd = Trainer(MODEL, training.sgd, 32)
    engine = sweeps.Engine(sgd, SMALL, 1)
    made = {}
    for decay_every, epochs in ((0, 2), (2, 2), (2, 3), (1, 3)):
        lanes = sweeps.make_lanes([0], HParams(0.1, decay_every=decay_every), Convergence.exactly(epochs), 300)
        progress = engine.begin(engine.place(lanes), engine.init(engine.place(lanes)), restarts.no_restart, 1, 60)
        made[decay_every, epochs] = engine.fetch(engine.train(engine.place(lanes), progress, 1, 60)).train_loss[0]
    assert made[0, 2] == made[2, 2]
    assert made[2, 3] != made[1, 3]


def test_exactly_no_epochs_only_restarts():
    lanes = sweeps.make_lanes(range(3), HParams(shrink=0.5, noise_scale=0), Convergence.exactly(0), 300)
    engine = sweeps.Engine(TRAINER, SMALL, 3)
    trained, untouched = group("warm_start", 1, 0).lanes, MAKE["shrink_perturb"]
    both = sweeps.Group("both", (sweeps.RoundPlan(engine, trained, 60), sweeps.RoundPlan(engine, lanes, 60, untouched)))
    one, two = (found.results for found in sweeps.run([both]))
    assert [(r.epochs, r.samples_seen, r.stop_reason) for r in two] == [(0, 0, "fixed")] * 3
    assert np.isnan(two[0].train_accuracy)
    assert two[0].validation_loss != one[0].validation_loss


@pytest.mark.slow
def test_a_round_may_have_another_optimiser_batch_size_and_data_set():
    rng = np.random.default_rng(0)
    other = Dataset(rng.normal(size=(90, 8, 8, 1)).astype(np.float32), np.arange(90, dtype=np.int32) % 3, 3, "other")
    first = sweeps.Engine(Trainer(models.from_module(models.MLP(3, (16,)), other.inputs), training.sgd, 7), other, 3)
    second = sweeps.Engine(TRAINER, SMALL, 3)
    hparams = HParams(0.1, shrink=0.5, noise_scale=0.1)
    early = sweeps.make_lanes(range(3), hparams, Convergence.exactly(2), 90)
    late = sweeps.make_lanes(range(3), hparams, Convergence.exactly(0), 300)
    seen = {}

    def measure(phase, round_, lanes, before, after):
        seen[phase.engine] = phase.engine.fetch((before.params, after.params))
        return {}

    for rule, shrink, sigma in (("warm_start", 1, 0), ("shrink_perturb", 0.5, 0.1)):
        restart = restarts.make_restart(getattr(restarts, rule), shapes="redraw")
        phases_ = (sweeps.RoundPlan(first, early, 60), sweeps.RoundPlan(second, late, 200, restart))
        list(sweeps.run([sweeps.Group("both", phases_)], watch=sweeps.Callbacks(measure=measure)))
        trained, begun = seen[first][1], seen[second][0]
        fresh = jax.jit(jax.vmap(lambda lane: training.init_state(TRAINER, lane, 2)))(late).params
        np.testing.assert_array_equal(begun["head"]["kernel"], fresh["head"]["kernel"])  # of other classes: drawn anew
        body = shrink * trained["hidden_0"]["kernel"] + sigma * fresh["hidden_0"]["kernel"]
        np.testing.assert_allclose(begun["hidden_0"]["kernel"], body, rtol=1e-5, atol=1e-7)
        assert (trained["hidden_0"]["kernel"] != seen[first][0]["hidden_0"]["kernel"]).any()
    plain = (sweeps.RoundPlan(first, early, 60), sweeps.RoundPlan(second, late, 200, MAKE["shrink_perturb"]))
    with pytest.raises(ValueError, match="head/bias"):
        list(sweeps.run([sweeps.Group("both", plain)]))


def test_a_frozen_body_stays_bit_for_bit_and_its_head_learns():
    trainer = Trainer(MODEL, training.only(training.adam, layer("head")), 32)
    engine = sweeps.Engine(trainer, SMALL, 3)
    lanes = sweeps.make_lanes(range(3), HParams(0.1, weight_decay=0.1), Convergence.exactly(2), 300)
    seen = {}
    watch = sweeps.Callbacks(
        measure=lambda phase, round_, _, before, after: seen.update(both=engine.fetch((before, after))) or {}
    )
    list(sweeps.run([sweeps.Group("head", (sweeps.RoundPlan(engine, lanes, 60),))], watch=watch))
    before, after = (state.params for state in seen["both"])
    jax.tree.map(np.testing.assert_array_equal, before["hidden_0"], after["hidden_0"])
    assert (before["head"]["kernel"] != after["head"]["kernel"]).all()
    with pytest.raises(ValueError, match="matches no floating leaf"):
        training.only(training.adam, layer("nobody"))(HParams()).init({"head": {"kernel": jnp.ones(3)}})


def test_rounds_are_shared_as_long_as_groups_are_the_same():
    engine = sweeps.Engine(TRAINER, SMALL, 3)
    slow, fast = (group("warm_start", 1, 0, learning_rate=rate).lanes for rate in (0.001, 0.01))
    warm = MAKE["warm_start"]
    first, second = sweeps.RoundPlan(engine, fast, 60), sweeps.RoundPlan(engine, fast, 120, warm)
    made = {
        "short": (first, second),
        "long": (first, second, sweeps.RoundPlan(engine, fast, 200, warm)),
        "slow end": (first, sweeps.RoundPlan(engine, slow, 120, warm)),
        "slow start": (sweeps.RoundPlan(engine, slow, 60), second),
    }
    owners = {}
    for found in sweeps.run([sweeps.Group(*item) for item in made.items()]):
        owners[found.group.name, found.results[0].round] = found.owner
        assert found.trained == (found.owner == found.group.name)
    assert owners == {
        ("short", 1): "short", ("long", 1): "short", ("slow end", 1): "short", ("slow start", 1): "slow start",
        ("short", 2): "short", ("long", 2): "short", ("slow end", 2): "slow end", ("slow start", 2): "slow start",
        ("long", 3): "long",
    }  # fmt: skip


def test_looking_at_every_epoch_changes_nothing():
    seen = []
    watch = sweeps.Callbacks(on_epoch=lambda g, r, lanes, p: seen.append(np.asarray(p.epoch)))
    found = train([group("warm_start", 1, 0)], watch=watch)
    assert found == train([group("warm_start", 1, 0)])
    newest = [0, *np.cumsum([1 + max(r.epochs for r in found["warm_start_1_0", i]) for i in (1, 2, 3)])]
    for start, stop in itertools.pairwise(newest):
        assert [epoch.max() for epoch in seen[start:stop]] == list(range(stop - start))


@pytest.mark.slow
def test_recurrent_lanes_side_by_side_give_the_results_of_each_alone():
    texts = data.reviews()
    texts = Dataset(texts.inputs[:90, :12], texts.labels[:90], 2, "texts")
    trainer = Trainer(models.from_module(models.BiRNN(2, 8192, width=4), texts.inputs), training.adam, 16)

    def losses(seeds, **options):
        engine = sweeps.Engine(trainer, texts, len(seeds), devices=jax.devices()[:1], **options)
        lanes = sweeps.make_lanes(seeds, HParams(0.01), Convergence.exactly(2), 90)
        (found,) = sweeps.run([sweeps.Group("texts", (sweeps.RoundPlan(engine, lanes, 50),))])
        return [result.train_loss for result in found.results]

    together = losses([0, 1], side_by_side=2)
    assert together[0] != together[1]
    assert together[1:] == pytest.approx(losses([1]), rel=1e-4)
