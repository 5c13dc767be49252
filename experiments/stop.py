"""Ctrl-C and SIGTERM: the first stops at the next safe point, a second one at once."""

import signal
import sys
import threading


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
        print("\nstopping at the next safe point; once more ends at once", file=sys.stderr, flush=True)
