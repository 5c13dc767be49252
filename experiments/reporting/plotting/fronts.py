"""Accuracy against cost, with the Pareto front."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.config.choices import BASELINES
from experiments.records.results import Row
from experiments.reporting.plotting import style
from experiments.reporting.summary import TASK, Line, by_line, complete, label, trained

INK = "#333333"
# Candidate positions of a text, as offsets from its point (in points), the best first: the front rises to the right.
SIDES = ((-1, 1), (1, -1), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))
NEAR = 9
OFFSETS = np.array([(reach * x, reach * y) for reach in (NEAR, 18, 28, 40) for x, y in SIDES])
SIDES_OF = {"ha": {-1: "right", 0: "center", 1: "left"}, "va": {-1: "top", 0: "center", 1: "bottom"}}


class Point(NamedTuple):
    """One line of a run, over the seeds that have finished its last round."""

    line: Line
    costs: np.ndarray  # [seeds], samples visited in all rounds
    accuracies: np.ndarray  # [seeds], per cent, after the last round
    converged: bool  # in all rounds

    @property
    def at(self) -> tuple[float, float]:
        """The mean cost and the mean accuracy."""
        return float(np.mean(self.costs)), float(np.mean(self.accuracies))


@style.of_sound_lanes
def pareto(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path):
    """Accuracy after the last round against the samples visited in all rounds, and the Pareto front of the means.

    A panel for each data set, model and optimiser. Lines that have not finished the last round are left out, and those
    that did not converge and are far below all that did.
    """
    del curves
    tasks = {}
    for point in _points(rows):
        tasks.setdefault(tuple((n, v) for n, v in point.line.variant if n in TASK), []).append(point)
    tasks = {task: kept for task, points in tasks.items() if (kept := _trained(points))}
    if not tasks:
        return []
    size = {"height": 5.5, "width": 9} if max(map(len, tasks.values())) > 2 * style.MOST_LINES else {"height": 4.6}
    figure, axes = style.panels(style.title(rows), len(tasks), **size)
    for ax, (task, points) in zip(axes, tasks.items(), strict=True):
        _panel(ax, points)
        if len(tasks) > 1:
            ax.set_title(", ".join(value for _, value in task), fontsize=10)
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    style.legend(figure, list(handles.values()), list(handles))
    figure.draw_without_rendering()  # fixes the positions of the points
    for ax, points in zip(axes, tasks.values(), strict=True):
        _label(ax, points)
    return [style.save(figure, folder, "pareto")]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices, the cheapest first, of the points of cost and accuracy which no other beats by being as cheap
    and as accurate, and better in one of the two."""
    best = [
        (cost, i)
        for i, (cost, gain) in enumerate(points)
        if not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    ]
    return [i for _, i in sorted(best)]


def _points(rows):
    newest = max(row["round"] for row in rows)
    for line, found in by_line(rows).items():
        whole = complete(found, newest)
        last = {row["seed"]: row for row in whole if row["round"] == newest}
        costs = [sum(row["samples_seen"] for row in whole if row["seed"] == seed) for seed in last]
        accuracies = [100 * row["validation_accuracy"] for row in last.values()]
        if last:
            yield Point(line, np.array(costs), np.array(accuracies), all(row["converged"] for row in found))


def _trained(points):
    """Leave out the points that did not learn their samples, which would compress the scale of all others."""
    kept = trained([point.at[1] for point in points], [point.converged for point in points])
    return [point for point, keep in zip(points, kept, strict=True) if keep]


def _factor(points):
    """Return the factor and the name of the unit of samples: thousands or millions."""
    many = max(point.at[0] for point in points) >= 1e6
    return (1e-6, "millions") if many else (1e-3, "thousands")


def _looks(points):
    """Yield each point's style, the text beside it and its text in the legend.

    Where there are too many pairs to name each, colours and markers stand for λ, and the text beside a point is its σ.
    """
    lines = [point.line for point in points]
    shrinks = list(dict.fromkeys(line.cell.shrink for line in lines if line.cell.restart == "shrink_perturb"))
    pairs = sum(line.cell.restart == "shrink_perturb" for line in lines)
    for line, look in zip(lines, style.line_styles(lines), strict=True):
        grid = pairs > style.MOST_LINES - len(BASELINES) and line.cell.restart == "shrink_perturb"
        text = label(line, without=(*TASK, "shrink") if grid else TASK).replace("shrink-perturb ", "")
        if grid:
            place = len(BASELINES) + shrinks.index(line.cell.shrink)
            yield style.line_style(place), text, f"λ={line.cell.shrink}"
        else:
            yield look, text, None


def _corners(points):
    """Return cost and accuracy of the points on the front."""
    return [points[i].at for i in front([point.at for point in points])]


def _panel(ax, points):
    factor, unit = _factor(points)
    costs, accuracies = np.array(_corners(points) or np.empty((0, 2))).T
    costs = factor * costs
    ax.step(costs, accuracies, where="post", color=INK, linewidth=1, alpha=0.5)
    rings = {"markersize": 15, "markerfacecolor": "none", "markeredgecolor": INK}
    ax.plot(costs, accuracies, "o", label="Pareto front of the means", **rings)
    known = {None}
    for point, (look, _, text) in zip(points, _looks(points), strict=True):
        ax.errorbar(
            factor * point.at[0], point.at[1], style.deviation(point.accuracies), factor * style.deviation(point.costs),
            color=look["color"], marker=look["marker"], linestyle="", markersize=7, elinewidth=1, capsize=2,
            markerfacecolor=look["color"] if point.converged else "white", label=None if text in known else text,
        )  # fmt: skip
        known.add(text)
    if not all(point.converged for point in points):
        ax.plot([], [], "s", color=INK, markerfacecolor="white", label="hollow: a lane ended below --train_accuracy")
    ax.set_xlim(0, 1.08 * max(factor * point.costs.max() for point in points))
    ax.set(xlabel=f"samples visited in all rounds ({unit})", ylabel="validation accuracy after the last round (%)")


def _label(ax, points):
    """Label the points, each text where it hides the least of points, their bars, the front and other texts."""
    factor, _ = _factor(points)
    scale = ax.get_figure().dpi / 72
    places = [(factor * point.at[0], point.at[1]) for point in points]
    taken = _drawn(ax, points, factor, margin=7 * scale)
    for place, (look, text, _) in zip(places, _looks(points), strict=True):
        drawn = ax.annotate(text, place, (0, 0), textcoords="offset points", fontsize=8.5, color=INK)
        size = np.array([drawn.get_window_extent().width, drawn.get_window_extent().height])
        low = ax.transData.transform(place) + scale * OFFSETS + size * (np.sign(OFFSETS) - 1) / 2  # [offsets, 2]
        boxes = np.concatenate([low, low + size], axis=1)
        best = np.argmin(_hidden(boxes, taken, ax.get_window_extent().extents))  # the nearest of the best
        taken = np.concatenate([taken, boxes[[best]]])
        offset = tuple(OFFSETS[best])
        drawn.set(position=offset, ha=SIDES_OF["ha"][np.sign(offset[0])], va=SIDES_OF["va"][np.sign(offset[1])])
        if max(map(abs, offset)) > NEAR:
            far = {"arrowstyle": "-", "color": look["color"], "linewidth": 0.7, "shrinkA": 0}
            ax.annotate("", place, offset, textcoords="offset points", arrowprops=far)


def _drawn(ax, points, factor, margin):
    """Return the boxes of a panel's points, their bars and the front, [boxes, left bottom right top] in pixels."""
    ends, wide = [], []
    for point in points:
        (cost, accuracy), spread, reach = point.at, style.deviation(point.accuracies), style.deviation(point.costs)
        ends += [(cost, accuracy, cost, accuracy), (cost, accuracy - spread, cost, accuracy + spread)]
        ends += [(cost - reach, accuracy, cost + reach, accuracy)]
        wide += [margin, 2, 2]
    for (cost, accuracy), (far, high) in itertools.pairwise(_corners(points)):
        ends += [(cost, accuracy, far, accuracy), (far, accuracy, far, high)]
        wide += [2, 2]
    ends = np.array(ends) * (factor, 1, factor, 1)
    low, high = ax.transData.transform(ends[:, :2]), ax.transData.transform(ends[:, 2:])
    wide = np.array(wide)[:, None]
    return np.concatenate([low - wide, high + wide], axis=1)


def _hidden(boxes, taken, inside):
    """Return the area that each box hides of taken ones, plus its area beyond the panel, in square pixels: [boxes]."""
    return _shared(boxes, taken).sum(1) + _shared(boxes, boxes).diagonal() - _shared(boxes, inside[None])[:, 0]


def _shared(boxes, others):
    """Return the areas that boxes share with others: [boxes, others]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)
