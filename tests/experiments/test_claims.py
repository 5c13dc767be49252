"""The paper's claims on made-up rows: each holds, is contradicted, or is undecided where it must be.

A case makes rows in which the claim is true by so many points, or false by so many where that is negative.
"""

import numpy as np
import pytest
from helpers import made_up
from scipy import stats

from experiments.reporting import claims, summary, verdicts

SEEDS = np.array(
    [(0.0, 1.0, 0.5, 0.7, 0.2), (0.1, 0.9, 0.6, 0.8, 0.1), (0.2, 1.0, 0.3, 0.6, 0.3)]
)  # points of each seed
LOW = 50


def line(restart, points, n, kind=0, **more):
    """Rows of so many seeds about a level in per cent; different kinds differ a little in each seed."""
    return made_up(restart, (points + SEEDS[kind][:n]) / 100, **more)


def non_convex(by, n):
    return line("warm_start", LOW, n) + line("random_init", LOW + by, n, 1)


def logistic(by, n):
    return [row | {"model": "logistic"} for row in non_convex(-by, n)]


def rounds(by, n):
    """The gap of round 1 is 0, as it is always; then it rises by so much."""
    rows = non_convex(0, n)
    gaps = 0.01 * np.array([0, *np.linspace(2, 2 + by, 7)])
    return [
        row | {"round": r, "validation_accuracy": row["validation_accuracy"] + gap * (row["restart"] != "warm_start")}
        for row in rows if row["round"] == 2 for r, gap in enumerate(gaps, 1)
    ]  # fmt: skip


def hyperparameters(by, n):
    """Three settings that close the gap, at more or less cost."""
    rows = line("random_init", LOW, n, samples=100_000, first_learning_rate="None")
    for i in range(3):
        cost = int(100_000 * np.exp(0.1 * by + 0.001 * i))
        rows += line("warm_start", LOW + 1 + 0.1 * i, n, 1, samples=cost, first_learning_rate=f"0.{i}")
    return [
        row | {"samples_seen": row["samples_seen"] + row["seed"] * (row["restart"] != "warm_start")} for row in rows
    ]


def switches(by, n):
    rows = line("random_init", LOW + by, n, first_epochs="None")
    return rows + [row for epochs in (5, 10, 90) for row in line("warm_start", LOW, n, 1, first_epochs=str(epochs))]


def regularisers(by, n, closing=0):
    rows = []
    for i in range(12):
        gap = -3 if i < closing else by
        rows += line("warm_start", LOW, n, weight_decay=0.01 * i) + line(
            "random_init", LOW + gap, n, 1, weight_decay=0.01 * i
        )
    return rows


def noise(by, n):
    return line("random_init", LOW + by, n) + line("noise_only", LOW, n, 1, samples=50)


def last_layer(by, n):
    return line("random_init", LOW + by, n) + line("last_layer", LOW, n, 1)


def gradients(by, n):
    """Curves: the ratio of new over old is farther from 1 after the warm start by e to the power of so many tenths."""
    ratios = {"warm_start": np.exp(1 + 0.1 * by), "shrink_perturb": np.exp(1)}
    return [
        {
            "restart": restart, "shrink": "1", "noise_scale": "0", "seed": seed, "round": 2, "epoch": epoch,
            "name": f"gradient_norm_{part}", "value": ratio * (1 + 0.001 * SEEDS[kind][seed]) if part == "new" else 1.0,
        }
        for kind, (restart, ratio) in enumerate(ratios.items())
        for seed in range(n) for epoch in range(6) for part in ("old", "new")
    ]  # fmt: skip


def cheaper(by, n, cost=50):
    rows = line("random_init", LOW, n)
    return rows + [
        row for shrink in ("0.8", "0.6") for row in line("shrink_perturb", LOW + by, n, 1, samples=cost, shrink=shrink)
    ]


def shrunk(by, n):
    levels = {"1": LOW, "0.8": LOW + by, "0.6": LOW + by, "0.4": 10}
    return [
        row for kind, (shrink, level) in enumerate(levels.items())
        for row in line("shrink_perturb", level, n, min(kind, 2), shrink=shrink, noise_scale="0")
    ]  # fmt: skip


def pretraining(by, n, worst="warm_start"):
    other = "random_init" if worst == "warm_start" else "warm_start"
    return line(other, LOW - 20, n) + line(worst, LOW, n, 2) + line("shrink_perturb", LOW + by, n, 1)


def fractions(by, n):
    rows = line("random_init", LOW + 20, n, first_fraction="0.5")
    for i, fraction in enumerate(("0.2", "0.4", "0.6", "0.8")):
        rows += line("warm_start", LOW + by * i / 3, n, i % 3, first_fraction=fraction)
    return rows


def forgetting(by, n, model="resnet18"):
    return [
        row | {"model": model, "pearson": 0.1 * i + 0.01 * row["seed"]}
        for i in range(5) for row in line("warm_start", LOW - by * i / 4, n, i % 3, batch_size=i)
    ]  # fmt: skip


def static(by, n):
    rows = line("shrink_perturb", LOW + by, n)
    return [
        row | {"validation_accuracy": (LOW + SEEDS[1][row["seed"]]) / 100} if row["round"] == 1 else row for row in rows
    ]


CASES = {  # claim, how its rows are made, and by how many points it must be true to be neither shown nor disproved
    "non_convex": (1, non_convex, 1), "logistic": (1, logistic, -1), "rounds": (2, rounds, 1),
    "hyperparameters": (3, hyperparameters, np.log(1 / 1.1) / 0.1), "switches": (4, switches, 1),
    "regularisers": (5, regularisers, 1), "noise": (6, noise, 1), "last_layer": (7, last_layer, 1),
    "gradients": (8, gradients, np.log(1.1) / 0.1), "cheaper": (9, cheaper, -1), "shrunk": (10, shrunk, -1),
    "pretraining": (11, pretraining, -1), "fractions": (12, fractions, 1), "forgetting": (13, forgetting, 1),
    "static": (14, static, 1),
}  # fmt: skip
FAR = 5  # points
METHODS = {1: ("warm_start", "random_init"), 2: ("warm_start", "random_init"), 3: ("warm_start", "random_init"),
           4: ("warm_start", "random_init"), 5: ("warm_start", "random_init"), 6: ("noise_only", "random_init"),
           7: ("last_layer", "random_init"), 8: ("warm_start", "shrink_perturb"), 9: ("shrink_perturb", "random_init"),
           11: ("shrink_perturb", "warm_start")}  # fmt: skip


def verdicts_of(number, rows, planned=None):
    curves = rows if number == 8 else []
    return [finding.verdict for _, finding in claims.check([number], [] if curves else rows, curves, planned)]


def swapped(number, rows):
    """The same with what was measured of the two methods exchanged."""
    if number == 8:
        names = dict(zip(METHODS[8], METHODS[8][::-1], strict=True))
        return [row | {"restart": names[row["restart"]]} for row in rows]
    if number == 14:
        return [row | {"round": 3 - row["round"]} for row in rows]
    if number == 10:
        names = {"1": "0.6", "0.6": "1"}
        return [row | {"shrink": names.get(row["shrink"], row["shrink"])} for row in rows]
    if number in (12, 13):  # the values of the setting from the other end
        name = {12: "first_fraction", 13: "pearson"}[number]
        highest = max(float(row[name]) for row in rows) + min(float(row[name]) for row in rows)
        return [row | {name: type(row[name])(round(highest - float(row[name]), 6))} for row in rows]
    measured = ("validation_accuracy", "samples_seen")
    found = {(row["restart"], row["seed"], row["round"]): {name: row[name] for name in measured} for row in rows}
    names = dict(zip(METHODS[number], METHODS[number][::-1], strict=True))
    return [row | found[names.get(row["restart"], row["restart"]), row["seed"], row["round"]] for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_a_claim_holds_is_contradicted_or_undecided(name):
    number, make, edge = CASES[name]
    assert {*verdicts_of(number, make(edge + FAR, 3))} == {"holds"}
    assert {*verdicts_of(number, make(edge - FAR, 3))} == {"contradicted"}
    assert {*verdicts_of(number, make(edge, 5))} == {"undecided"}


@pytest.mark.parametrize("name", CASES)
def test_fewer_than_three_seeds_or_no_rows_say_nothing(name):
    number, make, edge = CASES[name]
    for by in (edge - 50, edge + FAR):
        assert {*verdicts_of(number, make(by, 2))} == {*verdicts_of(number, make(by, 1))} == {"undecided"}
    assert verdicts_of(number, []) == ["undecided"]


@pytest.mark.parametrize("name", CASES)
def test_a_claim_that_holds_does_not_after_a_swap(name):
    number, make, edge = CASES[name]
    assert "holds" not in verdicts_of(number, swapped(number, make(edge + FAR, 5)))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] not in (1, 2, 8)])
def test_a_claim_does_not_hold_while_a_setting_is_missing(name):
    number, make, edge = CASES[name]
    rows = make(edge + FAR, 3)
    planned = dict.fromkeys(summary.by_line(rows), summary.Plan(2, 3))
    assert {*verdicts_of(number, rows, planned)} == {"holds"}
    absent = summary.Line((("activation", "relu"),), next(iter(planned)).cell)
    assert {*verdicts_of(number, rows, planned | {absent: summary.Plan(2, 3)})} == {"undecided"}


@pytest.mark.parametrize("name", [name for name in CASES if name != "gradients"])
def test_lanes_that_ended_by_nan_or_are_not_finished_are_in_no_test(name):
    number, make, edge = CASES[name]
    rows = make(edge + FAR, 5)
    last = max(row["round"] for row in rows)
    planned = dict.fromkeys(summary.by_line(rows), summary.Plan(last, 5))
    lost = [row | {"stop_reason": "nan", "validation_accuracy": 0.0} if row["seed"] == 4 else row for row in rows]
    behind = [row for row in rows if row["seed"] != 3 or row["round"] < last]
    for changed in (lost, behind):
        assert {*verdicts_of(number, changed, planned)} == {"holds"}
    assert {*verdicts_of(number, [r for r in lost if r["seed"] > 1], planned)} == {"undecided"}


def test_what_once_held_without_evidence():
    fresh, warm = line("random_init", 90, 3), line("warm_start", 80, 3)
    assert verdicts_of(11, fresh + warm + line("shrink_perturb", 10, 1)) == ["undecided"]
    assert verdicts_of(11, fresh + warm + line("shrink_perturb", 10, 3)) == ["contradicted"]
    assert verdicts_of(5, regularisers(FAR, 3, closing=5)) == ["contradicted"]
    assert verdicts_of(5, regularisers(FAR, 3, closing=1)) == ["contradicted"]
    below = [row for row in hyperparameters(3, 3) if row["restart"] == "warm_start"]
    below = [row | {"validation_accuracy": row["validation_accuracy"] - 0.2} for row in below]
    fresh = [row for row in hyperparameters(3, 3) if row["restart"] == "random_init"]
    assert verdicts_of(3, fresh + below) == ["undecided"]  # nothing closes the gap: no instance
    one = line("random_init", LOW, 1, samples=1000) + line("shrink_perturb", LOW - 0.49, 1, samples=999)
    assert verdicts_of(9, one) == ["undecided"]
    assert verdicts_of(9, cheaper(3, 3, cost=99)) == ["contradicted"]  # as good, but no cheaper
    for gap in (0, 1, 1.7):  # one margin for all models
        damaged, fine = verdicts_of(1, non_convex(gap, 3)), verdicts_of(1, logistic(-gap, 3))
        assert (damaged, fine) == {
            0: (["contradicted"], ["holds"]), 1: (["undecided"], ["undecided"]), 1.7: (["holds"], ["contradicted"]),
        }[gap]  # fmt: skip


def test_the_first_round_has_no_gap_and_is_in_no_trend():
    level = rounds(0, 5)  # the gap is 0 in round 1 and 2 points ever after
    assert verdicts_of(2, level) == ["contradicted"]
    assert verdicts_of(2, rounds(FAR, 5)) == ["holds"]


def test_a_trend_is_tested_over_the_seeds():
    rows = rounds(FAR, 4)
    falling = [row for row in rounds(-2 * FAR, 4) if row["seed"] > 1]
    assert verdicts_of(2, [row for row in rows if row["seed"] < 2] + falling) == ["undecided"]


@pytest.mark.parametrize(
    ("by", "verdict"), [(0, "holds"), (FAR, "contradicted"), (-FAR, "contradicted"), (1, "undecided")]
)
def test_logistic_regression_neither_rises_nor_falls_with_what_it_keeps(by, verdict):
    assert verdicts_of(13, forgetting(by, 5, model="logistic")) == [verdict]


@pytest.mark.parametrize("worst", ["warm_start", "random_init"])
def test_pretraining_is_held_against_the_better_of_two(worst):
    assert verdicts_of(11, pretraining(FAR, 3, worst)) == ["holds"]
    assert verdicts_of(11, pretraining(-FAR, 3, worst)) == ["contradicted"]


def test_noise_that_closes_the_gap_must_be_no_cheaper():
    below = noise(FAR, 3)
    for samples, verdict in ((200, "holds"), (50, "contradicted")):
        closed = line("noise_only", LOW + FAR, 3, 1, samples=samples, noise_scale="0.2")
        assert verdicts_of(6, below + closed) == [verdict]
    assert verdicts_of(6, line("random_init", LOW, 3) + line("noise_only", LOW, 3, 1, samples=200)) == ["undecided"]


def test_what_learned_nothing_says_nothing_of_a_regulariser():
    rows = regularisers(FAR, 3)
    chance = {"converged": False, "stop_reason": "plateau", "validation_accuracy": 0.1}
    nothing = [row | chance | {"weight_decay": 9.0} for row in rows if row["weight_decay"] == 0]
    found = claims.check([5], rows + nothing, [])
    assert [finding.verdict for _, finding in found] == ["holds"]
    assert "1 left out, which learned nothing" in found[0][1].text
    assert "shown in 12 of 12 settings" in found[0][1].text


def test_a_setting_is_compared_with_its_own_baseline_or_none():
    rows = [row for row in regularisers(FAR, 3) if (row["restart"], row["weight_decay"]) != ("warm_start", 0.05)]
    found = claims.check([5], rows, [])
    assert [finding.verdict for _, finding in found] == ["undecided"]
    assert "shown in 11 of 12 settings, the opposite in 0, undecided in 1" in found[0][1].text


def test_runs_that_are_cut_short_say_nothing():
    found = claims.check([1, 9], non_convex(FAR, 3), [], whole=False)
    assert [(number, finding.verdict) for number, finding in found] == [(1, "undecided"), (9, "undecided")]


def test_a_mean_is_tested_as_by_scipy():
    values = np.array([1.2, 0.3, 2.0, 1.1])
    found = verdicts.exceeds(values, 0.5)
    for side, alternative in zip(found, ("greater", "less"), strict=True):
        assert side == pytest.approx(stats.ttest_1samp(values, 0.5, alternative=alternative).pvalue)
    assert verdicts.exceeds([0.0, 0.0, 0.0], -1.0) == (0.0, 1.0)
    assert verdicts.exceeds([1.0, 1.0, 1.0], 1.0) == verdicts.exceeds([1.0, np.nan, 1.0], 0.0) == (1.0, 1.0)
    np.testing.assert_allclose(verdicts.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])


def test_evidence_combines():
    one, two = verdicts.Evidence(0.01, 0.9), verdicts.Evidence(0.2, 0.03)
    assert verdicts.both(one, two) == (0.2, 0.06)
    assert verdicts.either(one, two) == (0.02, 0.9)
    assert verdicts.opposite(verdicts.opposite(one)) == one


@pytest.mark.parametrize("settings", [1, 12])
def test_errors_are_as_rare_as_the_level_says(settings):
    values = np.random.default_rng(settings).normal(1.0, 0.5, (600, settings, 3))
    wrong = np.zeros(2)
    for run in values:
        found = verdicts.decide([verdicts.Tested("", "", verdicts.exceeds(seeds, 1.0)) for seeds in run])
        wrong += ["holds" in found, "contradicted" in found]
    assert (wrong / len(values) < verdicts.LEVEL + 0.03).all()
    assert (wrong / len(values) > 0.01).all()


def test_the_report_states_margin_level_and_correction():
    for words in (
        f"{verdicts.MARGIN:g} point",
        f"{verdicts.LEVEL}",
        "Holm",
        "paired by seed",
        "standard error",
        "10 %",
    ):
        assert words in verdicts.RULES
