"""Summaries of rows: the table that a run prints at its end and a report shows.

Rows may be missing, and lanes may have ended by NaN: such a lane is out of every mean, deviation, cost and ratio, and
the table says over how many of the planned seeds its numbers are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.config.choices import LABELS
from experiments.config.settings import RestartSetting
from experiments.records.results import COLUMNS, MEASURED, MORE, Row, is_lost, text

TASK = ("dataset", "model", "optimizer")  # lines are compared within one
LANE = ("experiment", "restart", "shrink", "noise_scale", "seed", "round", "epoch", "name", "value")  # in no variant
# A baseline may differ in these from the line compared with it: it has no first phase of its own, or no method.
FREE = (
    "first_epochs", "first_batch_size", "first_learning_rate", "first_fraction", "trained", "method", "method_strength",
)  # fmt: skip
FAR_BELOW = 5  # points of accuracy
UNSAID = (("method", "none"), ("bias", "true"))  # in the name of a line
MISSING = "-"
DEVIATION = "± is the sample deviation over the seeds."


class Line(NamedTuple):
    """One cell of one variant: its rows are seeds and rounds."""

    variant: tuple[tuple[str, str], ...]  # the settings that vary in the experiment, with this line's values
    cell: RestartSetting


class Plan(NamedTuple):
    """The number of rounds and seeds that a line will have."""

    rounds: int
    seeds: int


class LineSummary(NamedTuple):
    """One line over its seeds, without the lanes that ended by NaN; a number is NaN where no lane is left."""

    line: Line
    seeds: int  # in the mean
    complete: int  # of these, the seeds that have all rounds so far: the costs are theirs
    planned: int  # seeds
    round: int  # the newest that any seed has finished
    accuracy: float  # per cent, mean over the seeds in that round
    deviation: float  # per cent, sample deviation; NaN with one seed
    samples_last: float  # visited in that round, mean over the seeds
    samples_total: float  # visited in all rounds, mean over the seeds that have them all
    ratio_last: float  # to random init, over the seeds that both have; NaN where there are none
    ratio_total: float  # over the seeds and rounds that both have
    not_converged: int  # lanes and rounds that ended by plateau, cap or NaN
    lost: int  # lanes that ended by NaN
    first_accuracy: float  # per cent, mean over the same seeds in the first round
    first_deviation: float

    @property
    def cell(self) -> RestartSetting:
        """The line's restart, λ and σ."""
        return self.line.cell

    @property
    def seeds_of(self) -> str:
        """The number of seeds in words: `5`, `4 of 5`, or `5, costs of 4` where some lack a round."""
        count = str(self.seeds) if self.seeds == self.planned else f"{self.seeds} of {self.planned}"
        return count + (f", costs of {self.complete}" if self.complete < self.seeds else "")


def varied(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the settings that differ between rows."""
    names = [name for name in (rows[0] if rows else ()) if name not in (*MEASURED, *LANE, *MORE)]
    return tuple(name for name in names if len({row[name] for row in rows}) > 1 or name not in COLUMNS)


def by_line(rows: Sequence[Row]) -> dict[Line, list[Row]]:
    """Return the rows of each line, in the order in which they first appear."""
    names, lines = varied(rows), {}
    for row in rows:
        variant = tuple((name, text(row[name])) for name in names)
        cell = RestartSetting(row["restart"], row["shrink"], row["noise_scale"])
        lines.setdefault(Line(variant, cell), []).append(row)
    return lines


def grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Return the rows by their values of some columns, as text, in the order in which they first appear."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(text(row[name]) for name in names), []).append(row)
    return groups


def sound(rows: Sequence[Row], wanted: Sequence[Row] | None = None) -> list[Row]:
    """Return the rows without those of lanes that ended a round by NaN, by the rows of `results.csv`.

    `wanted` are rows of the same lanes, as of `curves.csv`; by default those of `results.csv`.
    """
    wanted = rows if wanted is None else wanted
    if not wanted or not rows:
        return list(wanted)
    names = [n for n in rows[0] if n in wanted[0] and n != "round" and n not in (*MEASURED, *MORE)]
    lost = {tuple(text(row[name]) for name in names) for row in rows if is_lost(row)}
    return [row for row in wanted if tuple(text(row[name]) for name in names) not in lost] if lost else list(wanted)


def complete(rows: Sequence[Row], rounds: int) -> list[Row]:
    """Return the rows of the seeds of one line that have all of so many rounds, none of them ended by NaN."""
    wanted = set(range(1, rounds + 1))
    whole = [
        its
        for its in grouped(rows, ("seed",)).values()
        if wanted <= {r["round"] for r in its} and not any(map(is_lost, its))
    ]
    return [row for its in whole for row in its]


def trained(accuracies: Sequence[float], converged: Sequence[bool]) -> list[bool]:
    """Return which lines learned their samples: all that converged, and others not far below the worst of these.

    A line has converged where all its lanes reached the training accuracy in all rounds; accuracies are per cent.
    """
    least = min((a for a, c in zip(accuracies, converged, strict=True) if c), default=0) - FAR_BELOW
    return [c or a >= least for a, c in zip(accuracies, converged, strict=True)]


def last_round(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the newest round that any seed has finished."""
    newest = max((row["round"] for row in rows), default=0)
    return [row for row in rows if row["round"] == newest]


def baseline(line: Line, lines: Mapping[Line, list[Row]], restart: str = "random_init") -> Line | None:
    """Return the baseline's line with this one's settings, the most alike in those that may differ; None without."""
    wanted = dict(line.variant)
    alike = [
        other
        for other in lines
        if other.cell.restart == restart
        and all(value == wanted.get(name) for name, value in other.variant if name not in FREE)
    ]
    return max(alike, key=lambda other: len(set(other.variant) & set(line.variant)), default=None)


def seeds_of(rows: Sequence[Row]) -> int:
    """Return the number of seeds."""
    return len({row["seed"] for row in rows})


def label(line: Line, without: Sequence[str] = ()) -> str:
    """Return a readable name of a line: `mlp, sgd, shrink-perturb λ=0.6 σ=0.01`."""
    shown = [(name, value) for name, value in line.variant if value not in ("None", "") and name not in without]
    words = [_word(name, value) for name, value in shown if (name, value) not in UNSAID]
    cell = line.cell
    restart = LABELS.get(cell.restart, cell.restart.replace("_", " ")) + cell.amounts(without)
    return ", ".join([*words, restart])


def summarize(rows: Sequence[Row], planned: Mapping[Line, Plan] | None = None) -> list[LineSummary]:
    """Make one summary for each line of a run, maybe a partial one, in the order of the lines.

    Where it is `planned` how many rounds each line will have, costs of finished lines are compared over all rounds,
    else over the rounds that both have.
    """
    lines, planned = by_line(rows), planned or {}
    made = []
    for line, found in lines.items():
        other = baseline(line, lines)
        base = lines.get(other, [])
        ends = [planned[n].rounds for n in (line, other) if n in planned]
        if len(ends) == 2 and all(last_round(its)[0]["round"] >= n for its, n in zip((found, base), ends, strict=True)):
            both = [complete(its, n) for its, n in zip((found, base), ends, strict=True)]
            ratios = [_ratio(*map(last_round, both), ("seed",)), _ratio(*both, ("seed",))]
        else:
            key = ("seed", "round")
            ratios = [_ratio(its, sound(base), key) for its in (last_round(sound(found)), sound(found))]
        made.append(_summarize(line, found, planned.get(line), *ratios))
    return made


def table(rows: Sequence[Row], planned: Mapping[Line, Plan] | None = None) -> str:
    """Format the summaries as a Markdown table, costs also as a ratio to random init where that was run.

    A line that has fewer rounds than are `planned` is marked with its newest round. Below the table stand the meaning
    of ±, and, if there are any, a sentence on lanes that ended below --train_accuracy and one on those that ended by
    NaN.
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
        behind = f" (round {s.round})" if s.line in (planned or {}) and s.round < planned[s.line].rounds else ""
        accuracy = f"{s.accuracy:.1f}{spread(s.deviation)} %{behind}" if s.seeds else "lost: NaN in all lanes"
        costs = _cost(s.samples_total, s.ratio_total), _cost(s.samples_last, s.ratio_last)
        values = ["" if value == "None" else value for _, value in s.line.variant]
        first = [MISSING if np.isnan(s.first_accuracy) else f"{s.first_accuracy:.1f} %"] if two else []
        lines.append((*values, *s.cell, *first, accuracy, *costs, s.seeds_of))
    deviation = DEVIATION if any(not np.isnan(s.deviation) for s in summaries) else ""
    return "\n\n".join(filter(None, (markdown(lines), deviation, not_converged(rows), lost(rows))))


def spread(deviation: float | None) -> str:
    """Format a deviation to follow a mean; return nothing where there is none."""
    return "" if deviation is None or np.isnan(deviation) else f" ± {deviation:.1f}"


def not_converged(rows: Sequence[Row]) -> str:
    """Say in one sentence how many lane-rounds ended below --train_accuracy, why, and in which lines and rounds."""
    found = {line: [row for row in its if not row["converged"]] for line, its in by_line(rows).items()}
    ended = [row for its in found.values() for row in its]
    if not ended:
        return ""
    words = {"cap": "cap of epochs"}
    reasons = Counter("NaN" if is_lost(r) else words.get(r.get("stop_reason"), r.get("stop_reason")) for r in ended)
    why = ", ".join(f"{count:,} by {reason}" for reason, count in reasons.items())
    where = "; ".join(f"{label(line)} ({_rounds(its)})" for line, its in found.items() if its)
    return f"{len(ended):,} of {len(rows):,} lane-rounds ended below --train_accuracy ({why}): {where}."


def lost(rows: Sequence[Row]) -> str:
    """Say in one sentence which lanes ended by NaN, and from which round on."""
    found = {line: [row for row in its if is_lost(row)] for line, its in by_line(rows).items()}
    where = []
    for line, its in found.items():
        rounds = {row["seed"]: min(r["round"] for r in its if r["seed"] == row["seed"]) for row in its}
        lanes = ", ".join(f"seed {seed} from round {first}" for seed, first in rounds.items())
        where += [f"{label(line)} ({lanes})"] if its else []
    return f"Lanes that ended by NaN are out of all means, costs and tests: {'; '.join(where)}." if where else ""


def _rounds(rows):
    """Say how many rows there are, and of which rounds."""
    first, last = (f(row["round"] for row in rows) for f in (min, max))
    return f"{len(rows)} in round {first}" if first == last else f"{len(rows)} in rounds {first} to {last}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Format lines of texts, the first the header, as a Markdown table; pipes in cells are escaped."""
    lines = [[" ".join(x.split()).replace("|", r"\|") for x in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    made = ["| " + " | ".join(f"{x:{w}}" for x, w in zip(line, widths, strict=True)) + " |" for line in lines]
    made.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(made)


def _summarize(line, rows, plan, ratio_last, ratio_total):
    kept = sound(rows)
    final = last_round(kept)
    seeds = {row["seed"] for row in final}
    newest = final[0]["round"] if final else last_round(rows)[0]["round"]
    whole = complete(rows, newest)
    accuracy, deviation = _mean_and_deviation(final)
    first = _mean_and_deviation([row for row in kept if row["round"] == 1 and row["seed"] in seeds])
    return LineSummary(
        line=line,
        seeds=len(seeds),
        complete=seeds_of(whole),
        planned=plan.seeds if plan else seeds_of(rows),
        round=newest,
        accuracy=accuracy,
        deviation=deviation,
        samples_last=float(np.mean([row["samples_seen"] for row in final])) if final else float("nan"),
        samples_total=sum(row["samples_seen"] for row in whole) / seeds_of(whole) if whole else float("nan"),
        ratio_last=ratio_last,
        ratio_total=ratio_total,
        not_converged=sum(not row["converged"] for row in rows),
        lost=seeds_of([row for row in rows if is_lost(row)]),
        first_accuracy=first[0],
        first_deviation=first[1],
    )


def _mean_and_deviation(rows):
    """Return the mean and the sample deviation of validation accuracy in per cent; NaN where there are too few."""
    values = [100 * row["validation_accuracy"] for row in rows]
    mean = float(np.mean(values)) if values else float("nan")
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _ratio(rows, base, key):
    """Return samples visited as a ratio to random init's, over the seeds (and rounds) that both have."""
    one, two = ({tuple(row[name] for name in key) for row in found} for found in (rows, base))
    shared = one & two
    sums = [
        sum(row["samples_seen"] for row in found if tuple(row[name] for name in key) in shared)
        for found in (rows, base)
    ]
    return sums[0] / sums[1] if sums[1] else float("nan")


def _cost(samples, ratio):
    if np.isnan(samples):
        return MISSING
    return f"{samples / 1_000:,.0f}k" + ("" if np.isnan(ratio) else f" ({ratio:.2f}x)")


def _word(name, value):
    """Return a setting in words: data set, model, optimiser and method by value alone, `trained` as in Table 5."""
    if name == "trained":
        return {"head": "LL (head only)", "head_then_all": "LL+WS (head, then all)"}.get(value, "all")
    if (name, value) == ("bias", "false"):
        return "no bias"
    words = LABELS.get(value, value if ":" in value else value.replace("_", " "))  # a path stays as it is
    return words if name in (*TASK, "method") else f"{name.replace('_', ' ')} {value}"
