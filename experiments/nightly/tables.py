"""Files of rows as named columns: parquet, csv, npz and npy, read and written. A `Table` is a dictionary of arrays.

A column is numbers, booleans, text (objects, None where it is missing) or times (datetime64). pandas and pyarrow are
imported where a file needs them.
"""

import csv
import glob
import hashlib
import importlib
import io
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from experiments.config.fields import UsageError, parse_list
from sp_jax.data import folders
from sp_jax.storage.atomic import write_whole

Table = dict[str, np.ndarray]  # each [N]
FORMATS = (".parquet", ".csv", ".npz", ".npy")
WHOLE = 2**53  # up to here a float is exact as a whole number


class DayError(ValueError):
    """A file that cannot be used; the message is one line and does not name the file."""


def natural(text: Any) -> list:
    """Return the key by which `day2` sorts before `day10`."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", str(text)) if part]


def expand(what: str, text: str) -> list[pathlib.Path]:
    """Return the files of a comma-separated list of paths and globs, each once, sorted by name in natural order.

    Raises:
      UsageError: a part that names no file, or one of another format.
    """
    found = []
    for part in parse_list(what, text):
        folders.expand(what, part)
        typed = str(pathlib.Path(part).expanduser())
        paths = [typed] if pathlib.Path(typed).is_file() else glob.glob(typed, recursive=True)
        paths = [path for path in paths if pathlib.Path(path).is_file()]
        if not paths:
            raise UsageError(f"{what}={part} names no file; expected paths or globs, as 'day*.parquet'")
        found += paths
    found = sorted({*found}, key=natural)
    other = next((path for path in found if not path.lower().endswith(FORMATS)), None)
    if other:
        raise UsageError(f"{what}: {other} is of no known format; expected one of {', '.join(FORMATS)}")
    return [pathlib.Path(path) for path in found]


def digest(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file's content; raise a `DayError` where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DayError(f"cannot be read ({error.strerror})") from None


def needed(module: str, path: pathlib.Path) -> Any:
    """Import a library; raise a `UsageError` that says what brings it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0]
        raise UsageError(f"{path.name} needs {name}, which is missing: pip install '.[retrain]'") from None


def read(path: pathlib.Path, text: Collection[str] = ()) -> Table:
    """Read a file.

    Args:
      path: its ending says what it is.
      text: of a csv, the columns that are text even where all values look like numbers.

    Raises:
      DayError: it is damaged, empty, or holds what is no column.
      UsageError: the library that reads it is missing.
    """
    reader = {".parquet": _parquet, ".csv": _csv, ".npz": _npz, ".npy": _npy}[path.suffix.lower()]
    try:
        table = reader(path, text)
    except (UsageError, DayError):
        raise
    except Exception as error:  # of several libraries, on whatever the file holds
        raise DayError(f"is damaged, or no {path.suffix[1:]} ({_reason(error)})") from None
    lengths = {name: len(values) for name, values in table.items()}
    if len({*lengths.values()}) > 1:
        raise DayError(f"has columns of unequal length: {', '.join(f'{k!r} {v}' for k, v in [*lengths.items()][:4])}")
    if not max(lengths.values(), default=0):
        raise DayError("is empty: it has no rows")
    return table


def _reason(error):
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def _unique(names: Sequence[str]):
    double = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if double is not None:
        raise DayError(f"has two columns of the name {double!r}; rename one")


def _parquet(path, text):
    del text
    pa, parquet = needed("pyarrow", path), needed("pyarrow.parquet", path)
    found = parquet.ParquetFile(path).read()
    _unique(found.column_names)
    return {name: _arrow(pa, name, found.column(name)) for name in found.column_names}


def _arrow(pa, name, column):
    """Return a column of Arrow as an array."""
    kinds, kind = pa.types, column.type
    if kinds.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if kinds.is_decimal(kind):
        column, kind = column.cast(pa.float64()), pa.float64()
    if kinds.is_integer(kind) or kinds.is_floating(kind):
        return column.to_numpy()  # NaN for nulls
    if kinds.is_timestamp(kind) or kinds.is_date(kind):
        return column.cast(pa.timestamp("us")).to_numpy()
    if kinds.is_boolean(kind) and not column.null_count:
        return column.to_numpy()
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_boolean(kind) or kinds.is_null(kind):
        return _objects(column.to_pylist())
    return _Unusable(f"{kind}", len(column)).array()


class _Unusable:
    """What a column of lists or bytes is read as: it is refused only where it is used."""

    def __init__(self, kind, count):
        self.kind, self.count = kind, count

    def array(self):
        """Return the column."""
        found = np.empty(self.count, object)
        found.fill(self)
        return found


def unusable(values: np.ndarray) -> str:
    """Return what a column holds that is neither numbers, text, booleans nor times; "" where it is one of these."""
    first = values[0] if values.dtype == object and len(values) else None
    if isinstance(first, _Unusable):
        return first.kind
    return "" if values.dtype == object or values.dtype.kind in "biufM" else str(values.dtype)


def _objects(values):
    found = np.empty(len(values), object)
    found[:] = values
    return found


def _csv(path, text):
    pd = needed("pandas", path)
    how = {"dtype": str, "encoding": "utf-8-sig", "skip_blank_lines": True}
    try:
        header = pd.read_csv(path, header=None, nrows=1, keep_default_na=False, **how)
    except pd.errors.EmptyDataError:
        raise DayError("is empty: it has no header") from None
    _unique([name for name in header.iloc[0] if name])
    frame = pd.read_csv(path, **how)
    if not isinstance(frame.index, pd.RangeIndex):
        raise DayError("has rows with more fields than its header")
    return {name: _typed(frame[name], pd, name in text) for name in map(str, frame.columns)}


def _typed(column, pd, text):
    """Return a column of a csv as booleans, whole numbers or floats where all its values are, else as text."""
    absent = column.isna().to_numpy()
    if not text and column.str.lower().isin(["true", "false"]).all():
        return (column.str.lower() == "true").to_numpy(bool)
    if not text and not absent.all():
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
        typed_nan = column.str.strip().str.lower().isin(["nan"]).to_numpy(bool, na_value=False)
        if not (np.isnan(numbers) & ~absent & ~typed_nan).any():
            exact = np.isfinite(numbers).all() and (numbers == np.round(numbers)).all()
            exact = exact and (np.abs(numbers) < WHOLE).all() and not column.str.contains(r"[.eE]").any()
            return numbers.astype(np.int64) if exact else numbers
    return _objects([None if gone else str(value) for value, gone in zip(column, absent, strict=True)])


def _npz(path, text):
    del text
    arrays = load_arrays(path)
    table = {}
    for name, values in arrays.items():
        if values.ndim == 2:
            table |= {f"{name}[{i}]": _plain(values[:, i]) for i in range(values.shape[1])}
        elif values.ndim == 1:
            table[name] = _plain(values)
        else:
            raise DayError(f"array {name!r} is of shape {values.shape}; expected [N] or [N, columns]")
    return table


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file, none of them of Python's objects."""
    with open(path, "rb") as file:  # which NumPy leaves open where it is damaged
        found = np.load(file, allow_pickle=False)
        if not hasattr(found, "files"):
            raise DayError("is damaged, or no npz (it holds one array: name it .npy)")
        _unique(found.files)
        return {name: found[name] for name in found.files}


def _npy(path, text):
    del text
    with open(path, "rb") as file:
        values = np.load(file, allow_pickle=False)
    if not isinstance(values, np.ndarray):
        raise DayError("is damaged, or no npy (it holds several arrays: name it .npz)")
    if values.dtype.names and values.ndim == 1:
        return {name: _plain(values[name]) for name in values.dtype.names}
    if values.ndim == 2:
        return {str(i): _plain(values[:, i]) for i in range(values.shape[1])}
    raise DayError(f"is an array of shape {values.shape}; expected [N, columns], or a structured one [N]")


def _plain(values):
    """Return a column of NumPy as numbers, booleans, text or times."""
    if values.dtype.kind == "U":
        return _objects(values.tolist())
    if values.dtype.kind == "S":
        return _objects([each.decode() for each in values.tolist()])
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]")
    return _Unusable(str(values.dtype), len(values)).array() if values.dtype.kind not in "biuf" else values


def write(path: pathlib.Path, table: Table) -> None:
    """Write columns as csv, parquet or npz, by the ending of the path, atomically.

    Raises:
      UsageError: another ending, or no folder to write into.
    """
    kind, out = path.suffix.lower(), io.BytesIO()
    if kind not in (".csv", ".parquet", ".npz"):
        raise UsageError(f"--out={path} is of no known format; expected .csv, .parquet or .npz")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out={path}: there is no folder {path.absolute().parent}")
    if kind == ".npz":
        np.savez(
            out, **{name: values.astype(str) if values.dtype == object else values for name, values in table.items()}
        )
    elif kind == ".parquet":
        pa, parquet = needed("pyarrow", path), needed("pyarrow.parquet", path)
        parquet.write_table(pa.table({name: pa.array(values) for name, values in table.items()}), out)
    else:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(table)
        writer.writerows(zip(*(values.tolist() for values in table.values()), strict=True))
        out.write(lines.getvalue().encode())
    write_whole(path, out.getvalue())
