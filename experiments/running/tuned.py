"""The stages of a run: all groups at once, or first those that tune and then those that they chose."""

from collections.abc import Iterator

from experiments.config.fields import UsageError
from experiments.records import results
from experiments.reporting import leaderboard
from experiments.running import multihost
from experiments.running.plan import RunPlan
from sp_jax import sweeps
from sp_jax.storage.checkpoints import Store


def stages(planned: RunPlan) -> Iterator[tuple[sweeps.Group, ...]]:
    """Yield the groups of each stage, those of the stages before included; the next is asked for when one is finished.

    Raises:
      UsageError: a tuned experiment on several hosts, of which only the first has the rows.
    """
    if not planned.job.experiment.tuned:
        yield planned.groups
        return
    if multihost.several():
        raise UsageError(f"{planned.job.experiment.name} chooses settings by its rows: leave out --coordinator")
    parts = {trial.name: trial.settings.samples for trial in planned.rounds}
    tuning = tuple(group for group in planned.groups if parts[group.name] == "tuning")
    yield tuning
    trials, rounds = tuple(planned.rounds), {trial: len(specs) for trial, specs in planned.rounds.items()}
    rows = results.read(planned.job.folder / "results.csv")
    best = leaderboard.finals(leaderboard.chosen(rows, trials, planned.job.varied, rounds), trials)
    names = {trial.name for trial in best.values()}
    yield (*tuning, *(group for group in planned.groups if group.name in names))


def labels(planned: RunPlan) -> dict[str, str]:
    """Return what to call each group, for people."""
    words = leaderboard.namer(planned.job.experiment.tuned)
    return {trial.name: words(trial) for trial in planned.rounds}


def is_complete(planned: RunPlan, store: Store) -> bool:
    """Return whether every group of every stage has finished all its rounds."""
    for groups in stages(planned):
        done = sweeps.finished_rounds(groups, store)
        if any(done[group.name] < len(group.phases) for group in groups):
            return False
    return True
