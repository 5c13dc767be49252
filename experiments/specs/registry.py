"""The experiments by name."""

import importlib
import re

from experiments.config.fields import UsageError, check_choice
from experiments.specs.base import Experiment

NAMES = (  # in the order of the paper; `online` is the default, `two_phase` one cell of Table 1
    "figure1", "table1", "online", "online_svhn", "online_mlp", "online_mlp_svhn", "online_weight_decay",
    "online_weight_decay_svhn", "hyperparameters", "early_switch", "regularization", "noise_only", "last_layer",
    "gradient_balance", "shrink_only", "pretraining", "first_fraction", "forgetting", "static", "online_imdb",
    "online_last_layer", "online_schedule", "two_phase", "mlp_shapes", "methods", "class_incremental", "plasticity",
)  # fmt: skip
EXPERIMENTS = {name: importlib.import_module(f"experiments.specs.{name}").EXPERIMENT for name in NAMES}


def get(name: str) -> Experiment:
    """Return the experiment of a name.

    Raises:
      UsageError: there is none; suggests the nearest.
    """
    if name not in EXPERIMENTS and (shown := _showing(name)):
        raise UsageError(f"unknown --experiment={name}; what the paper shows there is --experiment={','.join(shown)}")
    check_choice("--experiment", name, NAMES)
    return EXPERIMENTS[name]


def _showing(text):
    """Return the experiments of a figure or table of the paper: `figure 7`, `Table2`."""
    asked = re.fullmatch(r"(fig|tab)\w*?[ ._]*(\d+)", text.lower())
    return [e.name for e in EXPERIMENTS.values() if asked and asked[1] in e.paper.lower() and _has(e.paper, asked[2])]


def _has(paper, number):
    """Return whether a text such as `Figures 9, 27-31` contains the number."""
    ranges = (part.split("-") for part in re.findall(r"\d+(?:-\d+)?", paper))
    return any(int(ends[0]) <= int(number) <= int(ends[-1]) for ends in ranges)
