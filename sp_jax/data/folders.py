"""Paths that a user typed."""

import pathlib

from sp_jax.data.errors import DataError


def expand(what: str, path: str) -> pathlib.Path:
    """A path with its `~` expanded.

    Args:
      what: where it comes from, as `--data_dir`, for the message.
      path: as it was typed.

    Returns:
      The path; it need not exist.

    Raises:
      DataError: it can be no path: a user that is not known, a character or a length that no file system takes.
    """
    try:
        if "\0" in str(path):
            raise ValueError("it holds a null character")
        found = pathlib.Path(path).expanduser()
        found.exists()  # raises where the name is too long
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{what} {str(path)[:80]!r} can be no path ({getattr(error, 'strerror', None) or error})"
        ) from None
    return found
