"""Paths given by the user."""

import pathlib

from sp_jax.data.errors import DataError


def expand(what: str, path: str) -> pathlib.Path:
    """Expand the `~` of a path, which need not exist; `what` says where it comes from, as `--data_dir`.

    Raises:
      DataError: it is not a valid path: an unknown user, a character or a length that no file system accepts.
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
