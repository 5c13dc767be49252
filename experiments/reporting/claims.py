"""The paper's claims, each with a test on the rows of a run, by the rules of `experiments.reporting.verdicts`."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.records.results import Row
from experiments.reporting import summary, verdicts
from experiments.reporting.paired import difference, gaps, pair, rises, times
from experiments.reporting.summary import TASK, Line, Plan, baseline, by_line, label, last_round
from experiments.reporting.verdicts import HOLDS, MARGIN, UNDECIDED, Finding, Tested, decide, each, exceeds, together

FEW_EPOCHS = 25  # of a first phase (claim 4)
FIRST_EPOCHS = 5  # of a second phase (claim 8)
SMALL = 0.6  # λ down to which an MLP with biases is resilient, by the paper (claim 10)


class Claim(NamedTuple):
    """A claim of the paper."""

    text: str
    section: str
    test: Callable[[Sequence[Row], Sequence[Row]], list[Finding]]  # of rows and curves
    over_all: bool = True  # settings of the run: it cannot hold while one of them is missing


def check(
    numbers: Sequence[int],
    rows: Sequence[Row],
    curves: Sequence[Row],
    planned: Mapping[Line, Plan] | None = None,
    *,
    whole: bool = True,
) -> list[tuple[int, Finding]]:
    """Run every test of the claims of these numbers; a claim whose data are missing is undecided.

    Args:
      planned: how many rounds each line will have. A lane is left out that has fewer, lacks a round, or ended by NaN.
      whole: False where a run has fewer rounds than the experiment, which cannot test the claims.

    Returns:
      Number and finding of each test.
    """
    if not whole:
        return [(number, Finding(UNDECIDED, "the run is cut short by --rounds")) for number in numbers]
    curves, planned = summary.sound(rows, curves), planned or {}
    finished = {}
    for line, its in by_line(rows).items():
        rounds = planned[line].rounds if line in planned else last_round(its)[0]["round"]
        finished[line] = summary.complete(its, rounds)
    rows, absent = [row for its in finished.values() for row in its], sum(not finished.get(line) for line in planned)
    found = []
    for number in numbers:
        claim = CLAIMS[number]
        for finding in claim.test(rows, curves) or [Finding(UNDECIDED, "no instance, or its rows are missing")]:
            if absent and claim.over_all and finding.verdict == HOLDS:
                missing = f"{finding.text}; it cannot hold while {absent} of {len(planned)} lines have no finished lane"
                finding = Finding(UNDECIDED, missing)
            found.append((number, finding))
    return found


def _against(rows, restart, reference, chosen: Callable[[Line], bool] = lambda line: True):
    """Yield each line of a restart, paired with its reference; paired without a seed where that is missing."""
    lines = by_line(rows)
    for line, found in lines.items():
        if line.cell.restart == restart and chosen(line):
            yield line, pair(found, lines.get(baseline(line, lines, reference), []))


def _non_convex(rows, _):
    """Test claim 1: a gap above the margin; in logistic regression one below it."""
    tests = []
    for line, gap in _against(rows, "random_init", "warm_start"):
        name = label(line, without=("learning_rate",))
        damaged = exceeds(gap.points, MARGIN)
        convex = dict(line.variant).get("model", rows[0]["model"]) == "logistic"
        words = f"{gap}, {'no more' if convex else 'more'} than {MARGIN:g}?"
        tests.append(Tested(f"{name} minus warm start", words, verdicts.opposite(damaged) if convex else damaged))
    return each(tests)


def _grows(rows, _):
    """Test claim 2: each seed's gap rises from the second round to the last, by its slope. Round 1 has no gap."""
    tests, lines = [], by_line([row for row in rows if row["round"] > 1])
    for line, found in lines.items():
        other = baseline(line, lines)
        if line.cell.restart == "warm_start" and other is not None:
            risen = rises(gaps(lines[other], found, "round"))
            words = f"the gap rises by {difference(risen)} from the second round to the last, by more than {MARGIN:g}?"
            tests += [Tested(label(line), words, exceeds(risen, MARGIN))] if len(risen) else []
    return each(tests)


def _hyperparameters(rows, _):
    """Test claim 3: of the settings shown to match the best random init, none is cheaper; one at least must match."""
    lines, tests, matching = by_line(rows), [], []
    for line, found in lines.items():
        goals = [n for n in lines if n.cell.restart == "random_init" and _task(n) == _task(line)]
        if line.cell.restart != "warm_start" or not goals:
            continue
        best = max(goals, key=lambda n: np.mean([row["validation_accuracy"] for row in last_round(lines[n])]))
        compared = pair(found, lines[best])
        matches, cheaper = exceeds(compared.points, -MARGIN), exceeds(-compared.last_costs, verdicts.LOG_MARGIN)
        figures = f"{compared} at {times(compared.last_costs)} its cost"
        tests.append(
            Tested(label(line), figures, verdicts.either(verdicts.opposite(matches), verdicts.opposite(cheaper)))
        )
        matching.append(Tested(label(line), figures, matches))
    what = f"warm start below the best random init by more than {MARGIN:g} point, or no cheaper in the second phase"
    return _with_instance(together(tests, what), matching, "shown to match it")


def _switch(rows, _):
    """Test claim 4: a gap above the margin after each of the early switches."""
    tests = []
    for line, compared in _against(rows, "warm_start", "random_init"):
        epochs = dict(line.variant).get("first_epochs", "None")
        if epochs != "None" and int(epochs) <= FEW_EPOCHS:
            tests.append(Tested(f"after {epochs} epochs", str(compared), exceeds(-compared.points, MARGIN)))
    return together(tests, f"warm start below random init by more than {MARGIN:g} point")


def _regularised(rows, _):
    """Test claim 5: a gap above the margin in every setting that learned its samples."""
    lines, made = by_line(rows), summary.summarize(rows)
    learned = summary.trained([s.accuracy for s in made], [not s.not_converged for s in made])
    nothing = {s.line for s, learns in zip(made, learned, strict=True) if not learns}
    tests, out = [], []
    for line, gap in _against(rows, "random_init", "warm_start"):
        if {line, baseline(line, lines, "warm_start")} <= nothing:
            out.append(label(line))
        else:
            tests.append(Tested(label(line), str(gap), exceeds(gap.points, MARGIN)))
    left = f" ({len(out)} left out, which learned nothing: {'; '.join(out)})" if out else ""
    return together(tests, f"random init above warm start by more than {MARGIN:g} point{left}")


def _noise(rows, _):
    """Test claim 6: below random init by more than the margin, or no cheaper, at every σ; one at least is below."""
    tests, short = [], []
    for line, compared in _against(rows, "noise_only", "random_init", lambda line: float(line.cell.noise_scale) > 0):
        below, cheaper = exceeds(-compared.points, MARGIN), exceeds(-compared.last_costs, verdicts.LOG_MARGIN)
        figures = f"{compared} at {times(compared.last_costs)} its cost"
        tests.append(Tested(f"σ={line.cell.noise_scale}", figures, verdicts.either(below, verdicts.opposite(cheaper))))
        short.append(Tested(f"σ={line.cell.noise_scale}", figures, below))
    what = f"noise alone below random init by more than {MARGIN:g} point, or no cheaper"
    return _with_instance(together(tests, what), short, "shown to be below it")


def _last_layer(rows, _):
    """Test claim 7: below random init by more than the margin in every setting."""

    def alone(line):
        return dict(line.variant).get("trained") in ("head", "head_then_all")

    found = [*_against(rows, "warm_start", "random_init", alone), *_against(rows, "last_layer", "random_init")]
    tests = [Tested(label(line), str(compared), exceeds(-compared.points, MARGIN)) for line, compared in found]
    return together(tests, f"below random init by more than {MARGIN:g} point")


def _balance(_, curves):
    """Test claim 8: the ratio of norms is nearer to 1 than the warm start's, by more than the margin."""
    ratios = {line: _norm_ratios(its) for line, its in by_line(curves).items()}
    tests = []
    for line, shrunk in ratios.items():
        other = baseline(line, ratios, "warm_start")
        if line.cell.restart != "shrink_perturb" or other is None:
            continue
        seeds = [seed for seed in shrunk if seed in ratios[other]]
        if seeds:
            two = [np.array([found[seed] for seed in seeds]) for found in (ratios[other], shrunk)]
            words = f"{times(two[0])} warm start, {times(two[1])} here ({len(seeds)} seeds)"
            nearer = exceeds(np.abs(two[0]) - np.abs(two[1]), verdicts.LOG_MARGIN)
            tests.append(Tested(label(line), words, nearer))
    what = f"new over old in the first {FIRST_EPOCHS} epochs nearer to 1 than after the warm start by more than"
    return together(tests, f"{what} {100 * verdicts.COST_MARGIN:g} %")


def _norm_ratios(curves):
    """Return the mean logarithm of new over old gradient norms for each seed that has all of the first epochs."""
    norms = defaultdict(dict)
    for row in curves:
        if row["name"].startswith("gradient_norm") and 0 < row["value"] < np.inf and row["epoch"] <= FIRST_EPOCHS:
            norms[row["seed"]][row["name"], row["epoch"]] = np.log(row["value"])
    epochs = {epoch for found in norms.values() for _, epoch in found}
    return {
        seed: np.mean([found["gradient_norm_new", n] - found["gradient_norm_old", n] for n in epochs])
        for seed, found in norms.items()
        if len(found) == 2 * len(epochs)
    }


def _matches(rows, _):
    """Test claim 9: no more than the margin below random init, and cheaper, in half of the settings, two at least."""
    tests = []
    for line, compared in _against(rows, "shrink_perturb", "random_init", lambda line: 0 < float(line.cell.shrink) < 1):
        good = verdicts.both(exceeds(compared.points, -MARGIN), exceeds(-compared.costs, verdicts.LOG_MARGIN))
        tests.append(Tested(label(line), f"{compared} at {times(compared.costs)} its cost", good))

    def judge(shown, opposed, total):
        return HOLDS if shown >= max(2, total / 2) else verdicts.CONTRADICTED if opposed > total / 2 else UNDECIDED

    enough = "half of the settings are enough, two at least"
    return together(tests, f"no more than {MARGIN:g} point below random init at less cost ({enough})", judge)


def _shrunk(rows, _):
    """Test claim 10: no more than the margin below λ = 1, at each λ down to 0.6; a finding for each network."""
    groups = defaultdict(dict)
    for line, found in by_line(rows).items():
        if line.cell.restart in ("warm_start", "shrink_perturb") and ("statistics", "keep") not in line.variant:
            groups[line.variant].setdefault(float(line.cell.shrink), found)
    tests, of = [], []
    for variant, found in groups.items():
        shrinks = sorted((s for s in found if SMALL <= s < 1), reverse=True) if {SMALL, 1.0} <= {*found} else []
        for shrink in shrinks:
            compared = pair(found[shrink], found[1.0])
            tests.append(Tested(f"λ={shrink:g}", str(compared), exceeds(compared.points, -MARGIN)))
            of.append(variant)
    findings, decided = [], decide(tests)  # of all networks: they are corrected together
    for variant in dict.fromkeys(of):
        own = [i for i, each_ in enumerate(of) if each_ == variant]
        name = ", ".join(value if key == "model" else f"{key} {value}" for key, value in variant)
        what = f"{name}, no more than {MARGIN:g} point below λ=1"
        findings += together([tests[i] for i in own], what, verdicts=[decided[i] for i in own])
    return findings


def _pretrained(rows, _):
    """Test claim 11: no more than the margin below warm start and below random init, in every setting."""
    found = [dict(_against(rows, "shrink_perturb", other)) for other in ("warm_start", "random_init")]
    tests = []
    for line in found[0].keys() & found[1].keys():
        compared = [pairs[line] for pairs in found]
        worst = min(compared, key=lambda gap: gap.points.mean() if len(gap.points) else -np.inf)
        tests.append(
            Tested(label(line), str(worst), verdicts.both(*(exceeds(gap.points, -MARGIN) for gap in compared)))
        )
    tests.sort(key=lambda test: test.name)
    return together(tests, f"no more than {MARGIN:g} point below warm start and random init, whichever is better")


def _fraction(rows, _):
    """Test claim 12: the fall of each seed's gap from the smallest fraction to the largest, by its slope."""
    tests = []
    for task, own in _by_task(row for row in last_round(rows) if "first_fraction" in row).items():
        warm, fresh = ([row for row in own if row["restart"] == name] for name in ("warm_start", "random_init"))
        falls = -rises(gaps(fresh, warm, "first_fraction"))
        words = f"the gap falls by {difference(falls)} from the smallest fraction to the largest"
        tests += [Tested(task, f"{words}, by more than {MARGIN:g}?", exceeds(falls, MARGIN))] if len(falls) else []
    return each(tests)


def _forgotten(rows, _):
    """Test claim 13: accuracy falls as the correlation with the start grows; not so in logistic regression."""
    tests = []
    for task, own in _by_task(row for row in last_round(rows) if np.isfinite(row.get("pearson", np.nan))).items():
        points = defaultdict(dict)
        for line, found in by_line(own).items():
            for row in found:
                points[row["seed"]][line] = row["pearson"], 100 * row["validation_accuracy"]
        falls, convex = -rises(points), own[0]["model"] == "logistic"
        evidence = verdicts.within(falls, MARGIN) if convex else exceeds(falls, MARGIN)
        words = f"accuracy falls by {difference(falls)} from the least to the most correlated with its start"
        expected = f"within ±{MARGIN:g}?" if convex else f"by more than {MARGIN:g}?"
        tests += [Tested(task, f"{words}, {expected}", evidence)] if len(falls) else []
    return each(tests)


def _static(rows, _):
    """Test claim 14: the last round is above the first by more than the margin, in every setting."""
    tests = []
    for line, found in by_line(rows).items():
        first = [row for row in found if row["round"] == 1]
        if line.cell.restart == "shrink_perturb" and len(found) > len(first):
            gain = pair(found, first)
            tests.append(Tested(label(line), str(gain), exceeds(gain.points, MARGIN)))
    return together(tests, f"last round above the first by more than {MARGIN:g} point")


def _with_instance(findings, instances, what):
    """Add in how many settings a claim's premise is shown; it cannot hold where that is none."""
    count = decide(instances).count(HOLDS)
    return [
        Finding(
            UNDECIDED if finding.verdict == HOLDS and not count else finding.verdict,
            f"{finding.text}; {count} of {len(instances)} {what}",
        )
        for finding in findings
    ]


def _by_task(rows):
    """Return the rows of each data set, model and optimiser."""
    tasks = defaultdict(list)
    for row in rows:
        tasks[", ".join(row[name] for name in TASK)].append(row)
    return tasks


def _task(line):
    return [dict(line.variant).get(name) for name in TASK]


CLAIMS: Mapping[int, Claim] = {
    1: Claim(
        "warm start is below random init in non-convex models, not in logistic regression", "2.1", _non_convex, False
    ),
    2: Claim("the gap grows with the rounds", "2.2", _grows, False),
    3: Claim("hyperparameters that close the gap cost as much as random init", "3.1", _hyperparameters),
    4: Claim("a few epochs of a first phase already damage", "3.2", _switch),
    5: Claim("regularisers, weight decay included, don't close the gap", "3.3", _regularised),
    6: Claim("noise alone doesn't close it, save at the price of time", "4", _noise),
    7: Claim("the last layer alone doesn't", "4", _last_layer),
    8: Claim("shrink-perturb balances the gradient norms of old and new data", "4", _balance),
    9: Claim("shrink-perturb matches or beats random init at less cost, over a broad range of λ and σ", "4", _matches),
    10: Claim("shrinking keeps the hypothesis down to small λ", "4", _shrunk),
    11: Claim(
        "in pre-training shrink-perturb is never below the better of warm start and random init", "4.2", _pretrained
    ),
    12: Claim("the gap shrinks as the first fraction grows", "2.1", _fraction),
    13: Claim(
        "solutions that generalise have forgotten their initialisation; not so in logistic regression",
        "3.1",
        _forgotten,
    ),
    14: Claim("on data that stay the same shrink-perturb regularises slightly", "4.1", _static),
}
