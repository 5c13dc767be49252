"""What a run says while it runs: one line that changes on a terminal, plain log lines elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.settings import Cell
from sp_jax.types import Progress, RoundResult, StopReason

QUIET_SECONDS = 30.0  # after so long without a finished round, a log says where it stands


class Reporter:
    """Follows the groups of one experiment through the rounds and estimates the time left."""

    def __init__(self, done: Mapping[Cell, int], arrivals: Sequence[int], stream=None):
        """Says nothing yet; `done` are the rounds that each cell has finished before, `stream` standard error."""
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._arrivals = arrivals
        self._round = dict(done)
        self._epochs = {}  # of the newest round, mean over the lanes
        self._work = 0.0  # samples visited in this process, mean over the lanes
        self._seconds = 0.0  # that it took, compiling left out
        self._partial = 0.0  # samples visited in the round that is running
        self._said = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Clears the line that changes."""
        if self._terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def chunk(self, cell: Cell, round_: int, progress: Progress) -> None:
        """A chunk of a round has ended; `progress` is [L]."""
        self._partial = float(np.mean(progress.epoch)) * self._arrivals[round_ - 1]
        if not self._terminal and time.monotonic() - self._said < QUIET_SECONDS:
            return
        running = int(np.sum(progress.stop_reason == StopReason.RUNNING))
        accuracy = 100 * float(np.mean(progress.train_accuracy))
        self._say(
            f"{self._where(cell, round_)}: epoch {int(progress.epoch.max()):,}, training accuracy {accuracy:.1f} %, "
            f"{running} of {len(progress.epoch)} still training{self._left()}",
            passing=True,
        )

    def finished(self, cell: Cell, results: Sequence[RoundResult], *, trained: bool) -> None:
        """A group has finished a round; `trained` is False where it shares another group's."""
        first = results[0]
        self._round[cell] = first.round
        self._epochs[cell] = float(np.mean([result.epochs for result in results]))
        self._work += trained * self._epochs[cell] * first.num_train
        self._seconds += trained * first.seconds
        self._partial = 0.0
        accuracy = 100 * float(np.mean([result.validation_accuracy for result in results]))
        self._say(
            f"{self._where(cell, first.round)}: validation accuracy {accuracy:.1f} %, {self._epochs[cell]:.1f} epochs, "
            f"{first.seconds:.1f} s{self._left()}",
            passing=self._terminal,
        )

    def _where(self, cell, round_):
        name = f"{cell.restart} λ={cell.shrink} σ={cell.noise_scale}"
        return f"round {round_} of {len(self._arrivals)}, {name}"

    def _left(self) -> str:
        """Remaining rounds at the last round's number of epochs, at the speed so far."""
        if not self._work:
            return ""
        usual = float(np.mean(list(self._epochs.values())))
        work = sum(
            self._epochs.get(cell, usual) * num_visible
            for cell, finished in self._round.items()
            for num_visible in self._arrivals[finished:]
        )
        if not work:
            return ""
        seconds = max(0.0, work - self._partial) * self._seconds / self._work
        return "; about {}:{:02d} min left".format(*divmod(round(seconds), 60))

    def _say(self, text, *, passing):
        self._said = time.monotonic()
        self._stream.write(f"\r\033[K{text[:118]}" if passing and self._terminal else f"{text}\n")
        self._stream.flush()
