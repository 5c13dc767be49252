"""From settings to programs: which settings are compiled in, and what each restart uses."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from experiments.config import fields
from experiments.config.choices import RESTARTS
from experiments.config.settings import FIELDS, Settings
from experiments.config.sweep import Grid
from experiments.reporting import summary
from experiments.running import builder
from experiments.specs.base import RoundSpec
from sp_jax.types import Batches, Dataset, TrainState

rng = np.random.default_rng(0)
INPUTS, LABELS = rng.normal(size=(90, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 90).astype(np.int32)
SMALL = Dataset(INPUTS, LABELS, 3, "mixture")
BASE = Settings(hidden=(4,), seeds=1, restart=("shrink_perturb",))
OTHER = {  # another value of each setting
    "dataset": "textures", "source": "textures", "fraction": 0.5, "model": "logistic", "width": 8,
    "stage_sizes": (1,), "depth": 2, "heads": 1, "norm": "layer", "hidden": (5,),
    "activation": "relu", "bias": False, "init": "flax", "optimizer": "sgd",
    "learning_rate": 0.5, "decay_every": 3, "batch_size": 7, "weight_decay": 0.5, "penalty": "confidence",
    "penalty_strength": 0.5, "method": "l2_init", "method_strength": 0.5, "precision": "bfloat16",
    "restart": ("random_init",), "pairs": ("0.5:0.5",), "shrink": ("0.5",), "noise_scale": ("0.5",), "noise": "fresh",
    "statistics": "keep", "optimizer_state": "keep", "trained": "head", "restart_first": True, "seeds": 2,
    "augment": "flip", "samples": "tuning", "task_stream": "random_labels", "window_size": 7, "classes_per_round": 2,
    "noise_rounds": 7, "task_period": 7, "tuning_seeds": 3, "with_streams": ("growing", "random_labels"),
    "contenders": ("none",), "steps": 7, "shuffle": "never", "measures": ("online_accuracy",),
    "samples_per_round": 7, "first_fraction": 0.25, "first_learning_rate": 0.5, "first_batch_size": 7,
    "first_epochs": 7, "rounds": 7, "train_accuracy": 0.5, "patience": 7, "max_epochs": 7, "epochs": 7, "curves": True,
    "keep_networks": "none",
}  # fmt: skip
AT_WORK = {name: field.metadata["at_work"] for name, field in FIELDS.items()}
NEEDS = {
    "penalty_strength": {"penalty": "confidence"}, "method_strength": {"method": "l2_init"},
    "samples": {"samples": "final"},
}  # fmt: skip


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


def groups_of(*settings):
    members = [Grid(each).members()[0] for each in settings]
    plan = {member: (RoundSpec(member.settings, 10), RoundSpec(member.settings, 20)) for member in members}
    made = builder.Builder({"mixture": SMALL, "textures": SMALL}, plan)
    return [made.group(*each) for each in plan.items()]


def test_every_setting_has_another_value_here():
    assert set(OTHER) == set(FIELDS)
    assert {AT_WORK[name] for name in FIELDS} == {fields.COMPILED, fields.TRACED, fields.OF_RESTART, fields.ON_HOST}


@pytest.mark.parametrize("name", [*OTHER, "temperature"])
def test_only_what_is_declared_traced_or_the_hosts_own_shares_programs(name):
    one, other = groups_of(*pair(name))
    where = AT_WORK.get(name, fields.COMPILED)
    for a, b in zip(one.phases, other.phases, strict=True):
        assert (a.engine is b.engine) == (where != fields.COMPILED and name != "task_stream")  # see `streams.compiled`
    if where == fields.OF_RESTART:
        assert one.phases[1].restart is not other.phases[1].restart
    if where == fields.TRACED:
        leaves = zip(*(jax.tree.leaves(each.phases[1].lanes) for each in (one, other)), strict=True)
        assert any((a != b).any() for a, b in leaves)


@pytest.mark.parametrize(("name", "noise"), [*((name, "gaussian") for name in RESTARTS), ("noise_only", "fresh")])
def test_a_restart_uses_the_amounts_that_it_declares_and_no_other(name, noise):
    """The restarted parameters change when, and only when, a declared amount does."""
    (group,) = groups_of(dataclasses.replace(BASE, restart=(name,), noise=noise))
    engine, restart = group.phases[1].engine, group.phases[1].restart
    states = [TrainState(engine.trainer.model.init(jax.random.key(i))[0], {}, ()) for i in (0, 1)]
    batches = Batches(INPUTS[None, :7], np.ones((1, 7), bool), LABELS[None, :7])

    def restarted(shrink=0.5, noise_scale=0.25):
        amounts = {"shrink": shrink, "noise_scale": noise_scale}
        return restart(jax.random.key(2), *states, **amounts, batches=batches).params

    start = restarted()
    for amount, value in (("shrink", 0.75), ("noise_scale", 0.5)):
        same = jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), start, restarted(**{amount: value})))
        assert same == (amount not in RESTARTS[name].uses), amount


def test_cells_differ_in_nothing_that_their_restart_does_not_use():
    given = Settings(restart=tuple(RESTARTS), shrink=("0.8", "0.6"), noise_scale=("0.1", "0.2", "0.3"))
    counts = Counter(cell.restart for cell in given.cells())
    assert counts == {
        "warm_start": 1, "random_init": 1, "shrink_perturb": 6, "noise_only": 3, "last_layer": 6, "dash": 2, "fire": 1,
    }  # fmt: skip
    assert [summary.label(summary.Line((), cell)) for cell in Settings(restart=tuple(RESTARTS)).cells()] == [
        "warm start", "random init", "shrink-perturb λ=0.8 σ=0.01", "shrink-perturb λ=0.6 σ=0.01",
        "shrink-perturb λ=0.4 σ=0.1", "noise only σ=0.01", "last layer λ=0.8 σ=0.01", "last layer λ=0.6 σ=0.01",
        "last layer λ=0.4 σ=0.1", "DASH λ=0.3", "FIRE",
    ]  # fmt: skip
