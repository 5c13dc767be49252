"""Retrains a network every night on the rows of files, after the newest network, and promotes it if it is good.

pip install '.[retrain]'                                                               brings what reads csv and parquet
python -m experiments.retrain --data='days/*.parquet' --label=clicked --workdir=model  the work of a night, for cron
python -m experiments.retrain --data=days/1.csv --label=price --task=regression --workdir=model
python -m experiments.retrain --predict=today.csv --out=scores.csv --workdir=model     scores of the promoted network

Files that the folder does not know are tonight's rows; they join the memory of all earlier ones. Each night restarts
the promoted network by shrink-perturb and trains it on all rows but those held out. --workdir holds
network.safetensors, history.csv and report.html. The first night fixes the columns and what is done to them. Exit code
1: done, but files were skipped, each in one line; 2: nothing could be done, and nothing was written.
"""

import re
import signal
import sys
from collections.abc import Sequence

from absl import flags

from experiments.config import app, setting_flags
from experiments.config.fields import UsageError, check_choice, check_field, parse_list
from experiments.config.settings import FIELDS
from experiments.nightly import columns, night, predicting, tables
from experiments.nightly.columns import Asked
from experiments.nightly.fitting import Training
from experiments.nightly.night import Choices
from experiments.records import run_folder
from sp_jax.data import folders
from sp_jax.tasks import TASKS
from sp_jax.training import Convergence

flags.adopt_module_key_flags(app)
SHARED = ("hidden", "batch_size", "learning_rate", "train_accuracy", "patience", "max_epochs", "epochs")
for _name in ("model", *SHARED):
    flags.declare_key_flag(_name)
_DATA = flags.DEFINE_string(
    "data", None, "Paths and globs of parquet, csv, npz or npy files, with commas: all so far, each day's rows in a "
    "new file. They arrive in the natural order of their names: day2 before day10.",
)  # fmt: skip
_LABEL = flags.DEFINE_string(
    "label", None, "The column to predict, or several with commas; of an array without names its number, from 0."
)
_COLUMNS = flags.DEFINE_string(
    "columns", None, "Input columns, with commas. Numbers are standardised by the first night's mean and deviation, "
    "text and booleans hashed into an embedding each.",
)  # fmt: skip
_WEIGHT = flags.DEFINE_string("weight", None, "The column of the rows' weights.")
_TIME = flags.DEFINE_string("time", None, "The column of the rows' times; a file that goes back in time is skipped.")
_MISSING = flags.DEFINE_string("missing", None, "Where a value is missing: error, which skips the file, or mean.")
_BUCKETS = flags.DEFINE_integer(
    "buckets", None, "Into which a column of text is hashed.", lower_bound=2, upper_bound=2**20
)
_WINDOW = flags.DEFINE_string("window", None, "How much of the memory to train on, as 30days (files) or 100000rows.")
_TASK = flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}; asked for where the label leaves a doubt.")
_SEED = flags.DEFINE_integer("seed", 0, "Of initialisations, noise and orders.", lower_bound=0, upper_bound=2**31 - 1)
_HOLDOUT = flags.DEFINE_float("holdout", 0.2, "Of each night's rows; they are held out for ever.")
_HOLDOUT_BY = flags.DEFINE_string("holdout_by", "time", "Which rows: time, the night's newest, or random.")
_TUNE_EVERY = flags.DEFINE_integer(
    "tune_every", 7, "After which λ and σ are chosen again, the first time on the second night.", lower_bound=1
)
_MARGIN = flags.DEFINE_float(
    "margin", 0.02, "Of the promoted network's metric: a network that is worse by more is not promoted.", lower_bound=0
)
_PREDICT = flags.DEFINE_string(
    "predict", None, "A file of rows to score with the promoted network, in place of --data."
)
_OUT = flags.DEFINE_string("out", None, "Where the scores go: a csv, parquet or npz file.")


def asked() -> Asked:
    """Return what the flags say of the columns."""
    for flag, known in ((_TASK, TASKS), (_MISSING, columns.MISSING)):
        if flag.value is not None:
            check_choice(f"--{flag.name}", flag.value, tuple(known))
    lists = [f.value if f.value is None else parse_list(f"--{f.name}", f.value) for f in (_LABEL, _COLUMNS)]
    found = (*lists, _WEIGHT.value, _TIME.value, _TASK.value, _MISSING.value, _BUCKETS.value)
    return Asked(*found, hidden=_shared().get("hidden"))


def choices() -> Choices:
    """Return what the flags say of this night."""
    if not 0 < _HOLDOUT.value < 1:
        raise UsageError(f"--holdout={_HOLDOUT.value} must lie in (0, 1): the fraction of rows to measure on")
    check_choice("--holdout_by", _HOLDOUT_BY.value, ("time", "random"))
    window = None
    if _WINDOW.value is not None:
        found = re.fullmatch(r"([1-9]\d{0,11}) ?(day|row)s?", _WINDOW.value)
        if not found:
            raise UsageError(f"--window={_WINDOW.value} must be a number of days or rows, as 30days or 100000rows")
        window = int(found[1]), f"{found[2]}s"
    return Choices(_HOLDOUT.value, _HOLDOUT_BY.value, _TUNE_EVERY.value, _MARGIN.value, window)


def training() -> Training:
    """Return what the flags say of training."""
    given = _shared()
    rule = {name: given[name] for name in ("train_accuracy", "patience", "max_epochs") if name in given}
    rule = Convergence.exactly(given["epochs"]) if given.get("epochs") else (Convergence(**rule) if rule else None)
    sizes = {name: given[name] for name in ("batch_size", "learning_rate") if name in given}
    return Training(_SEED.value, convergence=rule, **sizes)


def _shared():
    """Return the given values of the flags that experiments.run has too."""
    given = setting_flags.settings()
    model = given.get("model", ("mlp",))
    if model not in (("mlp",), ("logistic",)):
        raise UsageError(f"--model={','.join(model)} takes no columns; expected mlp or logistic")
    for name in SHARED:
        if len(given.get(name, (0,))) > 1:
            raise UsageError(f"--{name} takes one value, got {','.join(map(str, given[name]))}")
        for value in given.get(name, ()):
            check_field(FIELDS[name], value)
    if any(not 0 < units < 2**20 for units in given.get("hidden", ((),))[0]):
        raise UsageError(f"--hidden must be positive layer sizes, got {','.join(map(str, given['hidden'][0]))}")
    if not 0 < given.get("train_accuracy", (1.0,))[0] <= 1:
        raise UsageError(f"--train_accuracy is a fraction: it must lie in (0, 1], got {given['train_accuracy'][0]}")
    return {name: given[name][0] for name in SHARED if name in given} | ({"hidden": ()} if "logistic" in model else {})


def _work():
    """Do what is asked for; return the exit code."""
    if not app.WORKDIR.value:
        raise UsageError("--workdir is missing: name the folder of the network, one for each --label")
    path = run_folder.expand(app.WORKDIR.value)
    if (_PREDICT.value is None) == (_DATA.value is None):
        raise UsageError("give --data to retrain, or --predict and --out to score rows")
    if _PREDICT.value is None:
        if _OUT.value is not None:
            raise UsageError("--out goes with --predict")
        files, wanted, tonight, how = tables.expand("--data", _DATA.value), asked(), choices(), training()
        run_folder.check_writable(path)
        app.check_devices()
        with run_folder.lock(path, resume=True):
            return night.run(path, files, wanted, tonight, how)
    if not _OUT.value:
        raise UsageError("--out is missing: name the file that the scores are written to, as scores.csv")
    (source, *more), out = tables.expand("--predict", _PREDICT.value), folders.expand("--out", _OUT.value)
    if more:
        raise UsageError(f"--predict takes one file, got {len(more) + 1}")
    print(f"{predicting.predict(path, source, out):,} rows scored: {out}")
    return 0


def main(argv: Sequence[str]) -> None:
    """Do tonight's work, or score rows."""
    with app.one_line_errors(argv):
        try:
            code = _work()
        except KeyboardInterrupt:
            print("stopped; nothing that was written is lost, and the same command goes on", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        if code:
            sys.exit(code)


if __name__ == "__main__":
    app.start(main)
