"""Kills a run at random moments, over and over, and compares what it ends in with an undisturbed run.

nice python tests/soak.py --kills=50        rows and parameters after so many SIGKILLs: identical, none lost or doubled
nice python tests/soak.py --memory=200      memory and file handles over so many rounds: flat
"""

import argparse
import csv
import gc
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
GRID = ("--seeds=2", "--rounds=4", "--hidden=8", "--max_epochs=40", "--shrink=0.6", "--noise_scale=0.1,0")
SHORT = ("--seeds=2", "--rounds=2", "--hidden=8", "--max_epochs=8", "--shrink=0.6", "--noise_scale=0.1")
LONGEST = 6.0  # seconds that a process lives at most, its start included


def child(folder: str, flags: tuple[str, ...], stderr: str) -> None:
    """One process of the run: a checkpoint after each chunk, as short as they come."""
    import jax
    from absl import flags as absl_flags

    import sp_jax.engine.engine
    import sp_jax.storage.checkpoints
    from experiments import run
    from experiments.config import app

    with open(stderr, "a") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    app.use_compile_cache()
    sp_jax.engine.engine.CHUNK_SECONDS = 0.01
    run_flags = ("run", f"--workdir={folder}", "--resume", "--checkpoint_seconds=0", *flags)
    absl_flags.FLAGS(run_flags)
    sp_jax.storage.checkpoints.LEAST_WORK = 0
    run.main(["run"])


def start(folder: pathlib.Path, *flags: str, target=child) -> multiprocessing.Process:
    """A process of the run in `folder`; what it says goes to `<folder>.log`; `target` is called as `child`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.run"])
    process = context.Process(target=target, args=(str(folder), flags, f"{folder}.log"))
    process.start()
    return process


def rows(folder: pathlib.Path) -> list[dict[str, str]]:
    """The rows of `results.csv`, times aside."""
    with open(folder / "results.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def arrays(folder: pathlib.Path) -> list[np.ndarray]:
    """All parameters and optimiser states of the newest checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    newest = max(
        (path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name)
    )
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.leaves(checkpointer.restore(newest))


def networks(folder: pathlib.Path) -> dict[str, bytes]:
    """The files of all networks that were kept; one that was not written to its end is one too many."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "networks").rglob("*") if p.is_file()}


def soak(base: pathlib.Path, kills: int, seed: int, flags: tuple[str, ...] = GRID) -> dict[str, int]:
    """Runs one grid undisturbed, and once more with kills; runs that have ended begin again until there were enough.

    Args:
      base: an empty folder.
      kills: how many at least.
      seed: of the moments.
      flags: of the grid.

    Returns:
      Figures: kills, how many of them in the middle of a checkpoint or of a round, runs, rows lost, rows doubled.

    Raises:
      AssertionError: rows, parameters or networks differ from the undisturbed run's, or a process has failed.
    """
    rng, whole = random.Random(seed), base / "whole"
    process = start(whole, *flags)
    process.join()
    assert process.exitcode == 0, pathlib.Path(f"{whole}.log").read_text()
    wanted, states, kept = rows(whole), arrays(whole), networks(whole)
    assert len(kept) == len(wanted)
    found = dict.fromkeys(("kills", "in a checkpoint", "in a round", "runs", "rows lost", "rows doubled"), 0)
    while found["kills"] < kills:
        found["runs"] += 1
        folder = base / f"run{found['runs']}"
        disturb(folder, flags, found, rng, kills)
        have = rows(folder)
        keys = [tuple(row[name] for name in ("restart", "shrink", "noise_scale", "seed", "round")) for row in have]
        found["rows lost"] += len(wanted) - len({*keys})
        found["rows doubled"] += len(keys) - len({*keys})
        assert have == wanted, f"{folder} differs from {whole}"
        for one, other in zip(states, arrays(folder), strict=True):
            np.testing.assert_array_equal(one, other)
        assert networks(folder) == kept, f"the networks in {folder} differ from those in {whole}"
    return found


def disturb(
    folder: pathlib.Path, flags: tuple[str, ...], found: dict[str, int], rng: random.Random, kills: int
) -> None:
    """Starts a run again and again, and kills it, until it has ended by itself; counts in `found`."""
    while True:
        process = start(folder, *flags)
        process.join(rng.uniform(0.0, LONGEST) if found["kills"] < kills else None)
        if process.exitcode is not None:
            assert process.exitcode == 0, pathlib.Path(f"{folder}.log").read_text()
            return
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found["kills"] += 1
        names = {path.name for path in (folder / "checkpoints").glob("*")}
        found["in a checkpoint"] += any(name.startswith(".unfinished") for name in names)
        found["in a round"] += any("." in name.lstrip(".") and name[0] != "." for name in names)


def memory(folder: pathlib.Path, rounds: int) -> list[tuple[int, float, int]]:
    """Trains a small network for so many rounds with a checkpoint after each.

    Returns:
      (round, resident memory in MiB, open file handles), ten of them.
    """
    from sp_jax import data, models, restarts, sweeps, training
    from sp_jax.storage.checkpoints import Store
    from sp_jax.types import HParams

    mixture = data.mixture()
    model = models.from_module(models.MLP(10, (64,)), mixture.inputs)
    engine = sweeps.Engine(training.Trainer(model, training.adam, 128), mixture, 4)
    restart = restarts.make_restart(restarts.shrink_perturb)
    groups = []
    for shrink in (0.5, 0.6):
        hparams = HParams(0.01, shrink=shrink, noise_scale=0.1)
        lanes = sweeps.make_lanes([0, 1], hparams, training.Convergence.exactly(2), len(mixture.labels))
        phases = sweeps.rounds(engine, lanes, restart, range(250, 250 + rounds))
        groups.append(sweeps.Group(str(shrink), phases))
    seen = []
    for finished in sweeps.run(groups, store=Store(folder, every=0.0)):
        round_ = finished.results[0].round
        if finished.group is groups[-1] and round_ % (rounds // 10) == 0:
            gc.collect()
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            seen.append((round_, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))))
    return seen


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--memory", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sp_jax-soak-") as base:
        if given.memory:
            for round_, size, handles in memory(pathlib.Path(base), given.memory):
                print(f"round {round_}: {size:.1f} MiB, {handles} file handles", flush=True)
        if given.kills:
            begun = time.monotonic()
            for name, value in soak(pathlib.Path(base), given.kills, given.seed).items():
                print(f"{name}: {value}")
            print(f"rows and parameters are those of the undisturbed run; {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
