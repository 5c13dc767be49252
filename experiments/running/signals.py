"""Handling of Ctrl-C and SIGTERM: the first stops at the next safe point, a second one at once."""

import contextlib
import pathlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Sequence

from absl import flags

from experiments.config.settings import FIELDS

KEPT = (*FIELDS, "experiment", "preset", "workdir", "resume")  # by a run's config.json, or by its command anyway


class Stop:
    """A context manager that records a request to stop; only the main thread receives signals."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        """Install no handlers yet."""
        self.signal = None  # the one received
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Return whether a stop was requested."""
        return self.signal is not None

    def _remember(self, number, _):
        self.signal = number
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # --resume drops incomplete files
        with contextlib.suppress(RuntimeError, OSError):  # it may have interrupted another print, or stderr is closed
            print("\nstopping at the next safe point; once more ends at once", file=sys.stderr, flush=True)


def command(base: pathlib.Path, names: Sequence[str], defined: Iterable[flags.Flag]) -> str:
    """Return the command that resumes a run of these experiments in its folder, `base`.

    Of the flags that the binary defines those of the process, which no config.json keeps, are given again.
    """
    several = [f"--experiment={','.join(names)}"] if len(names) > 1 else []
    given = [flag.serialize() for flag in defined if flag.name not in KEPT and flag.value != flag.default]
    return shlex.join(["python", "-m", "experiments.run", "--resume", f"--workdir={base}", *several, *given])
