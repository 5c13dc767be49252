"""The values of one column: checked, and read as numbers, buckets of text, weights or times."""

import datetime
import difflib
import functools
import hashlib
import math
from typing import Any

import numpy as np

from experiments.nightly.tables import DayError, unusable

LARGEST = 1e30  # beyond it a square is infinite in single precision, or nearly so


def column(table, name, more=""):
    """Return a column of a file; raise a `DayError` where it has none of that name."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        found = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, [*table][:5]))}, …"
        raise DayError(f"has no column {name!r}{more} ({found})")
    return table[name]


def check_kind(name, values):
    """Raise a `DayError` where a column's values are no input."""
    if unusable(values):
        raise DayError(f"column {name!r} holds {unusable(values)}; expected numbers, text or booleans (see --columns)")
    if values.dtype.kind == "M":
        raise DayError(f"column {name!r} holds times; name it with --time, or pick others with --columns")


def absent(values):
    """Return where values are missing, [N]; None where none can be."""
    if values.dtype == object:
        return np.array([x is None or (isinstance(x, float) and math.isnan(x)) for x in values], bool)
    return np.isnat(values) if values.dtype.kind == "M" else np.isnan(values) if values.dtype.kind == "f" else None


def refuse(name, values, wrong, what, advice=""):
    """Raise a `DayError` that names the rows where `wrong` [N] is true."""
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


def as_numbers(name, values, missing):
    """Return a column of numbers as float64, NaN where it is missing; raise a `DayError` for any other value."""
    check_kind(name, values)
    if values.dtype == object:
        wrong = next((i for i, x in enumerate(values) if not _is_number(x)), None)
        wrong = next((i for i, x in enumerate(values) if isinstance(x, str)), None) if wrong is None else wrong
        if wrong is not None:
            raise DayError(f"column {name!r} held numbers on the first night, now text: {values[wrong]!r:.40} in row "
                           f"{wrong + 1}")  # fmt: skip
        values = np.array([math.nan if x is None else float(x) for x in values])
    values = values.astype(np.float64)
    if missing == "error":
        refuse(name, values, np.isnan(values), "has no value", "; fill them, or begin with --missing=mean")
    refuse(name, values, np.isinf(values), "is infinite")
    refuse(name, values, np.abs(values) > LARGEST, f"is beyond {LARGEST:g}")
    return values


def as_buckets(name, values, missing, buckets):
    """Return the buckets [N] of a column of text or booleans; raise a `DayError` for any other value."""
    check_kind(name, values)
    if missing == "error":
        refuse(name, values, absent(values), "has no value", "; fill them, or begin with --missing=mean")
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


def as_weights(name, table):
    """Return a column of weights as float32; raise a `DayError` where one is no weight."""
    values = as_numbers(name, column(table, name), "error")
    refuse(name, values, values < 0, "is a negative weight")
    if not values.any():
        raise DayError(f"column {name!r}: all weights are 0")
    return values.astype(np.float32)


def as_seconds(name: str, values: np.ndarray) -> np.ndarray:
    """Return a clock's values as float64: numbers as they are, times in seconds since 1970 (UTC where none is said).

    Raises:
      DayError: a value is missing, or is no time.
    """
    if unusable(values):
        raise DayError(f"column {name!r} holds {unusable(values)}; expected times")
    refuse(name, values, absent(values), "has no time")
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]").astype(np.int64) / 1e6
    if values.dtype != object:
        refuse(name, values, ~np.isfinite(values.astype(float)), "is no time")
        return values.astype(np.float64)
    refuse(name, values, np.array([_instant(x) is None for x in values]), "is no time (as 2026-01-31 06:00)")
    return np.array([_instant(x) for x in values])


@functools.lru_cache(100_000)
def _instant(text):
    try:
        found = datetime.datetime.fromisoformat(str(text).strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def label_text(value: Any) -> str:
    """Return a label as the name of its class: 1, 1.0 and True of one column are the same class on all nights."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value == round(value):
        return str(int(value))
    return str(value)
