"""Numbers from rows: the table that a run prints at its end and a report shows. Copes with rows that are missing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.results import COLUMNS, MEASURED, SIMILARITIES, Row, text
from experiments.settings import Cell

NAMES = {
    "warm_start": "warm start", "random_init": "random init", "shrink_perturb": "shrink-perturb", "dash": "DASH",
    "fire": "FIRE", "l2_init": "L2 Init", "hare_tortoise": "Hare and Tortoise", "redo": "ReDo",
}  # fmt: skip
TASK = ("dataset", "model", "optimizer")  # lines are compared within one
LANE = (
    "experiment",
    "restart",
    "shrink",
    "noise_scale",
    "seed",
    "round",
    "epoch",
    "name",
    "value",
)  # no part of a variant


class Line(NamedTuple):
    """One cell of one variant: its rows are seeds and rounds."""

    variant: tuple[tuple[str, str], ...]  # the settings that vary in the experiment, with this line's values
    cell: Cell


class LineSummary(NamedTuple):
    """One line over its seeds."""

    line: Line
    seeds: int
    round: int  # the newest that any seed has finished
    accuracy: float  # per cent, mean over the seeds in that round
    deviation: float  # per cent, sample deviation; NaN with one seed
    samples_last: float  # visited in that round, mean over the seeds
    samples_total: float  # visited in all rounds
    ratio_last: float  # to random init, over the seeds that both have; NaN where there are none
    ratio_total: float  # over the seeds and rounds that both have
    not_converged: int  # lanes and rounds that ended by plateau, cap or NaN
    lost: int  # of those, the ones that ended by NaN
    first_accuracy: float  # per cent, mean over the seeds in the first round
    first_deviation: float

    @property
    def cell(self) -> Cell:
        """The line's restart, λ and σ."""
        return self.line.cell


def varied(rows: Sequence[Row]) -> tuple[str, ...]:
    """The settings that differ between rows."""
    names = [name for name in (rows[0] if rows else ()) if name not in (*MEASURED, *LANE, *SIMILARITIES)]
    return tuple(name for name in names if len({row[name] for row in rows}) > 1 or name not in COLUMNS)


def by_line(rows: Sequence[Row]) -> dict[Line, list[Row]]:
    """The rows of each line, in the order in which they first appear."""
    names, lines = varied(rows), {}
    for row in rows:
        variant = tuple((name, text(row[name])) for name in names)
        lines.setdefault(Line(variant, Cell(row["restart"], row["shrink"], row["noise_scale"])), []).append(row)
    return lines


def last_round(rows: Sequence[Row]) -> list[Row]:
    """The rows of the newest round that any seed has finished."""
    newest = max((row["round"] for row in rows), default=0)
    return [row for row in rows if row["round"] == newest]


def baseline(line: Line, lines: Mapping[Line, list[Row]], restart: str = "random_init") -> Line | None:
    """The line of a baseline whose variant is most like this one's; None where it was not run."""
    wanted = dict(line.variant)
    same_data = [
        other
        for other in lines
        if other.cell.restart == restart and all(dict(other.variant).get(name) == wanted.get(name) for name in TASK)
    ]
    return max(same_data, key=lambda other: len(set(other.variant) & set(line.variant)), default=None)


def seeds_of(rows: Sequence[Row]) -> int:
    """How many seeds there are."""
    return len({row["seed"] for row in rows})


def label(line: Line, without: Sequence[str] = ()) -> str:
    """A line for people: `mlp, sgd, shrink-perturb λ=0.6 σ=0.01`."""
    shown = [(name, value) for name, value in line.variant if value not in ("None", "") and name not in without]
    words = [_word(name, value) for name, value in shown if (name, value) != ("method", "none")]
    cell = line.cell
    restart = NAMES.get(cell.restart, cell.restart.replace("_", " ")) + cell.amounts(without)
    return ", ".join([*words, restart])


def summarize(rows: Sequence[Row], planned: Mapping[Line, int] | None = None) -> list[LineSummary]:
    """One summary for each line.

    Args:
      rows: of a run, maybe a partial one.
      planned: how many rounds each line has in the end. Costs of finished lines are compared whole; otherwise over the
        rounds that both have.

    Returns:
      The summaries, in the order of the lines.
    """
    lines = by_line(rows)
    done = {n for n, found in lines.items() if planned and last_round(found)[0]["round"] >= planned.get(n, 0)}
    made = []
    for line, found in lines.items():
        other = baseline(line, lines)
        made.append(_summarize(line, found, lines.get(other, []), whole={line, other} <= done))
    return made


def table(rows: Sequence[Row], planned: Mapping[Line, int] | None = None) -> str:
    """The summaries as a Markdown table, costs also as a ratio to random init where that was run.

    Args:
      rows: of a run, maybe a partial one.
      planned: how many rounds a line has in the end; one that has not come so far says where it stands.

    Returns:
      The table, and below it one sentence on the lanes that ended below --train_accuracy or ended by NaN, if there are.
    """
    summaries = summarize(rows, planned)
    names = varied(rows)
    longest = max(s.round for s in summaries)
    two = longest == 2
    lines = [
        (
            *names, "restart", "λ", "σ", *(["first round"] if two else []), "validation accuracy", "samples visited",
            "in the last round", "seeds",
        ),
    ]  # fmt: skip
    for s in summaries:
        spread = "" if np.isnan(s.deviation) else f" ± {s.deviation:.1f}"
        behind = f" (round {s.round})" if s.round < (planned or {}).get(s.line, 0) else ""
        accuracy = f"{s.accuracy:.1f}{spread} %{behind}"
        costs = _cost(s.samples_total, s.ratio_total), _cost(s.samples_last, s.ratio_last)
        values = ["" if value == "None" else value for _, value in s.line.variant]
        first = [f"{s.first_accuracy:.1f} %"] if two else []
        lines.append((*values, *s.cell, *first, accuracy, *costs, str(s.seeds)))
    return "\n\n".join(filter(None, (markdown(lines), not_converged(rows))))


def not_converged(rows: Sequence[Row]) -> str:
    """One sentence: how many lane-rounds ended below --train_accuracy, why they ended, in which lines and rounds."""
    found = {line: [row for row in its if not row["converged"]] for line, its in by_line(rows).items()}
    ended = [row for its in found.values() for row in its]
    if not ended:
        return ""
    words = {"nan": "NaN", "cap": "cap of epochs"}
    reasons = Counter(words.get(reason := row.get("stop_reason"), reason) for row in ended)
    why = ", ".join(f"{count:,} by {reason}" for reason, count in reasons.items())
    where = "; ".join(f"{label(line)} ({_rounds(its)})" for line, its in found.items() if its)
    return f"{len(ended):,} of {len(rows):,} lane-rounds ended below --train_accuracy ({why}): {where}."


def _rounds(rows):
    """How many rows there are, and from which rounds."""
    first, last = (f(row["round"] for row in rows) for f in (min, max))
    return f"{len(rows)} in round {first}" if first == last else f"{len(rows)} in rounds {first} to {last}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lines of texts, the first the header, as a Markdown table; what would end a cell is escaped."""
    lines = [[" ".join(x.split()).replace("|", r"\|") for x in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    made = ["| " + " | ".join(f"{x:{w}}" for x, w in zip(line, widths, strict=True)) + " |" for line in lines]
    made.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(made)


def _summarize(line, rows, base, *, whole):
    final = last_round(rows)
    first = [100 * row["validation_accuracy"] for row in rows if row["round"] == 1]
    accuracies = [100 * row["validation_accuracy"] for row in final]
    seeds = seeds_of(rows)
    last = last_round(base) if whole else base
    return LineSummary(
        line=line,
        seeds=len(final),
        round=final[0]["round"],
        accuracy=float(np.mean(accuracies)),
        deviation=float(np.std(accuracies, ddof=1)) if len(final) > 1 else float("nan"),
        samples_last=float(np.mean([row["samples_seen"] for row in final])),
        samples_total=sum(row["samples_seen"] for row in rows) / seeds,
        ratio_last=_ratio(final, last, ("seed",) if whole else ("seed", "round")),
        ratio_total=_ratio(rows, base, ("seed",) if whole else ("seed", "round")),
        not_converged=sum(not row["converged"] for row in rows),
        lost=sum(row.get("stop_reason") == "nan" for row in rows),
        first_accuracy=float(np.mean(first)) if first else float("nan"),
        first_deviation=float(np.std(first, ddof=1)) if len(first) > 1 else float("nan"),
    )


def _ratio(rows, base, key):
    """Samples visited as a ratio to random init's, over the seeds (and rounds) that both have."""
    one, two = ({tuple(row[name] for name in key) for row in found} for found in (rows, base))
    shared = one & two
    sums = [
        sum(row["samples_seen"] for row in found if tuple(row[name] for name in key) in shared)
        for found in (rows, base)
    ]
    return sums[0] / sums[1] if sums[1] else float("nan")


def _cost(samples, ratio):
    return f"{samples / 1_000:,.0f}k" + ("" if np.isnan(ratio) else f" ({ratio:.2f}x)")


def _word(name, value):
    """A setting of a variant: names of things speak for themselves, `trained` in the words of Table 5."""
    if name == "trained":
        return {"head": "LL (head only)", "head_then_all": "LL+WS (head, then all)"}.get(value, "all")
    words = NAMES.get(value, value.replace("_", " "))
    return words if name in (*TASK, "method") else f"{name.replace('_', ' ')} {value}"
