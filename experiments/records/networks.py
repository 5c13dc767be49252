"""The networks that a run keeps: a safetensors file for each lane and round.

They lie in `networks/<setting>/seed_0_round_16.safetensors`.
"""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import choices, streams
from experiments.config.fields import UsageError, check_choice
from experiments.config.settings import Settings
from experiments.config.sweep import Trial
from experiments.records import results, run_folder
from experiments.records.results import Row
from sp_jax import data, sweeps, training
from sp_jax.storage import networks
from sp_jax.types import Dataset, Evaluation, Model, TrainState

logger = logging.getLogger("sp_jax.experiments")

FOLDER, SUFFIX = "networks", ".safetensors"
AUTO_BYTES = 2**30  # of all networks of a run together, up to which `auto` keeps all of them
UNTIMED = ("seconds",)  # of a row, not kept: the same training gives the same file


class Trained(NamedTuple):
    """A network after one round of one lane."""

    path: pathlib.Path
    row: Row  # of results.csv, without its seconds; λ and σ as they were typed
    settings: Settings  # in force in the round
    num_samples: int  # of its data set, so that the seed's validation third is known
    model: Model
    params: chex.ArrayTree
    batch_stats: chex.ArrayTree  # of BatchNorm; {} without

    def predict(self, inputs: chex.Array) -> chex.Array:
        """Return the logits [B, classes] of inputs [B, ...], as the data set has them, in evaluation mode."""
        return self.model.apply(self.params, self.batch_stats, jnp.asarray(inputs), None, False)[0]

    def evaluate(self, dataset: Dataset | None = None) -> Evaluation:
        """Measure the network on its seed's held-out third (Section 2.1), as its row of `results.csv` was.

        The data set is by default loaded by name, from `TFDS_DATA_DIR` where TFDS has it. Accuracy (fraction) and mean
        loss (nats) are those of the row on the device that trained it.

        Raises:
          UsageError: a data set of another size.
          DataError: it cannot be had.
        """
        dataset = data.load(self.settings.dataset) if dataset is None else dataset
        if len(dataset.labels) != self.num_samples:
            raise UsageError(
                f"{dataset.name} has {len(dataset.labels):,} samples, the run in which {self.path} was trained had "
                f"{self.num_samples:,}: its validation third is not known"
            )
        alone = dataclasses.replace(self.settings, with_streams=None)
        stream, (seed, round_) = streams.stream(alone, dataset), (self.row["seed"], self.row["round"])
        _, (validation,) = streams.indices(self.settings, stream, dataset.labels, [seed])
        count = stream.held_out_count and np.minimum(stream.held_out_count(round_), len(validation))
        state, held_out = TrainState(self.params, self.batch_stats, ()), stream.held_out(seed, round_, dataset)
        return _measure(self.model, state, held_out, validation, count=count)


def load(folder: str | pathlib.Path, **which: Any) -> Trained:
    """Load the network of one lane after one round, with its model, from the folder of a run, or of several.

    Args:
      folder: the runs'.
      **which: columns of `results.csv` and their values, enough to leave one lane: `restart`, `shrink`, `noise_scale`,
        `seed`, whatever the run varies, as `batch_size`. Without `round` it is the newest that was kept: of a lane that
        diverged, that of the last round before.

    Raises:
      UsageError: none fits, or several do: says what there is.
      CheckpointError: the file is damaged.
    """
    found = select(folder, **which)
    if "round" not in which:
        newest = max(row["round"] for row in found.values())
        found = {path: row for path, row in found.items() if row["round"] == newest}
    if len(found) > 1:
        raise UsageError(f"{len(found)} networks in {folder} fit; say more: {differences(found.values())}")
    return read(*found)


def select(folder: str | pathlib.Path, **which: Any) -> dict[pathlib.Path, Row]:
    """Find all networks that were kept and fit, as of `load`: each file's row of `results.csv`, by lane and round.

    Raises:
      UsageError: there is no such folder, no network in it, or an unknown column.
      CheckpointError: a file is damaged.
    """
    folder = run_folder.expand(str(folder))
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}: name one that experiments.run has written to")
    paths = sorted(folder.rglob(f"*{SUFFIX}"))
    if not paths:
        raise UsageError(f"no network was kept in {folder}; name the folder of a run (see --keep_networks)")
    rows = {path: results.parse(networks.read_note(path)["row"]) for path in paths}
    for name in which:
        check_choice("column", name, tuple(dict.fromkeys(name for row in rows.values() for name in row)))
    found = {path: row for path, row in rows.items() if all(_fits(row.get(k), v) for k, v in which.items())}
    if not found:
        asked = ", ".join(f"{name}={results.text(value)}" for name, value in which.items())
        raise UsageError(f"no network in {folder} has {asked}; there are {differences(rows.values(), which)}")
    return dict(sorted(found.items(), key=lambda item: (item[0].parent, item[1]["seed"], item[1]["round"])))


def read(path: str | pathlib.Path) -> Trained:
    """Load the network of a file, which may have been moved anywhere, with its model.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    path = pathlib.Path(path)
    note = networks.read_note(path)
    settings = Settings.from_json(note["settings"])
    model = _model(settings, tuple(note["inputs"]["shape"]), note["inputs"]["dtype"], note["num_classes"])
    found = networks.load(path, like=jax.eval_shape(model.init, jax.random.key(0)))
    return Trained(
        path, results.parse(note["row"]), settings, note["num_samples"], model, found.params, found.batch_stats
    )


def which(keep: str, groups: Sequence[sweeps.Group]) -> str:
    """Decide which rounds' networks a run keeps, of all that it trains: `all`, `last` or `none`.

    The setting `keep` may be `auto` too: then all of them up to `AUTO_BYTES`, else the last round's; the log says so.
    """
    phases = [group.phases for group in groups]
    total, last = (sum(_bytes(phase) for each in phases for phase in each[start:]) for start in (0, -1))
    if keep != "auto" or total <= AUTO_BYTES:
        return "all" if keep == "auto" else keep
    if jax.process_index() == 0:
        sizes = f"{last / 2**30:.1f} GiB; all rounds' would be {total / 2**30:.1f} (--keep_networks=all, none)"
        logger.info("the networks of the last round are kept, %s", sizes)
    return "last"


def write(
    folder: pathlib.Path, member: Trial, finished: sweeps.Finished, rows: Sequence[Row], new: Sequence[Row]
) -> None:
    """Write the networks of a group that has finished a round, a file for each lane that has not diverged, into a run's
    folder: of the rows of `results.csv`, one for each lane, those of `new`.

    Raises:
      CheckpointError: one cannot be written; those before are as they were.
    """
    engine = finished.group.phases[finished.results[0].round - 1].engine
    state, inputs = engine.trainer.method.evaluated(finished.state), engine.data.batch(1).inputs
    settings = dataclasses.replace(member.settings, dataset=engine.data.name)
    about = {
        "settings": settings.to_json(),
        "inputs": {"shape": inputs.shape[1:], "dtype": str(inputs.dtype)},
        "num_classes": engine.data.num_classes,
        "num_samples": len(engine.data.labels),
    }
    for i, row in enumerate(rows):
        if row in new and row.get("stop_reason") != "nan":  # a network that is not finite is of no use
            path = folder / FOLDER / member.name / f"seed_{row['seed']}_round_{row['round']}{SUFFIX}"
            params, batch_stats = jax.tree.map(lambda x, i=i: x[i], (state.params, state.batch_stats))
            kept = {name: value for name, value in row.items() if name not in UNTIMED}
            networks.save(path, params, batch_stats, note={"row": kept, **about})


_measure = jax.jit(training.evaluate, static_argnums=0)


@functools.cache
def _model(settings, shape, dtype, num_classes):
    """Return the same object for the same settings, so that what is compiled with it is compiled once."""
    inputs = jax.ShapeDtypeStruct((1, *shape), dtype)
    return choices.model(settings, Dataset(inputs, None, num_classes, settings.dataset))


def _bytes(phase):
    """Count the bytes of the networks of a round's lanes."""
    network = jax.eval_shape(phase.engine.trainer.model.init, jax.random.key(0))
    each = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(network))
    return len(phase.lanes.seed) * each


def _fits(value, wanted):
    """Return whether a column has this value; numbers are compared as numbers."""
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return results.text(value) == results.text(wanted)


def differences(rows, names=None):
    """Return what the rows have in these columns, by default in those that say which lane it is and differ."""
    rows = list(rows)
    values = {name: dict.fromkeys(results.text(row[name]) for row in rows) for name in names or rows[0]}
    shown = names or [name for name in values if name not in results.MEASURED and len(values[name]) > 1]
    return "; ".join(f"{name} {', '.join(values[name])}" for name in shown)
