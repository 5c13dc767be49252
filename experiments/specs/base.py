"""The declarative description of an experiment."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.config.settings import RestartSetting, Settings
from experiments.config.streams import Amount


class RoundSpec(NamedTuple):
    """One round of an experiment; a restart precedes each but the first."""

    settings: Settings  # in force in this round
    num_visible: int  # samples that have arrived
    epochs: int | None = None  # exactly so many; None: as in the settings

    @property
    def exactly(self) -> int | None:
        """How many epochs the round has whatever its accuracy; None where it ends when it has converged."""
        return self.settings.epochs if self.epochs is None else self.epochs


Schedule = Callable[[Settings, RestartSetting, Callable[[Settings], Amount]], tuple[RoundSpec, ...]]


class Experiment(NamedTuple):
    """A table or figure of the paper."""

    name: str
    paper: str  # which tables and figures
    summary: str  # one line: its result
    schedule: Schedule  # (settings, cell, how much there is to train on) -> the rounds
    presets: Mapping[str, Mapping[str, Any]]  # "quick" and "paper": settings, under "vary" those that vary (`resolve`)
    figures: tuple[tuple[str, Mapping[str, Any]], ...]  # functions of `experiments.reporting.plotting`, with arguments
    over: tuple[str, ...] = ()  # settings that the figures are drawn over: columns of results.csv in any case
    claims: tuple[int, ...] = ()  # of `experiments.reporting.claims`
    nearest_to: str | None = None  # the experiment whose printed numbers its variants are ranked by
    gradient_norms: bool = False  # of old and new data after each epoch of the second round, into curves.csv
    tuned: bool = False  # trials of --samples=tuning choose which of --samples=final are run; a leaderboard
    similarity: bool = False  # of each round's solution to its start: more columns of results.csv
