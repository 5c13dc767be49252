"""Heat maps over λ and σ (Figures 8, 15, 17 to 26)."""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.patches import Patch, Rectangle

from experiments.records.results import Row
from experiments.reporting.comparison import Compared
from experiments.reporting.plotting import style
from experiments.reporting.summary import summarize

SHORT, LOST, UNPRINTED = "///", "xxx", "\\\\\\"
MEANINGS = {
    SHORT: "a lane ended a round below --train_accuracy",
    LOST: "a lane ended by NaN and is left out",
    UNPRINTED: "not in the paper: too small to be trained",
}
ACCURACY = "final validation accuracy (%)"


class Box(NamedTuple):
    """The content of a cell of a heat map."""

    value: float
    hatch: str = ""  # one of `MEANINGS`; empty without a problem


Boxes = Mapping[tuple[float, float], Box]  # (λ, σ) -> the content of its cell; a missing cell stays white


def heat_maps(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path):
    """Figure 8: final accuracy and total cost of each λ and σ, the warm start top right, random init bottom left.

    Cells of which a lane could not be trained to the threshold are hatched; those that were not run stay white. No
    figure where less than half of the grid that the settings of shrink-perturb span was run; one for each variant.
    """
    del curves
    paths, variants = [], {}
    for s in summarize(rows):
        if s.cell.restart in ("warm_start", "random_init", "shrink_perturb"):
            variants.setdefault(s.line.variant, {})[float(s.cell.shrink), float(s.cell.noise_scale)] = s
    for variant, found in variants.items():
        inner = [pair for pair, s in found.items() if s.cell.restart == "shrink_perturb"]
        across, down = len({sigma for _, sigma in inner}), len({shrink for shrink, _ in inner})
        if min(across, down) >= 2 and len(inner) >= across * down / 2:
            name = "_".join(["heat_maps", *(f"{key}_{value}" for key, value in variant)])
            words = "".join(f"; {key} {value}" for key, value in variant)
            maps = {
                text: {pair: Box(number(s), _hatch(s)) for pair, s in found.items()}
                for text, number in (
                    (ACCURACY, lambda s: s.accuracy),
                    ("samples visited in all rounds (millions)", lambda s: s.samples_total / 1e6),
                )
            }
            paths.append(style.save(_draw(style.title(rows) + words, maps), folder, name))
    return paths


def beside_the_paper(rows: Sequence[Row], compared: Sequence[Compared], folder: pathlib.Path):
    """Figures 8, 15 and 21: our accuracy and cost of each λ and σ beside the numbers that the paper prints.

    No figure where the paper prints no grid for the experiment, or we have finished no cell of it.
    """
    printed = [each for each in compared if {"shrink", "noise_scale"} <= {*each.number.where}]
    lines = {each.line for each in printed if each.line is not None}
    found = summarize(rows)
    ours = {
        (float(s.cell.shrink), float(s.cell.noise_scale)): s
        for s in found
        if any(s.line.variant == line.variant for line in lines) and s.round == max(t.round for t in found)
    }
    if not ours:
        return []
    maps = {}
    for cost, text in ((False, ACCURACY), (True, "time as a ratio to random init's")):
        theirs = {
            (each.number.where["shrink"], each.number.where["noise_scale"]): Box(each.number.value)
            for each in printed
            if each.number.cost == cost
        }
        shrinks, sigmas = map(set, zip(*theirs, strict=True))
        blank = {pair: Box(np.nan, UNPRINTED) for pair in itertools.product(shrinks, sigmas)}
        maps[f"the paper: {text}"] = blank | theirs
        maps[f"ours: {text.replace('time', 'samples visited')}"] = {
            pair: Box(s.ratio_total if cost else s.accuracy, _hatch(s)) for pair, s in ours.items() if pair in blank
        }
    return [style.save(_draw(style.title(rows), maps), folder, "beside_the_paper")]


def _hatch(summary):
    return LOST if summary.lost else SHORT if summary.not_converged else ""


def _draw(title, maps):
    """Draw a figure of maps by title, two in a row; the two of a row share a colour scale where there are more rows."""
    pairs = [pair for boxes in maps.values() for pair in boxes]
    shrinks, sigmas = (sorted(set(values), reverse=True) for values in zip(*pairs, strict=True))
    figure, axes = style.panels(title, rows=len(maps) // 2, height=1.4 + 0.6 * len(shrinks))
    for i, (ax, (text, boxes)) in enumerate(zip(axes, maps.items(), strict=True)):
        alike = list(maps.values())[i - i % 2 : i - i % 2 + 2] if len(maps) > 2 else [boxes]
        _map(ax, shrinks, sigmas, boxes, _limits(alike), _digits(boxes))
        ax.set_title(text, fontsize=10)
        ax.set(xlabel=style.NOISE_SCALE, ylabel=style.SHRINK)
    hatches = dict.fromkeys(box.hatch for boxes in maps.values() for box in boxes.values() if box.hatch)
    if hatches:
        patches = [Patch(facecolor="white", edgecolor="gray", hatch=hatch) for hatch in hatches]
        style.legend(figure, patches, [MEANINGS[hatch] for hatch in hatches])
    return figure


def _digits(boxes):
    """Return how many digits after the point show three figures of the largest value: 1 of per cents."""
    largest = max((abs(box.value) for box in boxes.values() if np.isfinite(box.value)), default=0)
    return 1 if largest >= 10 else 2 if largest >= 1 else 3


def _limits(maps):
    """Return the ends of the colour scale: of the cells without a hatch, where there are such."""
    real = [box for boxes in maps for box in boxes.values() if np.isfinite(box.value)]
    values = [box.value for box in real if not box.hatch] or [box.value for box in real] or [0]
    return min(values), max(values)


def _map(ax, shrinks, sigmas, boxes: Boxes, limits, digits):
    low, high = limits
    values = np.full((len(shrinks), len(sigmas)), np.nan)
    places = {pair: (shrinks.index(pair[0]), sigmas.index(pair[1])) for pair in boxes}
    for pair, place in places.items():
        values[place] = boxes[pair].value
    image = ax.imshow(values, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    for pair, (i, j) in places.items():
        value, hatch = boxes[pair]
        face = image.cmap(image.norm(value)) if np.isfinite(value) else "white"
        dark = np.isfinite(value) and value < (low + high) / 2
        if hatch:
            edge = "lightgray" if dark else "gray"
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, hatch=hatch, fill=False, edgecolor=edge, linewidth=0))
        if hatch != UNPRINTED:
            text = f"{value:.{digits}f}" if np.isfinite(value) else "NaN" if hatch == LOST else "-"
            ground = {"facecolor": face, "edgecolor": "none", "pad": 1.5}
            looks = {"ha": "center", "va": "center", "fontsize": 9, "bbox": ground if hatch else None}
            ax.text(j, i, text, color="white" if dark else "black", **looks)
    ax.set_xticks(range(len(sigmas)), [f"{sigma:g}" for sigma in sigmas])
    ax.set_yticks(range(len(shrinks)), [f"{shrink:g}" for shrink in shrinks])
    ax.grid(visible=False)
