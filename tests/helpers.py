"""What several files of tests share: rows that nobody trained, and small grids on two small data sets."""

import functools
from typing import NamedTuple

import numpy as np
import pytest

from sp_jax import data, models, restarts, sweeps, training
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Dataset, HParams

CELLS = {"warm_start": ("1", "0"), "random_init": ("0", "1"), "noise_only": ("1", "0.1")}


def made_up(restart, accuracies, samples=100, rounds=(1, 2), **more):
    """Rows of one line; `accuracies` of the seeds in the last round, the earlier ones are at 10 %."""
    shrink, noise_scale = CELLS.get(restart, ("0.6", "0.01"))
    row = {
        "experiment": "x", "dataset": "cifar10", "model": "mlp", "optimizer": "sgd", "batch_size": 128,
        "learning_rate": 0.1, "weight_decay": 0.0, "restart": restart, "shrink": shrink, "noise_scale": noise_scale,
        "converged": True, "stop_reason": "threshold", "epochs": 1, "num_train": 10, "seconds": 1.0, "lanes": 1,
        "samples_seen": samples,
    }  # fmt: skip
    return [
        row | {"seed": seed, "round": n, "validation_accuracy": accuracy if n == rounds[-1] else 0.1} | more
        for seed, accuracy in enumerate(accuracies) for n in rounds
    ]  # fmt: skip


# Small grids.

FULL = data.mixture()
SMALL = Dataset(FULL.inputs[:300], FULL.labels[:300], 10, "small")
PIXELS = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 3), dtype=np.uint8)
IMAGES = Dataset(PIXELS, np.arange(90, dtype=np.int32) % 3, 3)
MODEL = models.from_module(models.MLP(10, (16,)), SMALL.inputs)
TRAINER = Trainer(MODEL, training.adam, 32)
ARRIVALS = (60, 120, 200)
SHORT = Convergence(0.9, max_epochs=30)
MAKE = {
    "warm_start": restarts.make_restart(restarts.warm_start),
    "random_init": restarts.make_restart(restarts.random_init),
    "shrink_perturb": restarts.make_restart(restarts.shrink_perturb),
}


class Setting(NamedTuple):
    name: str
    restart: restarts.Restart
    lanes: training.Lane


def group(restart, shrink, noise_scale, seeds=range(3), learning_rate=0.01, name=None):
    hparams = HParams(learning_rate, 0.0, float(shrink), float(noise_scale))
    lanes = sweeps.make_lanes(seeds, hparams, SHORT, len(SMALL.labels))
    return Setting(name or f"{restart}_{shrink}_{noise_scale}", MAKE[restart], lanes)


def phases(engine, settings, arrivals=ARRIVALS, **options):
    return [sweeps.Group(s.name, sweeps.rounds(engine, s.lanes, s.restart, arrivals, **options)) for s in settings]


shared_engine = functools.lru_cache(maxsize=2)(lambda lanes: sweeps.Engine(TRAINER, SMALL, lanes))


def train(settings, arrivals=ARRIVALS, restart_first=False, engine=None, **options):
    """All results without their times, by group and round; `engine` are the options of one that no other call has."""
    lanes = len(settings[0].lanes.seed)
    made = shared_engine(lanes) if engine is None else sweeps.Engine(TRAINER, SMALL, lanes, **engine)
    return {
        (found.group.name, found.results[0].round): [r._replace(seconds=0.0) for r in found.results]
        for found in sweeps.run(phases(made, settings, arrivals, restart_first=restart_first), **options)
    }


def some_slow(names, *slow):
    """Return parameters of a test, of which some are left out by default."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]
