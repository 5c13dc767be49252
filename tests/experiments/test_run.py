"""The real binaries on small settings: files, columns, resume, reports."""

import csv
import dataclasses
import io
import json
import logging
import pathlib
import subprocess
import sys

import grain  # noqa: F401  (defines flags when first imported, which flagsaver would forget again)
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from binaries import call, fails

from experiments import report, run
from experiments.config import choices, fields, setting_flags, settings, sweep
from experiments.config.streams import Amount
from experiments.records import results, run_folder
from experiments.reporting import plotting, summary
from experiments.running import builder, plan, progress
from experiments.specs import registry
from experiments.specs.base import RoundSpec
from sp_jax import data, penalties, restarts, sweeps
from sp_jax.engine import lanes_per_device, streamed
from sp_jax.types import Dataset, RoundResult, TrainState

ROOT = pathlib.Path(__file__).parents[2]
COLUMNS = [
    "experiment", "dataset", "model", "optimizer", "batch_size", "learning_rate", "weight_decay", "restart", "shrink",
    "noise_scale", "seed", "round", "num_train", "epochs", "samples_seen", "converged", "stop_reason", "train_accuracy",
    "train_loss", "validation_accuracy", "validation_loss", "seconds", "lanes",
]  # fmt: skip
TINY = {"hidden": "8", "seeds": 2, "rounds": 2, "max_epochs": 3}


def read(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def untimed(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read(folder)]


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online") / "run"
    call(workdir=str(folder), **TINY)
    return folder


def test_a_run_writes_what_the_contract_lists(online):
    rows = read(online)
    assert list(rows[0]) == COLUMNS
    assert len(rows) == 5 * 2 * 2
    cells = [(row["restart"], row["shrink"], row["noise_scale"]) for row in rows]
    assert list(dict.fromkeys(cells)) == [
        ("warm_start", "1", "0"), ("random_init", "0", "1"), ("shrink_perturb", "0.8", "0.01"),
        ("shrink_perturb", "0.6", "0.01"), ("shrink_perturb", "0.4", "0.1"),
    ]  # fmt: skip
    for row in rows:
        assert (row["experiment"], row["dataset"], row["model"]) == ("online", "mixture", "mlp")
        assert int(row["num_train"]) == 250 * int(row["round"])
        assert int(row["samples_seen"]) == int(row["epochs"]) * int(row["num_train"])
        assert row["lanes"] == {"1": "2", "2": "10"}[row["round"]]  # all begin alike; then the grid is one pool
        assert row["converged"] == {"threshold": "true", "cap": "false"}[row["stop_reason"]]
        assert 0 <= float(row["validation_accuracy"]) <= 1
    config = json.loads((online / "config.json").read_text())
    assert config["settings"]["max_epochs"] == 3
    assert config["settings"]["patience"] == 100
    assert config["arrivals"] == [250, 500]
    assert {"jax", "flax", "optax", "python"} <= set(config["versions"])
    assert (online / "figures" / "accuracy_and_cost.png").read_bytes().startswith(b"\x89PNG")
    text = (online / "report.md").read_text()
    assert "synthetic" in text
    assert "figures/accuracy_and_cost.png" in text


@pytest.mark.slow
def test_two_phase_trains_on_half_then_on_all(tmp_path, capsys):
    call(experiment="two_phase", workdir=str(tmp_path / "run"), **TINY)
    assert sorted({int(row["num_train"]) for row in read(tmp_path / "run")}) == [2000, 4000]
    out, err = capsys.readouterr()
    assert "| random_init    | 0   | 1 " in out
    assert "round 2 of 2, shrink_perturb λ=0.4 σ=0.1" in err
    assert "min left" in err


@pytest.mark.slow
def test_every_restart_and_policy_runs(tmp_path):
    call(
        restart="noise_only,last_layer,warm_start,random_init,shrink_perturb", shrink=".5", noise_scale="1e-2,0",
        statistics="recalibrate", optimizer_state="keep", noise="fresh", restart_first=True, optimizer="sgd",
        weight_decay=0.001, activation="relu", init="flax", epochs=2,
        penalty="adversarial", penalty_strength=0.1, workdir=str(tmp_path / "run"), **TINY
    )  # fmt: skip
    rows = read(tmp_path / "run")
    assert {row["stop_reason"] for row in rows} == {"fixed"}
    assert {(row["restart"], row["shrink"], row["noise_scale"]) for row in rows} == {
        ("noise_only", "1", "1e-2"), ("noise_only", "1", "0"), ("last_layer", ".5", "1e-2"), ("last_layer", ".5", "0"),
        ("warm_start", "1", "0"), ("random_init", "0", "1"),
        ("shrink_perturb", ".5", "1e-2"), ("shrink_perturb", ".5", "0"),
    }  # fmt: skip


@pytest.mark.slow
def test_several_experiments_have_a_folder_each(tmp_path, capsys):
    base = tmp_path / "runs"
    call(experiment="online,two_phase", restart="warm_start", workdir=str(base), **{**TINY, "rounds": 1})
    assert len(read(base / "online")) == len(read(base / "two_phase")) == 2
    call(report, workdir=str(base))
    assert "holds the results of a run" in fails(capsys, workdir=str(base))
    call(resume=True, workdir=str(base), rounds=2)
    assert len(read(base / "online")) == len(read(base / "two_phase")) == 4
    assert sorted(path.name for path in base.iterdir()) == [
        ".lock",
        "online",
        "summary.html",
        "summary.md",
        "two_phase",
    ]
    assert "cut short by --rounds" in (base / "summary.md").read_text()


def tree(value):
    return {"body": {"kernel": jnp.full(3, value)}, "head": {"kernel": jnp.full(2, 2 * value)}}


def last_phase(wanted):
    """The one cell of these settings, and what its lanes do in the second of two rounds of 30 samples."""
    small = dataclasses.replace(data.mixture(), inputs=data.mixture().inputs[:30], labels=data.mixture().labels[:30])
    (member,) = sweep.Grid(wanted).members()
    phases = (RoundSpec(wanted, 10), RoundSpec(wanted, 20))
    group = builder.Builder({"mixture": small}, {member: phases}).group(member, phases)
    assert group.phases[0].restart is restarts.no_restart
    return member.cell, group.phases[1]


@pytest.mark.parametrize(
    ("cell", "body", "head"),
    [
        (("warm_start", "1", "0"), 10, 20),
        (("random_init", "0", "1"), 1, 2),
        (("shrink_perturb", "0.5", "0.1"), 5.1, 10.2),
        (("noise_only", "1", "0.1"), 10.1, 20.2),
        (("last_layer", "0.5", "0.1"), 10, 10.2),
    ],
)
@pytest.mark.parametrize("policy", ["reset", "keep"])
def test_flags_become_the_restarts_that_they_name(cell, body, head, policy):
    wanted = settings.Settings(
        restart=(cell[0],), shrink=("0.5",), noise_scale=("0.1",), noise="fresh", statistics=policy,
        optimizer_state=policy, learning_rate=0.3, weight_decay=0.2, seeds=2, patience=7, penalty="adversarial",
        penalty_strength=0.05, method="l2_init", method_strength=0.07,
    )  # fmt: skip
    found, phase = last_phase(wanted)
    hparams = jax.tree.map(lambda x: float(x[0]), phase.lanes.hparams)
    assert found == cell
    assert dataclasses.astuple(hparams) == pytest.approx((0.3, 0.2, float(cell[1]), float(cell[2]), 0.05, 0.07, 0))
    assert phase.lanes.convergence.patience.tolist() == [7, 7]
    old, fresh = (TrainState(tree(x), {"mean": jnp.float32(x)}, jnp.float32(x)) for x in (10.0, 1.0))
    new = phase.restart(jax.random.key(0), old, fresh, shrink=hparams.shrink, noise_scale=hparams.noise_scale)
    np.testing.assert_allclose(new.params["body"]["kernel"], body, rtol=1e-6)
    np.testing.assert_allclose(new.params["head"]["kernel"], head, rtol=1e-6)
    kept = 10 if policy == "keep" and cell[0] != "random_init" else 1
    assert (new.batch_stats["mean"], new.opt_state) == (kept, kept)


@pytest.mark.parametrize("name", choices.PENALTIES)
def test_the_penalty_by_flag(name):
    trainer = choices.trainer(settings.Settings(penalty=name, batch_size=7, optimizer="sgd"), data.mixture())
    assert trainer.penalty is getattr(penalties, name)
    assert (trainer.batch_size, trainer.optimizer.__name__) == (7, "sgd")


def test_gaussian_noise_by_flag():
    wanted = settings.Settings(restart=("noise_only",), noise_scale=("0.01",))
    _, phase = last_phase(wanted)
    old = TrainState({"w": jnp.zeros(10_000)}, {}, ())
    fresh = TrainState({"w": jnp.full(10_000, 5.0)}, {}, ())
    new = phase.restart(jax.random.key(0), old, fresh, shrink=1.0, noise_scale=0.01)
    assert float(jnp.std(new.params["w"])) == pytest.approx(0.01, rel=0.03)
    assert abs(float(jnp.mean(new.params["w"]))) < 1e-3


@pytest.mark.parametrize("value", [True, False])
def test_epochs_make_a_round_exactly_so_long(value):
    wanted = settings.Settings(restart=("warm_start",), epochs=12 if value else None)
    _, phase = last_phase(wanted)
    assert phase.lanes.convergence.fixed.all() == value
    assert phase.lanes.convergence.max_epochs[0] == (12 if value else 1000)


@pytest.mark.slow
def test_a_small_resnet_goes_through_the_same_engine(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = Dataset(rng.integers(0, 256, (90, 8, 8, 3), np.uint8), (np.arange(90) % 3).astype(np.int32), 3, "tiny")
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    call(model="resnet18", width=4, stage_sizes="1,1", batch_size=16, statistics="keep", precision="bfloat16",
         workdir=str(tmp_path / "r"),
         **{**TINY, "seeds": 1, "max_epochs": 1})  # fmt: skip
    assert [row["num_train"] for row in read(tmp_path / "r")][:6:5] == ["4", "8"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"model": "vit", "width": 12, "depth": 1, "method": "redo", "restart": "warm_start,dash,fire"},
        {"model": "resnet18", "width": 2, "stage_sizes": "1", "norm": "layer", "restart": "shrink_perturb"},
        {"activation": "crelu", "norm": "layer", "method": "l2_init"},
    ],
    ids=lambda given: given.get("model", "mlp"),
)
def test_other_networks_norms_and_activations_go_through_the_same_engine(tmp_path, given):
    call(workdir=str(tmp_path / "r"), samples_per_round=100, **{**TINY, "seeds": 1, "max_epochs": 1, **given})
    losses = [float(row["train_loss"]) for row in read(tmp_path / "r")]
    assert losses
    assert np.isfinite(losses).all()


def test_resume_gives_the_rows_of_an_undisturbed_run(online, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    whole = results.Table.append

    def interrupted(self, rows):
        whole(self, rows)
        if len(self._written) >= 12:  # in the middle of the second round
            raise KeyboardInterrupt

    monkeypatch.setattr(results.Table, "append", interrupted)
    with pytest.raises(SystemExit) as stop:
        call(workdir=str(folder), **TINY)
    assert stop.value.code == 130
    assert f"--resume --workdir={folder}" in capsys.readouterr().err
    monkeypatch.undo()
    assert len(read(folder)) == 12
    with open(folder / "results.csv", "a") as file:
        file.write("online,mixture,ml")  # a row that was not written to its end
    call(workdir=str(folder), resume=True)
    assert untimed(folder) == untimed(online)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    capsys.readouterr()
    call(workdir=str(folder), resume=True)
    assert capsys.readouterr() == (f"the run in {folder} is complete: {folder / 'report.md'}\n", "")
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_resume_may_ask_for_more_rounds(online, tmp_path):
    folder = tmp_path / "run"
    call(workdir=str(folder), **{**TINY, "rounds": 1})
    call(workdir=str(folder), resume=True, rounds=2)
    assert untimed(folder) == untimed(online)


@pytest.mark.slow
def test_streamed_rows_are_those_of_resident_data_and_a_run_may_change_between_them(online, tmp_path):
    folder = tmp_path / "run"
    call(workdir=str(folder), stream=True, **{**TINY, "rounds": 1})
    call(workdir=str(folder), resume=True, rounds=2)
    assert untimed(folder) == untimed(online)


@pytest.mark.parametrize(("stream", "memory", "streams"), [
    (None, 2**40, False), (None, 1000, True), (True, 2**40, True), (False, 1000, False),
])  # fmt: skip
def test_data_are_streamed_where_they_do_not_fit(stream, memory, streams, monkeypatch, caplog):
    monkeypatch.setattr(builder, "memory", lambda: memory)
    small = Dataset(np.zeros((30, 2, 2, 1), np.float32), np.zeros(30, np.int32), 2, "small")
    monkeypatch.setattr(logging.getLogger("sp_jax"), "propagate", True)  # app.start turns it off
    with caplog.at_level(logging.INFO):
        made = builder.Builder({"small": small}, {}, stream=stream).engine(settings.Settings(dataset="small"))
    assert isinstance(made, streamed.StreamedEngine) == streams
    assert ("small stays on the host and is streamed" in caplog.text) == (stream is None and streams)


@pytest.mark.slow
def test_lanes_side_by_side_are_those_of_the_flag_and_remembered(tmp_path):
    folders = {1: tmp_path / "one", 2: tmp_path / "two"}
    call(workdir=str(folders[1]), restart="random_init", **TINY)
    call(workdir=str(folders[2]), restart="random_init", side_by_side=2, **TINY)
    for count, folder in folders.items():
        assert run_folder.side_by_side(folder) == (min(count, 2 // min(2, jax.device_count())),)
    for row, other in zip(*(results.read(folder / "results.csv") for folder in folders.values()), strict=True):
        assert row["samples_seen"] == other["samples_seen"]
        assert row["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)


def test_lanes_side_by_side_are_measured_on_an_accelerator(monkeypatch):
    def engine(*args, side_by_side, engine=sweeps.Engine, **options):
        return engine(*args, side_by_side=side_by_side or 8, devices=jax.devices()[:1], **options)

    monkeypatch.setattr(sweeps, "Engine", engine)  # with an accelerator's default: all lanes of the device
    monkeypatch.setattr(lanes_per_device, "fastest", lambda make, most: make(most - 3))
    small = Dataset(np.zeros((30, 2, 2, 1), np.float32), np.arange(30, dtype=np.int32) % 2, 2, "small")
    for given, found in (((), 5), ((1,), 1)):
        made = builder.Builder({"small": small}, {}, side_by_side=given)
        made.engine(settings.Settings(dataset="small", seeds=8))
        assert made.side_by_side == [found]


def test_resume_refuses_what_would_lose_rows(tmp_path, capsys):
    folder = tmp_path / "run"
    call(workdir=str(folder), restart="warm_start", **TINY)
    command = json.loads((folder / "config.json").read_text())["command"]
    assert "has 2 rounds; --rounds may only ask for more" in fails(capsys, workdir=str(folder), resume=True, rounds=1)
    (folder / "report.md").unlink()
    call(workdir=str(folder), resume=True)
    config = json.loads((folder / "config.json").read_text())
    assert (config["command"], len(config["resumed"])) == (command, 1)
    (folder / "results.csv").unlink()
    assert "results.csv has lost or changed rows" in fails(capsys, workdir=str(folder), resume=True)
    (folder / "config.json").unlink()
    assert "holds checkpoints but no config.json" in fails(capsys, workdir=str(folder), resume=True)


@pytest.mark.parametrize(
    "state", ["half-made", *(pytest.param(each, marks=pytest.mark.slow) for each in ("missing", "empty"))]
)
def test_resume_without_a_run_starts_from_the_beginning(tmp_path, state):
    folder = tmp_path / "run"
    given = {"restart": "warm_start", **TINY}
    if state != "missing":
        folder.mkdir()
    if state == "half-made":
        made = {"experiment": "online", "settings": {**TINY, "hidden": [8], "restart": ["warm_start"]}}
        (folder / "config.json").write_text(json.dumps(made))
        given = {}
    call(workdir=str(folder), resume=True, **given)
    assert len(read(folder)) == 4


def test_a_folder_with_another_run_is_left_alone(online, capsys, tmp_path):
    before = {path: path.read_bytes() for path in online.rglob("*") if path.is_file()}
    assert "holds the results of a run; add --resume" in fails(capsys, workdir=str(online))
    line = fails(capsys, workdir=str(online), resume=True, learning_rate=0.5)
    assert "has learning_rate=0.001, not 0.5" in line
    line = fails(capsys, workdir=str(online), resume=True, restart="warm_start")
    assert "has restart=warm_start,random_init,shrink_perturb, not warm_start" in line
    line = fails(capsys, workdir=str(online), resume=True, preset="paper")
    assert "has dataset=mixture, not cifar10" in line
    assert "holds a run of online, not of two_phase" in fails(
        capsys, workdir=str(online), resume=True, experiment="two_phase"
    )
    assert {path: path.read_bytes() for path in online.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in fails(capsys, workdir=str(tmp_path / "file"))


def test_damaged_files_of_a_run_are_named(online, capsys, tmp_path):
    config = (online / "config.json").read_text()
    (tmp_path / "config.json").write_text(config[:50])
    assert "config.json is damaged" in fails(capsys, workdir=str(tmp_path), resume=True)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    assert "has other columns than this program writes" in fails(capsys, workdir=str(tmp_path), resume=True)
    (tmp_path / "results.csv").write_text(",".join(COLUMNS) + "\n" + ",".join("x" * len(COLUMNS)) + "\n")
    assert "results.csv is damaged in row 1" in fails(capsys, binary=report, workdir=str(tmp_path))


def test_report_needs_a_run(tmp_path, capsys):
    assert "there is no" in fails(capsys, binary=report, workdir=str(tmp_path))
    assert "--workdir is missing" in fails(capsys, binary=report)
    with pytest.raises(SystemExit), flagsaver.flagsaver(workdir=str(tmp_path)):
        run.main(["run", "0.6"])
    assert "unexpected argument '0.6'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_copes_with_missing_rows(online, tmp_path):
    rows = results.read(online / "results.csv")
    for kept in (rows[:1], rows[:7], [row for row in rows if row["restart"] != "random_init"], rows[::3]):
        assert len(summary.table(kept).splitlines()) >= 3
        for name in ("rounds", "final", "heat_maps"):
            assert all(path.exists() for path in getattr(plotting, name)(kept, [], tmp_path))


def test_costs_are_compared_over_what_both_have(online):
    rows = results.read(online / "results.csv")
    warm = [row for row in rows if row["restart"] == "warm_start"]
    base = [{**row, "restart": "random_init", "shrink": "0", "noise_scale": "1"} for row in warm]
    for kept in (base, base[:1], base[:2], base[1:]):
        assert [s.ratio_total for s in summary.summarize(warm + kept)] == [1.0, 1.0]
    first = [row for row in base if row["round"] == 1]
    assert np.isnan(next(s for s in summary.summarize(warm + first)).ratio_last)
    assert "nan" not in summary.table(warm + first)


def test_time_left_counts_what_is_left():
    stream = io.StringIO()
    visible = dict.fromkeys(("warm", "fresh"), (100, 200, 300))
    reporter = progress.Reporter({"warm": 3, "fresh": 2}, visible, {"fresh": "random init"}, stream)
    result = RoundResult(0, 3, 300, 10, 3000, "threshold", 1.0, 0.0, 0.5, 1.0, 60.0, 1)
    finished = sweeps.Finished(sweeps.Group("fresh", ()), [result], "fresh", {}, None)
    reporter.finished(finished)
    assert "left" not in stream.getvalue()
    reporter = progress.Reporter({"warm": 2, "fresh": 2}, visible, {"fresh": "random init"}, stream)
    reporter.finished(finished)
    assert "round 3 of 3, random init" in stream.getvalue()
    assert "about 1:00 min left" in stream.getvalue()


def test_time_left_counts_no_epoch_that_is_not_trained():
    """A round that another setting has trained, and one of no epochs: it said twelve hours for sixteen minutes."""
    result = RoundResult(0, 1, 100, 10, 1000, "threshold", 1.0, 0.0, 0.5, 1.0, 60.0, 1)
    for known, said in (((None, 0), None), ((0, 0), None), ((None, 5), "0:30"), ((None, None), "1:00")):
        stream, visible = io.StringIO(), dict.fromkeys(("first", "second"), (100, 100))
        reporter = progress.Reporter(
            {"first": 0, "second": 1}, visible, visible, stream, {"first": (None, 0), "second": known}
        )
        reporter.finished(sweeps.Finished(sweeps.Group("first", ()), [result], "first", {}, None))
        text = stream.getvalue()
        assert (f"; about {said} min left" in text) if said else ("left" not in text)


def test_epochs_that_are_known_before_a_run(tmp_path):
    explicit = {"model": ("mlp",), "shrink": (("1", "0.5"),), "seeds": (1,), "dataset": ("mixture",)}
    for given, first in ((explicit, None), (explicit | {"epochs": (7,)}, 7)):
        experiment = registry.get("shrink_only")
        job = plan.Job(experiment, sweep.resolve(experiment.presets["quick"], given), tmp_path)
        rounds = job.rounds(lambda _: Amount(30, 3))
        small = dataclasses.replace(
            data.mixture(), inputs=data.mixture().inputs[:30], labels=data.mixture().labels[:30]
        )
        made = plan.build(job, rounds, builder.Builder({"mixture": small}, rounds))
        # with biases and without; the second λ shares the first round, and after it nothing is trained
        assert [*made.epochs({}).values()] == [[first, 0], [0, 0]] * 2


def test_a_round_tells_the_mean_of_the_lanes_that_are_left():
    found = ((0, "cap", 0.7), (1, "nan", 0.1))
    lanes = [RoundResult(s, 3, 300, 10, 3000, r, 1.0, 0.0, a, 1.0, 60.0, 2) for s, r, a in found]
    whole = "accuracy 70.0 % (1 of 2 lanes ended by NaN),", "no validation accuracy (1 of 1 lanes ended by NaN),"
    for results_, said in zip((lanes, lanes[1:]), whole, strict=True):
        stream = io.StringIO()
        reporter = progress.Reporter({"fresh": 2}, {"fresh": (100, 200, 300)}, {"fresh": "random init"}, stream)
        reporter.finished(sweeps.Finished(sweeps.Group("fresh", ()), results_, "fresh", {}, None))
        assert said in stream.getvalue()


def test_the_first_of_many_rounds_does_not_tell_the_time_left():
    for rounds, said in (((100, 200), True), ((100, 200, 300), False)):
        stream = io.StringIO()
        reporter = progress.Reporter({"fresh": 0}, {"fresh": rounds}, {"fresh": "random init"}, stream)
        result = RoundResult(0, 1, 100, 10, 1000, "threshold", 1.0, 0.0, 0.5, 1.0, 60.0, 1)
        reporter.finished(sweeps.Finished(sweeps.Group("fresh", ()), [result], "fresh", {}, None))
        assert ("left" in stream.getvalue()) == said


def test_many_cells_get_a_figure_for_each_noise_scale(online, tmp_path):
    rows = results.read(online / "results.csv")
    cells = [row | {"shrink": f"0.{i}", "noise_scale": s} for row in rows[-2:] for i in range(5) for s in ("0", "0.1")]
    paths = plotting.rounds(rows[:4] + cells, [], tmp_path)
    assert [path.name for path in paths] == [
        "accuracy_and_cost_noise_scale_0.png", "accuracy_and_cost_noise_scale_0.1.png",
    ]  # fmt: skip


def test_the_grid_is_the_product_of_the_flags():
    cells = settings.Settings(shrink=("0.2", ".4"), noise_scale=("1e-2",), restart=("shrink_perturb",)).cells()
    assert cells == (("shrink_perturb", "0.2", "1e-2"), ("shrink_perturb", ".4", "1e-2"))
    assert settings.Settings(shrink=("0.2",), restart=("shrink_perturb",)).cells() == (
        ("shrink_perturb", "0.2", "0.01"),
    )
    both = settings.Settings(shrink=("1", "0.0"), noise_scale=("0", "1.0")).cells()
    assert both == (("warm_start", "1", "0"), ("random_init", "0", "1"), ("shrink_perturb", "1", "1.0"),
                    ("shrink_perturb", "0.0", "0"))  # fmt: skip
    pairs = settings.Settings(pairs=("0.3:1e-4",), restart=("last_layer",)).cells()
    assert pairs == (("last_layer", "0.3", "1e-4"),)
    assert fields.parse_list("--shrink", "0.6, 0.6,.6") == ("0.6", ".6")


def test_settings_survive_json():
    original = settings.Settings(shrink=("0.20",), hidden=(7, 8), rounds=3)
    assert settings.Settings.from_json(json.loads(json.dumps(original.to_json()))) == original


def test_paper_presets_are_the_papers_settings(tmp_path, monkeypatch):
    jobs = []
    monkeypatch.setattr(run, "train", lambda planned, *_: jobs.append(planned.job))
    fake = Dataset(np.zeros((50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.int32), 10, "cifar10")
    monkeypatch.setattr(setting_flags.data, "load", lambda *_, **__: fake)
    monkeypatch.setattr(builder.Builder, "group", lambda *_: None)
    call(experiment="online,two_phase", preset="paper", workdir=str(tmp_path / "a"))
    call(experiment="online", preset="paper", model="mlp", seeds=1, workdir=str(tmp_path / "b"))
    for job in jobs[:2]:
        s = job.grid.base
        assert (s.dataset, s.model, s.width, s.init, s.optimizer) == ("cifar10", "resnet18", 16, "torch", "adam")
        assert (s.learning_rate, s.batch_size, s.seeds, s.train_accuracy) == (0.001, 128, 5, 0.99)
    phases = jobs[0].experiment.schedule(
        jobs[0].grid.base, settings.RestartSetting("warm_start", "1", "0"), lambda _: Amount(33_333, 10)
    )
    assert tuple(phase.num_visible for phase in phases) == (*range(1_000, 33_001, 1_000), 33_333)
    base = jobs[2].grid.base
    assert (base.model, base.seeds, base.activation) == ("mlp", 1, "relu")


def test_the_list(capsys):
    call(list=True)
    found = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    assert all(e.paper in found[name] for name, e in registry.EXPERIMENTS.items())
    assert "36 x 5 x 34, resnet18 on cifar10; 16 to 130 min a cell" in found["online"]  # Figure 15
    rows = results.read(ROOT / "experiments" / "results" / "early_switch_quick" / "results.csv")
    rounds = {(row["first_epochs"], row["restart"], row["round"]): row["seconds"] for row in rows}
    assert f" {sum(rounds.values()):.0f} s, 1 device " in found["early_switch"]  # its cells share no round


def test_a_platform_that_is_not_there_gets_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: jax.extend.backend.get_backend("cudo").devices())
    assert "JAX finds no device for JAX_PLATFORMS=cpu: " in fails(capsys, workdir=str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_shared_rounds_and_pools_cost_their_time_once():
    def row(seed, round_, lanes, seconds, loss):
        given = {"seed": seed, "round": round_, "lanes": lanes, "seconds": seconds}
        return {**given, "samples_seen": 100, "validation_loss": loss}

    first = [row(seed, 1, 2, 3.0, 0.5 + seed) for seed in (0, 1)]  # which two cells share
    second = [row(seed, 2, 4, 8.0, 0.7 + seed + cell) for cell in (0, 10) for seed in (0, 1)]
    assert results.seconds(first + first + second) == 11.0


COMMAND = [sys.executable, "-m", "experiments.run"]


@pytest.mark.slow
def test_the_binary_as_a_user_types_it(tmp_path):
    wrong = subprocess.run(
        [*COMMAND, f"--workdir={tmp_path / 'run'}", "--shrink=2"], capture_output=True, text=True, cwd=ROOT
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: --shrink=2 is out of range: λ must lie in [0, 1]\n"


@pytest.mark.slow
def test_the_binary_trains_as_a_user_types_it(tmp_path):
    right = subprocess.run(
        [*COMMAND, f"--workdir={tmp_path / 'run'}", "--restart=warm_start", "--seeds=2", "--rounds=1",
         "--max_epochs=2"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert right.returncode == 0, right.stderr
    assert "| warm_start | 1 | 0 |" in right.stdout
    assert len(right.stderr.splitlines()) == 1
