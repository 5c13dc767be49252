"""A run's folder: `config.json`, `results.csv`, `checkpoints/`, `figures/`, `report.md`; who may write into it."""

import contextlib
import dataclasses
import datetime
import fcntl
import itertools
import json
import os
import pathlib
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config.settings import FIELDS, UsageError
from experiments.config.sweep import Grid, Product, resolve, several
from experiments.records import provenance
from experiments.specs import registry
from experiments.specs.base import Experiment
from sp_jax.data import folders
from sp_jax.storage.atomic import write_whole


class Job(NamedTuple):
    """One experiment, ready to run."""

    experiment: Experiment
    grid: Grid
    folder: pathlib.Path

    @property
    def varied(self) -> tuple[str, ...]:
        """The settings that differ between rows, and those that the experiment's figures are drawn over anyway."""
        return tuple(name for name in FIELDS if name in (*self.grid.varied, *self.experiment.over))


def plan(
    names: Sequence[str] | None, preset: str | None, explicit: Product, workdir: str | None, resume: bool
) -> list[Job]:
    """What to run, with which settings, where. Writes nothing.

    Settings are an experiment's defaults, then the preset's, then the flags that were given; when a run is resumed they
    are the run's own, and preset and flags may only ask for more rounds.

    Args:
      names: experiments; by default `online`, or all that `workdir` holds where it is resumed.
      preset: "quick" (default) or "paper".
      explicit: settings by flags, each with its values.
      workdir: by default a new folder `runs/<experiment>-<time>`; each experiment has a subfolder where several run.
      resume: go on where `workdir` stopped.

    Returns:
      A job for each experiment.

    Raises:
      UsageError: unknown names, senseless settings, a folder that holds another run or cannot be written.
    """
    if resume and not workdir:
        raise UsageError("--resume needs --workdir=<folder>: which run should go on?")
    named, names = bool(names), names or ("online",)
    in_subfolders = len(names) > 1
    base = expand(workdir) if workdir else _new_folder(names)
    _check_writable(base)
    if not resume:
        _check_empty(base)
    elif not named:
        names, in_subfolders = _held(base) or (names, in_subfolders)
    jobs = []
    for name in names:
        experiment = registry.get(name)
        folder = base / name if in_subfolders else base
        saved = _read_config(folder) if resume else None
        if saved is None:
            _check_no_orphans(folder)
            grid = resolve(experiment.presets[preset or "quick"], explicit)
        else:
            whole = resolve(experiment.presets[preset], explicit) if preset else None
            asked = {field: whole.asked(field) for field in FIELDS} if whole else explicit
            grid = _resumed(folder, name, saved, asked)
        jobs.append(Job(experiment, grid, folder))
    return jobs


def expand(path: str) -> pathlib.Path:
    """A path that a user typed, `~` included.

    Raises:
      DataError: it can be no path.
    """
    return folders.expand("--workdir", path)


def subfolders(base: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a run of several experiments, by name."""
    return sorted(path.parent for path in base.glob("*/config.json"))


def side_by_side(folder: pathlib.Path) -> tuple[int, ...]:
    """How many lanes each engine of the run in a folder trained at once, so that a resumed one does so too: other
    numbers are the same to rounding only."""
    return tuple((_read_config(folder) or {}).get("side_by_side", ()))


def write_config(
    job: Job,
    visible: Mapping[str, Sequence[int]],
    samples: Mapping[str, int],
    side_by_side: Sequence[int] = (),
    devices_per_lane: int = 1,
) -> dict[str, Any]:
    """Makes the folder and writes every setting, the versions and the device into its `config.json`.

    The command and versions of a resumed run are added to those that began it.

    Args:
      job: what is run.
      visible: for each member of the grid, how many samples have arrived in each of its rounds.
      samples: how many its data sets have.
      side_by_side: how many lanes each of its engines trains at once.
      devices_per_lane: over how many devices each batch is spread.

    Returns:
      What was written.

    Raises:
      UsageError: the folder holds a run of data sets of other sizes, or cannot be written.
    """
    started = provenance.start(devices_per_lane)
    saved = _read_config(job.folder) or {}
    for name, count in samples.items():
        if saved.get("samples", {}).get(name, count) != count:
            raise UsageError(
                f"--resume: {name} had {saved['samples'][name]:,} samples when the run in {job.folder} began, now "
                f"{count:,}; choose another --workdir"
            )
    config = {
        "experiment": job.experiment.name,
        **job.grid.to_json(),
        "samples": dict(samples),
        "side_by_side": list(side_by_side),
        "arrivals": list(max(visible.values(), key=len)),
        "rounds": {name: len(rounds) for name, rounds in visible.items()},
        **({name: saved.get(name, value) for name, value in started.items()}),
        "resumed": [*saved.get("resumed", []), *([started] if saved else [])],
    }
    config["checksum"] = _checksum(config)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_whole(job.folder / "config.json", json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"cannot write into {job.folder} ({error.strerror}); choose another --workdir") from None
    return config


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The `config.json` of a run.

    Raises:
      UsageError: there is none, or it is damaged.
    """
    config = _read_config(folder)
    if config is None:
        raise UsageError(f"there is no {folder / 'config.json'}: name a folder that experiments.run has written to")
    return config


def _read_config(folder):
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("checksum", _checksum(config)) != _checksum(config):
            raise ValueError("its checksum does not fit")
        registry.get(config["experiment"])
        _ = Grid.from_json(config).variants
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); restore it, or start again in another --workdir") from None
    return config


def _checksum(config):
    """Of all but the checksum."""
    return zlib.crc32(json.dumps({k: v for k, v in config.items() if k != "checksum"}, sort_keys=True).encode())


@contextlib.contextmanager
def lock(base: pathlib.Path, resume: bool) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made; a process that has died keeps nobody out.

    Args:
      base: of one run, or of several experiments.
      resume: whether it may hold a run.

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
            _check_empty(base)
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _held(base):
    """The experiments that a folder holds and whether each has a subfolder; None where it holds none."""
    own = _read_config(base)
    if own is not None:
        return (own["experiment"],), False
    below = tuple(_read_config(folder)["experiment"] for folder in subfolders(base))
    return (below, True) if below else None


def _new_folder(names):
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path(f"runs/{'+'.join(names)}-{stamp}")
    others = (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
    return next(folder for folder in (base, *itertools.islice(others, 100)) if not folder.exists())


def _check_writable(folder):
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--workdir: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write into {there}; choose another --workdir")


def _check_empty(base):
    for folder in (base, *(path for path in base.glob("*") if path.is_dir())):
        if any((folder / name).exists() for name in ("results.csv", "checkpoints")):
            raise UsageError(
                f"{folder} holds the results of a run; add --resume to go on with it, or choose another --workdir"
            )


def _check_no_orphans(folder):
    for name in ("results.csv", "checkpoints"):
        if (folder / name).exists():
            raise UsageError(f"{folder} holds {name} but no config.json to go on by; choose another --workdir")


def _resumed(folder, name, config, asked):
    """The grid of the run in `folder`, with as many rounds as are asked for now."""
    if config["experiment"] != name:
        raise UsageError(f"{folder} holds a run of {config['experiment']}, not of {name}; choose another --workdir")
    grid = Grid.from_json(config)
    for field, given in asked.items():
        if field != "rounds" and set(given) != set(grid.asked(field)):
            raise UsageError(
                f"--resume: the run in {folder} has {field}={several(grid.asked(field))}, not {several(given)}; leave "
                "that flag out, or choose another --workdir"
            )
    rounds = asked.get("rounds", (grid.base.rounds,))[0]
    planned = len(config.get("arrivals", []))
    if rounds is not None and rounds < planned:
        raise UsageError(f"--resume: the run in {folder} has {planned} rounds; --rounds may only ask for more")
    return grid._replace(base=dataclasses.replace(grid.base, rounds=rounds))
