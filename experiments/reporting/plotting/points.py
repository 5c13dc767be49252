"""Points: a line of a table each, or a model each."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import LogLocator

from experiments.config.choices import LABELS
from experiments.records.results import Row
from experiments.reporting.plotting import style
from experiments.reporting.summary import by_line, label, last_round

AXES = {
    "samples_seen": "samples visited in the last round (thousands)",
    "pearson": "Pearson correlation of solution and initialisation",
    "cosine": "cosine of solution and initialisation",
    "spearman": "Spearman correlation of solution and initialisation",
    "distance": "distance of solution and initialisation",
}


@style.of_sound_lanes
def final(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path):
    """Tables 1 and 5 as a picture: accuracy and cost of the last round of each seed, mean and sample deviation."""
    del curves
    lines = by_line(rows)
    names = [label(line) for line in lines]
    width = 5 + 0.04 * max(0, max(map(len, names)) - 30)  # inches; long names take it from the panels
    figure, (left, right) = style.panels(style.title(rows), height=1.6 + 0.34 * len(lines), width=width)
    for i, found in enumerate(lines.values()):
        final_rows = last_round(found)
        looks = style.line_style(i) | {"linestyle": ""}
        for axes, values in (
            (left, [100 * row["validation_accuracy"] for row in final_rows]),
            (right, [row["samples_seen"] / 1_000 for row in final_rows]),
        ):
            axes.plot(values, [i] * len(values), markersize=4, alpha=0.45, **looks)
            axes.errorbar(np.mean(values), i, xerr=style.deviation(values), markersize=8, capsize=3, **looks)
    for axes in (left, right):
        axes.set_yticks(range(len(lines)), names)
        axes.set_ylim(len(lines) - 0.5, -0.5)
    right.tick_params(labelleft=False)
    left.set_xlabel("validation accuracy after the last round (%)")
    right.set_xlabel(AXES["samples_seen"])
    style.costs_from_zero(right, "x")
    return [style.save(figure, folder, "accuracy_and_cost")]


@style.of_sound_lanes
def scatter(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path, *, x: str, panels: str | None = None):
    """Figures 3, 11 and 33: validation accuracy of each model over its cost, or over what it keeps of its start."""
    del curves
    last = last_round(rows)
    kinds = list(dict.fromkeys(row[panels] for row in last)) if panels else [None]
    figure, axes = style.panels(style.title(rows).split("; ")[0] + "; a point for each model", len(kinds))
    for ax, kind in zip(axes, kinds, strict=True):
        chosen = [row for row in last if kind is None or row[panels] == kind]
        for i, restart in enumerate(dict.fromkeys(row["restart"] for row in chosen)):
            its = [row for row in chosen if row["restart"] == restart]
            at = [row[x] / (1_000 if x == "samples_seen" else 1) for row in its]
            looks = style.line_style(i) | {"linestyle": "", "markersize": 5, "alpha": 0.6}
            looks["rasterized"] = len(its) > style.MANY_POINTS
            accuracies = [100 * row["validation_accuracy"] for row in its]
            ax.plot(at, accuracies, label=LABELS.get(restart, restart.replace("_", " ")), **looks)
        ax.set_xlabel(AXES[x])
        ax.set_title(kind, fontsize=10)
        if x == "samples_seen":
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            style.thousands(ax.xaxis)
            ax.xaxis.set_minor_formatter("")
    axes[0].set_ylabel(style.ACCURACY)
    style.legend(figure, *axes[0].get_legend_handles_labels())
    return [style.save(figure, folder, f"accuracy_over_{x}")]
