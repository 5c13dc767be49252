"""From settings to programs: which settings are compiled in, and what each restart uses."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import build
from experiments.grid import Grid
from experiments.settings import FIELDS, Settings
from experiments.spec import Phase
from sp_jax.types import Dataset

rng = np.random.default_rng(0)
INPUTS, LABELS = rng.normal(size=(90, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 90).astype(np.int32)
SMALL = Dataset(INPUTS, LABELS, 3, "mixture")
BASE = Settings(hidden=(4,), seeds=1, restart=("shrink_perturb",))
OTHER = {  # another value of each setting
    "dataset": "textures", "source": "textures", "fraction": 0.5, "model": "logistic", "width": 8,
    "stage_sizes": (1,), "hidden": (5,), "activation": "relu", "bias": False, "init": "flax", "optimizer": "sgd",
    "learning_rate": 0.5, "decay_every": 3, "batch_size": 7, "weight_decay": 0.5, "penalty": "confidence",
    "penalty_strength": 0.5, "method": "l2_init", "method_strength": 0.5, "precision": "bfloat16",
    "restart": ("random_init",), "pairs": ("0.5:0.5",), "shrink": ("0.5",), "noise_scale": ("0.5",), "noise": "fresh",
    "statistics": "keep", "optimizer_state": "keep", "trained": "head", "restart_first": True, "seeds": 2,
    "samples_per_round": 7, "first_fraction": 0.25, "first_learning_rate": 0.5, "first_batch_size": 7,
    "first_epochs": 7, "rounds": 7, "train_accuracy": 0.5, "patience": 7, "max_epochs": 7, "epochs": 7, "curves": True,
    "keep_networks": "none",
}  # fmt: skip
NEEDS = {"penalty_strength": {"penalty": "confidence"}, "method_strength": {"method": "l2_init"}}


@dataclasses.dataclass(frozen=True)
class More(Settings):
    """With a setting that nobody has declared."""

    temperature: float = 1.0


def pair(name):
    """Two settings that differ in one alone."""
    base = (More if name == "temperature" else Settings)(
        **{field: getattr(BASE, field) for field in FIELDS} | NEEDS.get(name, {})
    )
    return base, dataclasses.replace(base, **{name: {**OTHER, "temperature": 2.0}[name]})


def builder(*settings):
    members = [Grid(each).members()[0] for each in settings]
    plan = {member: (Phase(member.settings, 10), Phase(member.settings, 20)) for member in members}
    made = build.Builder({"mixture": SMALL, "textures": SMALL}, plan)
    return [made.group(*each) for each in plan.items()]


def test_every_setting_has_another_value_here():
    assert set(OTHER) == set(FIELDS)
    declared = build.TRACED + build.OF_RESTARTS + build.ON_HOST
    assert len(set(declared)) == len(declared)
    assert set(declared) < set(FIELDS)


@pytest.mark.parametrize("name", [*OTHER, "temperature"])
def test_only_what_is_declared_traced_or_the_hosts_own_shares_programs(name):
    one, other = builder(*pair(name))
    declared = name in build.TRACED + build.OF_RESTARTS + build.ON_HOST
    for a, b in zip(one.phases, other.phases, strict=True):
        assert (a.engine is b.engine) == declared
    if name in build.OF_RESTARTS:
        assert one.phases[1].restart is not other.phases[1].restart
    if name in build.TRACED:
        leaves = zip(*(jax.tree.leaves(each.phases[1].lanes) for each in (one, other)), strict=True)
        assert any((a != b).any() for a, b in leaves)
