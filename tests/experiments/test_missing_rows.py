"""Reports of what is not there: lanes that ended by NaN, seeds that are missing, rows deleted at random."""

import functools
import json
import pathlib
import re

import numpy as np
import pytest
from helpers import made_up

from experiments.config.sweep import Grid
from experiments.records import results, run_folder
from experiments.reporting import claims, comparison, loaded_run, plotting, run_report, summary, verdicts
from experiments.reporting.plotting import style
from experiments.specs import registry

KEPT = pathlib.Path(__file__).parents[2] / "experiments" / "results"
FOLDERS = {"online": "online_mixture", "two_phase": "two_phase_cifar10_mlp_tanh"}  # others are the quick ones
TRUE = (0.69, 0.70, 0.71, 0.70, 0.70)


@functools.cache
def kept(name):
    """The kept run of an experiment: configuration, rows and curves."""
    folder = KEPT / FOLDERS.get(name, f"{name}_quick")
    rows, curves = results.read(folder / "results.csv"), results.read_curves(folder / "curves.csv")
    return run_folder.read_config(folder), rows, curves


def cells(text):
    """The cells of a Markdown table's lines."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def with_one_lost(accuracy, restart="warm_start", samples=50):
    """Five seeds of a warm start at a true 70 %, the last of which ended by NaN in its last round."""
    rows = made_up(restart, TRUE, samples=samples)
    end = {"stop_reason": "nan", "converged": False, "validation_accuracy": accuracy, "samples_seen": 7}
    rows[-1] |= end
    return rows


@pytest.mark.parametrize("accuracy", [np.nan, 0.1])  # older programs measured the broken network
def test_a_lane_that_ended_by_nan_is_out_of_every_number(accuracy):
    rows = with_one_lost(accuracy) + made_up("random_init", TRUE)
    planned = dict.fromkeys(summary.by_line(rows), summary.Plan(2, 5))
    for plan in (planned, None):
        warm, fresh = summary.summarize(rows, plan)
        assert (warm.seeds, warm.planned, warm.lost, fresh.seeds_of) == (4, 5, 1, "5")
        assert warm.accuracy == pytest.approx(70.0)
        assert warm.deviation == pytest.approx(100 * np.std(TRUE[:4], ddof=1))
        assert (warm.samples_last, warm.samples_total, warm.ratio_last, warm.ratio_total) == (50, 100, 0.5, 0.5)
        text = summary.table(rows, plan)
        assert ["warm_start", "1", "0", "10.0 %", "70.0 ± 0.8 %", "0k (0.50x)", "0k (0.50x)", "4 of 5"] in cells(text)
        assert "± is the sample deviation over the seeds." in text
        assert "out of all means, costs and tests: warm start (seed 4 from round 2)." in text
        assert "nan" not in text.lower().replace("by nan", "")


def test_a_line_all_of_whose_seeds_are_lost_says_so(tmp_path):
    rows = [row | {"stop_reason": "nan", "validation_accuracy": np.nan} for row in made_up("warm_start", TRUE)]
    assert ["warm_start", "1", "0", "-", "lost: NaN in all lanes", "-", "-", "0 of 5"] in cells(summary.table(rows))
    for name in plotting.__all__:
        if name not in ("beside_the_paper", "against", "scatter", "heat_maps", "leaderboard", "tasks"):
            assert getattr(plotting, name)(rows, [], tmp_path) == []
    both = rows + made_up("random_init", TRUE)
    assert ["random_init", "0", "1", "10.0 %", "70.0 ± 0.7 %", "0k (1.00x)", "0k (1.00x)", "5"] in cells(
        summary.table(both)
    )


def test_lost_lanes_are_in_no_figure(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, folder, name: figures.append(figure) or folder / name)
    plotting.final(with_one_lost(0.1), [], tmp_path)
    plotting.rounds(with_one_lost(0.1), [], tmp_path, x="round")
    plotting.pareto(with_one_lost(0.1) + made_up("random_init", TRUE), [], tmp_path)
    points, costs = (ax.lines[0].get_xdata() for ax in figures[0].axes)
    np.testing.assert_allclose(points, 100 * np.array(TRUE[:4]))
    np.testing.assert_allclose(costs, [0.05] * 4)
    assert figures[1].axes[0].lines[0].get_ydata()[-1] == pytest.approx(70.0)
    assert 70.0 in [round(y, 6) for line in figures[2].axes[0].lines for y in line.get_ydata()]


def test_the_papers_numbers_are_compared_with_the_lanes_that_are_left():
    where = {"experiment": "table1", "dataset": "cifar10", "model": "mlp", "optimizer": "adam"}
    rows = [row | where for row in with_one_lost(0.1)]
    found = [each for each in comparison.compare("table1", rows)[0] if each.ours is not None]
    assert [(each.ours, each.seeds) for each in found] == [(pytest.approx(70.0), 4), (pytest.approx(10.0), 4)]
    assert {row[-1] for row in cells(comparison.table("table1", rows))[1:]} == {"4 of 5"}
    lost = [row | {"stop_reason": "nan"} for row in rows]
    assert all(each.ours is None for each in comparison.compare("table1", lost)[0])


def test_missing_seeds_and_rounds_are_marked():
    rows = made_up("warm_start", TRUE, rounds=(1, 2, 3)) + made_up("random_init", TRUE, rounds=(1, 2, 3))
    planned = dict.fromkeys(summary.by_line(rows), summary.Plan(3, 5))
    without_a_seed = [row for row in rows if (row["restart"], row["seed"]) != ("warm_start", 2)]
    assert [s.seeds_of for s in summary.summarize(without_a_seed, planned)] == ["4 of 5", "5"]
    hole = [row for row in rows if (row["restart"], row["seed"], row["round"]) != ("warm_start", 2, 2)]
    warm, _ = summary.summarize(hole, planned)
    assert (warm.samples_total, warm.ratio_total, warm.seeds_of) == (300, 1.0, "5, costs of 4")
    first = [row for row in rows if row["round"] == 1]
    assert {line[-1] for line in cells(summary.table(first, planned))[1:]} == {"5"}
    assert "(round 1)" in summary.table(first, planned)


def deleted(rows, fraction, key):
    """Returns what is left when this fraction of the rows is deleted; one row at least."""
    keep = np.random.default_rng(key).random(len(rows)) >= fraction
    return [row for row, kept in zip(rows, keep, strict=True) if kept] or list(rows[:1])


QUICK = ("online", "two_phase")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in registry.NAMES]
)
def test_any_rows_may_be_deleted(name, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "save", lambda figure, folder, name: figure.draw_without_rendering() or folder / name)
    config, rows, curves = kept(name)
    experiment, grid = registry.get(name), Grid.from_json(config)
    for i, fraction in enumerate((1 / len(rows), 0.05, 0.3, 0.6, 0.9, 0.99, 1.0)):
        left, its_curves = deleted(rows, fraction, i), deleted(curves, fraction, i) if fraction < 1 else []
        if i % 2:
            some = np.random.default_rng(i).integers(len(left))
            left[some] = left[some] | {"stop_reason": "nan", "validation_accuracy": np.nan}
        run = loaded_run.LoadedRun(
            tmp_path, config, experiment, grid, left, its_curves, loaded_run._planned(config, grid, left)
        )
        text = run_report._text(run, [])
        assert "## Settings" in text
        assert "nan" not in re.sub("(?i)by nan|nan in all", "", text)
        if len(left) < len(rows):
            assert f"Partial: {len(left):,} of {len(rows):,} lane-rounds are finished" in text
        if i in (2, 4):
            run_report._figures(run)


@pytest.mark.parametrize(
    "name", ["early_switch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("figure1", "pretraining"))]
)
def test_a_report_is_written_from_what_is_left(name, tmp_path):
    config, rows, curves = kept(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    last = rows.index(summary.last_round(rows)[0])
    for path, found in (
        (tmp_path / "results.csv", rows[:last] + rows[last + 1 :]),
        (tmp_path / "curves.csv", curves[1:]),
    ):
        lines = [list(found[0]) if found else [], *([results.text(value) for value in row.values()] for row in found)]
        path.write_text("\n".join(",".join(f'"{value}"' for value in line) for line in lines) + "\n")
    assert cells(run_report.write(tmp_path))
    text = (tmp_path / "report.md").read_text()
    assert f"Partial: {len(rows) - 1} of {len(rows)} lane-rounds" in text
    planned = len({row["seed"] for row in rows})
    assert f"| {planned - 1} of {planned}" in text


def test_a_claim_does_not_hold_where_its_rows_are_deleted():
    config, rows, _ = kept("noise_only")
    grid = Grid.from_json(config)

    def ours(left):
        planned = loaded_run._planned(config, grid, left)
        return [finding.verdict for _, finding in claims.check([6], left, [], planned)]

    assert ours(rows) == [verdicts.HOLDS]
    assert ours([r for r in rows if r["restart"] != "noise_only" or r["noise_scale"] != "1e-2"]) == [verdicts.UNDECIDED]
    assert ours([r for r in rows if r["restart"] != "random_init"]) == [verdicts.UNDECIDED]
    assert ours([r for r in rows if r["restart"] != "noise_only"]) == [verdicts.UNDECIDED]
