"""Atomic writes: a file is complete or absent, even after a crash and with several writers."""

import os
import pathlib
import secrets


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file (text as UTF-8) in place of an older one, and wait until it is on the disk; its folder exists.

    Where several processes write it at the same time the last one wins; a reader finds the whole text of one of them.

    Raises:
      OSError: it cannot be written; the older one is as it was.
    """
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished")  # distinct from other writers' files
    try:
        with open(unfinished, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: pathlib.Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
