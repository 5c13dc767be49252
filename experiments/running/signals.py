"""Ctrl-C and SIGTERM: the first stops at the next safe point, a second one at once."""

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
    """Remembers that a stop was asked for, while it is entered; in the main thread, which alone has signals."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        """Listens to nothing yet."""
        self.signal = None  # that asked
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

    def _remember(self, number, _):
        self.signal = number
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)  # what is half written then is dropped by --resume
        with contextlib.suppress(RuntimeError, OSError):  # it may have interrupted another print; or nobody listens
            print("\nstopping at the next safe point; once more ends at once", file=sys.stderr, flush=True)


def command(base: pathlib.Path, names: Sequence[str], defined: Iterable[flags.Flag]) -> str:
    """The command that goes on with a run.

    Args:
      base: its folder.
      names: of its experiments.
      defined: the flags of the binary; those of the process, which no config.json keeps, are given again.
    """
    several = [f"--experiment={','.join(names)}"] if len(names) > 1 else []
    given = [flag.serialize() for flag in defined if flag.name not in KEPT and flag.value != flag.default]
    return shlex.join(["python", "-m", "experiments.run", "--resume", f"--workdir={base}", *several, *given])
