"""What the binaries share: their common flag, and errors of one line in place of tracebacks."""

import contextlib
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from experiments.settings import UsageError
from sp_jax.data import DataError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; experiments.run makes runs/<experiment>-<time>.")


@contextlib.contextmanager
def one_line_errors(argv: Sequence[str]) -> Iterator[None]:
    """Turns a user's mistakes into one line and exit code 2, and refuses arguments that are no flags."""
    try:
        if len(argv) > 1:
            raise UsageError(f"unexpected argument {argv[1]!r}; flags begin with --, lists have no spaces")
        yield
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
