"""Statistical tests of claims: one margin, one level, one correction, paired by seed, the same for and against.

A claim is that something lies above a threshold. It holds where the mean over the seeds is shown to be above, it is
contradicted where the mean is shown to be below, and it is undecided otherwise. Margins and level were set before these
tests were run on any result.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
MARGIN = 1.0  # points of accuracy: a smaller difference counts as none
COST_MARGIN = 0.1  # of a ratio of samples visited, or of gradient norms: 1.1 and 1 / 1.1 count as 1
LEVEL = 0.05
MIN_SEEDS = 3
LOG_MARGIN = float(np.log1p(COST_MARGIN))
RULES = (
    f"Every test is a one-sided t-test over the seeds, paired by seed, at the level {LEVEL}, with {MIN_SEEDS} seeds or "
    "more that finished all rounds. A difference counts from a margin on, the same for all claims and set before they "
    f"were tested: {MARGIN:g} point of accuracy, {100 * COST_MARGIN:g} % of a ratio of costs or of gradient norms (its "
    "logarithm is tested). A claim holds where the mean is shown to lie on its side of the margin, it is contradicted "
    "where it is shown to lie on the other side, else it is undecided. Where a run tests a claim in several settings, "
    "Holm's correction is applied over all of them, for and against alike. ± is the standard error of the mean."
)


class Finding(NamedTuple):
    """The result of one test of a claim."""

    verdict: str
    text: str  # the test and its figures


class Evidence(NamedTuple):
    """P-values of a statement and of its opposite; both are 1 where there are too few seeds."""

    support: float = 1.0
    against: float = 1.0


class Tested(NamedTuple):
    """A claim in one setting."""

    name: str
    figures: str
    evidence: Evidence


def exceeds(values: Sequence[float], threshold: float) -> Evidence:
    """Test whether a mean over the seeds, of which `values` has one each, is above a threshold: one-sided t-tests, in
    both directions; the p-values of above and of below."""
    values = np.asarray(values, float) - threshold
    if len(values) < MIN_SEEDS or not np.isfinite(values).all():
        return Evidence()
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    if error <= 1e-9 * max(1.0, abs(threshold)):  # all seeds are equal up to rounding
        return Evidence(float(mean <= 1e-9), float(mean >= -1e-9))
    t, freedom = mean / error, len(values) - 1
    return Evidence(float(stats.t.sf(t, freedom)), float(stats.t.cdf(t, freedom)))


def both(*statements: Evidence) -> Evidence:
    """Return the evidence that all of the statements are true; one false statement counts against it (Bonferroni)."""
    against = min(1.0, len(statements) * min(each.against for each in statements))
    return Evidence(max(each.support for each in statements), against)


def opposite(statement: Evidence) -> Evidence:
    """Return the evidence that a statement is not true."""
    return Evidence(statement.against, statement.support)


def either(*statements: Evidence) -> Evidence:
    """Return the evidence that at least one of the statements is true."""
    return opposite(both(*map(opposite, statements)))


def within(values: Sequence[float], margin: float) -> Evidence:
    """Test whether a mean over the seeds is equivalent to 0, by two one-sided tests."""
    return both(exceeds(values, -margin), opposite(exceeds(values, margin)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values by Holm's method, which controls the family-wise error rate."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)
    raised = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return adjusted


def decide(tests: Sequence[Tested]) -> list[str]:
    """Return the verdict in each setting, corrected for all of them together, for and against alike."""
    support, against = (holm([getattr(test.evidence, side) for test in tests]) for side in Evidence._fields)
    return [
        HOLDS if s < LEVEL else CONTRADICTED if a < LEVEL else UNDECIDED for s, a in zip(support, against, strict=True)
    ]


def each(tests: Sequence[Tested]) -> list[Finding]:
    """Return a finding for each setting."""
    return [Finding(v, f"{test.name}: {test.figures}") for v, test in zip(decide(tests), tests, strict=True)]


def all_of(shown: int, opposed: int, total: int) -> str:
    """Judge a claim about all settings: one that is shown otherwise contradicts it."""
    return CONTRADICTED if opposed else HOLDS if shown == total else UNDECIDED


def together(
    tests: Sequence[Tested],
    what: str,
    judge: Callable[[int, int, int], str] = all_of,
    verdicts: Sequence[str] | None = None,
) -> list[Finding]:
    """Return one finding over all settings; none where there is no setting.

    Args:
      what: the statement, in words.
      judge: the verdict from how many settings are shown, how many are shown otherwise, and how many there are.
      verdicts: in each setting, where they were corrected together with others.

    Returns:
      The finding, whose text has the counts and the settings that decide.
    """
    if not tests:
        return []
    verdicts = verdicts or decide(tests)
    shown, opposed, unknown = (verdicts.count(v) for v in (HOLDS, CONTRADICTED, UNDECIDED))
    verdict = judge(shown, opposed, len(tests))
    telling = next(v for v in (verdict, CONTRADICTED, UNDECIDED, HOLDS) if v in verdicts)
    named = [f"{test.name}: {test.figures}" for v, test in zip(verdicts, tests, strict=True) if v == telling]
    words = {HOLDS: "shown", CONTRADICTED: "the opposite", UNDECIDED: "undecided"}[telling]
    examples = "; ".join(named[:3]) + ("; …" if len(named) > 3 else "")
    if len(tests) == 1:
        return [Finding(verdict, f"{what}: {examples}")]
    counts = f"{what}: shown in {shown} of {len(tests)} settings, the opposite in {opposed}, undecided in {unknown}"
    return [Finding(verdict, f"{counts} ({words}: {examples})")]
