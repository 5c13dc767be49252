"""What `--help` shows: every flag in its theme, with the paper's symbol, its unit and its default."""

import textwrap
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from absl import flags

from experiments.config import fields
from experiments.config.settings import FIELDS

WIDTH, INDENT = 110, 26


class Entry(NamedTuple):
    """What a flag's own text does not say."""

    unit: str = ""  # of numbers
    symbol: str = ""  # the paper's, or this project's where it has none
    default: str = ""  # in words, where the flag's own is None


# The flags that are no settings, which say the same of themselves where they are declared.
_PROCESS: Mapping[str, Mapping[str, Entry]] = {
    fields.EXPERIMENT: {
        "experiment": Entry(default="online"), "preset": Entry(default="quick"), "list": Entry(), "dry_run": Entry(),
    },
    fields.DATA: {
        "data_dir": Entry(default="TFDS_DATA_DIR, else ~/tensorflow_datasets"),
        "cache_dir": Entry(default="~/.cache/sp_jax"),
    },
    fields.NETWORK: {},
    "tonight's rows": {
        "data": Entry(default="none, where rows are scored"),
        "label": Entry(default="that of the folder"),
        "columns": Entry(default="all but those of --label, --weight and --time"),
        "weight": Entry(default="all rows count the same"),
        "time": Entry(default="the order of the rows"),
        "missing": Entry(default="error"),
        "buckets": Entry("buckets", default="1024"),
        "task": Entry(default="as the label says"),
        "window": Entry(default="all of it"),
        "holdout": Entry("fraction"),
        "holdout_by": Entry(),
    },
    "tonight's network": {
        "tune_every": Entry("nights"),
        "margin": Entry("fraction"),
        "seed": Entry("a whole number"),
    },
    "scores": {
        "predict": Entry(default="none, where a night is trained"),
        "out": Entry(default="none; needed with --predict"),
    },
    **{group: {} for group in (fields.TRAINING, fields.RESTART, fields.ROUND_END)},
    fields.RUN: {
        "workdir": Entry(default="runs/<experiment>-<time>, a new folder"), "resume": Entry(),
        "checkpoint_seconds": Entry("seconds"), "tensorboard": Entry(),
    },
    fields.SPEED: {
        "stream": Entry(default="where the data do not fit"), "devices_per_lane": Entry("devices"),
        "side_by_side": Entry("lanes", default="one on a CPU, else as measured"),
        "coordinator": Entry(default="one host"), "num_processes": Entry("hosts", default="one"),
        "process_id": Entry("hosts before it", default="none"), "join_seconds": Entry("seconds"),
    },
    "the measurement of speed": {
        "case": Entry(default="all"), "against": Entry(),
        "lanes": Entry("lanes", default="1 and 8; ResNets 1 and 2; the experiment 1 and 5"),
        "cores": Entry("CPU devices", default="one a core"), "repeats": Entry("measurements"),
        "seconds": Entry("seconds"), "millions": Entry("million parameters"),
        "compile_for": Entry(default="none: measured here"),
    },
}  # fmt: skip


def _settings(group):
    """Return an entry for each setting of a group."""
    found = {name: field.metadata for name, field in FIELDS.items() if field.metadata["group"] == group}
    return {name: Entry(facts["unit"], facts["symbol"], facts["unset"]) for name, facts in found.items()}


GROUPS = {group: {**flags_, **_settings(group)} for group, flags_ in _PROCESS.items()}
SYNONYMS = {  # what flags are called elsewhere
    "batch": "batch_size", "data": "dataset", "lambda": "shrink", "logdir": "workdir", "lr": "learning_rate",
    "num_epochs": "epochs", "num_rounds": "rounds", "num_seeds": "seeds", "output_dir": "workdir",
    "sigma": "noise_scale",
}  # fmt: skip
_ENTRIES = {flag: entry for group in GROUPS.values() for flag, entry in group.items()}


def page(about: str, defined: Iterable[flags.Flag]) -> str:
    """Return the help of a binary: its docstring, `about`, then its flags by theme; those without one stand last."""
    own = {flag.name: flag for flag in defined}
    groups = {name: [own[flag] for flag in group if flag in own] for name, group in GROUPS.items()}
    groups["more"] = [flag for flag in own.values() if flag.name not in _ENTRIES]
    parts = [f"{name}\n" + "\n".join(map(_lines, found)) for name, found in groups.items() if found]
    hint = "Lists have commas and no spaces. --helpfull adds the flags of the libraries."
    return "\n\n".join([about.strip(), *parts, hint])


def default(flag: flags.Flag) -> str:
    """Return a flag's default as it would be typed, or in words; empty where it has none."""
    value = FIELDS[flag.name].default if flag.name in FIELDS else flag.default
    if value is None:
        return _ENTRIES.get(flag.name, Entry()).default
    if flag.boolean:
        return "on" if value else "off"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _lines(flag):
    """`--flag   symbol [unit] meaning. Default …`, over several lines."""
    entry = _ENTRIES.get(flag.name, Entry())
    meaning = FIELDS[flag.name].metadata["help"] if flag.name in FIELDS else flag.help
    signs = (entry.symbol, f"[{entry.unit}]" * bool(entry.unit))
    text = " ".join(word for word in (*signs, meaning, f"Default {default(flag)}.") if word)
    first, *rest = textwrap.wrap(text, WIDTH - INDENT, break_on_hyphens=False)
    name = f"  --{'[no]' * flag.boolean}{flag.name}"
    return "\n".join([f"{name:{INDENT}}{first}", *(" " * INDENT + line for line in rest)])
