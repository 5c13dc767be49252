"""Trains the experiments of the paper: samples arrive, restart, train to convergence, repeat.

python -m experiments.run                                    Figure 7 on the embedded synthetic data, under a minute
python -m experiments.run --list                             the experiments: every table and figure of the paper
python -m experiments.run --preset=paper --dry_run           what that would take here, measured in a minute or two
python -m experiments.run --preset=paper --dry_run --compile_for=h100    what it would take there, as a compiler has it
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

from experiments.benchmarks import compiling, targets
from experiments.config import app, fields, setting_flags, streams
from experiments.config.fields import UsageError
from experiments.records import provenance, run_folder
from experiments.reporting import listing, run_report
from experiments.running import dry_run, multihost, plan, progress, recorder, signals, tuned, validation
from experiments.running.builder import Builder
from sp_jax import sweeps
from sp_jax.storage import checkpoints
from sp_jax.storage.checkpoints import Store

flags.adopt_module_key_flags(app)
flags.adopt_module_key_flags(multihost)
flags.declare_key_flag("compile_for")
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
    "side_by_side", None, "Lanes that a device trains at once, the others after them.", lower_bound=1
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


def train(planned: plan.RunPlan, stopping: signals.Stop) -> None:
    """Run one experiment to its end, writing rows as rounds end, then its figures and report.

    Raises:
      sweeps.Stopped: it was stopped before its end; --resume goes on.
    """
    folder = planned.job.folder
    recording = recorder.Recorder(planned, _board())
    store = Store(folder / "checkpoints", write=multihost.first(), every=_CHECKPOINT_SECONDS.value)
    if not multihost.first():
        for groups in tuned.stages(planned):
            for _ in sweeps.run(groups, store=store, watch=recording.watch(None, stopping.asked)):
                pass
        return
    if run_report.is_newest(folder) and tuned.is_complete(planned, store):
        recording.open(store.note().get("watch", {}))
        print(f"the run in {folder} is complete: {folder / 'report.md'}", flush=True)
        return
    provenance.say(planned.write_config(provenance.start(_DEVICES_PER_LANE.value)), store)
    recording.open(store.note().get("watch", {}))
    for groups in tuned.stages(planned):
        _train(planned, groups, recording, store, stopping)
    print(f"\n{run_report.write(folder)}\n\n{run_report.paths(folder)}", flush=True)


def _train(planned, groups, recording, store, stopping):
    """Train some groups of a run to their end."""
    trials, names, labels = planned.trials, {group.name for group in groups}, tuned.labels(planned)
    visible = {name: counts for name, counts in planned.visible.items() if name in names}
    done = sweeps.finished_rounds(groups, store)
    with progress.Reporter(done, visible, labels, epochs=planned.epochs(done)) as reporter:
        for finished in sweeps.run(groups, store=store, watch=recording.watch(reporter.chunk, stopping.asked)):
            recording.write(trials[finished.group.name], finished)
            reporter.finished(finished)


def _board():
    """Return what writes for TensorBoard; None where it is not asked for."""
    if not _TENSORBOARD.value:
        return None
    try:
        from experiments.records import tensorboard
    except ImportError:
        raise UsageError("--tensorboard needs a library that is missing: pip install tensorboard") from None
    return tensorboard.Board


def main(argv: Sequence[str]) -> None:
    """Plan and check everything first, then trains."""
    with app.one_line_errors(argv):
        if _LIST.value:
            print(listing.table(), end="")
            return
        if _PRESET.value is not None:
            fields.check_choice("--preset", _PRESET.value, ("quick", "paper"))
        multihost.check(app.WORKDIR.value)
        if _DRY_RUN.value and multihost.several():
            raise UsageError("--dry_run measures this host alone; leave out --coordinator")
        if targets.COMPILE_FOR.value and not _DRY_RUN.value:
            raise UsageError("--compile_for trains nothing: it goes with --dry_run")
        devices = targets.asked() if targets.COMPILE_FOR.value else []
        _board()
        names = None if _EXPERIMENT.value is None else fields.parse_list("--experiment", _EXPERIMENT.value)
        jobs = plan.jobs(names, _PRESET.value, setting_flags.settings(), app.WORKDIR.value, _RESUME.value)
        multihost.join(run_folder.expand(app.WORKDIR.value or ""))  # now all have read what the folder holds
        app.check_devices()
        base = jobs[0].folder.parent if len(jobs) > 1 else jobs[0].folder
        stopping = signals.Stop()
        try:
            _train_all(jobs, base, stopping, devices)
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


def _train_all(jobs, base, stopping, devices):
    loaded = {}

    def dataset(name):
        if name not in loaded:
            loaded[name] = setting_flags.dataset(name)
        return loaded[name]

    def sizes(settings):
        return streams.amount(settings, dataset(settings.dataset))

    rounds = [job.rounds(sizes) for job in jobs]
    validation.plans(rounds, dataset, _DEVICES_PER_LANE.value)  # all are checked before one is trained
    if _DRY_RUN.value:
        for job, each in zip(jobs, rounds, strict=True):
            planned = _plan(job, each, loaded)
            done = sweeps.finished_rounds(planned.groups, Store(job.folder / "checkpoints", write=False))
            for device in devices or [None]:
                print(dry_run.text(planned, done, device and compiling.forecast(device)), flush=True)
        return
    with run_folder.lock(base, _RESUME.value) if multihost.first() else contextlib.nullcontext(), stopping:
        for job, each in zip(jobs, rounds, strict=True):
            train(_plan(job, each, loaded), stopping)


def _plan(job, rounds, datasets):
    """Plan a run; its engines train as many lanes at once as is asked for, or as when it began."""
    asked = itertools.repeat(_SIDE_BY_SIDE.value) if _SIDE_BY_SIDE.value else run_folder.side_by_side(job.folder)
    options = {"devices_per_lane": _DEVICES_PER_LANE.value, "stream": _STREAM.value, "side_by_side": asked}
    return plan.build(job, rounds, Builder(datasets, rounds, **options))


if __name__ == "__main__":
    app.start(main)
