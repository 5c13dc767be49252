"""Lines with a band of one sample deviation: over the rounds, or over a setting."""

import pathlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.config.choices import BASELINES
from experiments.records.results import Row
from experiments.reporting.plotting import style
from experiments.reporting.summary import by_line, label, last_round

AXES = {
    "num_train": "samples that have arrived",
    "round": "round",
    "shrink": style.SHRINK,
    "noise_scale": f"{style.NOISE_SCALE}, evenly spaced",
    "fraction": "fraction of the target's samples",
    "first_fraction": "fraction of the samples in the first phase",
    "strength": "strength of the penalty, evenly spaced",
}
OF_STRENGTH = ("weight_decay", "penalty_strength", "penalty")  # the columns that it is made of
EVEN = ("noise_scale", "strength")  # their values span many orders of magnitude, and include 0


@style.of_sound_lanes
def rounds(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path, *, x: str = "num_train"):
    """Figures 2, 7 and 12: validation accuracy and cost of each round.

    One figure, or one for each noise scale where one has too many lines.
    """
    del curves
    lines = by_line(rows)
    if len(lines) <= style.MOST_LINES:
        return [style.save(_rounds(lines, rows, x), folder, "accuracy_and_cost")]
    baselines = [line for line in lines if line.cell.restart in BASELINES]
    paths = []
    for sigma in dict.fromkeys(line.cell.noise_scale for line in lines if line not in baselines):
        chosen = {n: found for n, found in lines.items() if n in baselines or n.cell.noise_scale == sigma}
        paths.append(style.save(_rounds(chosen, rows, x), folder, f"accuracy_and_cost_noise_scale_{sigma}"))
    return paths


def _rounds(lines, rows, x):
    figure, (left, right) = style.panels(style.title(rows))
    for (line, found), looks in zip(lines.items(), style.line_styles(list(lines)), strict=True):
        at = sorted({row[x] for row in found})
        for axes, name, factor in ((left, "validation_accuracy", 100), (right, "samples_seen", 1e-3)):
            values = {n: [factor * row[name] for row in found if row[x] == n] for n in at}
            style.mean_line(axes, values, **looks, label=label(line))
    _finish(figure, (left, right), AXES[x])
    if x == "num_train":
        style.thousands(left.xaxis, right.xaxis)
    else:
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@style.of_sound_lanes
def against(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path, *, x: str, panels: str | None = None):
    """Figures 6, 9 and 10, Tables 3 and 4: accuracy and cost of the last round over a setting.

    A line that has one value of the setting is a level to compare with: drawn over the whole width.
    """
    del curves
    paths = []
    for panel in dict.fromkeys(row[panels] for row in rows) if panels else [None]:
        chosen = [row for row in rows if panel is None or row[panels] == panel]
        name = f"accuracy_over_{x}" + (f"_{panel}" if panel else "")
        paths.append(style.save(_against(chosen, x, panel), folder, name))
    return paths


def _against(rows, x, panel):
    final, trained = last_round(rows), any(row["epochs"] for row in last_round(rows))
    figure, axes = style.panels(style.title(rows) + (f"; {panel}" if panel else ""), 2 if trained else 1)
    lines = _without(final, x)
    each = [{float(row[x]) for row in found} for found in lines.values()]
    at = sorted(set().union(*([own for own in each if len(own) > 1] or each)))  # levels have no place of their own
    place = {value: i if x in EVEN else value for i, value in enumerate(at)}
    columns = (("validation_accuracy", 100), ("samples_seen", 1e-3))
    named = [next(iter(by_line(found))) for found in lines.values()]
    for (name, found), looks in zip(lines.items(), style.line_styles(named), strict=True):
        own = sorted({float(row[x]) for row in found})
        level = len(own) == 1 < len(at)
        for ax, (column, factor) in zip(axes, columns, strict=False):
            values = [[factor * row[column] for row in found if float(row[x]) == value] for value in own]
            where = [place[at[0]], place[at[-1]]] if level else [place[value] for value in own]
            values = dict(zip(where, values * 2 if level else values, strict=True))
            style.mean_line(ax, values, **looks | ({"marker": ""} if level else {}), label=name)
    for ax in axes:
        if x in EVEN:
            ax.set_xticks(range(len(at)), [f"{value:g}" for value in at])
    _finish(figure, axes, AXES[x])
    return figure


def _without(rows, x):
    """Return rows by line, lines that differ in `x` alone together; restarts stay separate."""
    found = defaultdict(list)
    for line, its in by_line(rows).items():
        found[label(line, without=(x, *OF_STRENGTH) if x == "strength" else (x,))] += its
    return found


@style.of_sound_lanes
def regularization(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path):
    """Table 3: accuracy over the strength of each penalty, L2 among them."""
    named = [
        row | {"penalty": "L2", "strength": row["weight_decay"]}
        if row["penalty"] == "none"
        else row | {"strength": row["penalty_strength"]}
        for row in rows
    ]
    return against(named, curves, folder, x="strength", panels="penalty")


@style.of_sound_lanes
def early_switch(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path):
    """Figure 4: accuracy while the first phase trains, and the damage of each switch as per cent of random init."""
    del curves
    warm = [row for row in rows if row["restart"] == "warm_start" and row["first_epochs"] != "None"]
    final = {r["seed"]: r["validation_accuracy"] for r in rows if r["restart"] == "random_init" and r["round"] == 2}
    figure, (left, right) = style.panels(style.title(rows))
    for axes, round_, name in ((left, 1, "validation_accuracy"), (right, 2, "damage")):
        values = defaultdict(list)
        for row in warm:
            reference = final.get(row["seed"])
            if row["round"] == round_ and (round_ == 1 or reference):
                accuracy = row["validation_accuracy"]
                shown = accuracy if name != "damage" else (accuracy - reference) / reference
                values[int(row["first_epochs"])].append(100 * shown)
        style.mean_line(axes, values, **style.line_style(0), label="warm start")
        axes.set_xlabel("epochs of the first phase")
    if final:
        level = [100 * value for value in final.values()]
        left.axhline(np.mean(level), color=style.COLOURS[1], linestyle="--", label="random init on all data")
    right.axhline(0, color=style.COLOURS[1], linestyle="--")
    left.set_ylabel("validation accuracy of the first phase (%)")
    right.set_ylabel("change of the final accuracy (% of random init)")
    style.legend(figure, *left.get_legend_handles_labels())
    return [style.save(figure, folder, "early_switch")]


def _finish(figure, axes, xlabel):
    """Label one panel of accuracies and perhaps one of costs."""
    for ax, label_ in zip(axes, (style.ACCURACY, style.ROUND_COST), strict=False):
        ax.set(xlabel=xlabel, ylabel=label_)
    for ax in axes[1:]:
        style.costs_from_zero(ax, "y")
    style.legend(figure, *axes[0].get_legend_handles_labels())
