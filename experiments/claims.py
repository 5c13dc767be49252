"""The paper's claims, each with the test that is applied to our rows. What the data contradict is called so."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.results import Row
from experiments.summary import Line, baseline, by_line, label, last_round

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
LEVEL = 0.05  # of every test
CLOSE = 0.5  # points of accuracy that count as no difference where a claim speaks of matching
FEW_EPOCHS = 25  # of the first phase
SAME = 1.5  # points: a gap whose 90 % interval lies within ± this is none


class Finding(NamedTuple):
    """What one test of a claim found."""

    verdict: str
    text: str  # the test and its figures


class Claim(NamedTuple):
    """A claim of the paper."""

    text: str
    section: str
    test: Callable[[Sequence[Row], Sequence[Row]], Iterator[Finding]]  # of rows and curves


class Gap(NamedTuple):
    """Differences of two finished lines in their last rounds, seed by seed."""

    points: np.ndarray  # [seeds], accuracy of the first minus that of the second, per cent
    cost: float  # samples visited in all rounds, a ratio
    last_cost: float  # in the last round

    def __str__(self):
        """The mean and its standard error."""
        error = f" ± {stats.sem(self.points):.1f}" if len(self.points) > 1 else ""
        return f"{np.mean(self.points):+.1f}{error} points"

    def is_above(self, level: float = 0.0, tests: int = 1) -> bool:
        """Whether the mean is above `level`: one-sided t-test, at the 5 % level for so many tests together."""
        return _p(self.points - level) < LEVEL / tests

    def is_below(self, level: float = 0.0, tests: int = 1) -> bool:
        """Whether the mean is below `level`."""
        return _p(level - self.points) < LEVEL / tests

    def verdict(self) -> str:
        """Of the claim that the mean is above 0."""
        return HOLDS if self.is_above() else CONTRADICTED if self.is_below() else UNDECIDED


def gap(one: Sequence[Row], two: Sequence[Row]) -> Gap | None:
    """Compares two finished lines over the seeds that both have; None where there are none."""
    last, other = ({row["seed"]: row for row in last_round(rows)} for rows in (one, two))
    seeds = [seed for seed in last if seed in other]
    if not seeds:
        return None
    points = [100 * (last[s]["validation_accuracy"] - other[s]["validation_accuracy"]) for s in seeds]
    totals = [sum(row["samples_seen"] for row in rows if row["seed"] in seeds) for rows in (one, two)]
    lasts = [sum(found[seed]["samples_seen"] for seed in seeds) for found in (last, other)]
    ratios = (a / b if b else float("nan") for a, b in (totals, lasts))
    return Gap(np.array(points), *ratios)


def check(
    numbers: Sequence[int],
    rows: Sequence[Row],
    curves: Sequence[Row],
    planned: Mapping[Line, int] | None = None,
    *,
    whole: bool = True,
) -> list[tuple[int, Finding]]:
    """Every test of these claims; a claim whose data are missing is undecided.

    Args:
      numbers: of the claims.
      rows: of `results.csv`.
      curves: of `curves.csv`.
      planned: how many rounds each line has in the end; lines that have not come so far are left out.
      whole: False where a run has fewer rounds than the experiment, which says nothing of the claims.

    Returns:
      Number and finding of each test.
    """
    if not whole:
        return [(number, Finding(UNDECIDED, "the run is cut short by --rounds")) for number in numbers]
    finished = {n: its for n, its in by_line(rows).items() if last_round(its)[0]["round"] >= (planned or {}).get(n, 0)}
    rows = [row for its in finished.values() for row in its]
    found = []
    for number in numbers:
        tested = list(CLAIMS[number].test(rows, curves)) or [Finding(UNDECIDED, "its rows are missing")]
        found += [(number, finding) for finding in tested]
    return found


def _p(values):
    """The p-value of a mean above 0; 1 with one value, as nothing can be said."""
    if len(values) < 2 or np.ptp(values) < 1e-9:
        return 1.0 if len(values) < 2 or values[0] <= 0 else 0.0
    return stats.ttest_1samp(values, 0, alternative="greater").pvalue


def _against(rows, restart, reference, chosen: Callable[[Line], bool] = lambda line: True):
    """Each line of a restart with its gap to its reference."""
    lines = by_line(rows)
    for line, found in lines.items():
        other = baseline(line, lines, reference)
        if line.cell.restart == restart and chosen(line) and other is not None:
            compared = gap(found, lines[other])
            if compared is not None:
                yield line, compared


def _non_convex(rows, _):
    """Claim 1."""
    for line, compared in _against(rows, "random_init", "warm_start"):
        name = label(line, without=("learning_rate",))
        model = dict(line.variant).get("model", rows[0]["model"])
        text = f"{name} minus warm start: {compared}"
        if model != "logistic":
            yield Finding(compared.verdict(), f"{text} (t-test over seeds)")
            continue
        same = compared.is_above(-SAME) and compared.is_below(SAME)
        verdict = HOLDS if same else CONTRADICTED if compared.is_above(SAME) else UNDECIDED
        yield Finding(verdict, f"{text} (convex: within ±{SAME} points?)")


def _grows(rows, _):
    """Claim 2."""
    lines = by_line(rows)
    for line, found in lines.items():
        other = baseline(line, lines)
        if line.cell.restart != "warm_start" or other is None:
            continue
        warm, fresh = (
            {(r["seed"], r["round"]): r["validation_accuracy"] for r in its} for its in (found, lines[other])
        )
        gaps = defaultdict(list)
        for seed, round_ in warm.keys() & fresh.keys():
            gaps[round_].append(100 * (fresh[seed, round_] - warm[seed, round_]))
        if len(gaps) < 4:
            continue
        means = [np.mean(gaps[n]) for n in sorted(gaps)]
        rank, p = _spearman(sorted(gaps), means)
        verdict = UNDECIDED if p >= LEVEL else HOLDS if rank > 0 else CONTRADICTED
        third = max(1, len(means) // 3)
        text = f"gap {np.mean(means[:third]):+.1f} points in the first third of the rounds, "
        text += f"{np.mean(means[-third:]):+.1f} in the last"
        yield Finding(verdict, f"{text} (Spearman with the round {rank:+.2f}, p = {p:.2g})")


def _hyperparameters(rows, _):
    """Claim 3."""
    lines = by_line(rows)
    fresh = {n: last_round(found) for n, found in lines.items() if n.cell.restart == "random_init"}
    if not fresh:
        return
    best = max(fresh, key=lambda line: _mean(fresh[line], "validation_accuracy"))
    goal, cost = _mean(fresh[best], "validation_accuracy"), _mean(fresh[best], "samples_seen")
    warm = [last_round(found) for n, found in lines.items() if n.cell.restart == "warm_start"]
    ratios = [_mean(r, "samples_seen") / cost for r in warm if 100 * (_mean(r, "validation_accuracy") - goal) >= -CLOSE]
    text = (
        f"{len(ratios)} of {len(warm)} warm settings within {CLOSE} points of the best random init ({100 * goal:.1f} %)"
    )
    if not ratios:
        yield Finding(HOLDS, f"{text}: none closes the gap")
        return
    middle = float(np.median(ratios))
    yield Finding(
        HOLDS if middle >= 0.8 else CONTRADICTED,
        f"{text}, at {middle:.2f}x its second-phase cost (median; holds from 0.8x)",
    )


def _switch(rows, _):
    """Claim 4."""
    found = {dict(line.variant)["first_epochs"]: g for line, g in _against(rows, "warm_start", "random_init")}
    found = {int(epochs): g for epochs, g in found.items() if epochs != "None"}
    early = {epochs: g for epochs, g in sorted(found.items()) if epochs <= FEW_EPOCHS}
    if not early:
        return
    damaged = [epochs for epochs, g in early.items() if g.is_below(tests=len(early))]
    together = Gap(np.mean([g.points for g in early.values()], axis=0), np.nan, np.nan)
    verdict = HOLDS if together.is_below() else CONTRADICTED if together.is_above() else UNDECIDED
    text = f"switches after {', '.join(map(str, early))} epochs minus random init: {together} together"
    yield Finding(verdict, f"{text}; {len(damaged)} of {len(early)} significantly below it alone (t-tests)")


def _regularised(rows, _):
    """Claim 5."""
    compared = [g for _, g in _against(rows, "random_init", "warm_start")]
    yield from _count(compared, "settings with the warm start below random init")


def _count(compared, what):
    """Holds where most are significantly above 0 and none is below."""
    if not compared:
        return
    above = sum(g.is_above() for g in compared)
    below = sum(g.is_below(tests=len(compared)) for g in compared)
    verdict = CONTRADICTED if below else HOLDS if above > len(compared) / 2 else UNDECIDED
    middle = np.median([np.mean(g.points) for g in compared])
    yield Finding(
        verdict, f"{above} of {len(compared)} {what}, {below} above it (t-tests); median gap {middle:+.1f} points"
    )


def _noise(rows, _):
    """Claim 6."""
    for line, compared in _against(rows, "noise_only", "random_init"):
        if float(line.cell.noise_scale) == 0:
            continue
        slow = compared.last_cost >= 1
        verdict = HOLDS if compared.is_below() or slow else CONTRADICTED if compared.is_above(-CLOSE) else UNDECIDED
        text = f"σ={line.cell.noise_scale} minus random init: {compared} at {compared.last_cost:.2f}x its cost"
        yield Finding(verdict, f"{text} (below it, or no cheaper?)")


def _last_layer(rows, _):
    """Claim 7."""

    def alone(line):
        return dict(line.variant).get("trained") in ("head", "head_then_all")

    for restart, chosen in (("warm_start", alone), ("last_layer", lambda line: True)):
        for line, compared in _against(rows, restart, "random_init", chosen):
            below = Gap(-compared.points, compared.cost, compared.last_cost)
            yield Finding(below.verdict(), f"{label(line)} minus random init: {compared} (t-test)")


def _balance(_, curves):
    """Claim 8."""
    norms = defaultdict(lambda: defaultdict(list))
    for row in curves:
        if row["name"].startswith("gradient_norm") and row["epoch"] <= 5:
            norms[row["restart"], row["seed"]][row["name"]].append(row["value"])
    ratios = {
        key: np.mean(np.log(found["gradient_norm_new"])) - np.mean(np.log(found["gradient_norm_old"]))
        for key, found in norms.items()
    }
    seeds = [seed for restart, seed in ratios if restart == "warm_start" and ("shrink_perturb", seed) in ratios]
    if not seeds:
        return
    warm, shrunk = ([ratios[restart, seed] for seed in seeds] for restart in ("warm_start", "shrink_perturb"))
    differences = Gap(np.abs(warm) - np.abs(shrunk), np.nan, np.nan)
    means = f"{np.exp(np.mean(warm)):.2f}x warm start, {np.exp(np.mean(shrunk)):.2f}x shrink-perturb"
    text = f"new over old in the first 5 epochs: {means}"
    yield Finding(differences.verdict(), f"{text} (t-test of the distance of the logarithm from 0)")


def _matches(rows, _):
    """Claim 9."""

    def between(line):
        return 0 < float(line.cell.shrink) < 1

    found = list(_against(rows, "shrink_perturb", "random_init", between))
    if not found:
        return
    good = [(line, g) for line, g in found if np.mean(g.points) >= -CLOSE and g.cost < 1]
    text = f"{len(good)} of {len(found)} settings (half are enough) reach random init less {CLOSE} points at less cost"
    if good:
        line, g = max(good, key=lambda item: np.mean(item[1].points))
        text += f"; the best is λ={line.cell.shrink} σ={line.cell.noise_scale}, {g} at {g.cost:.2f}x"
    yield Finding(HOLDS if len(good) >= len(found) / 2 else CONTRADICTED if not good else UNDECIDED, text)


def _shrunk(rows, _):
    """Claim 10."""
    groups = defaultdict(dict)
    for line, found in by_line(rows).items():
        if line.cell.restart in ("warm_start", "shrink_perturb"):
            groups[line.variant].setdefault(float(line.cell.shrink), found)
    for variant, found in groups.items():
        if len(found) < 2 or 1.0 not in found or ("statistics", "keep") in variant:
            continue
        compared = {shrink: gap(its, found[1.0]) for shrink, its in sorted(found.items(), reverse=True)}
        compared = {shrink: g for shrink, g in compared.items() if g is not None}
        kept = list(itertools.takewhile(lambda item: np.mean(item[1].points) > -2, compared.items()))[-1][0]
        at = min(compared, key=lambda shrink: abs(shrink - 0.6))
        verdict = HOLDS if kept <= 0.6 else CONTRADICTED
        name = ", ".join(value if key == "model" else f"{key} {value}" for key, value in variant)
        text = f"{name}: within 2 points down to λ={kept:g}; at λ={at:g} {compared[at]}"
        yield Finding(verdict, f"{text} (holds from λ=0.6)")


def _pretrained(rows, _):
    """Claim 11."""
    lines, compared = by_line(rows), {}
    for line, found in lines.items():
        others = [baseline(line, lines, name) for name in ("warm_start", "random_init")]
        if line.cell.restart != "shrink_perturb" or None in others:
            continue
        gaps = [g for g in (gap(found, lines[other]) for other in others) if g is not None]
        if len(gaps) == 2:
            compared[line] = min(gaps, key=lambda g: np.mean(g.points))
    if not compared:
        return
    below = [f"{label(n)}: {g}" for n, g in compared.items() if g.is_below(tests=2 * len(compared))]
    text = f"{len(below)} of {len(compared)} settings significantly below the better of warm start and random init"
    worst = f" ({'; '.join(below[:3])}{'; …' if len(below) > 3 else ''})" if below else ""
    middle = np.median([np.mean(g.points) for g in compared.values()])
    verdict = CONTRADICTED if below else HOLDS
    yield Finding(verdict, f"{text}{worst}; median {middle:+.1f} points (t-tests, Bonferroni)")


def _fraction(rows, _):
    """Claim 12."""
    found = list(_against(rows, "warm_start", "random_init"))
    fractions = [float(dict(line.variant).get("first_fraction", "nan")) for line, _ in found]
    if len(fractions) < 4:
        return
    gaps = [-np.mean(compared.points) for _, compared in found]
    rank, p = _spearman(fractions, gaps)
    verdict = UNDECIDED if p >= LEVEL else HOLDS if rank < 0 else CONTRADICTED
    by_fraction = dict(zip(fractions, gaps, strict=True))
    ends = ", ".join(f"{by_fraction[f]:+.1f} points at {f:g}" for f in (min(fractions), max(fractions)))
    yield Finding(verdict, f"gap {ends} (Spearman with the fraction {rank:+.2f}, p = {p:.2g})")


def _forgotten(rows, _):
    """Claim 13."""
    for model in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in last_round(rows) if row["model"] == model and np.isfinite(row["pearson"])]
        if len(chosen) < 5:
            continue
        rank, p = _spearman([r["pearson"] for r in chosen], [r["validation_accuracy"] for r in chosen])
        downward = p < LEVEL and rank < 0
        verdict = HOLDS if downward == (model != "logistic") else CONTRADICTED if p < LEVEL else UNDECIDED
        expected = "none expected" if model == "logistic" else "falling expected"
        text = f"{model}: Spearman of accuracy with the correlation {rank:+.2f}, p = {p:.2g}, {len(chosen)} models"
        yield Finding(verdict, f"{text} ({expected})")


def _static(rows, _):
    """Claim 14."""
    for line, found in by_line(rows).items():
        first = [row for row in found if row["round"] == 1]
        if len(found) > len(first):
            compared = gap(found, first)
            if compared is None:
                continue
            yield Finding(compared.verdict(), f"{label(line)}, last round minus first: {compared} (t-test)")


def _spearman(x, y):
    """Rank correlation and its p-value; 0 and 1 where one is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, 1.0
    return stats.spearmanr(x, y)


def _mean(rows, name):
    return float(np.mean([row[name] for row in rows]))


CLAIMS: Mapping[int, Claim] = {
    1: Claim("warm start is below random init in non-convex models, not in logistic regression", "2.1", _non_convex),
    2: Claim("the gap grows with the rounds", "2.2", _grows),
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
