"""The folder of a nightly training. `nights/0007.json` is what counts: a night is there once that file is.

    columns.json          the preparation of the columns, from the first night
    rows/0007.npz         the seventh night's rows, prepared: the memory of later nights, whatever becomes of the files
    nights/0007.json      what happened in it; nights/0007.safetensors its network, promoted or not
    network.safetensors   the newest promoted network
    history.csv           a row for each night; report.md, report.html and figures/ are made from it

All but the first three are made again from them where a call was killed before it could write them.
"""

import csv
import io
import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.config.fields import UsageError
from experiments.nightly import columns, tables
from experiments.nightly.columns import Preparation, Rows
from sp_jax.storage import networks
from sp_jax.storage.atomic import write_whole
from sp_jax.storage.checkpoints import CheckpointError

COLUMNS = (
    "night", "date", "files", "sha256", "rows", "held_out", "visible_rows", "shrink", "noise_scale", "metric",
    "metric_of_promoted", "loss", "epochs", "samples_seen", "seconds", "seconds_saved", "samples_saved",
    "tuning_samples", "tuning_seconds", "promoted", "reason", "skipped",
)  # fmt: skip
Record = dict[str, Any]  # of a night, as JSON


class Folder:
    """The files of a nightly training; every file is complete or absent."""

    def __init__(self, path: pathlib.Path):
        """Read the records; raise a `UsageError` where one is damaged or missing."""
        self.path = path
        found = sorted(path.glob("nights/*.json"))
        self.records: list[Record] = [_record(file) for file in found]
        expected = [f"{n:04}" for n in range(1, len(found) + 1)]
        if [file.stem for file in found] != expected:
            lost = next(n for n in expected if not (path / f"nights/{n}.json").is_file())
            raise UsageError(f"{path}/nights/{lost}.json is missing among others; restore it from a copy")

    def file(self, kind: str, night: int) -> pathlib.Path:
        """Return the path of a night's file, as of `rows` or `nights`."""
        return self.path / kind / f"{night:04}{'.npz' if kind == 'rows' else '.safetensors'}"

    @property
    def trained(self) -> list[Record]:
        """The nights that had rows."""
        return [record for record in self.records if record["rows"]]

    @property
    def promoted(self) -> Record | None:
        """The newest promoted night."""
        return next((record for record in reversed(self.records) if record["promoted"]), None)

    @property
    def network(self) -> pathlib.Path:
        """The promoted network."""
        return self.path / "network.safetensors"

    def preparation(self) -> Preparation:
        """Read `columns.json`."""
        path = self.path / "columns.json"
        try:
            return columns.from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} is damaged or missing ({error}); restore it from a copy") from None

    def write_preparation(self, preparation: Preparation) -> None:
        """Write `columns.json` where it is not as it should be."""
        text, path = columns.to_json(preparation), self.path / "columns.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text)

    def write_rows(self, night: int, rows: Rows, held_out: np.ndarray, day: np.ndarray) -> None:
        """Keep a night's rows: [N] booleans of those held out, and [N] which file of all nights each came in."""
        known = {name: array for name, array in rows._asdict().items() if array is not None}
        out = io.BytesIO()
        np.savez(out, held_out=held_out, day=day, **known)
        path = self.file("rows", night)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, out.getvalue())

    def read_rows(self, night: int) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Return what `write_rows` has kept."""
        path = self.file("rows", night)
        try:
            found = tables.load_arrays(path)
            held_out, day = found.pop("held_out"), found.pop("day")
            return Rows(**found), held_out, day
        except Exception as error:  # whatever a damaged zip raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"{path} is damaged or missing ({reason}); restore it from a copy") from None

    def commit(self, record: Record) -> None:
        """Add a night, whose rows and network are there already; then bring the other files up to date."""
        path = self.path / f"nights/{record['night']:04}.json"
        path.parent.mkdir(exist_ok=True)
        record = _plain(record)
        write_whole(path, json.dumps(record | {"checksum": _checksum(record)}, indent=1, ensure_ascii=False) + "\n")
        self.records.append(record)
        self.repair()

    def repair(self) -> bool:
        """Write `network.safetensors` and `history.csv` where they are not as the nights say; return whether any was.

        Raises:
          UsageError: the promoted network is damaged, and so is its copy.
        """
        changed = False
        if self.promoted:
            changed = self._repair_network(self.file("nights", self.promoted["night"]))
        text, path = self.table(), self.path / "history.csv"
        if self.records and (not path.is_file() or path.read_bytes() != text.encode()):
            write_whole(path, text)
            changed = True
        return changed

    def _repair_network(self, source):
        wanted = self.promoted["network"]
        contents = [path.read_bytes() if path.is_file() else b"" for path in (self.network, source)]
        right = [zlib.crc32(content) == wanted for content in contents]
        if not any(right):
            raise UsageError(f"{self.network} is damaged, and so is {source}; restore one from a copy")
        if not right[0]:
            write_whole(self.network, contents[1])
        return not right[0]

    def table(self) -> str:
        """Return the text of `history.csv`."""
        out = io.StringIO()
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(row, self.records))
        return out.getvalue()

    def outputs(self) -> int:
        """Return how many outputs the promoted network has; a class seen since adds one to the next."""
        try:
            return len(networks.load(self.network).params["mlp"]["head"]["bias"])
        except (CheckpointError, KeyError, TypeError) as error:
            raise UsageError(f"{self.network} is no network of a night ({error}); restore it from a copy") from None


def checksum_of(path: pathlib.Path) -> int:
    """Return the CRC-32 of a file."""
    return zlib.crc32(path.read_bytes())


def row(record: Record) -> dict[str, str]:
    """Return a night as its row of `history.csv`."""
    found = {name: record.get(name) for name in COLUMNS}
    found["files"] = "; ".join(pathlib.Path(file["name"]).name for file in record["files"])
    found["sha256"] = "; ".join(file["sha256"][:16] for file in record["files"])
    found["skipped"] = "; ".join(f"{pathlib.Path(file['name']).name}: {file['why']}" for file in record["skipped"])
    return {name: _text(value) for name, value in found.items()}


def _text(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return a record as plain JSON; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else bool(value) if isinstance(value, np.bool_) else value


def _record(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("checksum") != _checksum(found):
            raise ValueError("it is not what was written")
        return found
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({error}); restore it from a copy") from None


def _checksum(record):
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())
