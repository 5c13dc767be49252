"""Progress of a run: one line that is updated on a terminal, plain log lines elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.records.results import is_lost
from sp_jax.sweeps import Finished, Group
from sp_jax.types import Progress, StopReason

QUIET_SECONDS = 30.0  # after so long without a finished round, a log line reports the progress


class Reporter:
    """Follows the groups of one experiment through the rounds and estimates the time left."""

    def __init__(
        self,
        done: Mapping[str, int],
        visible: Mapping[str, Sequence[int]],
        labels: Mapping[str, str],
        stream=None,
        epochs: Mapping[str, Sequence[int | None]] | None = None,
    ):
        """Store the groups; write nothing yet.

        By name `done` has how many rounds each group has finished before, `visible` how many samples have arrived in
        each of its rounds, `labels` what to call it, `epochs` how many epochs each of its rounds will train, None where
        nobody knows (`plan.RunPlan.epochs`; by default all). The stream is by default standard error.
        """
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._visible, self._labels = visible, labels
        self._known = epochs or {name: [None] * len(counts) for name, counts in visible.items()}
        self._round = dict(done)
        self._epochs = {}  # of the newest round, mean over the lanes
        self._work = 0.0  # samples visited in this process, mean over the lanes
        self._seconds = 0.0  # that it took, compiling left out
        self._partial = 0.0  # samples visited in the round that is running
        self._said = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Clear the line that is updated."""
        if self._terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def chunk(self, groups: Sequence[Group], round_: int, progress: Progress) -> None:
        """Report a chunk of a round of groups that train together; `progress` is that of all their lanes."""
        name = groups[0].name
        self._partial = len(groups) * float(np.mean(progress.epoch)) * self._visible[name][round_ - 1]
        if not self._terminal and time.monotonic() - self._said < QUIET_SECONDS:
            return
        running = int(np.sum(progress.stop_reason == StopReason.RUNNING))
        accuracy = 100 * float(np.mean(progress.train_accuracy))
        self._say(
            f"{self._where(name, round_, len(groups))}: epoch {int(progress.epoch.max()):,}, "
            f"training accuracy {accuracy:.1f} %, {running} of {len(progress.epoch)} still training{self._left()}",
            passing=True,
        )

    def finished(self, finished: Finished) -> None:
        """Report that a group has finished a round."""
        name, results, trained = finished.group.name, finished.results, finished.trained
        first = results[0]
        self._round[name] = first.round
        self._epochs[name] = float(np.mean([result.epochs for result in results]))
        self._work += trained * self._epochs[name] * first.num_train
        self._seconds += trained * first.seconds * len(results) / first.lanes
        self._partial = 0.0
        for result in results:
            if result.epochs and result.diverged and trained:
                self._say(
                    f"{self._where(name, first.round)}: seed {result.seed} diverged {result.diverged}", passing=False
                )
        kept = [100 * result.validation_accuracy for result in results if not is_lost(result._asdict())]
        accuracy = f"validation accuracy {np.mean(kept):.1f} %" if kept else "no validation accuracy"
        accuracy += f" ({len(results) - len(kept)} of {len(results)} lanes ended by NaN)" * (len(kept) < len(results))
        lanes = " for one lane" if first.lanes == 1 else f" for all {first.lanes} lanes"
        lanes *= not self._terminal  # a terminal's line has room for only this or the time left
        self._say(
            f"{self._where(name, first.round)}: {accuracy}, {self._epochs[name]:.1f} epochs, "
            f"{first.seconds:.1f} s{lanes}{self._left()}",
            passing=self._terminal,
        )

    def _where(self, name, round_, groups=1):
        label = self._labels[name] if groups == 1 else f"{groups} settings"
        return f"round {round_} of {len(self._visible[name])}, {label}"

    def _left(self) -> str:
        """Return the time left: the remaining rounds at the last round's number of epochs, at the speed so far.

        Empty after the first of many rounds, which is small and slow, and takes more epochs than those that follow.
        """
        longest = max(len(rounds) for rounds in self._visible.values())
        if not self._work or max(self._round.values()) < 2 < longest:
            return ""
        usual = float(np.mean(list(self._epochs.values())))
        work = sum(self._later(name, finished, self._epochs.get(name, usual)) for name, finished in self._round.items())
        if not work:
            return ""
        seconds = max(0.0, work - self._partial) * self._seconds / self._work
        return "; about {}:{:02d} min left".format(*divmod(round(seconds), 60))

    def _later(self, name, finished, usual):
        """Return the samples that a group will visit in the rounds after those finished."""
        rounds = [*zip(self._visible[name], self._known[name], strict=True)][finished:]
        return sum(visible * (usual if epochs is None else epochs) for visible, epochs in rounds)

    def _say(self, text, *, passing):
        self._said = time.monotonic()
        self._stream.write(f"\r\033[K{text[:118]}" if passing and self._terminal else f"{text}\n")
        self._stream.flush()
