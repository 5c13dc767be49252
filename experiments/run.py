"""Trains the experiments of the paper: samples arrive, restart, train to convergence, repeat.

python -m experiments.run                                    Figure 7 on the embedded synthetic data, under a minute
python -m experiments.run --list                             the experiments
python -m experiments.run --dataset=cifar10 --model=resnet18 --preset=paper         the paper's own
python -m experiments.run --shrink=0.2,0.4,0.6,0.8 --noise_scale=0,0.01,0.1         a grid
python -m experiments.run --resume --workdir=runs/…          goes on where a run was stopped
"""

import sys
from collections.abc import Sequence

from absl import flags

from experiments import build, cli, options, progress, registry, report, results, settings, workdir
from sp_jax import data, sweeps
from sp_jax.checkpoint import Store
from sp_jax.types import Dataset

flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(options)
_EXPERIMENT = flags.DEFINE_string("experiment", None, "One or several, with commas; default online. See --list.")
_LIST = flags.DEFINE_bool("list", False, "Print the experiments and exit.")
_PRESET = flags.DEFINE_string("preset", None, "quick (default: minutes on a CPU) or paper; explicit flags override it.")
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the run in --workdir after its last finished round.")


def train(job: workdir.Job, dataset: Dataset, arrivals: Sequence[int]) -> None:
    """Runs one experiment to its end, writing rows as rounds end, then its figures and report."""
    workdir.write_config(job, arrivals)
    file = results.Results(job.folder / "results.csv")
    engine = sweeps.Engine(build.trainer(job.settings, dataset), dataset, job.settings.seeds)
    groups = build.groups(job.settings, engine.trainer.model, len(dataset.labels))
    store = Store(job.folder / "checkpoints")
    done = {cell: min(store.newest(group.name), len(arrivals)) for cell, group in groups.items()}
    for cell, rounds in done.items():
        file.check_holds(cell, job.settings.seeds, rounds)
    cells = {group.name: cell for cell, group in groups.items()}
    reporter = progress.Reporter(done, arrivals)
    finished = sweeps.run(
        engine,
        list(groups.values()),
        arrivals,
        restart_first=job.settings.restart_first,
        store=store,
        on_chunk=lambda group, round_, chunk: reporter.chunk(cells[group.name], round_, chunk),
    )
    with reporter:
        for group, found, trained in finished:
            file.append(results.rows(job.experiment.name, job.settings, cells[group.name], found))
            reporter.finished(cells[group.name], found, trained=trained)
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
        jobs = workdir.plan(names, _PRESET.value, options.settings(), cli.WORKDIR.value, _RESUME.value)
        try:
            _train_all(jobs)
        except KeyboardInterrupt:
            base = jobs[0].folder.parent if len(jobs) > 1 else jobs[0].folder
            several = f" --experiment={','.join(job.experiment.name for job in jobs)}" if len(jobs) > 1 else ""
            print(f"stopped; go on with: python -m experiments.run --resume --workdir={base}{several}", file=sys.stderr)
            sys.exit(130)


def _train_all(jobs):
    datasets = {name: options.dataset(name) for name in dict.fromkeys(job.settings.dataset for job in jobs)}
    arrivals = [_arrivals(job, datasets[job.settings.dataset]) for job in jobs]  # all are checked before one is trained
    for job, visible in zip(jobs, arrivals, strict=True):
        train(job, datasets[job.settings.dataset], visible)


def _arrivals(job, dataset):
    num_train = data.arrival.num_training(len(dataset.labels))
    return job.experiment.arrivals(job.settings, num_train)[: job.settings.rounds]


if __name__ == "__main__":
    cli.start(main)
