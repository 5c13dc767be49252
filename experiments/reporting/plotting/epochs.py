"""Curves over the epochs, from `curves.csv`."""

import pathlib
from collections import defaultdict
from collections.abc import Sequence

from experiments.records.results import Row
from experiments.reporting.plotting import style
from experiments.reporting.summary import by_line, label


@style.of_sound_lanes
def learning_curves(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path):
    """Figure 1: training and validation accuracy of each epoch, rounds one after the other."""
    figure, axes = style.panels(style.title(rows))
    shown = {"train_accuracy": "training accuracy (%)", "validation_accuracy": style.ACCURACY}
    for ax, (name, text) in zip(axes, shown.items(), strict=True):
        for i, (line, found) in enumerate(by_line(curves).items()):
            lengths = defaultdict(int)
            for row in found:
                lengths[row["round"]] = max(lengths[row["round"]], row["epoch"])
            values = defaultdict(list)
            for row in found:
                if row["name"] == name and (row["epoch"] > 0 or row["round"] == 1):
                    before = sum(length for round_, length in lengths.items() if round_ < row["round"])
                    values[before + row["epoch"]].append(100 * row["value"])
            style.mean_line(ax, values, **style.line_style(i) | {"marker": ""}, label=label(line))
        ax.set(xlabel="epochs", ylabel=text)
    style.legend(figure, *axes[0].get_legend_handles_labels())
    return [style.save(figure, folder, "learning_curves")]


@style.of_sound_lanes
def gradient_norms(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path):
    """Figure 5: gradient norms of the old and of the new data in the second phase, a panel for each restart."""
    lines = by_line([row for row in curves if row["name"].startswith("gradient_norm")])
    if not lines:
        return []  # the second phase has not begun
    figure, axes = style.panels(style.title(rows), len(lines), sharey=True)
    for ax, (line, found) in zip(axes, lines.items(), strict=True):
        for i, part in enumerate(("old", "new")):
            values = defaultdict(list)
            for row in found:
                if row["name"] == f"gradient_norm_{part}":
                    values[row["epoch"]].append(row["value"])
            style.mean_line(ax, values, **style.line_style(i) | {"marker": ""}, label=f"{part} half of the data")
        ax.set_title(label(line), fontsize=10)
        ax.set_xlabel("epochs of the second phase")
    axes[0].set_ylabel("gradient norm, mean over batches")
    style.legend(figure, *axes[0].get_legend_handles_labels())
    return [style.save(figure, folder, "gradient_norms")]
