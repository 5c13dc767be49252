"""`results.csv`, tidy, one row for each lane and round, and `curves.csv`, long; appended as rounds end."""

import contextlib
import csv
import io
import math
import os
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from experiments.config.fields import UsageError
from experiments.config.sweep import Trial
from sp_jax.diagnostics import MEASURES
from sp_jax.storage.atomic import write_whole
from sp_jax.sweeps import Finished

COLUMNS = (
    "experiment", "dataset", "model", "optimizer", "batch_size", "learning_rate", "weight_decay", "restart", "shrink",
    "noise_scale", "seed", "round", "num_train", "epochs", "samples_seen", "converged", "stop_reason",
    "train_accuracy", "train_loss", "validation_accuracy", "validation_loss", "seconds", "lanes",
)  # fmt: skip
CURVE_COLUMNS = ("experiment", "restart", "shrink", "noise_scale", "seed", "round", "epoch", "name", "value")
MEASURED = COLUMNS[COLUMNS.index("num_train") :]  # the others identify the row
INTEGERS = ("batch_size", "seed", "round", "num_train", "epochs", "samples_seen", "lanes")
FLOATS = (
    "learning_rate", "weight_decay", "train_accuracy", "train_loss", "validation_accuracy", "validation_loss",
    "seconds",
)  # fmt: skip
SIMILARITIES = ("pearson", "cosine", "spearman", "distance")  # more columns, where an experiment measures them
MORE = tuple(dict.fromkeys((*SIMILARITIES, *MEASURES)))  # or --measures asks for them

Row = dict[str, Any]
_KINDS = {
    **dict.fromkeys((*INTEGERS, "epoch"), int), **dict.fromkeys((*FLOATS, *MORE, "value"), float),
    "converged": "true".__eq__,
}  # fmt: skip


def rows(
    experiment: str, member: Trial, varied: Sequence[str], finished: Finished, measures: Sequence[str] = ()
) -> list[Row]:
    """Return the rows of a group that has finished a round, one for each lane, values as text.

    Settings that are `varied`, which differ between the members, are added at the end, unless they are columns already;
    then the `measures`.
    """
    shared = _shared(experiment, member, varied)
    made = []
    for i, result in enumerate(finished.results):
        measured = {name: float(values[i]) for name, values in finished.measures.items()}
        row = shared | result._asdict() | {"converged": result.converged} | measured
        row["seconds"] = f"{result.seconds:.3f}"
        made.append({name: text(row[name]) for name in _columns(COLUMNS, varied, measures)})
    return made


def curve_rows(
    experiment: str, member: Trial, varied: Sequence[str], round_: int, found: Iterable[tuple[int, int, str, float]]
) -> list[Row]:
    """Return the rows of `curves.csv`; `found` are (seed, epoch, name, value) of one round."""
    shared = _shared(experiment, member, varied)
    names = ("seed", "epoch", "name", "value")
    made = (shared | {"round": round_} | dict(zip(names, each, strict=True)) for each in found)
    return [{name: text(row[name]) for name in _columns(CURVE_COLUMNS, varied)} for row in made]


def _shared(experiment, member, varied):
    names = {"dataset", "model", "optimizer", "batch_size", "learning_rate", "weight_decay", *varied}
    return {"experiment": experiment, **member.cell._asdict(), **{n: getattr(member.settings, n) for n in names}}


def is_lost(row: Row) -> bool:
    """Return whether a lane's round ended by NaN; rows of older programs may hold a finite accuracy all the same."""
    return row.get("stop_reason") == "nan" or not math.isfinite(row["validation_accuracy"])


def _columns(own, varied, measures=()):
    """Return the columns of a table: its own, the varied settings that are not among them, further measures."""
    return tuple(dict.fromkeys((*own, *varied, *measures)))


class Sound(NamedTuple):
    """The part of a file that a checkpoint has verified."""

    size: int = 0  # bytes, from the beginning
    checksum: int = 0  # CRC-32 of them


NOTHING = Sound()


class Table:
    """A CSV file, opened for a run: rows that it holds are never written again, and rows are appended whole."""

    def __init__(
        self, path: pathlib.Path, columns: Sequence[str], measured: Sequence[str] = MEASURED, sound: Sound = NOTHING
    ):
        """Open the file, or make it; drop an incomplete last row.

        Args:
          path: of the file.
          columns: of its header.
          measured: those that do not identify a row.
          sound: the part that must be unchanged; rows after it are trained again where they are damaged.

        Raises:
          UsageError: the file has another header, is not what was written, or cannot be written.
        """
        self._path, self._columns = path, tuple(columns)
        self._key = tuple(name for name in columns if name not in measured)
        found, header = path.read_bytes() if path.exists() else b"", _line(columns).encode()
        if not (found.startswith(header) or header.startswith(found)):
            raise UsageError(f"{path} has other columns than this program writes; choose another --workdir")
        if len(found) < sound.size or zlib.crc32(found[: sound.size]) != sound.checksum:
            raise UsageError(
                f"{path} has lost or changed rows since this run wrote it; restore it from a copy, or start again in "
                "another --workdir"
            )
        self._sound, self._written = Sound(len(header), zlib.crc32(header)), set()
        if found.startswith(header):
            self._take(found)
            if self._sound.size < sound.size:
                raise UsageError(f"{path} is damaged in row {len(self._written) + 1}; restore it from a copy")
        self._repair(found, header)

    @classmethod
    def results(
        cls, path: pathlib.Path, varied: Sequence[str], measures: Sequence[str], sound: Sound = NOTHING
    ) -> "Table":
        """Open `results.csv` of an experiment."""
        return cls(path, _columns(COLUMNS, varied, measures), (*MEASURED, *measures), sound)

    @classmethod
    def curves(cls, path: pathlib.Path, varied: Sequence[str], sound: Sound = NOTHING) -> "Table":
        """Open `curves.csv` of an experiment."""
        return cls(path, _columns(CURVE_COLUMNS, varied), ("value",), sound)

    @property
    def sound(self) -> Sound:
        """The size and checksum of the file now, all of it on the disk."""
        return self._sound

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that the file does not hold yet."""
        return [row for row in rows if self._key_of(row) not in self._written]

    def append(self, new: Sequence[Row]) -> list[Row]:
        """Append the rows that the file does not hold yet, all or none, wait until they are on the disk; return them.

        Raises:
          UsageError: they cannot be written.
        """
        new = self.missing(new)
        if not new:
            return []
        lines = "".join(_line([row[name] for name in self._columns]) for row in new).encode()
        with _one_line(self._path), open(self._path, "r+b") as file:
            try:
                file.seek(self._sound.size)
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, self._sound.size)
                raise
        self._sound = Sound(self._sound.size + len(lines), zlib.crc32(lines, self._sound.checksum))
        self._written.update(map(self._key_of, new))
        return new

    def _take(self, found):
        """Record the rows of the file up to the first incomplete one."""
        for line in found[self._sound.size :].splitlines(keepends=True):
            values = next(csv.reader([line.decode(errors="replace")]), [])
            if not line.endswith(b"\n") or len(values) != len(self._columns) or "\0" in line.decode(errors="replace"):
                return
            self._sound = Sound(self._sound.size + len(line), zlib.crc32(line, self._sound.checksum))
            self._written.add(self._key_of(dict(zip(self._columns, values, strict=True))))

    def _repair(self, found, header):
        """Truncate the file to the size of `sound`, or write its header."""
        with _one_line(self._path):
            if not found.startswith(header):
                write_whole(self._path, header.decode())
            elif len(found) != self._sound.size:
                os.truncate(self._path, self._sound.size)

    def _key_of(self, row):
        return tuple(row[name] for name in self._key)


@contextlib.contextmanager
def _one_line(path):
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno)
        raise UsageError(
            f"cannot write {path} ({reason}); what it held is as it was: make room, then go on with --resume"
        ) from None


def read(path: pathlib.Path) -> list[Row]:
    """Read the rows of a `results.csv`, numbers as numbers; λ and σ stay text as given by the user.

    Raises:
      UsageError: no such file, or not one of these.
    """
    return _read(path, (*INTEGERS, *FLOATS, "converged"))


def seconds(rows: Sequence[Row]) -> float:
    """Return how long all lanes of a run have trained, in s; rounds that several cells share count once."""
    shared = ("seed", "round", "seconds", "lanes", "samples_seen", "validation_loss")
    once = {tuple(text(row[name]) for name in shared): row["seconds"] / row["lanes"] for row in rows}
    return sum(once.values())


def read_curves(path: pathlib.Path) -> list[Row]:
    """Read the rows of a `curves.csv`, numbers as numbers; none where there is no such file.

    Raises:
      UsageError: it is damaged.
    """
    return _read(path, ("seed", "round", "epoch", "value")) if path.is_file() else []


def parse(row: Row) -> Row:
    """Parse a row of `results.csv`, or a part of one, numbers as numbers; λ and σ stay text as given by the user.

    Raises:
      ValueError: a value that is not a number where one is expected.
    """
    return {name: _KINDS.get(name, str)(value) for name, value in row.items()}


def _read(path, numbers):
    if not path.is_file():
        raise UsageError(f"there is no {path}: name a folder that experiments.run has written to")
    text = path.read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        try:
            measured = (*numbers, *(name for name in MORE if name in row))
            found.append(row | {name: _KINDS[name](row[name]) for name in measured})
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is damaged in row {len(found) + 1} ({error}); restore it from a copy") from None
    return found


def text(value: Any) -> str:
    """Format a value as in a file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _line(values) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()
