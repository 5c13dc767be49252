"""Files that are there whole or not at all, whatever happens to the process or the machine, and whoever writes too."""

import os
import pathlib
import secrets


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file in place of an older one, and waits until it is on the disk.

    Of several processes that write it at the same time the last one counts; a reader finds what one of them wrote.

    Args:
      path: of the file; its folder is there.
      content: all of it; text as UTF-8.

    Raises:
      OSError: it cannot be written; the older one is as it was.
    """
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished")  # no other writer's
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
    """Waits until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
