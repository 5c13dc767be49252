"""A run's folder: `config.json`, `results.csv`, `checkpoints/`, `figures/`, `report.md`; who may write into it."""

import datetime
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax

from experiments import registry
from experiments.settings import Settings, UsageError
from experiments.spec import Experiment

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


class Job(NamedTuple):
    """One experiment, ready to run."""

    experiment: Experiment
    settings: Settings
    folder: pathlib.Path


def plan(
    names: Sequence[str] | None, preset: str | None, explicit: Mapping[str, Any], workdir: str | None, resume: bool
) -> list[Job]:
    """What to run, with which settings, where. Writes nothing.

    Settings are an experiment's defaults, then the preset's, then the flags that were given; when a run is resumed they
    are the run's own, and a flag may only ask for more rounds.

    Args:
      names: experiments; by default `online`, or what `workdir` holds where it is resumed.
      preset: "quick" (default) or "paper".
      explicit: settings by flags.
      workdir: by default a new folder `runs/<experiment>-<time>`; each experiment has a subfolder where several run.
      resume: go on where `workdir` stopped.

    Returns:
      A job for each experiment.

    Raises:
      UsageError: unknown names, senseless settings, a folder that holds another run.
    """
    if resume and not workdir:
        raise UsageError("--resume needs --workdir=<folder>: which run should go on?")
    saved = _read_config(pathlib.Path(workdir or "").expanduser()) if resume else None
    if not names:
        names = (saved["experiment"],) if saved else ("online",)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path(workdir or f"runs/{'+'.join(names)}-{stamp}").expanduser()
    jobs = []
    for name in names:
        experiment = registry.get(name)
        folder = base / name if len(names) > 1 else base
        settings = Settings(**{**experiment.presets[preset or "quick"], **explicit})
        if resume:
            settings = _resumed(folder, name, settings if preset else None, explicit)
        else:
            _check_empty(folder)
        jobs.append(Job(experiment, settings, folder))
    return jobs


def write_config(job: Job, arrivals: Sequence[int]) -> None:
    """Makes the folder and writes every setting, the versions and the device into its `config.json`.

    Raises:
      UsageError: the folder cannot be written.
    """
    devices = jax.devices()
    config = {
        "experiment": job.experiment.name,
        "settings": job.settings.to_json(),
        "arrivals": list(arrivals),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        unfinished = job.folder / ".config.json.unfinished"
        unfinished.write_text(json.dumps(config, indent=2) + "\n")
        unfinished.replace(job.folder / "config.json")
    except OSError as error:
        raise UsageError(f"cannot write into {job.folder} ({error.strerror}); choose another --workdir") from None


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
        config = json.loads(path.read_text())
        registry.get(config["experiment"])
        Settings.from_json(config["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}); restore it, or start again in another --workdir") from None
    return config


def _check_empty(folder):
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--workdir {folder} is a file; name a folder")
    if any((folder / name).exists() for name in ("results.csv", "checkpoints")):
        raise UsageError(f"{folder} holds the results of another run; add --resume to go on with it, or choose another "
                         "--workdir")  # fmt: skip


def _resumed(folder, name, wanted, explicit):
    """The settings of the run in `folder`, with as many rounds as are asked for now."""
    config = _read_config(folder)
    if config is None:
        if (folder / "results.csv").exists():
            raise UsageError(f"{folder} holds results.csv but no config.json to go on by; choose another --workdir")
        return wanted or Settings(**{**registry.get(name).presets["quick"], **explicit})
    if config["experiment"] != name:
        raise UsageError(f"{folder} holds a run of {config['experiment']}, not of {name}; choose another --workdir")
    saved = Settings.from_json(config["settings"])
    asked = wanted.to_json() if wanted else {**saved.to_json(), **Settings(**explicit).to_json()}
    for field, value in saved.to_json().items():
        given = asked[field] if wanted or field in explicit else value
        if field != "rounds" and given != value:
            raise UsageError(
                f"--resume: the run in {folder} has {field}={_show(value)}, not {_show(given)}; leave that flag out, "
                "or choose another --workdir"
            )
    rounds = explicit.get("rounds", saved.rounds)
    return Settings.from_json({**saved.to_json(), "rounds": rounds})


def _show(value):
    return ",".join(map(str, value)) if isinstance(value, list) else value


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
