"""A run as it lies in its folder, read once: settings, grid, rows, curves, and how far it was to go."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.config.fields import UsageError
from experiments.config.settings import FIELDS
from experiments.config.sweep import Grid
from experiments.records import results, run_folder
from experiments.records.results import Row
from experiments.reporting import leaderboard, summary
from experiments.specs import registry
from experiments.specs.base import Experiment

NO_SETTING = (*results.MEASURED, *summary.LANE)  # columns that may be named as a setting is


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """One run of one experiment."""

    folder: pathlib.Path
    config: Mapping[str, Any]  # of its config.json
    experiment: Experiment
    grid: Grid
    rows: list[Row]  # of results.csv; at least one
    curves: list[Row]  # of curves.csv
    planned: Mapping[summary.Line, summary.Plan]  # how far each line goes in the end

    @property
    def has_all_rounds(self) -> bool:
        """Whether it has all of the experiment's rounds, so that its last ones are the paper's."""
        return self.grid.base.rounds in (None, *(each.get("rounds") for each in self.experiment.presets.values()))

    @property
    def is_of_the_paper(self) -> bool:
        """Whether its samples arrive as the paper's do, so that its claims say something of it."""
        return {*self.grid.values("task_stream")} == {"growing"}

    @property
    def is_comparable(self) -> bool:
        """Whether its last rounds stand beside the paper's numbers."""
        return self.has_all_rounds and self.is_of_the_paper and {*self.grid.values("samples")} == {"all"}

    @functools.cached_property
    def board(self) -> leaderboard.Board:
        """The leaderboard of a tuned experiment."""
        return leaderboard.board(self.rows, *self._tuned())

    @property
    def wanted(self) -> int:
        """The number of lane-rounds of the whole run."""
        return sum(len(trial.settings.lane_seeds) * _rounds(self.config, trial) for trial in self._trials())

    def _trials(self):
        """Return the trials of the whole run; of a tuned experiment's final ones those that were chosen."""
        trials = self.grid.members()
        if not self.experiment.tuned:
            return trials
        final = leaderboard.finals(leaderboard.chosen(self.rows, *self._tuned()), trials).values()
        return (*(trial for trial in trials if trial.settings.samples == "tuning"), *final)

    def _tuned(self):
        """Return the trials, what varies, and the rounds of each."""
        trials = self.grid.members()
        return trials, self.grid.varied, {trial: _rounds(self.config, trial) for trial in trials}

    def missing(self) -> str:
        """Return what a partial run lacks: lane-rounds, and the trials that have no row; empty where it is complete."""
        if len(self.rows) >= self.wanted:
            return ""
        names = [name for name in self.grid.varied if name in self.rows[0]]
        have = {(r["restart"], r["shrink"], r["noise_scale"], *(results.text(r[n]) for n in names)) for r in self.rows}
        words = leaderboard.namer(self.experiment.tuned)
        absent = [
            words(t)
            for t in self._trials()
            if (*t.cell, *(results.text(getattr(t.settings, n)) for n in names)) not in have
        ]
        text = f"Partial: {len(self.rows):,} of {self.wanted:,} lane-rounds are finished."
        return text + (f" Not run: {'; '.join(absent)}." if absent else "")


def load(folder: pathlib.Path) -> LoadedRun:
    """Read a run.

    Raises:
      UsageError: the folder holds no run, a damaged one, or one without a finished round.
    """
    config = run_folder.read_config(folder)
    grid, rows = Grid.from_json(config), results.read(folder / "results.csv")
    if not rows:
        raise UsageError(f"{folder / 'results.csv'} holds no finished round yet")
    curves = results.read_curves(folder / "curves.csv")
    planned = _planned(config, grid, rows)
    return LoadedRun(folder, config, registry.get(config["experiment"]), grid, rows, curves, planned)


def _rounds(config, trial):
    return config.get("rounds", {}).get(trial.name, len(config["arrivals"]))


def _planned(config, grid, rows):
    """Return how far each line goes in the end; lines without a row are named by what sets them apart, too."""
    names, made = summary.varied(rows), {}
    same = {n: results.text(value) for n, value in rows[0].items() if n in FIELDS and n not in (*names, *NO_SETTING)}
    for trial in grid.members():
        other = [n for n in same if results.text(getattr(trial.settings, n)) != same[n]]
        variant = tuple((name, results.text(getattr(trial.settings, name))) for name in (*names, *other))
        made[summary.Line(variant, trial.cell)] = summary.Plan(_rounds(config, trial), len(trial.settings.lane_seeds))
    return made
