"""A run planned once: which experiment, with which settings, where; what each trial does in each round, on what."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config import own_methods
from experiments.config.fields import UsageError
from experiments.config.settings import FIELDS, Settings
from experiments.config.streams import Amount
from experiments.config.sweep import Grid, Product, Trial, resolve, several
from experiments.records import run_folder
from experiments.reporting import leaderboard
from experiments.running.builder import Builder
from experiments.specs import registry
from experiments.specs.base import Experiment, RoundSpec
from sp_jax import sweeps

Rounds = Mapping[Trial, tuple[RoundSpec, ...]]  # what each trial of a grid does in each round


class Job(NamedTuple):
    """One experiment, ready to run."""

    experiment: Experiment
    grid: Grid
    folder: pathlib.Path

    @property
    def varied(self) -> tuple[str, ...]:
        """The settings that differ between rows, and those that the experiment's figures are drawn over anyway."""
        return tuple(name for name in FIELDS if name in (*self.grid.varied, *self.experiment.over))

    def rounds(self, sizes: Callable[[Settings], Amount]) -> Rounds:
        """Return what each trial does in each round; `sizes` says how much there is to train on."""
        schedule = self.experiment.schedule
        return {t: schedule(t.settings, t.cell, sizes)[: t.settings.rounds] for t in self.grid.members()}


class RunPlan(NamedTuple):
    """A job with its rounds, as groups of lanes on engines."""

    job: Job
    rounds: Rounds
    groups: tuple[sweeps.Group, ...]
    side_by_side: tuple[int, ...]  # lanes that each engine trains at once

    @property
    def trials(self) -> dict[str, Trial]:
        """The trials by the names of their groups."""
        return {trial.name: trial for trial in self.rounds}

    @property
    def visible(self) -> dict[str, list[int]]:
        """How many samples have arrived in each round of each group."""
        return {group.name: [phase.num_visible for phase in group.phases] for group in self.groups}

    def epochs(self, done: Mapping[str, int]) -> dict[str, list[int | None]]:
        """Return how many epochs each round of each group will train, of which each has finished so many: 0 where it
        shares the round of a group before it; None where that is known when it has converged."""
        shared = sweeps.shared_rounds(self.groups, done)
        return {
            name: [0 if here else phase.exactly for here, phase in zip(rounds, phases, strict=True)]
            for phases, (name, rounds) in zip(self.rounds.values(), shared.items(), strict=True)
        }

    @property
    def samples(self) -> dict[str, int]:
        """How many samples the data sets have."""
        engines = dict.fromkeys(phase.engine for group in self.groups for phase in group.phases)
        return {engine.data.name: len(engine.data.labels) for engine in engines}

    def write_config(self, start: Mapping[str, Any]) -> dict[str, Any]:
        """Write the run's `config.json`; see `run_folder.write_config`."""
        visible = self.visible
        facts = {
            "experiment": self.job.experiment.name,
            **self.job.grid.to_json(),
            "own_methods": own_methods.fingerprints(self.job.grid.values("method")),
            "samples": self.samples,
            "side_by_side": list(self.side_by_side),
            "arrivals": list(max(visible.values(), key=len)),
            "rounds": {name: len(rounds) for name, rounds in visible.items()},
        }
        return run_folder.write_config(self.job.folder, facts, start)


def build(job: Job, rounds: Rounds, builder: Builder) -> RunPlan:
    """Make the groups of a job."""
    groups = tuple(builder.group(trial, specs) for trial, specs in rounds.items())
    return RunPlan(job, rounds, groups, tuple(builder.side_by_side))


def jobs(
    names: Sequence[str] | None, preset: str | None, explicit: Product, workdir: str | None, resume: bool
) -> list[Job]:
    """Find what to run, with which settings, where. Writes nothing.

    Settings are an experiment's defaults, then the preset's, then the flags that were given; when a run is resumed they
    are the run's own, and preset and flags may only ask for more rounds.

    Args:
      names: experiments; by default `online`, or all that `workdir` holds where it is resumed.
      preset: "quick" (default) or "paper".
      explicit: settings by flags, each with its values.
      workdir: by default a new folder `runs/<experiment>-<time>`; each experiment has a subfolder where several run.
      resume: go on where `workdir` stopped.

    Returns:
      A job for each experiment.

    Raises:
      UsageError: unknown names, senseless settings, a folder that holds another run or cannot be written.
    """
    if resume and not workdir:
        raise UsageError("--resume needs --workdir=<folder>: which run should go on?")
    named, names = bool(names), names or ("online",)
    many = len(names) > 1
    base = run_folder.expand(workdir) if workdir else run_folder.new_folder(names)
    run_folder.check_writable(base)
    if not resume:
        run_folder.check_empty(base)
    elif not named:
        names, many = run_folder.held(base) or (names, many)
    found = []
    for name in names:
        experiment = registry.get(name)
        folder = base / name if many else base
        saved = run_folder.read_if_there(folder) if resume else None
        if saved is None:
            run_folder.check_no_orphans(folder)
            grid = resolve(experiment.presets[preset or "quick"], explicit)
        else:
            whole = resolve(experiment.presets[preset], explicit) if preset else None
            asked = {field: whole.asked(field) for field in FIELDS} if whole else explicit
            grid = _resumed(folder, name, saved, asked)
        if experiment.tuned:
            leaderboard.check_names(grid.members())
        found.append(Job(experiment, grid, folder))
    return found


def _resumed(folder, name, config, asked):
    """Return the grid of the run in `folder`, with as many rounds as are asked for now."""
    if config["experiment"] != name:
        raise UsageError(f"{folder} holds a run of {config['experiment']}, not of {name}; choose another --workdir")
    grid = Grid.from_json(config)
    for field, given in asked.items():
        if field != "rounds" and set(given) != set(grid.asked(field)):
            raise UsageError(
                f"--resume: the run in {folder} has {field}={several(grid.asked(field))}, not {several(given)}; leave "
                "that flag out, or choose another --workdir"
            )
    rounds = asked.get("rounds", (grid.base.rounds,))[0]
    planned = len(config.get("arrivals", []))
    if rounds is not None and rounds < planned:
        raise UsageError(f"--resume: the run in {folder} has {planned} rounds; --rounds may only ask for more")
    return grid._replace(base=dataclasses.replace(grid.base, rounds=rounds))
