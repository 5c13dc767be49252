"""A run's folder: `config.json`, `results.csv`, `checkpoints/`, `figures/`, `report.md`; who may write into it."""

import contextlib
import datetime
import fcntl
import itertools
import json
import os
import pathlib
import platform
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.config.fields import UsageError
from experiments.config.own_methods import AbsentMethodError
from experiments.config.sweep import Grid
from experiments.specs import registry
from sp_jax.data import folders
from sp_jax.storage.atomic import write_whole


def expand(path: str) -> pathlib.Path:
    """Expand a path that a user typed, `~` included.

    Raises:
      DataError: it can be no path.
    """
    return folders.expand("--workdir", path)


def subfolders(base: pathlib.Path) -> list[pathlib.Path]:
    """Return the folders of a run of several experiments, by name."""
    return sorted(path.parent for path in base.glob("*/config.json"))


def side_by_side(folder: pathlib.Path) -> tuple[int, ...]:
    """Return how many lanes each engine of the run in a folder trained at once.

    A resumed run trains as many: with other numbers its rows would be the same to rounding only.
    """
    return tuple((read_if_there(folder) or {}).get("side_by_side", ()))


def write_config(folder: pathlib.Path, facts: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Make the folder, write all facts of a run, its versions and device into its `config.json`, and return them.

    `facts` are the experiment, settings, rounds, how many samples its data sets have; what `read_config` reads. `start`
    is of this process (`provenance.start`): a resumed run's command and versions are added to those that began it.

    Raises:
      UsageError: the folder holds a run of data sets of other sizes, or of methods that have changed since, or cannot
        be written.
    """
    saved = read_if_there(folder) or {}
    for name, count in facts["samples"].items():
        if saved.get("samples", {}).get(name, count) != count:
            raise UsageError(
                f"--resume: {name} had {saved['samples'][name]:,} samples when the run in {folder} began, now "
                f"{count:,}; choose another --workdir"
            )
    for name, now in facts.get("own_methods", {}).items():
        if saved.get("own_methods", {}).get(name, now) != now:
            raise UsageError(
                f"--resume: the file of {name} or its default_strength is not what it was when the run in {folder} "
                "began; put it back, or choose another --workdir"
            )
    config = {
        **facts,
        **{name: saved.get(name, value) for name, value in start.items()},
        "resumed": [*saved.get("resumed", []), *([start] if saved else [])],
    }
    config["checksum"] = _checksum(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write into {folder} ({error.strerror}); choose another --workdir") from None
    return config


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Read the `config.json` of a run.

    Raises:
      UsageError: there is none, or it is damaged.
    """
    config = read_if_there(folder)
    if config is None:
        raise UsageError(f"there is no {folder / 'config.json'}: name a folder that experiments.run has written to")
    return config


def read_if_there(folder):
    """Read the `config.json` of a run; None where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("checksum", _checksum(config)) != _checksum(config):
            raise ValueError("its checksum does not fit")
        registry.get(config["experiment"])
        _ = Grid.from_json(config).variants
    except AbsentMethodError as error:
        raise UsageError(f"the run in {folder} needs its method: {error}; put the module back") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); restore it, or start again in another --workdir") from None
    return config


def _checksum(config):
    """Return the checksum of all but the checksum."""
    return zlib.crc32(json.dumps({k: v for k, v in config.items() if k != "checksum"}, sort_keys=True).encode())


@contextlib.contextmanager
def lock(base: pathlib.Path, resume: bool) -> Iterator[None]:
    """Make a folder, of one run or of several experiments, and lock it against other runs; the lock ends with the
    process. Where `resume` is set it may hold a run.

    Raises:
      UsageError: another process has the folder, or it cannot be written.
    """
    try:
        base.mkdir(parents=True, exist_ok=True)
        file = open(base / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UsageError(f"cannot write into {base} ({error.strerror}); choose another --workdir") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise UsageError(
                f"process {owner} is writing into {base}; wait for it, or choose another --workdir"
            ) from None
        if not resume:
            check_empty(base)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def held(base):
    """Return the experiments that a folder holds and whether each has a subfolder; None where it holds none."""
    own = read_if_there(base)
    if own is not None:
        return (own["experiment"],), False
    below = tuple(read_if_there(folder)["experiment"] for folder in subfolders(base))
    return (below, True) if below else None


def new_folder(names):
    """Name a folder that is not there yet: `runs/<experiment>-<time>`."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path(f"runs/{'+'.join(names)}-{stamp}")
    others = (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
    return next(folder for folder in (base, *itertools.islice(others, 100)) if not folder.exists())


def check_writable(folder):
    """Raise a `UsageError` where a folder cannot be made or written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--workdir: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write into {there}; choose another --workdir")


def check_empty(base):
    """Raise a `UsageError` where a folder, or one in it, holds a run."""
    for folder in (base, *(path for path in base.glob("*") if path.is_dir())):
        if any((folder / name).exists() for name in ("results.csv", "checkpoints")):
            raise UsageError(
                f"{folder} holds the results of a run; add --resume to go on with it, or choose another --workdir"
            )


def check_no_orphans(folder):
    """Raise a `UsageError` where a folder has results or checkpoints, and no `config.json`."""
    for name in ("results.csv", "checkpoints"):
        if (folder / name).exists():
            raise UsageError(f"{folder} holds {name} but no config.json to go on by; choose another --workdir")
