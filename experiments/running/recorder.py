"""Measurements while an experiment trains: curves of each epoch, gradient norms, similarity to the start."""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.config.sweep import Trial
from experiments.records import networks, results
from experiments.running.plan import RunPlan
from sp_jax import diagnostics, sweeps


class Recorder:
    """Collects the measurements of a job and writes `results.csv`, `curves.csv` and the networks."""

    def __init__(self, plan: RunPlan, board: Callable[..., Any] | None = None):
        """Store the plan and, if requested, the `Board` of `experiments.records.tensorboard`; write nothing yet."""
        job = plan.job
        self._experiment, self._varied, self._folder = job.experiment, job.varied, job.folder
        self._learning = job.grid.base.curves
        self._found = defaultdict(list)  # (group, round) -> (seed, epoch, name, value)
        self._norms, self._signs = {}, {}  # engine -> the measure of gradient norms, of lost plasticity
        self._asked = tuple(job.grid.base.measures or ())
        self._looks = self._learning or job.experiment.gradient_norms
        self._keep_networks = networks.which(job.grid.base.keep_networks, plan.groups)
        self._files = {}  # of the host that writes, by name
        self._make_board, self._board = board, None

    def open(self, note: Mapping[str, Any]) -> None:
        """Open the tables as they were when the note was made; only the host that writes calls it.

        The note is the result of `note` in the checkpoint that the run resumes from; empty at its beginning.

        Raises:
          UsageError: a table is not what was written then, or cannot be written.
        """
        sound = {name: results.Sound(*found) for name, found in note.get("files", {}).items()}
        tables = {"results.csv": functools.partial(results.Table.results, measures=self.measures)}
        tables |= {"curves.csv": results.Table.curves} if self._looks else {}
        for name, table in tables.items():
            self._files[name] = table(self._folder / name, self._varied, sound=sound.get(name, results.NOTHING))
        for group, round_, found in note.get("found", []):
            self._found[group, round_] = [tuple(each) for each in found]
        if self._make_board:
            self._board = self._make_board(self._folder, self._varied)

    def note(self) -> dict[str, Any]:
        """Return the state for a checkpoint: size and checksum of each file, and the current round's curves."""
        found = [(*key, values) for key, values in self._found.items()]
        return {"files": {name: table.sound for name, table in self._files.items()}, "found": found}

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns that the recorder adds to `results.csv`."""
        return (*(results.SIMILARITIES if self._experiment.similarity else ()), *self._asked)

    def watch(self, on_chunk: Callable | None, stop: Callable[[], bool]) -> sweeps.Callbacks:
        """Return the callbacks of `sweeps.run`; none per epoch or round unless the job needs them."""
        on_epoch = self._on_epoch if self._looks else None
        costly = self._experiment.similarity or set(self._asked) - {"online_accuracy"}
        return sweeps.Callbacks(on_chunk, on_epoch, self._measure if costly else None, stop, self.note)

    def write(self, member: Trial, finished: sweeps.Finished) -> None:
        """Append the rows of a finished round; curves and networks are written first, so that no row lacks them."""
        name, round_ = self._experiment.name, finished.results[0].round
        curves = []
        if self._looks:
            found = self._found[finished.owner, round_]
            curves = self._files["curves.csv"].append(results.curve_rows(name, member, self._varied, round_, found))
        rows, table = results.rows(name, member, self._varied, finished, self.measures), self._files["results.csv"]
        last = round_ == len(finished.group.phases)
        if self._keep_networks == "all" or (self._keep_networks == "last" and last):
            # An existing row was measured on the existing network, which is therefore kept.
            networks.write(self._folder, member, finished, rows, new=table.missing(rows))
        rows = table.append(rows)
        if self._board:
            self._board.add_rounds(rows)
            self._board.add_curves(curves)

    def _on_epoch(self, group, round_, lanes, progress):
        phase = group.phases[round_ - 1]
        engine = phase.engine
        values = {}
        if self._learning:
            evaluation = engine.evaluate(lanes, progress.state, round_)
            values |= {"train_accuracy": progress.train_accuracy, "train_loss": progress.train_loss}
            values |= {"validation_accuracy": evaluation.accuracy, "validation_loss": evaluation.loss}
        if self._experiment.gradient_norms and round_ > 1:
            num_old = group.phases[round_ - 2].num_visible
            counts = np.int32(num_old), np.int32(phase.num_visible)
            values |= engine.measure(self._norm(engine), lanes, progress.state, *counts, round_=round_)
        self._keep(group, round_, phase.lanes.seed, *engine.fetch((values, progress.replace(state=None))))

    def _keep(self, group, round_, seeds, values, progress):
        """Record the values of lanes that have trained an epoch since the last call, which stopped lanes have not."""
        for past in [key for key in self._found if key[1] < round_]:
            del self._found[past]
        found = self._found[group.name, round_]
        newest = {seed: epoch for seed, epoch, *_ in found}
        for i, seed in enumerate(seeds.tolist()):
            epoch = int(progress.epoch[i])
            if epoch > newest.get(seed, -1):
                found += [(seed, epoch, name, float(x[i])) for name, x in values.items() if not np.isnan(x[i])]

    def _norm(self, engine):
        return self._norms.setdefault(engine, diagnostics.gradient_norms(engine.trainer))

    def _measure(self, phase, round_, lanes, before, after):
        engine, found = phase.engine, {}
        if self._experiment.similarity:
            carry = (after.params, before.params)
            found |= engine.measure(diagnostics.measure_similarity, lanes, carry, round_=round_)
        if set(self._asked) - {"online_accuracy"}:
            if engine not in self._signs:
                self._signs[engine] = diagnostics.plasticity(engine.trainer, self._asked)
            carry, count = (after, before.params), np.int32(phase.num_visible)
            found |= engine.measure(self._signs[engine], lanes, carry, count, round_=round_)
        return found
