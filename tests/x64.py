"""What is run with 64-bit numbers, in a process of its own: `JAX_ENABLE_X64=1 python tests/x64.py`."""

import dataclasses
import itertools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import sp_jax
from experiments.config.choices import RESTARTS
from experiments.config.settings import Settings
from experiments.config.streams import STREAMS
from experiments.config.sweep import Grid
from experiments.running import builder
from experiments.specs.base import RoundSpec
from sp_jax import diagnostics, restarts, sweeps
from sp_jax.plasticity.methods import METHODS
from sp_jax.storage import checkpoints
from sp_jax.types import Dataset

rng = np.random.default_rng(0)
DATA = Dataset(rng.normal(size=(60, 4, 4, 1)), rng.integers(0, 3, 60), 3, "float64")  # and labels of int64
SMALL = Settings(hidden=(4,), seeds=1, width=2, stage_sizes=(1,), batch_size=8, epochs=1, activation="relu")


def train(*variants, stream=False, store=None):
    """All cells of some settings through two rounds."""
    plan = {m: (RoundSpec(s, 20), RoundSpec(s, 30)) for s in variants for m in Grid(s).members()}
    plan = {m._replace(variant=f"{i},"): phases for i, (m, phases) in enumerate(plan.items())}
    made = builder.Builder({SMALL.dataset: DATA}, plan, stream=stream)
    groups = [made.group(member, phases) for member, phases in plan.items()]
    for finished in sweeps.run(groups, store=store):
        assert np.isfinite(finished.results[0].validation_loss), finished.group.name
    return groups


def several(**settings):
    """Settings that differ in these."""
    combined = itertools.product(*settings.values())
    return [dataclasses.replace(SMALL, **dict(zip(settings, values, strict=True))) for values in combined]


def main():
    assert jax.config.jax_enable_x64
    every = tuple(RESTARTS)
    groups = train(*several(restart=[every], shrink=[("0.5",)]))
    train(*several(restart=[("shrink_perturb", "dash")], pairs=[("0.5:0.1",)]), stream=True)
    train(*several(method=[name for name in METHODS if name != "none"], restart=[("warm_start",)]))
    train(*several(penalty=["confidence", "adversarial"], penalty_strength=[0.1], restart=[("warm_start",)]))
    layers = {"norm": ["layer"], "depth": [1], "heads": [1], "restart": [("warm_start",)]}
    train(*several(model=["mlp", "vit"], **layers), *several(model=["mlp"], activation=["crelu"], **layers))
    train(*several(task_stream=list(STREAMS), classes_per_round=[1], window_size=[20], restart=[("warm_start",)]))
    normed = several(
        model=["resnet18"], method=["hare_tortoise"], restart=[("dash",)], statistics=restarts.STATISTICS,
        optimizer_state=["reset_changed"],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(*normed, store=checkpoints.Store(folder))
        assert checkpoints.Store(folder).resume()[0].number == 2
    engine, lanes = groups[0].phases[0].engine, groups[0].phases[0].lanes
    placed = engine.place(lanes)
    measure = diagnostics.gradient_norms(engine.trainer)
    assert engine.measure(measure, placed, engine.init(placed), np.int32(10), np.int32(20))

    model = nn.Dense(3)
    fit = sp_jax.fit_rounds(0, DATA.inputs.reshape(60, 16), DATA.labels, [30, 60], network=model, batch_size=16)
    sp_jax.save_fit(pathlib.Path(tempfile.mkdtemp()) / "fit.safetensors", fit)
    init = lambda key: model.init(key, jnp.ones((1, 16)))["params"]  # noqa: E731
    periodic = sp_jax.periodic_restart(
        optax.adam(1e-3), init, key=jax.random.key(0), every=2, shrink=0.5, noise_scale=0.1, optimizer_state="reset"
    )
    params = init(jax.random.key(1))
    state = periodic.init(params)
    for _ in range(2):
        _, state = jax.jit(periodic.update)(params, state, params)
    print("all run")


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    main()
