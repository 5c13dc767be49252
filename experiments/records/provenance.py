"""Reproducibility of a resumed run: bit for bit, or but for rounding, and why."""

import logging
import os
import pathlib
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from sp_jax.storage.checkpoints import Store

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
SWITCH = "--xla_gpu_deterministic_ops"
SAME = ("versions", "device", "machine")  # on another of these the same program may round differently

logger = logging.getLogger("sp_jax.experiments")  # shown on the terminal


def start(devices_per_lane: int) -> dict[str, Any]:
    """Return the record of a run's process: command, versions and devices; `devices_per_lane` as `sweeps.Engine`'s."""
    devices = jax.devices()
    spread = f", {devices_per_lane} a lane" if devices_per_lane > 1 else ""
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": f"{len(devices)} x {devices[0].device_kind}{spread}",
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "deterministic": deterministic(),
    }


def deterministic() -> bool:
    """Return whether operations give the same bits each time: on a CPU always, on a GPU by XLA's switch."""
    given = [flag.partition("=") for flag in os.environ.get("XLA_FLAGS", "").split()]
    values = [value.lower() for name, _, value in given if name == SWITCH]
    switched_on = bool(values) and values[-1] in ("", "1", "true")
    return jax.default_backend() == "cpu" or (jax.default_backend() == "gpu" and switched_on)


def promise(config: Mapping[str, Any]) -> str:
    """Return how a run's rows compare with an uninterrupted run's: "bit for bit", or "but for rounding" and why."""
    starts = [config, *config["resumed"]]
    if not all(each.get("deterministic", True) for each in starts):
        cure = f"; XLA_FLAGS={SWITCH}=true from the beginning makes it bit for bit" * (jax.default_backend() == "gpu")
        return f"but for rounding, as operations are not deterministic on {config['device']}{cure}"
    other = next((name for each in starts for name in SAME if each[name] != config[name]), None)
    return f"but for rounding, as it began on another {other.removesuffix('s')}" if other else "bit for bit"


def say(config: Mapping[str, Any], store: Store) -> None:
    """Log in one line where a run resumes and how its rows compare with an uninterrupted run's; at the beginning of a
    run, only where operations are not deterministic."""
    whole, part = store.resume()
    if part:
        where = f"going on in round {part.note['round']}"
    elif whole:
        where = f"going on after round {max(whole.note['done'].values())}"
    elif config["deterministic"]:
        return
    else:
        where = "beginning"
    logger.info("%s: the rows repeat an undisturbed run's %s", where, promise(config))


def _processor():
    """Return the model name of the CPU."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(kinds, platform.machine())


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
