"""The few plots that serve every figure: colours that the colour-blind tell apart, markers that grey keeps apart."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.results import Row
from experiments.settings import Cell
from experiments.summary import by_cell, label, seeds_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")  # Okabe and Ito
MARKERS = "os^Dv<>P"
DASHES = ("-", "--", "-", "-.", "-", ":", "--", "-.")
MOST_LINES = len(COLOURS)


def rounds(rows: Sequence[Row], folder: pathlib.Path) -> list[pathlib.Path]:
    """Figures 2 and 7: validation accuracy and cost of each round over the samples that have arrived.

    Mean and sample deviation over the seeds. One figure, or one for each noise scale where one has too many lines.
    """
    cells = by_cell(rows)
    if len(cells) <= MOST_LINES:
        return [_save(_rounds_figure(cells, rows), folder / "accuracy_and_cost.png")]
    baselines = [cell for cell in cells if cell.restart in ("warm_start", "random_init")]
    paths = []
    for sigma in dict.fromkeys(cell.noise_scale for cell in cells if cell not in baselines):
        chosen = {c: found for c, found in cells.items() if c in baselines or c.noise_scale == sigma}
        paths.append(_save(_rounds_figure(chosen, rows), folder / f"accuracy_and_cost_noise_scale_{sigma}.png"))
    return paths


def final(rows: Sequence[Row], folder: pathlib.Path) -> list[pathlib.Path]:
    """Table 1 as a picture: validation accuracy and cost of the last round, a point for each seed, mean, deviation."""
    cells = by_cell(rows)
    last = max(row["round"] for row in rows)
    figure, (left, right) = _panels(_title(rows), height=1.6 + 0.34 * len(cells))
    for i, found in enumerate(cells.values()):
        final_rows = [row for row in found if row["round"] == last]
        style = {"color": COLOURS[i % MOST_LINES], "marker": MARKERS[i % MOST_LINES]}
        for axes, values in (
            (left, [100 * row["validation_accuracy"] for row in final_rows]),
            (right, [row["samples_seen"] / 1_000 for row in final_rows]),
        ):
            if values:
                axes.plot(values, [i] * len(values), linestyle="", markersize=4, alpha=0.45, **style)
                axes.errorbar(np.mean(values), i, xerr=_deviation(values), markersize=8, capsize=3, **style)
    for axes in (left, right):
        axes.set_yticks(range(len(cells)), [label(cell) for cell in cells])
        axes.set_ylim(len(cells) - 0.5, -0.5)
    right.tick_params(labelleft=False)
    left.set_xlabel(f"validation accuracy after round {last} (%)")
    right.set_xlabel(f"samples visited in round {last} (thousands)")
    right.set_xlim(left=0)
    return [_save(figure, folder / "accuracy_and_cost.png")]


def _rounds_figure(cells: dict[Cell, list[Row]], rows):
    figure, (left, right) = _panels(_title(rows), height=4.2)
    for i, (cell, found) in enumerate(cells.items()):
        visible = sorted({row["num_train"] for row in found})
        style = {
            "color": COLOURS[i % MOST_LINES], "marker": MARKERS[i % MOST_LINES], "markersize": 4, "linewidth": 1.5,
            "linestyle": DASHES[i % MOST_LINES],
            "markevery": max(1, len(visible) // 16), "label": label(cell),
        }  # fmt: skip
        for axes, name, factor in ((left, "validation_accuracy", 100), (right, "samples_seen", 1e-3)):
            values = [[factor * row[name] for row in found if row["num_train"] == n] for n in visible]
            mean = np.array([np.mean(v) for v in values])
            deviation = np.array([_deviation(v) for v in values])
            axes.plot(visible, mean, **style)
            axes.fill_between(visible, mean - deviation, mean + deviation, color=style["color"], alpha=0.15, lw=0)
    left.set_ylabel("validation accuracy (%)")
    right.set_ylabel("samples visited in the round (thousands)")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("samples that have arrived")
    left.legend(frameon=False, fontsize=8.5)
    return figure


def _panels(title, height):
    figure = Figure(figsize=(10, height), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=11)
    panels = figure.subplots(1, 2)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _title(rows):
    first, count = rows[0], seeds_of(rows)
    synthetic = " (synthetic)" if first["dataset"] == "mixture" else ""
    seeds = f"{count} seeds, mean ± deviation" if count > 1 else "1 seed"
    return f"{first['experiment']}: {first['dataset']}{synthetic}, {first['model']}, {first['optimizer']}; {seeds}"


def _deviation(values):
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _save(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
