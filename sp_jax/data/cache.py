"""Decoded arrays on disk: memory-mapped, written atomically, checked when they are read, rebuilt when damaged."""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from sp_jax.data import folders
from sp_jax.data.errors import DataError

logger = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray]
NAMES = ("inputs", "labels")


def fingerprint(files: Sequence[pathlib.Path]) -> str:
    """Return a hash of some files' paths, sizes and modification times, so that a changed file is decoded again."""
    stats = [
        (str(path), path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else str(path) for path in files
    ]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def arrays(cache_dir: str | None, key: str, decode: Callable[[], Arrays]) -> Arrays:
    """Return the inputs [N, ...] and labels [N] of a key; `decode()` and cache them where they are missing or damaged.

    They are memory-mapped, read-only; in memory where the cache cannot be written (which is logged). The folder is by
    default `$XDG_CACHE_HOME/sp_jax` or `~/.cache/sp_jax`; made where it is missing.

    Raises:
      DataError: `cache_dir` can be no path, or the key is no file name (nothing is written elsewhere).
    """
    if key != pathlib.PurePath(key).name or key in ("", ".", ".."):
        raise DataError(f"{key!r} is no file name to keep decoded samples under")
    base = cache_dir or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sp_jax")
    folder = folders.expand("--cache_dir", base) / key
    if folder.exists():
        try:
            return _read(folder)
        except Exception as error:  # a damaged header can raise anything
            logger.warning("the cache %s is damaged (%s): decoding again", folder, error)
    decoded = decode()
    try:
        _write(folder, decoded)
        return _read(folder)
    except (OSError, ValueError) as error:
        logger.warning("the cache %s cannot be written (%s): going on without it", folder, error)
        return decoded


def _read(folder):
    checksums = json.loads((folder / "checksums.json").read_text())
    found = tuple(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in NAMES)
    for name, array in zip(NAMES, found, strict=True):
        if _checksum(array) != checksums[name]:
            raise ValueError(f"{name}.npy does not have its checksum")
    return found


def _write(folder, decoded):
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        for name, array in zip(NAMES, decoded, strict=True):
            with open(unfinished / f"{name}.npy", "wb") as file:
                np.save(file, array)
                _flush(file)
        with open(unfinished / "checksums.json", "w") as file:
            json.dump({name: _checksum(array) for name, array in zip(NAMES, decoded, strict=True)}, file)
            _flush(file)
        try:
            unfinished.replace(folder)
        except OSError:  # it exists already: damaged, or written by another process
            if not _is_sound(folder):
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_sound(folder):
    try:
        return bool(_read(folder))
    except Exception:  # as above
        return False


def _flush(file):
    file.flush()
    os.fsync(file.fileno())


def _checksum(array) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1))
