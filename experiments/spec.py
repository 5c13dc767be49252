"""What an experiment is: data, not code."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.settings import Settings


class Experiment(NamedTuple):
    """A table or figure of the paper."""

    name: str
    paper: str  # which tables and figures
    summary: str  # one line: what it shows
    arrivals: Callable[[Settings, int], tuple[int, ...]]  # (settings, training samples) -> visible in each round
    presets: Mapping[str, Mapping[str, Any]]  # of `Settings`: "quick" (minutes on a CPU) and "paper"
    figure: str  # a function of `experiments.plotting`
