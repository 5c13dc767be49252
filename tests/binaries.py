"""The binaries as they are called with flags, and the one line that a mistake gets."""

import grain  # noqa: F401  (defines flags when first imported, which flagsaver would forget again)
import pytest
from absl.testing import flagsaver

from experiments import run


def call(binary=run, **given):
    with flagsaver.flagsaver(**given):
        binary.main(["tests"])


def fails(capsys, **given):
    """The one line that a mistake gets."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(**given)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert "Traceback" not in out + err
    return line
