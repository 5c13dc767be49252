"""The paper's numbers beside ours."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import paper, summary
from experiments.results import Row
from experiments.summary import TASK, Line, LineSummary


class Compared(NamedTuple):
    """A number of the paper and ours; ours is None where it was not run."""

    number: paper.Number
    ours: float | None
    deviation: float
    seeds: int
    line: Line | None = None  # of ours


def compare(
    experiment: str, rows: Sequence[Row], planned: Mapping[Line, int] | None = None
) -> tuple[list[Compared], bool]:
    """Every number that the paper prints for an experiment, with ours.

    Args:
      experiment: its name.
      rows: of a run, maybe a partial one.
      planned: how many rounds each line has in the end; one that has not come so far is not compared.

    Returns:
      The numbers, and whether data set, model and optimiser are the paper's. Where they are not (a quick preset), ours
      are matched by all other settings, and a difference means nothing.
    """
    numbers = paper.numbers(experiment)
    same = any(all(row[name] == n.where.get(name, row[name]) for name in TASK) for n in numbers for row in rows)
    if not same:
        single = [name for name in TASK if len({row[name] for row in rows}) == 1]
        first = [n for n in numbers if n.where["dataset"] == numbers[0].where["dataset"]]
        numbers = [n._replace(where={k: v for k, v in n.where.items() if k not in single}) for n in first]
    lines, summaries = summary.by_line(rows), {s.line: s for s in summary.summarize(rows, planned)}
    heads = [
        (found[0], summaries[line], len({row["round"] for row in found}))
        for line, found in lines.items()
        if summaries[line].round >= (planned or {}).get(line, 0)
    ]
    return [_compare(number, heads) for number in numbers], same


def table(experiment: str, rows: Sequence[Row], planned: Mapping[Line, int] | None = None) -> str:
    """`paper | ours | difference | seeds` as Markdown, of what was run; empty where the paper prints no number.

    See `compare`.
    """
    compared, same = compare(experiment, rows, planned)
    if not compared:
        return ""
    ran = [each for each in compared if each.ours is not None]
    found = [("what", "paper", "ours", "difference", "seeds"), *(_line(each, same=same) for each in ran)]
    rest = f"Of the paper's {len(compared)} numbers here, {len(compared) - len(ran)} were not run."
    ours = ", ".join(" and ".join(dict.fromkeys(row[name] for row in rows)) for name in TASK)
    note = "" if same else f"Ours are of {ours}, not of the paper's data: read the order, not the numbers.\n\n"
    parts = [summary.markdown(found), "Times are ratios to random init."] if ran else []
    return f"## Beside the paper\n\n{note}" + "\n\n".join([*parts, *([rest] if len(ran) < len(compared) else [])])


def lines(
    experiment: str, rows: Sequence[Row], planned: Mapping[Line, int] | None = None
) -> tuple[list[tuple[str, ...]], int]:
    """The lines of `table` of the numbers that were run on the paper's own data, and how many were not run."""
    compared, same = compare(experiment, rows, planned)
    found = [_line(each, same=True) for each in compared if each.ours is not None] if same else []
    return found, len(compared) - len(found) if same else 0


def _line(compared, *, same):
    number, ours, deviation, seeds, _ = compared
    digits, unit = (2, "x") if number.cost else (1, " %")
    printed = f"{number.value:.{digits}f}{_spread(number.deviation)}{unit}"
    difference = f"{ours - number.value:+.{digits}f}" if same else ""
    return (_what(number), printed, f"{ours:.{digits}f}{_spread(deviation)}{unit}", difference, str(seeds))


def _compare(number, heads):
    found: list[tuple[LineSummary, int]] = [(s, rounds) for row, s, rounds in heads if _matches(number.where, row)]
    if not found:
        return Compared(number, None, float("nan"), 0)
    ours, rounds = found[0]
    if number.cost:
        value, deviation = ours.ratio_total if rounds > 2 else ours.ratio_last, float("nan")
    elif number.first:
        value, deviation = ours.first_accuracy, ours.first_deviation
    else:
        value, deviation = ours.accuracy, ours.deviation
    return Compared(number, None if np.isnan(value) else value, deviation, ours.seeds, ours.line)


def _matches(where: Mapping[str, str | float], row: Row) -> bool:
    """Whether a row has these values; numbers are compared as numbers."""
    for name, value in where.items():
        if name not in row:
            return False
        if (float(row[name]) != value) if isinstance(value, float) else (row[name] != value):
            return False
    return True


def _what(number):
    """A number in words: `cifar10, mlp, sgd, warm start, first round`."""
    words = [
        f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else summary.NAMES.get(value, value)
        for name, value in number.where.items()
        if not (name == "weight_decay" and value == 0)
    ]
    return ", ".join([*words, *(["first round"] if number.first else []), *(["time"] if number.cost else [])])


def _spread(deviation):
    return "" if deviation is None or np.isnan(deviation) else f" ± {deviation:.1f}"
