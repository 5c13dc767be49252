"""Trains the experiments of the paper: samples arrive, restart, train to convergence, repeat.

python -m experiments.run                                    Figure 7 on the embedded synthetic data, under a minute
python -m experiments.run --list                             the experiments: every table and figure of the paper
python -m experiments.run --preset=paper --dry_run           what that would take here, measured in a minute or two
python -m experiments.run --preset=paper                     Figure 15: CIFAR-10, ResNet-18, 36 cells; for a GPU
python -m experiments.run --experiment=table1 --preset=paper --dataset=cifar10 --model=mlp,logistic   part of Table 1
python -m experiments.run --shrink=0.2,0.4,0.6,0.8 --noise_scale=0,0.01,0.1         a grid
python -m experiments.run --tensorboard                      and, beside it, tensorboard --logdir=runs
python -m experiments.run --resume --workdir=runs/…          goes on where a run was stopped
"""

import contextlib
import itertools
import signal
import sys
from collections.abc import Sequence

from absl import flags

from experiments import report
from experiments.config import app, setting_flags, settings
from experiments.config.settings import UsageError
from experiments.records import provenance, run_folder
from experiments.reporting import listing
from experiments.running import builder, dry_run, multihost, progress, recorder, signals, validation
from sp_jax import data, sweeps
from sp_jax.storage import checkpoints
from sp_jax.storage.checkpoints import Store

flags.adopt_module_key_flags(app)
flags.adopt_module_key_flags(multihost)
flags.adopt_module_key_flags(setting_flags)
_EXPERIMENT = flags.DEFINE_string("experiment", None, "One or several, with commas; see --list.")
_LIST = flags.DEFINE_bool("list", False, "Print the experiments and what they cost, and exit.")
_PRESET = flags.DEFINE_string(
    "preset",
    None,
    "quick (seconds to minutes on a CPU) or paper (the paper's full setting); explicit flags override it.",
)
_DEVICES_PER_LANE = flags.DEFINE_integer(
    "devices_per_lane", 1, "Over how many devices each batch is spread (data parallelism), with several hosts too."
)
_SIDE_BY_SIDE = flags.DEFINE_integer(
    "side_by_side",
    None,
    "Lanes that a device trains at once, the others after them.",
    lower_bound=1,
)
_RESUME = flags.DEFINE_bool(
    "resume", False, "Go on with the run in --workdir where it stopped, also in the middle of a round."
)
_CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds",
    checkpoints.SECONDS,
    "Between checkpoints in the middle of a round; one follows each round.",
    lower_bound=0,
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the grid, its programs, memory and time, as measured here in a minute or two, and exit."
)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Write the rounds of each lane for TensorBoard, too.")
_STREAM = flags.DEFINE_bool("stream", None, "Keep the data on the host and stream batches; same results.")


def train(
    job: run_folder.Job, groups: Sequence[sweeps.Group], side_by_side: Sequence[int], stopping: signals.Stop
) -> None:
    """Runs one experiment to its end, writing rows as rounds end, then its figures and report.

    Raises:
      sweeps.Stopped: it was stopped before its end; --resume goes on.
    """
    members = {m.name: m for m in job.grid.members()}
    visible = {group.name: [phase.num_visible for phase in group.phases] for group in groups}
    watcher = recorder.Recorder(job, groups, _board())
    store = Store(job.folder / "checkpoints", write=multihost.first(), every=_CHECKPOINT_SECONDS.value)
    if not multihost.first():
        for _ in sweeps.run(groups, store=store, watch=watcher.watch(None, stopping.asked)):
            pass
        return
    done = sweeps.finished_rounds(groups, store)
    if all(done[name] == len(rounds) for name, rounds in visible.items()) and report.is_newest(job.folder):
        watcher.open(store.note().get("watch", {}))
        print(f"the run in {job.folder} is complete: {job.folder / 'report.md'}", flush=True)
        return
    datasets = {phase.engine.data.name: len(phase.engine.data.labels) for group in groups for phase in group.phases}
    per_lane = _DEVICES_PER_LANE.value
    provenance.say(run_folder.write_config(job, visible, datasets, side_by_side, per_lane), store)
    watcher.open(store.note().get("watch", {}))
    with progress.Reporter(done, visible, {name: member.label for name, member in members.items()}) as reporter:
        for finished in sweeps.run(groups, store=store, watch=watcher.watch(reporter.chunk, stopping.asked)):
            watcher.write(members[finished.group.name], finished)
            reporter.finished(finished)
    print(f"\n{report.write(job.folder)}\n\n{report.paths(job.folder)}", flush=True)


def _board():
    """What writes for TensorBoard; None where it is not asked for."""
    if not _TENSORBOARD.value:
        return None
    try:
        from experiments.records import tensorboard
    except ImportError:
        raise UsageError("--tensorboard needs a library that is missing: pip install tensorboard") from None
    return tensorboard.Board


def main(argv: Sequence[str]) -> None:
    """Plans and checks everything first, then trains."""
    with app.one_line_errors(argv):
        if _LIST.value:
            print(listing.table(), end="")
            return
        if _PRESET.value is not None:
            settings.check_choice("--preset", _PRESET.value, ("quick", "paper"))
        multihost.check(app.WORKDIR.value)
        if _DRY_RUN.value and multihost.several():
            raise UsageError("--dry_run measures this host alone; leave out --coordinator")
        _board()
        names = None if _EXPERIMENT.value is None else settings.parse_list("--experiment", _EXPERIMENT.value)
        jobs = run_folder.plan(names, _PRESET.value, setting_flags.settings(), app.WORKDIR.value, _RESUME.value)
        multihost.join(run_folder.expand(app.WORKDIR.value or ""))  # now all have read what the folder holds
        app.check_devices()
        base = jobs[0].folder.parent if len(jobs) > 1 else jobs[0].folder
        stopping = signals.Stop()
        try:
            _train_all(jobs, base, stopping)
            multihost.wait("the first has written all")
        except Exception as error:
            multihost.await_verdict(error)
            raise
        except KeyboardInterrupt as end:
            if _DRY_RUN.value:
                sys.exit(128 + signal.SIGINT)
            defined = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
            stopped, how = "stopped", signals.command(base, [job.experiment.name for job in jobs], defined)
            if isinstance(end, sweeps.Stopped):
                stopped += "" if stopping.signal else ", as another host was"
                multihost.wait("the first has saved all")
            print(f"{stopped}; go on with: {how}", file=sys.stderr)
            multihost.leave(128 + (stopping.signal or signal.SIGINT))


def _train_all(jobs, base, stopping):
    loaded = {}

    def dataset(name):
        if name not in loaded:
            loaded[name] = setting_flags.dataset(name)
        return loaded[name]

    def num_train(name):
        return data.arrival.num_training(len(dataset(name).labels))

    plans = [  # all are checked before one is trained
        {m: job.experiment.schedule(m.settings, m.cell, num_train)[: m.settings.rounds] for m in job.grid.members()}
        for job in jobs
    ]
    validation.plans(plans, dataset, _DEVICES_PER_LANE.value)
    if _DRY_RUN.value:
        for job, plan in zip(jobs, plans, strict=True):
            groups, _ = _groups(job, loaded, plan)
            done = sweeps.finished_rounds(groups, Store(job.folder / "checkpoints", write=False))
            print(dry_run.text(job, plan, groups, done), flush=True)
        return
    with run_folder.lock(base, _RESUME.value) if multihost.first() else contextlib.nullcontext(), stopping:
        for job, plan in zip(jobs, plans, strict=True):
            train(job, *_groups(job, loaded, plan), stopping)


def _groups(job, datasets, plan):
    """The groups of a job, and how many lanes each of its engines trains at once: as asked, or as when it began."""
    asked = itertools.repeat(_SIDE_BY_SIDE.value) if _SIDE_BY_SIDE.value else run_folder.side_by_side(job.folder)
    options = {"devices_per_lane": _DEVICES_PER_LANE.value, "stream": _STREAM.value, "side_by_side": asked}
    made = builder.Builder(datasets, plan, **options)
    return [made.group(member, phases) for member, phases in plan.items()], made.side_by_side


if __name__ == "__main__":
    app.start(main)
