"""The output of `--list`: every experiment, its place in the paper, its result and its cost."""

import pathlib

from experiments.config.streams import Amount
from experiments.config.sweep import Grid, resolve
from experiments.records import results, run_folder
from experiments.reporting import paper_numbers
from experiments.specs import registry
from experiments.specs.base import Experiment
from sp_jax.data import arrival

RUNS = pathlib.Path(__file__).parents[1] / "results"  # the committed runs
PUBLISHED = {  # samples and classes
    "cifar10": (50_000, 10), "cifar100": (50_000, 100), "svhn_cropped": (73_257, 10), "imdb_reviews": (25_000, 2),
}  # fmt: skip
NOTES = """
quick: training with the default preset as measured in the runs of experiments/results, on a machine of two CPU cores
in so many devices, without compiling, figures and the start.
paper: cells x seeds x rounds of --preset=paper, whose time has not been measured; minutes of a cell are those that the
paper prints, on a machine that it does not name. --dry_run estimates any command on this machine.
"""


def table() -> str:
    """List all experiments, two lines each, and below them the meaning of the costs."""
    kept = _kept()
    lines = [("experiment", "in the paper", "quick", "paper")]
    lines += [(e.name, e.paper, kept.get(e.name, "not measured"), _whole(e)) for e in registry.EXPERIMENTS.values()]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    rows = ["  ".join([*(f"{x:{w}}" for x, w in zip(line, widths, strict=False)), line[3]]) for line in lines]
    shows = ["what it shows", *(e.summary for e in registry.EXPERIMENTS.values())]
    return "\n".join(f"{row}\n    {words}" for row, words in zip(rows, shows, strict=True)) + "\n" + NOTES


def _kept():
    """Return the cost of the quick presets, by experiment, where such a run was kept."""
    found = {}
    for folder in run_folder.subfolders(RUNS):
        config = run_folder.read_config(folder)
        name, devices = config["experiment"], config["device"].split()[0]
        if Grid.from_json(config).members() == resolve(registry.get(name).presets["quick"], {}).members():
            seconds = results.seconds(results.read(folder / "results.csv"))
            found[name] = f"{seconds:.0f} s, {devices} device{'s' * (devices != '1')}"
    return found


def _whole(experiment: Experiment) -> str:
    """Return the size of the paper's full setting, and the paper's minutes."""
    grid = resolve(experiment.presets["paper"], {})
    members = grid.members()
    plans = [experiment.schedule(m.settings, m.cell, _published)[: m.settings.rounds] for m in members]
    models, datasets = ("/".join(grid.values(field)) for field in ("model", "dataset"))
    size = f"{len(members)} x {grid.base.seeds} x {max(map(len, plans))}, {models} on {datasets}"
    minutes = paper_numbers.minutes(experiment.name)
    return size + (f"; {min(minutes):.0f} to {max(minutes):.0f} min a cell" if minutes else "")


def _published(settings):
    """Return how much a published data set has to train on."""
    count, classes = PUBLISHED[settings.dataset]
    of_class = settings.task_stream == "class_incremental"
    return Amount(
        classes * arrival.num_training(count // classes) if of_class else arrival.num_training(count), classes
    )
