"""Numbers from rows: the table that a run prints at its end and a report shows. Copes with rows that are missing."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.results import Row
from experiments.settings import Cell

RANDOM_INIT = Cell("random_init", "0", "1")  # what costs are compared with


class CellSummary(NamedTuple):
    """One cell of a grid over its seeds."""

    cell: Cell
    seeds: int
    round: int  # the newest that any seed has finished
    accuracy: float  # per cent, mean over the seeds in that round
    deviation: float  # per cent, sample deviation; NaN with one seed
    samples_last: float  # visited in that round, mean over the seeds
    samples_total: float  # visited in all rounds
    ratio_last: float  # to random init, over the seeds that both have; NaN where there are none
    ratio_total: float  # over the seeds and rounds that both have
    seconds: float  # of one lane: wall time of its group over the number of lanes, all rounds
    not_converged: int  # lanes and rounds that ended by plateau, cap or NaN


def by_cell(rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """The rows of each cell, in the order in which they first appear."""
    cells: dict[Cell, list[Row]] = {}
    for row in rows:
        cells.setdefault(Cell(row["restart"], row["shrink"], row["noise_scale"]), []).append(row)
    return cells


def seeds_of(rows: Sequence[Row]) -> int:
    """How many seeds there are."""
    return len({row["seed"] for row in rows})


def label(cell: Cell) -> str:
    """A cell for people: `shrink-perturb λ=0.6 σ=0.01`."""
    name = {"warm_start": "warm start", "random_init": "random init", "shrink_perturb": "shrink-perturb"}
    pretty = name.get(cell.restart, cell.restart.replace("_", " "))
    return pretty if cell.restart in ("warm_start", "random_init") else f"{pretty} λ={cell.shrink} σ={cell.noise_scale}"


def summarize(rows: Sequence[Row]) -> list[CellSummary]:
    """One summary for each cell."""
    cells = by_cell(rows)
    base = {(row["seed"], row["round"]): row["samples_seen"] for row in cells.get(RANDOM_INIT, [])}
    return [_summarize(cell, found, base) for cell, found in cells.items()]


def table(rows: Sequence[Row]) -> str:
    """The summaries as a Markdown table, costs also as a ratio to random init where that was run."""
    summaries = summarize(rows)
    newest = max(s.round for s in summaries)
    lines = [
        ("restart", "λ", "σ", "validation accuracy", "samples visited", "in the last round", "seconds a lane", "seeds"),
    ]
    for s in summaries:
        spread = "" if np.isnan(s.deviation) else f" ± {s.deviation:.1f}"
        behind = "" if s.round == newest else f" (round {s.round})"
        accuracy = f"{s.accuracy:.1f}{spread} %{behind}"
        total = _cost(s.samples_total, s.ratio_total)
        last = _cost(s.samples_last, s.ratio_last)
        lines.append((*s.cell, accuracy, total, last, f"{s.seconds:.1f}", str(s.seeds)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(f"{x:{w}}" for x, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    stuck = {s.cell: s.not_converged for s in summaries if s.not_converged}
    notes = [f"{label(cell)}: {count} lane-rounds did not reach the threshold." for cell, count in stuck.items()]
    return "\n".join([*text, "", *notes] if notes else text)


def _summarize(cell, rows, base):
    last = max(row["round"] for row in rows)
    final = [row for row in rows if row["round"] == last]
    accuracies = [100 * row["validation_accuracy"] for row in final]
    seeds = seeds_of(rows)
    return CellSummary(
        cell=cell,
        seeds=len(final),
        round=last,
        accuracy=float(np.mean(accuracies)),
        deviation=float(np.std(accuracies, ddof=1)) if len(final) > 1 else float("nan"),
        samples_last=float(np.mean([row["samples_seen"] for row in final])),
        samples_total=sum(row["samples_seen"] for row in rows) / seeds,
        ratio_last=_ratio(final, base),
        ratio_total=_ratio(rows, base),
        seconds=sum(row["seconds"] / row["lanes"] for row in rows) / seeds,
        not_converged=sum(not row["converged"] for row in rows),
    )


def _ratio(rows, base):
    """Samples visited as a ratio to random init's, over the seeds and rounds that both have."""
    both = [
        (row["samples_seen"], base[row["seed"], row["round"]]) for row in rows if (row["seed"], row["round"]) in base
    ]
    return sum(a for a, _ in both) / sum(b for _, b in both) if both else float("nan")


def _cost(samples, ratio):
    return f"{samples / 1_000:,.0f}k" + ("" if np.isnan(ratio) else f" ({ratio:.2f}x)")
