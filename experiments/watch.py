"""What is looked at while an experiment trains: curves of each epoch, gradient norms, similarity to the start."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from experiments import results
from experiments.grid import Member
from experiments.workdir import Job
from sp_jax import diagnostics, sweeps


class Watcher:
    """Collects what the job asks for and writes `curves.csv`."""

    def __init__(self, job: Job):
        """Writes nothing yet."""
        self._experiment, self._varied, self._folder = job.experiment, job.varied, job.folder
        self._learning = job.grid.base.curves
        self._found = defaultdict(list)  # (group, round) -> (seed, epoch, name, value)
        self._norms = {}  # trainer -> what measures gradient norms
        self._looks = self._learning or job.experiment.gradient_norms
        self._file = None

    def open(self) -> None:
        """Opens `curves.csv` where the job has one; only the host that writes does."""
        if self._looks:
            self._file = results.Table.curves(self._folder / "curves.csv", self._varied)

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns that it adds to `results.csv`."""
        return results.SIMILARITIES if self._experiment.similarity else ()

    def check_holds(self, member: Member, rounds: int) -> None:
        """Raises a `UsageError` where the curves of a member's first so many rounds are not all there."""
        if self._file:
            first = 1 if self._learning else 2
            self._file.check_holds(self._experiment.name, member, self._varied, rounds, first=first)

    def watch(self, on_chunk: Callable | None) -> sweeps.Watch:
        """What `sweeps.run` calls; nothing per epoch or round unless the job asks for it."""
        on_epoch = self._on_epoch if self._looks else None
        return sweeps.Watch(on_chunk, on_epoch, self._similarity if self._experiment.similarity else None)

    def write(self, member: Member, finished: sweeps.Finished) -> None:
        """Appends the curves of a finished round."""
        if self._file:
            round_ = finished.results[0].round
            found = self._found[finished.owner, round_]
            name = self._experiment.name
            self._file.append(results.curve_rows(name, member, self._varied, round_, found))

    def _on_epoch(self, group, round_, lanes, progress):
        phase = group.phases[round_ - 1]
        engine = phase.engine
        values = {}
        if self._learning:
            evaluation = engine.evaluate(lanes, progress.state)
            values |= {"train_accuracy": progress.train_accuracy, "train_loss": progress.train_loss}
            values |= {"validation_accuracy": evaluation.accuracy, "validation_loss": evaluation.loss}
        if self._experiment.gradient_norms and round_ > 1:
            num_old = group.phases[round_ - 2].num_visible
            values |= engine.measure(self._norm(engine), lanes, progress.state, np.int32(num_old), np.int32(phase[2]))
        self._keep(group, round_, phase.lanes.seed, *engine.fetch((values, progress.replace(state=None))))

    def _keep(self, group, round_, seeds, values, progress):
        """Books the lanes that have trained an epoch since the last time; lanes that have stopped have not."""
        found = self._found[group.name, round_]
        newest = {seed: epoch for seed, epoch, *_ in found}
        for i, seed in enumerate(seeds.tolist()):
            epoch = int(progress.epoch[i])
            if epoch > newest.get(seed, -1):
                found += [(seed, epoch, name, float(x[i])) for name, x in values.items() if not np.isnan(x[i])]

    def _norm(self, engine):
        return self._norms.setdefault(engine, diagnostics.gradient_norms(engine.trainer))

    def _similarity(self, phase, lanes, before, after):
        return phase.engine.measure(diagnostics.measure_similarity, lanes, (after.params, before.params))
