"""The preparation of columns: fixed by the first night, kept in `columns.json`, the same on every later one.

Numbers are standardised by the first night's mean and deviation. Text and booleans are hashed into buckets, each column
for itself. Labels become classes, zeros and ones, or standardised targets.
"""

import datetime
import difflib
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.config.fields import UsageError
from experiments.nightly.tables import DayError, Table, unusable
from sp_jax.tasks import TASKS

MOST_INTEGERS, MOST_TEXTS = 20, 200  # classes that are taken for such without --task
LARGEST = 1e30  # beyond it a square is infinite in single precision, or nearly so
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
        """How many the network has."""
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
        _there(table, name)
    if twice := {*special} & {*taken} or {name for name in special if special.count(name) > 1}:
        raise UsageError(f"column {sorted(twice)[0]!r} is asked for in two roles; name it once")
    if not taken:
        raise DayError("has no column beside the label")
    for name in taken:
        if asked.columns is None and (not name or name.startswith(NO_NAME)):
            raise DayError(f"column {name!r} looks like an index; write it without (index=False), or give --columns")
        _check_kind(name, table[name])
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
        _refuse(name, values, _absent(values), "has no value")
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
    distinct = sorted({*map(label_text, values.tolist())})
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


def label_text(value: Any) -> str:
    """Return a label as the name of its class: 1, 1.0 and True of one column are the same class on all nights."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value == round(value):
        return str(int(value))
    return str(value)


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
        _there(table, name, "; the first night had it" if preparation.means or preparation.categories else "")
    count = len(next(iter(table.values())))
    numbers = [_number(name, table[name], preparation.missing) for name in preparation.numbers]
    buckets = preparation.buckets
    categories = [_category(name, table[name], preparation.missing, buckets) for name in preparation.categories]
    columns = (
        np.stack(numbers, axis=1) if numbers else np.empty((count, 0)),
        np.stack(categories, axis=1) if categories else np.empty((count, 0), np.int32),
    )
    if not labelled:
        return Rows(*columns, None)
    weights = _weights(preparation.weight, table) if preparation.weight else None
    times = seconds(preparation.time, _there(table, preparation.time)) if preparation.time else None
    return Rows(*columns, _labels(preparation, table), weights, times)


def _there(table, name, more=""):
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        found = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, [*table][:5]))}, …"
        raise DayError(f"has no column {name!r}{more} ({found})")
    return table[name]


def _check_kind(name, values):
    if unusable(values):
        raise DayError(f"column {name!r} holds {unusable(values)}; expected numbers, text or booleans (see --columns)")
    if values.dtype.kind == "M":
        raise DayError(f"column {name!r} holds times; name it with --time, or pick others with --columns")


def _absent(values):
    if values.dtype == object:
        return np.array([x is None or (isinstance(x, float) and math.isnan(x)) for x in values], bool)
    return np.isnat(values) if values.dtype.kind == "M" else np.isnan(values) if values.dtype.kind == "f" else None


def _refuse(name, values, wrong, what, advice=""):
    """Raise a `DayError` that names the rows where `wrong` is true."""
    if wrong is None or not wrong.any():
        return
    rows = np.flatnonzero(wrong) + 1
    shown = ", ".join(map(str, rows[:5])) + (f", … ({len(rows)} of {len(values)})" if len(rows) > 5 else "")
    raise DayError(f"column {name!r} {what} in row{'s' * (len(rows) > 1)} {shown}{advice}")


def _is_number(value):
    try:
        return value is None or not isinstance(value, str) or math.isfinite(float(value))
    except ValueError:
        return False


def _number(name, values, missing):
    """Return a column of numbers as float64, NaN where it is missing."""
    _check_kind(name, values)
    if values.dtype == object:
        wrong = next((i for i, x in enumerate(values) if not _is_number(x)), None)
        wrong = next((i for i, x in enumerate(values) if isinstance(x, str)), None) if wrong is None else wrong
        if wrong is not None:
            raise DayError(f"column {name!r} held numbers on the first night, now text: {values[wrong]!r:.40} in row "
                           f"{wrong + 1}")  # fmt: skip
        values = np.array([math.nan if x is None else float(x) for x in values])
    values = values.astype(np.float64)
    if missing == "error":
        _refuse(name, values, np.isnan(values), "has no value", "; fill them, or begin with --missing=mean")
    _refuse(name, values, np.isinf(values), "is infinite")
    _refuse(name, values, np.abs(values) > LARGEST, f"is beyond {LARGEST:g}")
    return values


def _category(name, values, missing, buckets):
    """Return the buckets of a column of text or booleans."""
    _check_kind(name, values)
    if missing == "error":
        _refuse(name, values, _absent(values), "has no value", "; fill them, or begin with --missing=mean")
    texts = [_category_text(value) for value in values.tolist()]
    found = {text: bucket(name, text, buckets) for text in {*texts}}
    return np.array([found[text] for text in texts], np.int32)


def _category_text(value):
    """Return a value as text; whole numbers without a point, so that a file with gaps has the same."""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value == round(value) else repr(value)
    return "" if value is None else str(value)


def bucket(name: str, text: str, buckets: int) -> int:
    """Return the bucket of a value: the same on every machine and night."""
    hashed = hashlib.blake2b(f"{name}\0{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(hashed, "little") % buckets


def _weights(name, table):
    values = _number(name, _there(table, name), "error")
    _refuse(name, values, values < 0, "is a negative weight")
    if not values.any():
        raise DayError(f"column {name!r}: all weights are 0")
    return values.astype(np.float32)


def seconds(name: str, values: np.ndarray) -> np.ndarray:
    """Return a clock's values as float64: numbers as they are, times in seconds since 1970 (UTC where none is said).

    Raises:
      DayError: a value is missing, or is no time.
    """
    if unusable(values):
        raise DayError(f"column {name!r} holds {unusable(values)}; expected times")
    _refuse(name, values, _absent(values), "has no time")
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]").astype(np.int64) / 1e6
    if values.dtype != object:
        _refuse(name, values, ~np.isfinite(values.astype(float)), "is no time")
        return values.astype(np.float64)
    _refuse(name, values, np.array([_instant(x) is None for x in values]), "is no time (as 2026-01-31 06:00)")
    return np.array([_instant(x) for x in values])


@functools.lru_cache(100_000)
def _instant(text):
    try:
        found = datetime.datetime.fromisoformat(str(text).strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def _labels(preparation, table):
    """Return [N] texts of a classification, or [N, K] numbers."""
    columns = [_there(table, name) for name in preparation.labels]
    for name, values in zip(preparation.labels, columns, strict=True):
        _refuse(name, values, _absent(values), "has no label")
        _check_kind(name, values)
    if preparation.task == "classification":
        texts = np.empty(len(columns[0]), object)
        texts[:] = [label_text(value) for value in columns[0].tolist()]
        return texts
    numbers = []
    for name, values in zip(preparation.labels, columns, strict=True):
        found = _number(name, values.astype(np.int64) if values.dtype == bool else values, "error")
        if preparation.task != "regression":
            _refuse(name, found, ~np.isin(found, (0, 1)), f"is neither 0 nor 1 (--task={preparation.task})")
        numbers.append(found)
    return np.stack(numbers, axis=1)


def measure(preparation: Preparation, rows: Rows, training: np.ndarray) -> Preparation:
    """Add the statistics of the first night's rows, over those where `training` [N] is true."""
    means, deviations = _statistics(rows.numbers[training])
    made = preparation._replace(means=means, deviations=deviations)
    if preparation.task != "regression":
        return made
    means, deviations = _statistics(rows.labels[training])
    return made._replace(target_means=means, target_deviations=deviations)


def _statistics(values):
    """Return the mean and the deviation of each column; a constant one is 0 as long as it stays so."""
    known = [column[~np.isnan(column)] for column in values.T]
    means = tuple(float(np.mean(column)) if len(column) else 0.0 for column in known)
    return means, tuple(float(np.std(column)) if len(column) and np.ptp(column) > 0 else 1.0 for column in known)


def with_classes(preparation: Preparation, labels: np.ndarray) -> Preparation:
    """Add the classes that these labels are the first to name; those of one night are sorted."""
    if preparation.task != "classification":
        return preparation
    new = {*labels} - {*preparation.classes}
    ordered = sorted(new, key=lambda text: (0, int(text), "") if text.lstrip("-").isdecimal() else (1, 0, text))
    return preparation._replace(classes=(*preparation.classes, *ordered))


def standardised(preparation: Preparation, rows: Rows) -> np.ndarray:
    """Return the numbers [N, F] as float32 in units of the first night's deviation.

    Raises:
      DayError: one is too far from those of the first night.
    """
    scaled = (rows.numbers - np.array(preparation.means)[None]) / np.array(preparation.deviations)[None]
    for i, name in enumerate(preparation.numbers):
        _refuse(name, scaled, np.abs(scaled[:, i]) > LARGEST, "is too far from the first night's values")
    return np.nan_to_num(scaled, nan=0.0).astype(np.float32)


def targets(preparation: Preparation, labels: np.ndarray) -> np.ndarray:
    """Return labels, as `extract` gives them, as the network is trained on them: [N] or [N, K]."""
    if preparation.task == "classification":
        places = {text: i for i, text in enumerate(preparation.classes)}
        return np.array([places[text] for text in labels], np.int32)
    if preparation.task == "binary":
        return labels[:, 0].astype(np.float32)
    if preparation.task == "multilabel":
        return labels.astype(np.float32)
    scaled = (labels - np.array(preparation.target_means)[None]) / np.array(preparation.target_deviations)[None]
    return (scaled[:, 0] if scaled.shape[1] == 1 else scaled).astype(np.float32)


def readable(preparation: Preparation, outputs: np.ndarray) -> Table:
    """Return what a network's outputs [N, outputs] say, as columns."""
    if preparation.task == "regression":
        values = outputs * np.array(preparation.target_deviations)[None] + np.array(preparation.target_means)[None]
        return {name: values[:, i] for i, name in enumerate(preparation.labels)}
    if preparation.task == "classification":
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        chances = powers / powers.sum(axis=1, keepdims=True)
        names = np.array(preparation.classes[: outputs.shape[1]], object)
        shares = {f"probability of {name}": chances[:, i] for i, name in enumerate(names)}
        return {preparation.labels[0]: names[chances.argmax(axis=1)], **shares}
    chances = 0.5 * (1 + np.tanh(0.5 * outputs.astype(np.float64)))
    truths = {name: (chances[:, i] > 0.5).astype(np.int64) for i, name in enumerate(preparation.labels)}
    return truths | {f"probability of {name}": chances[:, i] for i, name in enumerate(preparation.labels)}
