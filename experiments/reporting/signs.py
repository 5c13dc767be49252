"""Which measures foretell a loss of plasticity, and from which threshold on: from a run on a stream of tasks.

python -m experiments.reporting.signs runs/signs

A task is lost where its online accuracy is less than `LEAST` of what the same lane had in its first task. A sign is a
measure (`--measures=`) after the task before, divided by its value after the first task (the share of dormant units as
it is). How well it foretells is the area under the ROC curve, 0.5 for nothing. The threshold is that of the best
balanced accuracy over all tasks; the balanced accuracy beside it is honest: on each setting (stream, activation,
learning rate, …) by a threshold and a direction chosen on the others.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.config import app
from experiments.records import results, run_folder
from experiments.records.results import MEASURES, Row
from experiments.reporting.summary import markdown, varied

LEAST = 0.9
SHARES = ("dormant",)  # taken as they are: a share of the units, which may be 0 after the first task


class Sign(NamedTuple):
    """A measure as a sign."""

    name: str
    area: float  # under the ROC curve: of a lost task's sign above that of another's
    rises: bool  # whether it is above, rather than below, its threshold where plasticity is lost
    threshold: float  # times its value after the first task, or a share
    balanced: float  # accuracy on settings that the threshold was not chosen on


def examples(rows: Sequence[Row]) -> dict[tuple, list[tuple[dict[str, float], bool]]]:
    """Return by setting the signs before each task from the third on, and whether the task was lost."""
    names, lanes, found = varied(rows), defaultdict(dict), defaultdict(list)
    measures = [name for name in MEASURES if name in rows[0] and name != "online_accuracy"]
    for row in rows:
        setting = tuple(results.text(row[name]) for name in names)
        lanes[setting, row["restart"], row["shrink"], row["noise_scale"], row["seed"]][row["round"]] = row
    for (setting, *_), its in lanes.items():
        first = its[1]
        for round_ in range(3, max(its) + 1):
            before, now = its[round_ - 1], its[round_]
            signs = {name: before[name] / (1 if name in SHARES else first[name]) for name in measures}
            found[setting].append((signs, now["online_accuracy"] < LEAST * first["online_accuracy"]))
    return dict(found)


def signs(rows: Sequence[Row]) -> list[Sign]:
    """Return all measures as signs, the best first."""
    by_setting = examples(rows)
    every = [each for its in by_setting.values() for each in its]
    made = []
    for name in every[0][0]:
        values, lost = _arrays(every, name)
        area = _area(values, lost)
        left_out = []
        for setting, its in by_setting.items():
            others = [each for other, found in by_setting.items() if other != setting for each in found]
            values_there, lost_there = _arrays(others, name)
            rises = _area(values_there, lost_there) >= 0.5
            at, (own, was) = _threshold(values_there, lost_there, rises), _arrays(its, name)
            left_out += zip(_alarms(own, at, rises), was, strict=True)
        balanced = _balanced(*map(np.array, zip(*left_out, strict=True)))
        made.append(Sign(name, max(area, 1 - area), area >= 0.5, _threshold(values, lost, area >= 0.5), balanced))
    return sorted(made, key=lambda sign: -sign.balanced)


def _arrays(found, name):
    return np.array([signs[name] for signs, _ in found], float), np.array([lost for _, lost in found], bool)


def _area(values, lost):
    """Return how often a lost task's value is above another's; ties count half."""
    if lost.all() or not lost.any():
        return math.nan
    ranks = stats.rankdata(values)
    return (ranks[lost].sum() - lost.sum() * (lost.sum() + 1) / 2) / (lost.sum() * (~lost).sum())


def _alarms(values, threshold, rises):
    return values > threshold if rises else values < threshold


def _threshold(values, lost, rises):
    candidates = np.quantile(values, np.linspace(0.02, 0.98, 49))
    return max(candidates, key=lambda at: _balanced(_alarms(values, at, rises), lost))


def _balanced(alarms, lost):
    """Return the mean of the shares of lost and of other tasks that are told right."""
    shares = [np.mean(alarms[lost])] if lost.any() else []
    shares += [np.mean(~alarms[~lost])] if (~lost).any() else []
    return float(np.mean(shares))


def table(found: Sequence[Sign]) -> str:
    """Format the signs as Markdown."""
    lines = [("measure", "area under the ROC curve", "restart where it is", "balanced accuracy on settings left out")]
    for sign in found:
        when = f"{'above' if sign.rises else 'below'} {sign.threshold:.3g}"
        when += "" if sign.name in SHARES else " times its first value"
        lines.append((sign.name.replace("_", " "), f"{sign.area:.2f}", when, f"{100 * sign.balanced:.0f} %"))
    return markdown(lines)


def main(argv: Sequence[str]) -> None:
    """Print the table of a run."""
    with app.one_line_errors(argv[:1]):
        rows = results.read(run_folder.expand(argv[1] if len(argv) > 1 else "runs/signs") / "results.csv")
        by_setting = examples(rows)
        lost = sum(was for its in by_setting.values() for _, was in its)
        print(f"{lost} of {sum(map(len, by_setting.values()))} tasks lost, in {len(by_setting)} settings")
        print(table(signs(rows)))


if __name__ == "__main__":
    main(sys.argv)
