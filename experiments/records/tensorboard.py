"""TensorBoard's event files, made from the rows of `results.csv` and `curves.csv`: a run of its own for each lane."""

import csv
import pathlib
import shutil
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from experiments.records.results import COLUMNS, MEASURED, MORE, Row, text

SCALARS = (
    "validation_accuracy", "validation_loss", "train_accuracy", "train_loss", "samples_seen", "epochs", "seconds",
)  # fmt: skip


class Board:
    """The folder `tensorboard/` of an experiment; made anew from the tables at each start: no point stands twice."""

    def __init__(self, folder: pathlib.Path, varied: Sequence[str]):
        """Args:
        folder: of the experiment, whose tables hold what was trained before.
        varied: settings that differ between the lanes; with the cell and the seed they name a lane.
        """
        self._folder, self._varied = folder / "tensorboard", varied
        self._files = {}  # by lane
        self._epochs = defaultdict(dict)  # of each round of a lane
        shutil.rmtree(self._folder, ignore_errors=True)
        self.add_rounds(_rows(folder / "results.csv"))
        self.add_curves(_rows(folder / "curves.csv"))

    def add_rounds(self, rows: Iterable[Row]) -> None:
        """`round/…` over the rounds, for rows of `results.csv`."""
        for row in rows:
            round_ = int(row["round"])
            self._epochs[self._lane(row)][round_] = int(row["epochs"])
            names = (*SCALARS, *(name for name in MORE if name in row))
            self._append(row, [_scalar(f"round/{name}", row[name], round_) for name in names])

    def add_curves(self, rows: Iterable[Row]) -> None:
        """`epoch/…` over the epochs of all rounds, for rows of `curves.csv`; epoch 0, after a restart, stands where the
        round before has ended."""
        points = defaultdict(list)
        for row in rows:
            lane, round_ = self._lane(row), int(row["round"])
            before = sum(epochs for earlier, epochs in self._epochs[lane].items() if earlier < round_)
            points[lane].append((row, _scalar(f"epoch/{row['name']}", row["value"], before + int(row["epoch"]))))
        for found in points.values():
            self._append(found[0][0], [event for _, event in found])

    def _lane(self, row):
        """Name the lane of a row, and its folder."""
        return f"{self._setting(row)}-seed{row['seed']}"

    def _setting(self, row):
        variant = "".join(f"{name}={text(row[name])}," for name in self._varied).replace("/", "-")
        return f"{variant}{row['restart']}_{row['shrink']}_{row['noise_scale']}"

    def _append(self, row, events):
        lane = self._lane(row)
        if lane not in self._files:
            folder = self._folder / lane
            folder.mkdir(parents=True, exist_ok=True)
            self._files[lane] = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            events = [Event(wall_time=time.time(), file_version="brain.Event:2"), self._hyperparameters(row), *events]
        with open(self._files[lane], "ab") as file:
            writer = RecordWriter(file)
            for event in events:
                writer.write(event.SerializeToString())

    def _hyperparameters(self, row):
        """For the tab HParams, which takes seeds of one setting as its trials and finds out what differs."""
        names = [name for name in (*COLUMNS, *self._varied) if name not in (*MEASURED, "seed", "round")]
        values = {name: _number(row[name]) for name in names if name in row}
        return Event(wall_time=time.time(), summary=hparams_pb(values, trial_id=self._setting(row)))


def _rows(path):
    """Read rows as text; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _scalar(tag, value, step):
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])
    return Event(wall_time=time.time(), step=step, summary=summary)


def _number(value):
    try:
        return float(value)
    except ValueError:
        return value
