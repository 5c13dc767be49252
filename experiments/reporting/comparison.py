"""The paper's numbers beside ours."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.config.choices import LABELS
from experiments.records.results import Row
from experiments.reporting import paper_numbers, summary
from experiments.reporting.summary import TASK, Line, LineSummary, Plan
from experiments.specs import registry


class Compared(NamedTuple):
    """A number of the paper and ours; ours is None where it was not run, or all lanes ended by NaN."""

    number: paper_numbers.Number
    ours: float | None
    deviation: float = float("nan")  # sample deviation of ours; NaN with one seed, and of a cost
    found: LineSummary | None = None  # of ours

    @property
    def line(self) -> Line | None:
        """The line of our run."""
        return self.found and self.found.line

    @property
    def seeds(self) -> int:
        """The number of seeds of our number."""
        return self.found.seeds if self.found else 0

    @property
    def errors(self) -> float:
        """The difference in its own standard errors; NaN where one of the two has no deviation."""
        theirs = self.number.deviation
        if self.ours is None or theirs is None or np.isnan(self.deviation):
            return float("nan")
        error = np.sqrt(theirs**2 / paper_numbers.SEEDS + self.deviation**2 / self.seeds)
        return float((self.ours - self.number.value) / error) if error else float("nan")


def compare(
    experiment: str, rows: Sequence[Row], planned: Mapping[Line, Plan] | None = None
) -> tuple[list[Compared], bool]:
    """Return each number that the paper prints for an experiment, with ours, and whether ours are of the paper's tasks.

    Where data set, model and optimiser are not the paper's (a quick preset), ours are matched by all other settings,
    and a difference means nothing. A line that has fewer rounds than are planned, of a partial run, is not compared.
    """
    numbers = paper_numbers.numbers(experiment)
    same = any(all(row[name] == n.where.get(name, row[name]) for name in TASK) for n in numbers for row in rows)
    if not same:
        single = [name for name in TASK if len({row[name] for row in rows}) == 1]
        first = [n for n in numbers if n.where["dataset"] == numbers[0].where["dataset"]]
        numbers = [n._replace(where={k: v for k, v in n.where.items() if k not in single}) for n in first]
    lines, summaries = summary.by_line(rows), {s.line: s for s in summary.summarize(rows, planned)}
    heads = [
        (found[0], summaries[line], len({row["round"] for row in found}))
        for line, found in lines.items()
        if summaries[line].seeds and (line not in (planned or {}) or summaries[line].round >= planned[line].rounds)
    ]
    return [_compare(number, heads) for number in numbers], same


HEADER = ("what", "paper", "ours", "difference", "in standard errors", "seeds")
ERRORS = (
    f"± is the sample deviation over the seeds (the paper's {paper_numbers.SEEDS}, ours in the last column). A "
    "difference is also in standard errors of itself, as these deviations give them."
)
APART = (
    "Ranked by how far they lie apart, in points: the root of the mean square of the differences to the paper's "
    "numbers. What is nearest need not be what the paper had."
)


def table(experiment: str, rows: Sequence[Row], planned: Mapping[Line, Plan] | None = None) -> str:
    """Make the table of paper, ours, difference and seeds, of what was run; empty where the paper prints no number.

    See `compare`.
    """
    compared, same = compare(experiment, rows, planned)
    if not compared:
        return ""
    ran = [each for each in compared if each.ours is not None]
    found = [HEADER, *(cells(each, same=same) for each in ran)]
    rest = f"Of the paper's {len(compared)} numbers here, {len(compared) - len(ran)} were not run."
    ours = ", ".join(" and ".join(dict.fromkeys(row[name] for row in rows)) for name in TASK)
    note = "" if same else f"Ours are of {ours}, not of the paper's data: read the order, not the numbers.\n\n"
    parts = [summary.markdown(found), f"{ERRORS} Times are ratios to random init."] if ran else []
    return f"## Beside the paper\n\n{note}" + "\n\n".join([*parts, *([rest] if len(ran) < len(compared) else [])])


def nearest(experiment: str, rows: Sequence[Row]) -> str:
    """Make a table for each task: the variants of a run, those nearest to an experiment's printed accuracies first;
    empty where the tasks are not the paper's, or the variants have no number in common."""
    names = [name for name in summary.varied(rows) if name not in TASK]
    tasks = summary.grouped(rows, TASK)
    ranked = {", ".join(task): _ranking(experiment, names, found) for task, found in tasks.items()}
    parts = [f"{task}:\n\n{summary.markdown(lines)}" for task, lines in ranked.items() if lines]
    return "\n\n".join(["## Nearest to the paper", APART, *parts]) if parts else ""


def _ranking(experiment, names, rows):
    """Return the cells of one task's table; none without a number of the paper that all variants have."""
    variants = summary.grouped(rows, names)
    compared, same = zip(*(compare(experiment, found) for found in variants.values()), strict=True)
    columns = [each for each in zip(*compared, strict=True) if all(c.ours is not None for c in each)]
    if not columns or not all(same):
        return []
    numbers, ours = [column[0].number for column in columns], np.array([[c.ours for c in each] for each in columns]).T
    heads = [_what(n._replace(where={"restart": n.where["restart"]})) for n in numbers]
    printed = [f"{n.value:.1f} %" for n in numbers]
    apart = np.sqrt(np.mean((ours - [n.value for n in numbers]) ** 2, axis=1))
    lines = [(*names, *heads, "apart"), ("the paper", *[""] * (len(names) - 1), *printed, "")]
    for i in np.argsort(apart, kind="stable"):
        lines.append((*list(variants)[i], *(f"{value:.1f} %" for value in ours[i]), f"{apart[i]:.1f}"))
    return lines


def count(compared: Sequence[Compared]) -> str:
    """Say in two sentences how many of the numbers that the paper prints have ours beside them (those compared, of all
    runs; the same one may come more than once), and how many are near."""
    numbers = {_key(each.number) for each in compared}
    printed = {_key(number) for name in registry.NAMES for number in paper_numbers.numbers(name)}
    errors = [abs(each.errors) for each in compared if not np.isnan(each.errors)]
    return (
        f"{len(numbers)} of the {len(printed)} numbers that the paper prints have ours beside them, in {len(compared)} "
        f"comparisons. Of these, {len(errors)} have a deviation on both sides, and {sum(e <= 2 for e in errors)} of "
        "those lie within two standard errors of the difference."
    )


def _key(number):
    """Return a hashable key of a printed number; Table 1 serves two experiments."""
    return number._replace(where=tuple(sorted(number.where.items())))


def cells(compared: Compared, *, same: bool) -> tuple[str, ...]:
    """Return a run number's cells, as `HEADER` names them; no difference where the data are not the same."""
    number, ours, deviation, found = compared
    digits, unit = (2, "x") if number.cost else (1, " %")
    printed = f"{number.value:.{digits}f}{summary.spread(number.deviation)}{unit}"
    difference = f"{ours - number.value:+.{digits}f}" if same else ""
    errors = f"{compared.errors:+.1f}" if same and not np.isnan(compared.errors) else ""
    mine = f"{ours:.{digits}f}{summary.spread(deviation)}{unit}"
    return (_what(number), printed, mine, difference, errors, found.seeds_of)


def _compare(number, heads):
    found: list[tuple[LineSummary, int]] = [(s, rounds) for row, s, rounds in heads if _matches(number.where, row)]
    if not found:
        return Compared(number, None)
    ours, rounds = found[0]
    if number.cost:
        value, deviation = ours.ratio_total if rounds > 2 else ours.ratio_last, float("nan")
    elif number.first:
        value, deviation = ours.first_accuracy, ours.first_deviation
    else:
        value, deviation = ours.accuracy, ours.deviation
    return Compared(number, value, deviation, ours) if not np.isnan(value) else Compared(number, None)


def _matches(where: Mapping[str, str | float], row: Row) -> bool:
    """Return whether a row has these values; numbers are compared as numbers."""
    for name, value in where.items():
        if name not in row:
            return False
        if (float(row[name]) != value) if isinstance(value, float) else (row[name] != value):
            return False
    return True


def _what(number):
    """Return a number's description: `cifar10, mlp, sgd, warm start, first round`."""
    words = [
        f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else LABELS.get(value, value)
        for name, value in number.where.items()
        if not (name == "weight_decay" and value == 0)
    ]
    return ", ".join([*words, *(["first round"] if number.first else []), *(["time"] if number.cost else [])])
