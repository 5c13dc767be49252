"""Comparisons paired by seed: two lines, or the trend of a gap."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.records.results import Row

FEWEST = 3  # points of a trend


class Paired(NamedTuple):
    """Two finished lines, seed by seed."""

    points: np.ndarray  # [seeds], accuracy of the first minus that of the second in their last rounds, per cent
    costs: np.ndarray  # [seeds], logarithm of the ratio of samples visited in all rounds
    last_costs: np.ndarray  # [seeds], in the last round

    def __str__(self):
        """Return the difference in accuracy."""
        return difference(self.points)


def difference(points: np.ndarray) -> str:
    """Return a mean over the seeds, its standard error, and how many seeds."""
    if not len(points):
        return "no seed"
    error = f" ± {stats.sem(points):.1f}" if len(points) > 1 else ""
    return f"{np.mean(points):+.1f}{error} points ({len(points)} {'seeds' if len(points) > 1 else 'seed'})"


def pair(one: Sequence[Row], two: Sequence[Row]) -> Paired:
    """Compare two finished lines over the seeds that both have."""
    lanes = [defaultdict(list), defaultdict(list)]
    for found, rows in zip(lanes, (one, two), strict=True):
        for row in sorted(rows, key=lambda row: row["round"]):
            found[row["seed"]].append(row)
    shared = [(lanes[0][seed], lanes[1][seed]) for seed in lanes[0] if seed in lanes[1]]
    points = [100 * (a[-1]["validation_accuracy"] - b[-1]["validation_accuracy"]) for a, b in shared]
    costs = [_log_ratio(*(sum(row["samples_seen"] for row in its) for its in lane)) for lane in shared]
    last = [_log_ratio(*(its[-1]["samples_seen"] for its in lane)) for lane in shared]
    return Paired(*map(np.array, (points, costs, last)))


def gaps(fresh: Sequence[Row], warm: Sequence[Row], over: str) -> dict[int, dict[int, tuple[float, float]]]:
    """Return by seed and x, the column `over`: x, and random init minus warm start in points of accuracy."""
    reference = {(row["seed"], row["round"]): row["validation_accuracy"] for row in fresh}
    found = defaultdict(dict)
    for row in warm:
        at = row["seed"], row["round"]
        if at in reference:
            gap = 100 * (reference[at] - row["validation_accuracy"])
            found[row["seed"]][row[over]] = float(row[over]), gap
    return found


def rises(points: Mapping[int, Mapping[Hashable, tuple[float, float]]]) -> np.ndarray:
    """Measure how far y rises over the range of x: each seed's median slope (Theil and Sen), times that range; [seeds].

    `points` are x and y by seed and name. A seed that lacks a point of the others', or has too few, is left out.
    """
    names = {name for its in points.values() for name in its}
    made = []
    for its in points.values():
        x, y = np.array(list(its.values()), float).T if its else (np.empty(0), np.empty(0))
        if len(its) == len(names) >= FEWEST and np.ptp(x) > 0:
            made.append(stats.theilslopes(y, x).slope * np.ptp(x))
    return np.array(made, float)


def times(logarithms: np.ndarray) -> str:
    """Return the geometric mean of ratios, of which these are the logarithms."""
    return f"{np.exp(np.mean(logarithms)):.2f}x" if len(logarithms) else "an unknown ratio of"


def _log_ratio(one, two):
    return np.log(one / two) if one and two else np.nan
