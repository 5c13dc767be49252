"""Trains the experiments of the paper: samples arrive, restart, train to convergence, repeat.

python -m experiments.run                                    Figure 7 on the embedded synthetic data, under a minute
python -m experiments.run --list                             the experiments: every table and figure of the paper
python -m experiments.run --preset=paper                     Figure 15: CIFAR-10, ResNet-18, 36 cells; for a GPU
python -m experiments.run --experiment=table1 --preset=paper --dataset=cifar10 --model=mlp,logistic   part of Table 1
python -m experiments.run --shrink=0.2,0.4,0.6,0.8 --noise_scale=0,0.01,0.1         a grid
python -m experiments.run --resume --workdir=runs/…          goes on where a run was stopped
"""

import sys
from collections.abc import Sequence

from absl import flags

from experiments import build, check, cli, hosts, options, progress, registry, report, results, settings, watch, workdir
from sp_jax import data, sweeps
from sp_jax.checkpoint import Store

flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(hosts)
flags.adopt_module_key_flags(options)
_EXPERIMENT = flags.DEFINE_string("experiment", None, "One or several, with commas; default online. See --list.")
_LIST = flags.DEFINE_bool("list", False, "Print the experiments and exit.")
_PRESET = flags.DEFINE_string("preset", None, "quick (default: minutes on a CPU) or paper; explicit flags override it.")
_DEVICES_PER_LANE = flags.DEFINE_integer(
    "devices_per_lane", 1, "Over how many devices each batch is spread (data parallelism), with several hosts too."
)
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the run in --workdir after its last finished round.")
_STREAM = flags.DEFINE_bool(
    "stream", None, "Keep the data on the host and stream batches; same results. Default: where they do not fit."
)


def train(job: workdir.Job, groups: Sequence[sweeps.Group]) -> None:
    """Runs one experiment to its end, writing rows as rounds end, then its figures and report."""
    name, varied, members = job.experiment.name, job.varied, {m.name: m for m in job.grid.members()}
    visible = {group.name: [phase.num_visible for phase in group.phases] for group in groups}
    datasets = {phase.engine.data.name: len(phase.engine.data.labels) for group in groups for phase in group.phases}
    watcher, store = watch.Watcher(job), Store(job.folder / "checkpoints", write=hosts.first())
    if not hosts.first():
        for _ in sweeps.run(groups, store=store, watch=watcher.watch(None)):
            pass
        return
    workdir.write_config(job, visible, datasets)
    watcher.open()
    file = results.Table.results(job.folder / "results.csv", varied, watcher.measures)
    done = {group.name: min(store.newest(group.name), len(group.phases)) for group in groups}
    for group, rounds in done.items():
        file.check_holds(name, members[group], varied, rounds)
        watcher.check_holds(members[group], rounds)
    reporter = progress.Reporter(done, visible, {name: member.label for name, member in members.items()})
    with reporter:
        for finished in sweeps.run(groups, store=store, watch=watcher.watch(reporter.chunk)):
            watcher.write(members[finished.group.name], finished)
            file.append(results.rows(name, members[finished.group.name], varied, finished))
            reporter.finished(finished)
    print(f"\n{report.write(job.folder)}\n\n{job.folder / 'report.md'}", flush=True)


def main(argv: Sequence[str]) -> None:
    """Plans and checks everything first, then trains."""
    with cli.one_line_errors(argv):
        if _LIST.value:
            print(registry.listing())
            return
        if _PRESET.value is not None:
            settings.check_choice("--preset", _PRESET.value, ("quick", "paper"))
        hosts.check(cli.WORKDIR.value)
        names = None if _EXPERIMENT.value is None else settings.parse_list("--experiment", _EXPERIMENT.value)
        jobs = workdir.plan(names, _PRESET.value, options.settings(), cli.WORKDIR.value, _RESUME.value)
        hosts.join(workdir.expand(cli.WORKDIR.value or ""))  # now all have read what the folder holds
        try:
            _train_all(jobs)
            hosts.wait("the first has written all")
        except Exception as error:
            hosts.await_verdict(error)
            raise
        except KeyboardInterrupt:
            base = jobs[0].folder.parent if len(jobs) > 1 else jobs[0].folder
            several = f" --experiment={','.join(job.experiment.name for job in jobs)}" if len(jobs) > 1 else ""
            print(f"stopped; go on with: python -m experiments.run --resume --workdir={base}{several}", file=sys.stderr)
            hosts.leave(130)


def _train_all(jobs):
    loaded = {}

    def dataset(name):
        if name not in loaded:
            loaded[name] = options.dataset(name)
        return loaded[name]

    def num_train(name):
        return data.arrival.num_training(len(dataset(name).labels))

    plans = [  # all are checked before one is trained
        {m: job.experiment.schedule(m.settings, m.cell, num_train)[: m.settings.rounds] for m in job.grid.members()}
        for job in jobs
    ]
    check.plans(plans, dataset, _DEVICES_PER_LANE.value)
    for job, plan in zip(jobs, plans, strict=True):
        builder = build.Builder(loaded, plan, devices_per_lane=_DEVICES_PER_LANE.value, stream=_STREAM.value)
        train(job, [builder.group(member, phases) for member, phases in plan.items()])


if __name__ == "__main__":
    cli.start(main)
