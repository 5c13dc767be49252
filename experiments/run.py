"""Trains the experiments of the paper: samples arrive, restart, train to convergence, repeat.

python -m experiments.run                                    Figure 7 on the embedded synthetic data, under a minute
python -m experiments.run --list                             the experiments
python -m experiments.run --dataset=cifar10 --model=resnet18 --preset=paper         the paper's own
python -m experiments.run --shrink=0.2,0.4,0.6,0.8 --noise_scale=0,0.01,0.1         a grid
python -m experiments.run --resume --workdir=runs/…          goes on where a run was stopped
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence

import absl.logging
import jax
from absl import app, flags

from experiments import build, cli, progress, registry, report, results, settings, workdir
from sp_jax import data, sweeps
from sp_jax.checkpoint import Store
from sp_jax.data import images
from sp_jax.types import Dataset

_D = settings.Settings()  # the defaults, for the help

_EXPERIMENT = flags.DEFINE_string("experiment", None, "One or several, with commas; default online. See --list.")
_LIST = flags.DEFINE_bool("list", False, "Print the experiments and exit.")
_PRESET = flags.DEFINE_string("preset", None, "quick (default: minutes on a CPU) or paper; explicit flags override it.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the run in --workdir after its last finished round.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's folder; default TFDS_DATA_DIR, else ~/tensorflow_datasets.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Folder for decoded images; default ~/.cache/sp_jax.")


def _setting(define, name, help_):
    """A flag for a field of `Settings`; None means that it was not given."""
    default = getattr(_D, name)
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return define(name, None, help_ if shown is None else f"{help_} Default {shown}.")


_SETTINGS = [
    _setting(flags.DEFINE_string, "dataset", "mixture (synthetic, embedded) or a TFDS set of images: cifar10, ….")
    , _setting(flags.DEFINE_string, "model", f"One of {', '.join(settings.MODELS)}.")
    , _setting(flags.DEFINE_integer, "width", "ResNet: channels of the first stage; 64 is the standard.")
    , _setting(flags.DEFINE_string, "hidden", "MLP: sizes of the hidden layers, with commas.")
    , _setting(flags.DEFINE_string, "activation", f"MLP: one of {', '.join(settings.ACTIVATIONS)}.")
    , _setting(flags.DEFINE_string, "init", "Initialisation, and so the noise: torch (the paper's) or flax.")
    , _setting(flags.DEFINE_string, "optimizer", f"One of {', '.join(settings.OPTIMIZERS)}.")
    , _setting(flags.DEFINE_float, "learning_rate", "η, per step.")
    , _setting(flags.DEFINE_integer, "batch_size", "Samples a step.")
    , _setting(flags.DEFINE_float, "weight_decay", "Coupled L2: times θ, added to the gradient.")
    , _setting(flags.DEFINE_string, "precision", "Of matrix products: float32, tf32 or bfloat16.")
    , _setting(flags.DEFINE_string, "restart", f"Any of {', '.join(settings.RESTARTS)}, with commas.")
    , _setting(flags.DEFINE_string, "shrink", "λ in [0, 1], with commas; the grid is the product with --noise_scale. "
               "Default: a short list of pairs.")
    , _setting(flags.DEFINE_string, "noise_scale", "σ >= 0, with commas.")
    , _setting(flags.DEFINE_string, "noise", "Of noise_only: gaussian (N(0, σ²)) or fresh (σ times a fresh network).")
    , _setting(flags.DEFINE_string, "statistics", "BatchNorm's at a restart: reset, keep or recalibrate.")
    , _setting(flags.DEFINE_string, "optimizer_state", "At a restart: reset or keep.")
    , _setting(flags.DEFINE_bool, "restart_first", "Restart before the first round too, as the authors' program does.")
    , _setting(flags.DEFINE_integer, "seeds", "How many; each has its own validation third, order and networks.")
    , _setting(flags.DEFINE_integer, "samples_per_round", "k, samples that arrive in a round. Default 1000, or a "
               "sixteenth of a small data set.")
    , _setting(flags.DEFINE_integer, "rounds", "Only the first so many.")
    , _setting(flags.DEFINE_float, "train_accuracy", "Converged at this training accuracy, a fraction.")
    , _setting(flags.DEFINE_integer, "patience", "Stop after so many epochs without 0.1 points of training accuracy.")
    , _setting(flags.DEFINE_integer, "max_epochs", "Stop a round after so many epochs.")
    , _setting(flags.DEFINE_integer, "epochs", "Train exactly so many epochs a round instead of to convergence.")
]  # fmt: skip


def explicit_settings() -> dict:
    """The settings that were given as flags, parsed."""
    found = {flag.name: flag.value for flag in _SETTINGS if flag.value is not None}
    for name in ("restart", "shrink", "noise_scale"):
        if name in found:
            found[name] = settings.parse_list(f"--{name}", found[name])
    if "hidden" in found:
        found["hidden"] = settings.parse_sizes(found["hidden"])
    return found


def load(name: str) -> Dataset:
    """A data set from the folders that the flags name."""
    images.data_folder(_DATA_DIR.value)
    return data.load(name, data_dir=_DATA_DIR.value, cache_dir=_CACHE_DIR.value)


def train(job: workdir.Job, dataset) -> None:
    """Runs one experiment to its end, writing rows as rounds end, then its figures and report."""
    num_samples = len(dataset.labels)
    arrivals = job.experiment.arrivals(job.settings, data.arrival.num_training(num_samples))[: job.settings.rounds]
    workdir.write_config(job, arrivals)
    file = results.Results(job.folder / "results.csv")
    engine = sweeps.Engine(build.trainer(job.settings, dataset), dataset, job.settings.seeds)
    groups = build.groups(job.settings, engine.trainer.model, num_samples)
    cells = {group.name: cell for cell, group in groups.items()}
    reporter = progress.Reporter(list(groups), arrivals)
    rounds = sweeps.run(
        engine,
        list(groups.values()),
        arrivals,
        restart_first=job.settings.restart_first,
        store=Store(job.folder / "checkpoints"),
        on_chunk=lambda group, round_, chunk: reporter.chunk(cells[group.name], round_, chunk),
    )
    try:
        for group, finished, trained in rounds:
            cell = cells[group.name]
            file.append(results.rows(job.experiment.name, job.settings, cell, finished))
            reporter.finished(cell, finished, trained=trained)
    except KeyboardInterrupt:
        reporter.close()
        print(f"stopped; go on with: python -m experiments.run --resume --workdir={job.folder}", file=sys.stderr)
        sys.exit(130)
    reporter.close()
    print(f"\n{report.write(job.folder)}\n\n{job.folder / 'report.md'}", flush=True)


def main(argv: Sequence[str]) -> None:
    """Plans and checks everything first, then trains."""
    with cli.one_line_errors(argv):
        if _LIST.value:
            print(registry.listing())
            return
        if _PRESET.value is not None:
            settings.check_choice("--preset", _PRESET.value, ("quick", "paper"))
        names = None if _EXPERIMENT.value is None else settings.parse_list("--experiment", _EXPERIMENT.value)
        jobs = workdir.plan(names, _PRESET.value, explicit_settings(), cli.WORKDIR.value, _RESUME.value)
        datasets = {name: load(name) for name in dict.fromkeys(job.settings.dataset for job in jobs)}
        for job in jobs:
            num_samples = len(datasets[job.settings.dataset].labels)
            job.experiment.arrivals(job.settings, data.arrival.num_training(num_samples))
        for job in jobs:
            train(job, datasets[job.settings.dataset])


def start(main_: Callable[[Sequence[str]], None]) -> None:
    """Starts a binary: each CPU core a device of its own, so that lanes run side by side; few words on the terminal."""
    cores_are_set = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices <= 0 and not cores_are_set:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    logger = logging.getLogger("sp_jax")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    absl.logging.set_verbosity(absl.logging.WARNING)
    app.run(main_)


if __name__ == "__main__":
    start(main)
