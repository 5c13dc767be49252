"""Name -> experiment."""

import importlib

from experiments.settings import check_choice
from experiments.spec import Experiment

NAMES = (  # in the order of the paper; `online` is the default, `two_phase` one cell of Table 1
    "figure1", "table1", "online", "online_svhn", "online_mlp", "online_mlp_svhn", "online_weight_decay",
    "online_weight_decay_svhn", "hyperparameters", "early_switch", "regularization", "noise_only", "last_layer",
    "gradient_balance", "shrink_only", "pretraining", "first_fraction", "forgetting", "static", "online_imdb",
    "online_last_layer", "online_schedule", "two_phase", "methods",
)  # fmt: skip
EXPERIMENTS = {name: importlib.import_module(f"experiments.specs.{name}").EXPERIMENT for name in NAMES}


def get(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
      UsageError: there is none; names the nearest.
    """
    check_choice("--experiment", name, NAMES)
    return EXPERIMENTS[name]
