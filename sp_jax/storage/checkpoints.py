"""Checkpoints of a run (Orbax), with a checksum of every file; a run resumes from the newest valid one."""

import contextlib
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

from sp_jax.errors import first_line
from sp_jax.storage.atomic import sync_folder, write_whole

FORMAT = 1  # the version of the format; another one is refused
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint")  # those that determine the structure of a state
MANIFEST = "manifest"  # a checksum and a line of JSON
SECONDS = 180.0  # between two checkpoints in the middle of a round
LEAST_WORK = 50  # the least interval, in durations of the last checkpoint: saving takes 2 % of the time at most
QUICK = 0.5  # seconds: a checkpoint that takes no longer follows each round
ROUND_WORK = 10  # the least interval of the others, in durations of the last one, where rounds are short
LARGE = 2**20  # bytes: a leaf that is saved as an array of its own
KEPT = 2  # of each kind: one more in case the newest is damaged

logger = logging.getLogger("sp_jax")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message is one line."""


class Point(NamedTuple):
    """A checkpoint: the states after a round, or the progress of the round after it."""

    number: int  # of rounds that were saved so far
    part: int  # 0 after a round; 1, 2, … in the middle of the next one
    note: dict[str, Any]  # plain JSON, saved beside the arrays


class Store:
    """One folder of checkpoints, each complete or absent; older ones are deleted. Only one process at a time may write
    into it: a run locks its own."""

    def __init__(self, folder: str | pathlib.Path, *, write: bool = True, every: float = SECONDS):
        """Open the folder; write nothing yet.

        Args:
          folder: need not exist.
          write: whether to write: where several hosts share the folder, exactly one does.
          every: seconds between two checkpoints in the middle of a round.
        """
        self._folder, self._write, self._every = pathlib.Path(folder).absolute(), write, every
        self._saved, self._took = time.monotonic(), 0.0
        self._newest = None  # the result of `resume`, or what was saved since
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"store_{own}"
        )
        options = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
        self._checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler(**options), **options)

    def due(self) -> bool:
        """Return whether it is time for a checkpoint in the middle of a round."""
        return self._write and time.monotonic() - self._saved > max(self._every, LEAST_WORK * self._took)

    def due_after_round(self) -> bool:
        """Return whether it is time for a checkpoint after a round: after each, but where saving takes long and rounds
        do not."""
        return self._took < QUICK or time.monotonic() - self._saved > ROUND_WORK * self._took

    def save(self, trees: Mapping[str, chex.ArrayTree], note: Mapping[str, Any], *, midway: bool = False) -> None:
        """Save pytrees of NumPy arrays by name, and a note of plain JSON, atomically, then delete checkpoints that are
        no longer needed; `midway` in the middle of a round.

        Raises:
          CheckpointError: they cannot be written; earlier checkpoints are unchanged.
        """
        if not self._write:
            return
        start, points, (whole, _) = time.monotonic(), self._points(), self.resume()
        number = whole.number if whole else 0  # a damaged one after it is replaced
        parts = [part for n, part in points if n == number]
        point = Point(number, 1 + max(parts, default=0), note) if midway else Point(number + 1, 0, note)
        path, unfinished = self._path(point[:2]), self._folder / ".unfinished"
        try:
            self._clear()
            packed = {name: _packed(tree) for name, tree in trees.items()}
            with _without_words():
                self._checkpointer.save(unfinished, args=ocp.args.StandardSave(packed))
            about = {"format": FORMAT, "versions": _versions(), "note": note, "files": _checksums(unfinished)}
            about["leaves"] = {name: _describe(tree) for name, tree in trees.items()}
            text = json.dumps(about)
            write_whole(unfinished / MANIFEST, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
            sync_folder(self._folder)
        except Exception as error:  # Orbax can raise anything
            self._clear()
            what = f"cannot write the checkpoint {path} ({_reason(error)})"
            raise CheckpointError(
                f"{what}; those before are as they were: make room, then go on with --resume"
            ) from error
        self._newest = (whole, point) if midway else (point, None)
        self._prune({*points, point[:2]}, point.number)
        self._saved = time.monotonic()
        self._took = self._saved - start

    def resume(self) -> tuple[Point | None, Point | None]:
        """Return the newest valid checkpoints: after a round (None: the beginning), and in the middle of the next round
        (None: its beginning). Each damaged one is logged in one line.

        Raises:
          CheckpointError: none of them is valid; or they are of another format.
        """
        if self._newest is None:
            self._newest = self._find()
        return self._newest

    def note(self) -> dict[str, Any]:
        """Return the note of the newest valid checkpoint; empty at the beginning."""
        whole, part = self.resume()
        newest = part or whole
        return newest.note if newest else {}

    def load(self, point: Point, like: Mapping[str, chex.ArrayTree]) -> dict[str, chex.ArrayTree]:
        """Load the pytrees of a checkpoint, as NumPy arrays; `like` has their `jax.ShapeDtypeStruct` by name.

        Raises:
          CheckpointError: they are of another structure.
        """
        path, about = self._path(point[:2]), self._read(point[:2])
        for name, tree in like.items():
            have, want = about["leaves"].get(name, {}), _describe(tree)
            leaf = next((leaf for leaf in {**want, **have} if have.get(leaf) != want.get(leaf)), None)
            if leaf is not None:
                written = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
                raise CheckpointError(
                    f"the checkpoint {path} does not fit this program ({name}: {leaf} is {have.get(leaf, 'missing')}, "
                    f"not {want.get(leaf, 'there')}); go on with what wrote it ({written}), or begin in another folder"
                )
        found = self._checkpointer.restore(path, args=ocp.args.StandardRestore())
        return {name: _unpacked(found.get(name, {}), tree) for name, tree in like.items()}

    def _find(self):
        sound, damaged = [], {}
        for point in self._points():
            try:
                sound.append(Point(*point, self._read(point)["note"]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                if isinstance(error, CheckpointError):
                    raise
                damaged[point] = f"the checkpoint {self._path(point)} is damaged ({_reason(error)})"
        whole = next((point for point in sound if point.part == 0), None)
        if whole is None and any(number for number, _ in self._points()):
            what = next(iter(damaged.values()), f"the checkpoint {self._path((1, 0))} is missing")
            raise CheckpointError(
                f"{what} and no older one is left; restore it, or delete {self._folder} to train again"
            )
        number = whole.number if whole else 0
        part = next((point for point in sound if point.number == number and point.part), None)
        newest = part or whole
        for what in damaged.values() if self._write else ():
            logger.warning("%s; going on from %s", what, self._path(newest[:2]) if newest else "the beginning")
        if newest and self._write:
            self._say_versions(newest)
        return whole, part

    def _read(self, point):
        """Return a checkpoint's manifest, having verified the checksums of its files."""
        path = self._path(point)
        checksum, text = (path / MANIFEST).read_text(encoding="utf-8").splitlines()
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise ValueError(f"{MANIFEST} is not what was written")
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise CheckpointError(
                f"the checkpoint {path} is of format {about['format']}, this program reads {FORMAT}: go on with the "
                "release of sp_jax that wrote it, or begin in another folder"
            )
        found = _checksums(path)
        for name, checksum in about["files"].items():
            if found.get(name) != checksum:
                raise ValueError(f"{name} is {'not what was written' if name in found else 'missing'}")
        return about

    def _points(self):
        """Return (number, part) of all checkpoints, newest first."""
        paths = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        found = {path: re.fullmatch(r"(\d+)(?:\.(\d+))?", path.name) for path in paths if path.is_dir()}
        for path, match in found.items():
            if not match and not path.name.startswith(".unfinished"):
                raise CheckpointError(f"{path} is no checkpoint of this release of sp_jax; begin in another folder")
        return sorted(((int(m[1]), int(m[2] or 0)) for m in found.values() if m), reverse=True)

    def _path(self, point):
        number, part = point
        return self._folder / (f"{number}.{part}" if part else str(number))

    def _prune(self, points, number):
        """Delete all but the newest after rounds, and all in the middle of one but the newest after `number` rounds."""
        whole = sorted((p for p in points if p[1] == 0), reverse=True)[:KEPT]
        parts = sorted((p for p in points if p[0] == number and p[1]), reverse=True)[:KEPT]
        for point in points - {*whole, *parts}:
            shutil.rmtree(self._path(point), ignore_errors=True)

    def _clear(self):
        for path in self._folder.glob(".unfinished*"):
            shutil.rmtree(path, ignore_errors=True)

    def _say_versions(self, point):
        before, now = self._read(point[:2])["versions"], _versions()
        changed = [f"{name} {before[name]} is now {now[name]}" for name in before if before[name] != now.get(name)]
        if changed:
            logger.info("%s: the rounds to come may differ from an undisturbed run's in rounding", ", ".join(changed))


def _versions():
    return {package: metadata.version(package) for package in PACKAGES}


def _packed(tree):
    """Return large leaves by their index, and all small ones as one string of bytes: each array that is saved costs
    time, and in TensorStore 0.1.86, whose `Spec.to_json` never frees its strings, a little memory too."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    small = b"".join(x.tobytes() for x in leaves if x.nbytes < LARGE)
    packed = {str(i): x for i, x in enumerate(leaves) if x.nbytes >= LARGE}
    return packed | ({"small": np.frombuffer(small, np.uint8)} if small else {})


def _unpacked(found, like):
    leaves, structure = jax.tree.flatten(like)
    small, offset, unpacked = bytes(found.get("small", b"")), 0, []
    for i, x in enumerate(leaves):
        size = math.prod(x.shape) * x.dtype.itemsize
        packed = size < LARGE
        unpacked.append(np.ndarray(x.shape, x.dtype, small, offset) if packed else np.asarray(found[str(i)]))
        offset += size * packed
    return structure.unflatten(unpacked)


def _describe(tree):
    """Return each leaf's dtype and shape, by its path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _checksums(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextlib.contextmanager
def _without_words():
    """Disable absl's logging: Orbax's threads log the traceback of errors that are raised anyway."""
    absl = logging.getLogger("absl")
    absl.disabled, before = True, absl.disabled
    try:
        yield
    finally:
        absl.disabled = before


def _reason(error):
    """Return an error's reason in a few words."""
    of_system = re.search(r"os_error_code='(\d+)'", str(error))  # in TensorStore's
    number = int(of_system[1]) if of_system else getattr(error, "errno", None)
    return os.strerror(number) if number else first_line(error)
