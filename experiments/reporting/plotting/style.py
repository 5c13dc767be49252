"""The common style of the plots: colours distinct to the colour-blind, markers and dashes distinct in grey."""

import functools
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from experiments.config.choices import BASELINES
from experiments.records.results import Row
from experiments.reporting.summary import Line, seeds_of, sound
from sp_jax.data import EMBEDDED

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")  # Okabe and Ito
MARKERS = "os^Dv<>P"
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (4, 1)))
MOST_LINES = len(COLOURS)

ACCURACY, ROUND_COST = "validation accuracy (%)", "samples visited in the round (thousands)"
SHRINK, NOISE_SCALE = "λ (shrink)", "σ (noise scale)"
MANY_POINTS = 2_000  # a scatter of more is drawn as pixels, so that its SVG stays small

matplotlib.rcParams["text.parse_math"] = False  # a $ in a name is no formula


def of_sound_lanes(draw):
    """Make a plot leave out the lanes that ended by NaN, and draw nothing where no other is left."""

    @functools.wraps(draw)
    def drawn(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path, **options) -> list[pathlib.Path]:
        kept = sound(rows)
        return draw(kept, sound(rows, curves), folder, **options) if kept else []

    return drawn


def line_style(i: int) -> dict:
    """Return colour, marker and dashes of the i-th line; repeated colours come with other markers."""
    other = i + 3 * (i // MOST_LINES)
    marker, dashes = MARKERS[other % MOST_LINES], DASHES[other % MOST_LINES]
    return {"color": COLOURS[i % MOST_LINES], "marker": marker, "linestyle": dashes}


def line_styles(lines: Sequence[Line]) -> list[dict]:
    """Return the styles of a figure's lines; a single warm start and a single random init look alike in all figures."""
    restarts = [line.cell.restart for line in lines]
    if any(restarts.count(name) > 1 for name in BASELINES):
        return [line_style(i) for i in range(len(lines))]
    others = iter(range(len(BASELINES), len(BASELINES) + len(lines)))
    return [line_style(BASELINES.index(name) if name in BASELINES else next(others)) for name in restarts]


def panels(
    title: str, count: int = 2, height: float = 4.2, *, width: float = 5, rows: int = 1, **options
) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with so many panels side by side, in so many rows, each about this wide and high (inches)."""
    width = max(7, min(15, width * count))
    figure = Figure(figsize=(width, rows * height), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    figure.suptitle(textwrap.fill(title, int(11 * width)), fontsize=11)
    found = np.atleast_1d(figure.subplots(rows, count, **options)).ravel()
    for axes in found:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, found


def title(rows: Sequence[Row]) -> str:
    """Return a title of experiment, data, model, optimiser and seeds."""
    count = seeds_of(rows)
    datasets = [d + " (synthetic)" * (d in EMBEDDED) for d in _values(rows, "dataset")]
    seeds = f"{count} seeds, mean ± sample deviation" if count > 1 else "1 seed"
    what = ", ".join(" and ".join(values) for values in (datasets, _values(rows, "model"), _values(rows, "optimizer")))
    return f"{rows[0]['experiment']}: {what}; {seeds}"


def mean_line(axes: Axes, values: Mapping[float, Sequence[float]], **style) -> None:
    """Draw a line of means with a band of one sample deviation; `values` are those of the seeds by x."""
    x = sorted(values)
    mean, spread = (np.array([measure(values[at]) for at in x]) for measure in (np.mean, deviation))
    axes.plot(x, mean, markersize=4, linewidth=1.5, markevery=max(1, len(x) // 16), **style)
    axes.fill_between(x, mean - spread, mean + spread, color=style["color"], alpha=0.15, lw=0)


def deviation(values: Sequence[float]) -> float:
    """Return the sample deviation; 0 with one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def legend(figure: Figure, handles: Sequence, labels: Sequence[str]) -> None:
    """Add a legend below all panels, where it hides nothing, and enlarge the figure by its height."""
    width, height = figure.get_size_inches()
    wide = {n: sum(max(map(len, part)) + 9 for part in np.array_split(labels, n)) for n in range(1, len(labels) + 1)}
    columns = max((n for n, letters in wide.items() if letters <= 13 * width), default=1)
    figure.set_size_inches(width, height + 0.22 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, handlelength=3)


def costs_from_zero(axes: Axes, which: str) -> None:
    """Let an axis, "x" or "y", begin at zero and end where no marker is cut in two, in thousands with commas."""
    limits, (_, end) = getattr(axes, f"set_{which}lim"), getattr(axes, f"get_{which}lim")()
    largest = axes.dataLim.max["xy".index(which)]
    limits(0, max(end, 1.03 * largest))
    thousands(getattr(axes, f"{which}axis"))


def thousands(*axes: Axis) -> None:
    """Format the numbers of an axis with commas, 30,000, and no more digits than they have, 0.5."""
    for axis in axes:
        axis.set_major_formatter(lambda x, _: f"{x:,.0f}" if abs(x) >= 1e5 or x == round(x) else f"{x:,g}")


def save(figure: Figure, folder: pathlib.Path, name: str) -> pathlib.Path:
    """Write a PNG and, beside it, the same as SVG, equal bytes for equal figures; return the PNG.

    The layout is computed here, the folder made where it is missing; characters unsuited to a file name become `_`.
    """
    path = folder / (re.sub(r"[^\w.+-]", "_", name) + ".png")
    folder.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(128, Image.Quantize.FASTOCTREE).save(path, optimize=True)  # a third of the bytes
    figure.set_layout_engine("none")  # the PNG's layout stays
    with matplotlib.rc_context({"svg.hashsalt": "sp_jax"}):
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    return path


def _values(rows, name):
    return list(dict.fromkeys(row[name] for row in rows))
