"""The preparation of columns: fixed by the first night, kept in `columns.json`, the same on every later one.

Numbers are standardised by the first night's mean and deviation. Text and booleans are hashed into buckets, each column
for itself. Labels become classes, zeros and ones, or standardised targets.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from experiments.config.fields import UsageError
from experiments.nightly import cells
from experiments.nightly.tables import DayError, Table, unusable
from sp_jax.tasks import TASKS

MOST_INTEGERS, MOST_TEXTS = 20, 200  # classes that are taken for such without --task
NO_NAME = ("Unnamed: ", "__index_level_")  # what an index of pandas is called in a file
MISSING = ("error", "mean")


class Asked(NamedTuple):
    """What was asked for by flags; None where a flag was not given."""

    labels: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    weight: str | None = None
    time: str | None = None
    task: str | None = None
    missing: str | None = None
    buckets: int | None = None
    hidden: tuple[int, ...] | None = None


class Preparation(NamedTuple):
    """What is done to the columns; the content of `columns.json`."""

    labels: tuple[str, ...]
    task: str
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    weight: str | None = None
    time: str | None = None
    missing: str = "error"
    buckets: int = 1024
    hidden: tuple[int, ...] = (100, 100)
    classes: tuple[str, ...] = ()  # of a classification, in the order in which they were first seen
    means: tuple[float, ...] = ()  # of the numbers, over the first night's training rows
    deviations: tuple[float, ...] = ()
    target_means: tuple[float, ...] = ()  # of a regression, likewise
    target_deviations: tuple[float, ...] = ()

    @property
    def outputs(self) -> int:
        """The number of the network's outputs."""
        return len(self.classes) if self.task == "classification" else len(self.labels)

    @property
    def text(self) -> tuple[str, ...]:
        """The columns of a csv that are not to be read as numbers."""
        return self.categories

    @property
    def inputs(self) -> tuple[str, ...]:
        """All input columns."""
        return (*self.numbers, *self.categories)


class Rows(NamedTuple):
    """Rows in the order of their file."""

    numbers: np.ndarray  # [N, F] float64 as in the file, float32 once standardised; NaN where missing
    categories: np.ndarray  # [N, C] int32 buckets
    labels: np.ndarray | None  # [N] text of a classification, else [N, K] float64; None where there is none to read
    weights: np.ndarray | None = None  # [N] float32
    times: np.ndarray | None = None  # [N] float64, seconds or whatever the clock counts


def to_json(preparation: Preparation) -> str:
    """Return the text of `columns.json`."""
    return json.dumps(preparation._asdict(), indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> Preparation:
    """Read `columns.json`; raise a ValueError where it is not one."""
    found = json.loads(text)
    if set(found) != set(Preparation._fields):
        raise ValueError("its entries are others")
    made = Preparation(**{name: tuple(x) if isinstance(x, list) else x for name, x in found.items()})
    if len(made.means) != len(made.numbers) or len(made.deviations) != len(made.numbers) or made.task not in TASKS:
        raise ValueError("its statistics are not those of its columns")
    return made


def check_same(preparation: Preparation, asked: Asked) -> None:
    """Raise a `UsageError` where flags ask for what the first night has fixed otherwise."""
    for name, value in asked._asdict().items():
        fixed = preparation.inputs if name == "columns" else getattr(preparation, name)
        same = {*value} == {*fixed} if name == "columns" and value else value == fixed
        if value is not None and not same:
            now, then = (",".join(map(str, x)) if isinstance(x, tuple) else x for x in (value, fixed))
            flag = {"labels": "label"}.get(name, name)
            raise UsageError(
                f"--{flag}={now}, but this folder was begun with {then or 'none'}; leave the flag out, or begin "
                "another --workdir"
            )


def infer(table: Table, asked: Asked) -> Preparation:
    """Decide on the preparation by the first file; its statistics are still to be measured.

    Raises:
      DayError: a column is missing, or one that is used holds what is no input.
      UsageError: the label leaves a doubt about the task.
    """
    if not asked.labels:
        raise UsageError("--label is missing: name the column that is to be predicted")
    special = [*asked.labels, *(name for name in (asked.weight, asked.time) if name)]
    taken = asked.columns or tuple(name for name in table if name not in special)
    for name in (*special, *taken):
        cells.column(table, name)
    if twice := {*special} & {*taken} or {name for name in special if special.count(name) > 1}:
        raise UsageError(f"column {sorted(twice)[0]!r} is asked for in two roles; name it once")
    if not taken:
        raise DayError("has no column beside the label")
    for name in taken:
        if asked.columns is None and (not name or name.startswith(NO_NAME)):
            raise DayError(f"column {name!r} looks like an index; write it without (index=False), or give --columns")
        cells.check_kind(name, table[name])
    numbers = tuple(name for name in taken if table[name].dtype.kind in "iuf")
    task = asked.task or infer_task({name: table[name] for name in asked.labels})
    if task in ("classification", "binary") and len(asked.labels) > 1:
        raise UsageError(f"--task={task} has one label, got {', '.join(asked.labels)}; or --task=multilabel")
    given = {n: v for n, v in asked._asdict().items() if v is not None and n not in ("columns", "labels", "task")}
    rest = tuple(name for name in taken if name not in numbers)
    return Preparation(asked.labels, task, numbers, rest, **given)


def infer_task(labels: Mapping[str, np.ndarray]) -> str:
    """Return the task of labels by their values.

    Raises:
      DayError: values are missing.
      UsageError: they leave a doubt.
    """
    for name, values in labels.items():
        cells.refuse(name, values, cells.absent(values), "has no value")
        if unusable(values) or values.dtype.kind == "M":
            raise DayError(f"label {name!r} holds {unusable(values) or 'times'}; expected numbers, text or booleans")
    name, values = next(iter(labels.items()))
    kinds = {each.dtype.kind for each in labels.values()}
    whole = all(k in "biu" or (k == "f" and np.isin(v, (0, 1)).all()) for k, v in _by_kind(labels))
    truths = whole and all(np.isin(v, (0, 1)).all() for _, v in _by_kind(labels))
    if len(labels) > 1:
        if truths:
            return "multilabel"
        raise UsageError("several labels that are not all 0 or 1: give --task=regression, or name one label")
    distinct = sorted({*map(cells.label_text, values.tolist())})
    if len(distinct) == 1:
        raise UsageError(
            f"label {name!r} has one value, {distinct[0]!r}, in all {len(values)} rows: there is nothing to learn yet; "
            "wait for more rows, or give --task"
        )
    if truths:
        return "binary"
    most = MOST_TEXTS if kinds == {"O"} else MOST_INTEGERS if whole else 0
    if len(distinct) <= most:
        return "classification"
    kind = {"O": "text", "f": "fractions"}.get(values.dtype.kind, "whole numbers")
    raise UsageError(
        f"label {name!r} holds {len(distinct)} {kind if kind != 'text' else 'texts'}, so the task is in doubt: give "
        + ("--task=classification if these are classes" if kind == "text" else "--task=regression, or classification")
    )


def _by_kind(labels):
    return [(values.dtype.kind, values) for values in labels.values()]


def extract(preparation: Preparation, table: Table, *, labelled: bool = True) -> Rows:
    """Take the columns of a file as they are prepared, numbers not yet standardised.

    Args:
      preparation: of all files.
      table: the file's columns.
      labelled: whether labels, weights and times are read.

    Raises:
      DayError: a column is missing or holds other values than on the first night; one line, rows counted from 1.
    """
    for name in preparation.inputs:
        cells.column(table, name, "; the first night had it" if preparation.means or preparation.categories else "")
    count = len(next(iter(table.values())))
    numbers = [cells.as_numbers(name, table[name], preparation.missing) for name in preparation.numbers]
    buckets = preparation.buckets
    categories = [cells.as_buckets(name, table[name], preparation.missing, buckets) for name in preparation.categories]
    columns = (
        np.stack(numbers, axis=1) if numbers else np.empty((count, 0)),
        np.stack(categories, axis=1) if categories else np.empty((count, 0), np.int32),
    )
    if not labelled:
        return Rows(*columns, None)
    weights = cells.as_weights(preparation.weight, table) if preparation.weight else None
    times = cells.as_seconds(preparation.time, cells.column(table, preparation.time)) if preparation.time else None
    return Rows(*columns, _labels(preparation, table), weights, times)


def _labels(preparation, table):
    """Return [N] texts of a classification, or [N, K] numbers."""
    columns = [cells.column(table, name) for name in preparation.labels]
    for name, values in zip(preparation.labels, columns, strict=True):
        cells.refuse(name, values, cells.absent(values), "has no label")
        cells.check_kind(name, values)
    if preparation.task == "classification":
        texts = np.empty(len(columns[0]), object)
        texts[:] = [cells.label_text(value) for value in columns[0].tolist()]
        return texts
    numbers = []
    for name, values in zip(preparation.labels, columns, strict=True):
        found = cells.as_numbers(name, values.astype(np.int64) if values.dtype == bool else values, "error")
        if preparation.task != "regression":
            cells.refuse(name, found, ~np.isin(found, (0, 1)), f"is neither 0 nor 1 (--task={preparation.task})")
        numbers.append(found)
    return np.stack(numbers, axis=1)
