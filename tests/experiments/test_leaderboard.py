"""The leaderboard: tuning never sees what counts, ties are ties, and a stranger's method joins by its path."""

import dataclasses
import importlib
import os
import pathlib
import re
import sys

import numpy as np
import pytest
from binaries import call, fails
from scipy import stats

from experiments.config import own_methods, streams
from experiments.config.fields import UsageError
from experiments.config.sweep import resolve
from experiments.records import results
from experiments.reporting import leaderboard, loaded_run
from experiments.specs import plasticity, registry
from sp_jax.plasticity.methods import METHODS, Method

QUICK = registry.get("plasticity").presets["quick"]
OWN = """
import jax
from sp_jax.plasticity.methods import Method

half = Method(gradient=lambda state, gradient, strength: jax.tree.map(lambda g: strength * g, gradient),
              default_strength=0.5, symbol="a", label="half")


def make():
    return half


def broken():
    raise RuntimeError("no such luck")


worded = half._replace(default_strength="0.1")
plain = half._replace(label="plain")
three = half._replace(strengths=(1.0, 2.0, 3.0))
summed = half._replace(gradient=lambda state, gradient, strength: jax.tree.map(lambda g: g.sum(), gradient))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_own_methods.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield "my_own_methods:make"
    forget()


def forget():
    """What a new process would not know."""
    sys.modules.pop("my_own_methods", None)
    importlib.invalidate_caches()
    own_methods.find.cache_clear()


def grid(**explicit):
    return resolve(QUICK, {"contenders": (("none", "l2_init", "shrink_perturb"),), **explicit})


def made_up(seed=0, rounds=2, better="l2_init"):
    """Rows of a run of two rounds on two streams, in which one method is the best by far."""
    found = grid(task_stream=("random_labels", "growing"))
    trials, rng, rows = found.members(), np.random.default_rng(seed), []
    for trial in trials:
        for lane in trial.settings.lane_seeds:
            good = trial.settings.method == better
            for round_ in range(1, rounds + 1):
                row = {name: results.text(getattr(trial.settings, name)) for name in found.varied}
                row |= {**trial.cell._asdict(), "seed": lane, "round": round_, "stop_reason": "fixed", "seconds": 1.0}
                accuracy = 0.5 + 0.3 * good + 0.01 * rng.normal() + 10 * trial.settings.learning_rate
                rows.append(row | {"lanes": 2, "online_accuracy": accuracy, "validation_accuracy": accuracy})
    return rows, trials, found.varied, dict.fromkeys(trials, rounds)


def test_every_contender_has_the_same_number_of_settings_and_all_is_tuned_on_other_seeds_and_samples():
    members = resolve(QUICK, {}).members()
    counts, parts = {}, {}
    for trial in members:
        key = trial.settings.task_stream, leaderboard.contender(trial.settings, trial.cell)
        counts.setdefault((*key, trial.settings.samples), set()).add(trial.name)
        parts.setdefault(trial.settings.samples, trial.settings)
    assert {len(found) for found in counts.values()} == {4}
    assert len({name for _, name, _ in counts}) == len(plasticity.CONTENDERS)
    assert not set(parts["tuning"].lane_seeds) & set(parts["final"].lane_seeds)
    assert not set(streams.part("tuning", 6000)) & set(streams.part("final", 6000))
    assert {METHODS[trial.settings.method].label for trial in members} == {row.label for row in METHODS.values()}


def test_tuning_never_sees_the_rows_that_count():
    """Whatever stands in the final rows, the same settings are chosen; other tuning rows choose others."""
    rows, *how = made_up()
    chosen = leaderboard.chosen(rows, *how)
    turned = [row | {"online_accuracy": 1 - row["online_accuracy"], "validation_accuracy": np.nan} for row in rows]
    final = [new if new["samples"] == "final" else old for old, new in zip(rows, turned, strict=True)]
    assert leaderboard.chosen(final, *how) == chosen
    assert leaderboard.chosen([row for row in rows if row["samples"] == "tuning"], *how) == chosen
    tuning = [new if new["samples"] == "tuning" else old for old, new in zip(rows, turned, strict=True)]
    assert leaderboard.chosen(tuning, *how) != chosen
    assert {trial.settings.samples for trial in chosen.values()} == {"tuning"}
    assert chosen["random_labels", "plain"].settings.learning_rate == 1e-2  # made to be the best


def test_a_setting_that_diverged_or_was_not_finished_is_not_chosen():
    rows, *how = made_up()
    best = leaderboard.chosen(rows, *how)["random_labels", "plain"]
    hit = leaderboard.by_trial(rows, *how[:2])[best]
    hit = [row for its in hit.values() for row in its]
    hit[-1]["stop_reason"] = "nan"
    assert leaderboard.chosen(rows, *how)["random_labels", "plain"] != best
    del rows[rows.index(hit[-1])]
    assert leaderboard.chosen(rows, *how)["random_labels", "plain"] != best


def test_the_best_is_first_and_what_cannot_be_told_apart_is_marked():
    rows, *how = made_up()
    board = leaderboard.board(rows, *how)
    ranked = leaderboard.ranks(board)
    assert ranked["L2 Init"] == (1, 1, 1)
    assert all(low <= rank <= high for rank, low, high in ranked.values())
    assert leaderboard.as_good_as_best(board, "growing") == {"L2 Init"}
    lines = leaderboard.table(board).splitlines()
    assert lines[2].startswith("| L2 Init")
    assert "*" in lines[2]
    assert not any("*" in line for line in lines[3:])
    scores = {"a": [3.0, 1.0, 2.0, 4.0], "b": [2.9, 1.2, 1.9, 3.8], "c": [0.0, -2.0, -1.0, 1.0]}
    tied = {("s", name): leaderboard.Entry(None, {}, dict(enumerate(x)), 0) for name, x in scores.items()}
    assert leaderboard.as_good_as_best(tied, "s") == {"a", "b"}


def test_intervals_are_students():
    values = [1.0, 2.0, 4.0]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert leaderboard.interval(values) == pytest.approx((high - low) / 2)
    assert np.isnan(leaderboard.interval([1.0]))


@pytest.mark.slow
def test_published_comparisons_are_reproduced_contradicted_or_undecided():
    verdicts = []
    for better in ("l2_init", "none"):
        found = leaderboard.comparisons(leaderboard.board(*made_up(better=better)))
        verdicts.append({(c.stream, c.better, c.worse): v for c, v, _ in found}["random_labels", "L2 Init", "plain"])
    assert verdicts == ["holds", "contradicted"]


def test_names_of_contenders():
    names = {name: leaderboard.contender(t.settings, t.cell) for name in plasticity.CONTENDERS
             for t in resolve(QUICK, {"contenders": ((name,),)}).members()[:1]}  # fmt: skip
    assert len(set(names.values())) == len(names)
    assert names["none"] == leaderboard.PLAIN
    assert names["crelu"] == "CReLU"
    assert names["shrink_perturb"] == "shrink-perturb"
    asked = {name for c in leaderboard.PUBLISHED for name in (c.better, c.worse)}
    assert asked <= set(names.values())


def test_a_method_from_outside_joins_by_its_path(own):
    assert isinstance(own_methods.find(own), Method)
    assert own_methods.find("my_own_methods:half") is own_methods.find(own)
    assert own_methods.label(own) == "half"
    members = resolve(QUICK, {"contenders": (("none", own),)}).members()
    assert {t.settings.method_strength for t in members if t.settings.method == own} == {0.5, 5.0}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("my_own_methods:nothing", "has no attribute 'nothing'"),
        ("my_own_methods:broken", "RuntimeError: no such luck"),
        ("my_own_methods:worded", "default_strength='0.1'; expected a finite number"),
        ("my_own_methods:jax", "expected a sp_jax.plasticity.methods.Method"),
        ("not_there:make", "No module named 'not_there'"),
        ("l2_initt", "did you mean 'l2_init'?"),
    ],
)
def test_a_method_that_is_none_gets_one_line(own, name, line):
    with pytest.raises(UsageError, match=re.escape(line)) as error:
        own_methods.find(name)
    assert "\n" not in str(error.value)


def test_a_registered_method_has_a_name(own, monkeypatch):
    entry = own_methods.importlib.metadata.EntryPoint("halving", own, own_methods.GROUP)
    monkeypatch.setattr(own_methods, "_registered", lambda: (entry,))
    assert "halving" in own_methods.names()
    assert own_methods.find("halving").label == "half"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"method": "l2_init"}, "choose them by --contenders=none,l2_init"),
        ({"activation": "tanh"}, "--activation does not fit --experiment=plasticity"),
        ({"learning_rate": "0.01"}, "--learning_rate does not fit"),
        ({"contenders": "l2_int"}, "unknown --contenders=l2_int; did you mean 'l2_init'?"),
        ({"contenders": "none,my_own_methods:plain"}, "my_own_methods:plain and none are both called 'plain'"),
        ({"contenders": "my_own_methods:three"}, "has 3 strengths; expected one or two"),
        ({"contenders": "my_own_methods:summed"}, "--method=my_own_methods:summed: the method's gradient returns"),
        ({"task_stream": "label_noise"}, "(one of permuted_inputs, random_labels, growing)"),
    ],
)
def test_mistakes(own, capsys, tmp_path, given, line):
    assert line in fails(capsys, experiment="plasticity", workdir=str(tmp_path / "run"), **given)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_the_method_that_it_began_with(own, tmp_path, capsys):
    """On a stream that is not the paper's, of whose claims the report says nothing."""
    folder, file = tmp_path / "run", tmp_path / "my_own_methods.py"
    small = {"rounds": "2", "epochs": "1", "seeds": "2", "hidden": "8", "restart": "warm_start,random_init"}
    call(method=own, task_stream="label_noise", workdir=str(folder), **small)
    assert "Claims" not in (folder / "report.md").read_text()
    again = {"resume": True, "workdir": str(folder), "rounds": "3"}
    rows = (folder / "results.csv").read_bytes()
    for text, line in ((OWN.replace("strength * g", "strength + g"), "is not what it was"), (None, "needs its method")):
        forget()
        file.unlink() if text is None else file.write_text(text)
        assert line in fails(capsys, **again)
        assert (folder / "results.csv").read_bytes() == rows
    file.write_text(OWN)
    forget()
    call(**again)
    assert len(results.read(folder / "results.csv")) == 2 * 2 * 3


@pytest.mark.slow
def test_a_whole_leaderboard_is_run_stopped_and_gone_on_with(own, tmp_path, monkeypatch, capsys):
    """The real binary, with a method from outside; only chosen settings have final rows; resumed, nothing changes."""
    folder = tmp_path / "run"
    small = {"rounds": "2", "epochs": "1", "seeds": "3", "hidden": "8", "measures": "online_accuracy,dormant"}
    given = {"experiment": "plasticity", "contenders": f"none,{own}", "workdir": str(folder), **small}
    given |= {"task_stream": "permuted_inputs,growing"}
    call(**given)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("round")]
    assert "round 1 of 2, permuted inputs, plain, η 0.001 (tuning): " in "".join(said)
    assert max(map(len, said)) < 160
    rows = results.read(folder / "results.csv")
    final = [row for row in rows if row["samples"] == "final"]
    chosen = {(r["task_stream"], r["method"], r["method_strength"], r["learning_rate"]) for r in final}
    assert len(chosen) == 4
    assert len(final) == 4 * 3 * 2
    assert len(rows) - len(final) == (4 + 4) * 2 * 2 * 2
    assert {row["seed"] for row in final} == {0, 1, 2}
    run = loaded_run.load(folder)
    assert len(rows) == run.wanted
    assert not run.missing()
    part = dataclasses.replace(run, rows=[row for row in rows if row["samples"] == "tuning"])
    lines = part.missing().splitlines()
    assert lines[0].startswith(f"Partial: {len(rows) - len(final)} of {len(rows)} lane-rounds are finished. Not run: ")
    assert lines[0].count("(final)") == 4  # those that were not chosen never run
    text = (folder / "report.md").read_text()
    assert "half" in text
    assert (folder / "figures" / "leaderboard.png").stat().st_size > 10_000
    before = (folder / "results.csv").read_bytes()
    os.remove(folder / "report.md")
    call(resume=True, workdir=str(folder))
    assert (folder / "results.csv").read_bytes() == before
    assert (folder / "report.md").read_text() == text


def test_the_kept_board_stands_on_its_page():
    """Tables of the page are those of the kept rows; at least four published comparisons are decided."""
    folder = pathlib.Path(__file__).parents[2] / "experiments"
    board = loaded_run.load(folder / "results" / "plasticity_quick").board
    page = (folder / "docs" / "leaderboard.md").read_text()
    tables = re.findall(r"(?:^\|.*\n?)+", leaderboard.section(board), re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert table.strip() in page
    decided = [verdict for _, verdict, _ in leaderboard.comparisons(board) if verdict != "undecided"]
    assert len(decided) >= 4
