"""Files and folders that several processes write at the same time."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sp_jax.data import cache
from sp_jax.storage import atomic

ROOT = pathlib.Path(__file__).parents[2]
WRITER = """
import pathlib, sys
from sp_jax.storage.atomic import write_whole
print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    write_whole(pathlib.Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


@pytest.mark.slow
def test_two_writers_and_a_reader(tmp_path):
    """What is read is always all of what one of them wrote, and no write fails."""
    path, pipe = tmp_path / "file", {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    path.write_text("start")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter], **pipe) for letter in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    found = set()
    while any(writer.poll() is None for writer in writers):
        found.add(path.read_text())
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    assert found <= {"start", 50_000 * "a", 50_000 * "b"}
    assert len(found) > 1
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, error, where):
    def fail(*args):
        raise error

    path = tmp_path / "file"
    atomic.write_whole(path, "old")
    assert oct(path.stat().st_mode)[-3:] == oct(0o666 & ~current_umask())[-3:]
    with monkeypatch.context() as patch:
        patch.setattr(*{"fsync": (os, "fsync", fail), "replace": (pathlib.Path, "replace", fail)}[where])
        with pytest.raises(error):
            atomic.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("theirs", ["sound", "damaged"])
def test_a_cache_that_another_process_has_written_meanwhile(tmp_path, caplog, theirs):
    """What is sound stays, and nobody is warned; what is not gives way."""
    decoded = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(2, dtype=np.int32)

    def decode():
        cache.arrays(str(tmp_path), "set", lambda: decoded)
        if theirs == "damaged":
            (tmp_path / "set" / "labels.npy").write_bytes(b"half")
        return decoded

    found = cache.arrays(str(tmp_path), "set", decode)
    for a, b in zip(found, decoded, strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(found[0], np.memmap)
    assert not caplog.records
    assert [each.name for each in tmp_path.iterdir()] == ["set"]
