"""What was trained can be had back: any lane and round, bit for bit, on any machine, by any program."""

import shutil
from unittest import mock

import jax
import numpy as np
import pytest
import safetensors.numpy
from absl.testing import flagsaver

from experiments import run, trained
from experiments.config import choices, sweep
from experiments.config.fields import UsageError
from experiments.config.settings import Settings
from experiments.records import networks as kept
from experiments.records import results
from experiments.reporting import run_report
from experiments.running import builder
from experiments.specs.base import RoundSpec
from sp_jax import data, sweeps, training
from sp_jax.storage import networks
from sp_jax.storage.checkpoints import CheckpointError, Store
from sp_jax.types import HParams, RoundResult, TrainState

TINY = {"hidden": "8", "seeds": 2, "rounds": 2, "max_epochs": 3, "pairs": "0.6:0.01"}
KEY = jax.random.key(0)
LANE = {"restart": "shrink_perturb", "shrink": 0.6, "noise_scale": 0.01, "seed": 1}


def call(binary=run, **given):
    with flagsaver.flagsaver(**given), mock.patch.object(run_report, "write", return_value=""):
        binary.main(["tests"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("trained") / "run"
    call(workdir=str(made), **TINY)
    return made


def row_of(folder, **which):
    (row,) = (row for row in results.read(folder / "results.csv") if all(row[k] == v for k, v in which.items()))
    return {name: value for name, value in row.items() if name != "seconds"}


@pytest.mark.parametrize("round_", [1, 2])
@pytest.mark.parametrize("restart", ["warm_start", "random_init", "shrink_perturb"])
def test_every_lane_and_round_comes_back_with_the_accuracy_of_its_row(folder, restart, round_):
    for seed in range(2):
        net = trained.load(folder, restart=restart, seed=seed, round=round_)
        assert net.row == row_of(folder, restart=restart, seed=seed, round=round_)
        again = net.evaluate()
        assert results.text(float(again.accuracy)) == results.text(net.row["validation_accuracy"])
        assert float(again.loss) == pytest.approx(net.row["validation_loss"], rel=1e-5)


def test_the_newest_round_has_the_parameters_of_the_checkpoint_bit_for_bit(folder):
    net = trained.load(folder, **LANE)
    assert net.row["round"] == 2
    store = Store(folder / "checkpoints", write=False)
    trainer = choices.trainer(net.settings, data.mixture())
    lanes = sweeps.make_lanes(range(2), HParams(), training.Convergence(), net.num_samples)
    like = jax.eval_shape(jax.vmap(lambda lane: training.init_state(trainer, lane, 0)), lanes)
    name = "shrink_perturb_0.6_0.01"
    saved = store.load(store.resume()[0], {name: like})[name].params
    jax.tree.map(lambda leaf, lanes: np.testing.assert_array_equal(leaf, lanes[1]), net.params, saved)


def test_a_program_without_jax_reads_the_file_and_predicts_the_same(folder):
    net = trained.load(folder, **LANE)
    arrays = safetensors.numpy.load_file(net.path)
    mixture = data.mixture()
    x = np.asarray(mixture.inputs)[data.arrival.split(1, 6000)[1]].reshape(2000, 64)
    hidden = np.tanh(x @ arrays["params/hidden_0/kernel"] + arrays["params/hidden_0/bias"])
    logits = hidden @ arrays["params/head/kernel"] + arrays["params/head/bias"]
    labels = np.asarray(mixture.labels)[data.arrival.split(1, 6000)[1]]
    assert np.mean(logits.argmax(1) == labels) == pytest.approx(net.row["validation_accuracy"], abs=1e-6)
    np.testing.assert_allclose(net.predict(x.reshape(2000, 8, 8, 1)), logits, rtol=1e-4, atol=1e-5)


def test_a_file_says_all_that_is_needed_wherever_it_is(folder, tmp_path):
    net = trained.load(folder, **LANE)
    moved = shutil.copy(net.path, tmp_path / "net.safetensors")
    other = trained.read(moved)
    assert (other.row, other.settings) == (net.row, net.settings)
    jax.tree.map(np.testing.assert_array_equal, other.params, net.params)
    assert other.settings.hidden == (8,)


@pytest.mark.parametrize(
    ("which", "line"),
    [
        ({"restart": "warm_start"}, r"2 networks in .* fit; say more: seed 0, 1"),
        ({}, r"6 networks in .* restart .*shrink .*noise_scale .*seed 0, 1"),
        (
            {"restart": "warm_start", "seed": 7},
            r"no network in .* has restart=warm_start, seed=7; there are .*seed 0, 1",
        ),
        ({"sigma": 0.1}, "unknown column=sigma"),
    ],
)
def test_what_does_not_single_out_a_lane_gets_a_line(folder, which, line):
    with pytest.raises(UsageError, match=line):
        trained.load(folder, **which)


def test_numbers_are_compared_as_numbers(folder):
    assert len(trained.select(folder, shrink=".60", noise_scale="1e-2")) == 4
    assert len(trained.select(folder.parent, experiment="online")) == 12


def test_a_damaged_file_gets_a_line(folder, tmp_path):
    path, content = tmp_path / "net.safetensors", trained.load(folder, **LANE).path.read_bytes()
    assert content == trained.load(folder, **LANE).path.read_bytes()
    rng = np.random.default_rng(0)
    for i in [*rng.integers(0, len(content), 60), 0, 9, len(content) - 1]:
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        with pytest.raises(CheckpointError, match=r"^the network .*net.safetensors is damaged[^\n]*$"):
            networks.load(path)
    path.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        trained.read(path)
    with pytest.raises(CheckpointError, match="there is no network"):
        trained.read(tmp_path / "none.safetensors")


def test_a_network_of_another_shape_is_named(folder):
    path = trained.load(folder, **LANE).path
    with pytest.raises(CheckpointError, match=r"is another one: params/body is missing, the model's is float64\[3\]"):
        networks.load(path, like=({"body": np.zeros(3)}, {}))


@pytest.mark.slow
def test_which_rounds_are_kept_is_a_setting_and_resume_adds_to_them(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(kept, "AUTO_BYTES", 5000)  # a network of logistic regression has 2,600
    call(workdir=str(folder), model="logistic", restart="warm_start", seeds=1, rounds=2, max_epochs=1)
    assert [path.name for path in folder.rglob("*.safetensors")] == ["seed_0_round_2.safetensors"]
    call(workdir=str(folder), resume=True, rounds=3)
    assert sorted(row["round"] for row in trained.select(folder).values()) == [2, 3]
    monkeypatch.setattr(kept, "AUTO_BYTES", 0)
    assert [kept.which(keep, []) for keep in ("all", "last", "none")] == ["all", "last", "none"]


def test_none_is_kept_where_none_is_asked_for(tmp_path):
    call(
        workdir=str(tmp_path), keep_networks="none", model="logistic", restart="warm_start", seeds=1, rounds=1, epochs=1
    )
    assert not (tmp_path / "networks").exists()
    with pytest.raises(UsageError, match="no network was kept in"):
        trained.load(tmp_path)
    with pytest.raises(UsageError, match=r"there is no folder .*/nowhere"):
        trained.load(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_row_that_is_there_keeps_its_network(folder, tmp_path):
    """Trained again after a kill, on a machine that rounds otherwise, a network would not be the row's."""
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    path = copy / trained.load(folder, **LANE).path.relative_to(folder)
    shutil.rmtree(copy / "checkpoints" / "2")
    marked = path.read_bytes()[:-1]  # not what training gives
    path.write_bytes(marked)
    call(workdir=str(copy), resume=True)
    assert path.read_bytes() == marked
    (copy / "results.csv").unlink()
    shutil.rmtree(copy / "checkpoints")
    call(workdir=str(copy), resume=True)
    assert path.read_bytes() == trained.load(folder, **LANE).path.read_bytes()


@pytest.mark.slow
def test_two_data_sets_and_a_method_that_evaluates_another_network(tmp_path):
    given = {"hidden": "8", "fraction": 1.0, "method": "hare_tortoise", "pairs": "0.3:1e-4"}
    few = {"seeds": 1, "max_epochs": 3, "restart": "shrink_perturb"}
    call(experiment="pretraining", workdir=str(tmp_path / "run"), **few, **given)
    first, second = (trained.load(tmp_path / "run", round=i) for i in (1, 2))
    assert (first.settings.dataset, second.settings.dataset) == ("mixture_source", "mixture")
    for net in (first, second):
        assert results.text(float(net.evaluate().accuracy)) == results.text(net.row["validation_accuracy"])


@pytest.mark.parametrize(
    "settings",
    [
        Settings(model="resnet18", width=2, stage_sizes=(1,), seeds=2),
        pytest.param(Settings(model="birnn", width=2, dataset="reviews", seeds=2), marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings.model,
)
def test_batch_statistics_and_words_come_back(tmp_path, settings):
    """As after a round, without training."""
    dataset = data.load(settings.dataset)
    member = sweep.Grid(settings).members()[0]
    group = builder.Builder({dataset.name: dataset}, {}).group(member, [RoundSpec(settings, 64)])
    params, batch_stats = jax.tree.map(
        lambda x: np.stack([x, x + 0.5]), jax.jit(group.phases[0].engine.trainer.model.init)(KEY)
    )
    rows = [{"seed": str(i), "round": "1", "restart": "warm_start"} for i in range(2)]
    report, state = (
        RoundResult(0, 1, 64, 0, 0, "fixed", 0.0, 0.0, 0.0, 0.0, 0.0, 2),
        TrainState(params, batch_stats, ()),
    )
    kept.write(tmp_path, member, sweeps.Finished(group, [report] * 2, group.name, {}, state), rows, rows)
    net = trained.load(tmp_path, seed=1)
    assert jax.tree.structure((net.params, net.batch_stats)) == jax.tree.structure((params, batch_stats))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y[1]), (net.params, net.batch_stats), (params, batch_stats)
    )
    assert jax.eval_shape(net.predict, dataset.inputs[:2]).shape == (2, dataset.num_classes)


def test_the_command_lists_and_measures_again(folder, capsys):
    call(trained, workdir=str(folder), evaluate=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "12 of 12 as in results.csv"
    assert "seed_1_round_2.safetensors" in lines[-3]
