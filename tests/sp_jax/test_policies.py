"""Every method with every policy of a restart: two rounds of a small task, never much worse than without the method."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sp_jax import models, restarts, sweeps, training
from sp_jax.plasticity.methods import METHODS
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams

MARGIN = 0.1  # of the validation accuracy, mean over the seeds
SEEDS, ARRIVALS, EPOCHS = (0, 1), (60, 160), 12  # 4 and 10 steps an epoch, the last one of a partial batch
POLICIES = tuple(itertools.product(restarts.STATISTICS, restarts.OPTIMIZER_STATES))
STRENGTHS = {"hare_tortoise": 0.99, "continual_backprop": 0.01}  # for rounds of hundreds of steps


def blobs():
    """Six classes of points around their centres, far from 0 and of unequal scale, so that BatchNorm has work to do."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 480)
    inputs = 3 * (rng.normal(size=(6, 8))[labels] + 0.8 * rng.normal(size=(480, 8))) + np.linspace(-20, 20, 8)
    return Dataset(inputs.astype(np.float32), labels.astype(np.int32), 6, "blobs")


class Net(nn.Module):
    normed: bool

    @nn.compact
    def __call__(self, x, mask=None, train=False):
        x = nn.Dense(24, name="hidden_0")(x if self.normed else x / 10 - jnp.linspace(-2, 2, 8)[None])
        if self.normed:
            mask = None if mask is None else mask[:, None]
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm_0")(x, mask=mask)
        x = nn.relu(x)
        self.sow("intermediates", "hidden_0_units", x)
        return nn.Dense(6, name="head")(x)

    def links(self):
        return (("hidden_0", "head", "norm_0" if self.normed else None),)


@functools.cache
def accuracies(name, normed):
    """Of the second round's end, mean over the seeds, for each pair of policies; all are lanes of one engine."""
    data, method = blobs(), METHODS[name]
    model = models.from_module(Net(normed), data.inputs)
    optimizer = training.adam_per_entry if method.steps_per_entry else training.adam
    engine = sweeps.Engine(
        Trainer(model, optimizer, 16, method=method), data, len(POLICIES) * len(SEEDS), side_by_side=64
    )
    hparams = HParams(0.01, method_strength=STRENGTHS.get(name, method.default_strength))
    seeds = [seed for _ in POLICIES for seed in SEEDS]
    lanes = sweeps.make_lanes(seeds, hparams, Convergence.exactly(EPOCHS), len(data.labels))
    names = ("statistics", "optimizer_state")
    pairs = [
        restarts.make_restart(restarts.warm_start, **dict(zip(names, p, strict=True)), model=model) for p in POLICIES
    ]
    restart = tuple(each for each in pairs for _ in SEEDS)
    placed, state = engine.place(lanes), None
    for round_, visible, before in zip((1, 2), ARRIVALS, (restarts.no_restart, restart), strict=True):
        state, found, _ = sweeps.train_round(sweeps.RoundPlan(engine, lanes, visible, before), round_, placed, state)
    means = np.reshape([each.validation_accuracy for each in found], (len(POLICIES), len(SEEDS))).mean(axis=1)
    return dict(zip(POLICIES, means, strict=True))


@functools.cache
def plain_accuracies(normed):
    return accuracies("none", normed)


@pytest.mark.slow
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
def test_a_method_is_never_much_worse_than_none(name, normed, monkeypatch):
    monkeypatch.setattr("sp_jax.plasticity.methods.REDO_STEPS", 50)
    plain, found = plain_accuracies(normed), accuracies(name, normed)
    assert not {pair: (found[pair], plain[pair]) for pair in POLICIES if found[pair] < plain[pair] - MARGIN}
    assert min(plain.values()) > 0.8  # there is something to lose: guessing is right in a sixth
