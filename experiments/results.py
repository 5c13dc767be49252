"""`results.csv`: tidy, one row for each lane and round, appended as rounds end."""

import csv
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.settings import Cell, Settings, UsageError
from sp_jax.types import RoundResult

COLUMNS = (
    "experiment", "dataset", "model", "optimizer", "batch_size", "learning_rate", "weight_decay", "restart", "shrink",
    "noise_scale", "seed", "round", "num_train", "epochs", "samples_seen", "converged", "stop_reason",
    "train_accuracy", "train_loss", "validation_accuracy", "validation_loss", "seconds", "lanes",
)  # fmt: skip
KEY = ("restart", "shrink", "noise_scale", "seed", "round")
INTEGERS = ("batch_size", "seed", "round", "num_train", "epochs", "samples_seen", "lanes")
FLOATS = (
    "learning_rate", "weight_decay", "train_accuracy", "train_loss", "validation_accuracy", "validation_loss",
    "seconds",
)  # fmt: skip

Row = dict[str, Any]


def rows(experiment: str, settings: Settings, cell: Cell, results: Iterable[RoundResult]) -> list[Row]:
    """The rows of a group that has finished a round, values as text."""
    shared = {"experiment": experiment, **cell._asdict()}
    for name in ("dataset", "model", "optimizer", "batch_size", "learning_rate", "weight_decay"):
        shared[name] = getattr(settings, name)
    made = []
    for result in results:
        row = shared | result._asdict() | {"converged": result.converged}
        row["seconds"] = f"{result.seconds:.3f}"
        made.append({name: _text(row[name]) for name in COLUMNS})
    return made


class Results:
    """The file, opened for a run: what it holds is never written again, and rows are appended whole."""

    def __init__(self, path: pathlib.Path):
        """Opens `results.csv`, or makes it; a last row that was not written to its end is dropped.

        Raises:
          UsageError: the file's header is another one.
        """
        self._path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        header = _line(COLUMNS)
        if whole and not whole.startswith(header):
            raise UsageError(f"{path} has other columns than this program writes; choose another --workdir")
        if whole != text or not whole:
            _replace(path, whole or header)
        self._written = {_key(row) for row in csv.DictReader(io.StringIO(whole))}

    def check_holds(self, cell: Cell, seeds: int, rounds: int) -> None:
        """Raises a `UsageError` where a cell's rows of the first so many rounds are not all there."""
        for round_ in range(1, rounds + 1):
            if any((*cell, str(seed), str(round_)) not in self._written for seed in range(seeds)):
                raise UsageError(
                    f"{self._path} lacks rows of round {round_} of {cell.name}, which the checkpoints hold as "
                    "finished; restore it from a copy, or start again in another --workdir"
                )

    def append(self, new: Sequence[Row]) -> None:
        """Appends the rows that the file does not hold yet, in one write, and waits until they are on the disk."""
        new = [row for row in new if _key(row) not in self._written]
        if not new:
            return
        text = "".join(_line([row[name] for name in COLUMNS]) for row in new)
        with open(self._path, "ab", buffering=0) as file:
            file.write(text.encode())
            os.fsync(file.fileno())
        self._written.update(map(_key, new))


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a `results.csv`, numbers as numbers; λ and σ stay the text that was typed.

    Raises:
      UsageError: no such file, or not one of these.
    """
    if not path.is_file():
        raise UsageError(f"there is no {path}: name a folder that experiments.run has written to")
    text = path.read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
        try:
            found.append(
                row
                | {name: int(row[name]) for name in INTEGERS}
                | {name: float(row[name]) for name in FLOATS}
                | {"converged": row["converged"] == "true"}
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is damaged in row {len(found) + 1} ({error}); restore it from a copy") from None
    return found


def _text(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _line(values) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


def _key(row):
    return tuple(str(row[name]) for name in KEY)


def _replace(path, text):
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
