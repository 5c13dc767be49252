"""Speed of a stream of tasks: all lanes in one program, the same lanes one after another, and one lane of PyTorch.

pip install '.[benchmark]'                            brings PyTorch
python -m experiments.benchmarks.stream_speed         on two cores two minutes

The stream is the leaderboard's `random_labels` (320 samples of `mixture`, batches of 16, 30 epochs a task), the network
its MLP 100-100 with Adam. One call compiles and warms up, then each is timed in turn, five times; the median counts.
PyTorch is the tuned loop of `torch_loops`, one lane on one core, which is faster here than on two; its seconds are
multiplied by the number of lanes. Two such processes side by side would halve them at best.
"""

import dataclasses
import sys
import time

import jax
import numpy as np

from experiments.config import app, streams
from experiments.config.settings import Settings
from experiments.config.sweep import resolve
from experiments.reporting.summary import markdown
from experiments.running.builder import Builder
from experiments.specs import registry, schedules
from sp_jax import data, restarts
from sp_jax.engine import Engine, lanes_of
from sp_jax.training import Convergence
from sp_jax.types import HParams

LANES, REPEATS = 20, 5


def settings() -> Settings:
    """Return those of the leaderboard's plain network on random labels."""
    found = resolve(registry.get("plasticity").presets["quick"], {"contenders": (("none",),)})
    variant = next(each for each in found.variants if each.task_stream == "random_labels")
    return dataclasses.replace(variant, samples="all", with_streams=())


def timed(engine: Engine, chosen: Settings, lanes: int, count: int) -> float:
    """Return the seconds of one task of the first `lanes` lanes, in calls of as many lanes as the engine has."""
    rule, labels = Convergence.exactly(chosen.epochs), engine.data.labels
    hparams = HParams(learning_rate=chosen.learning_rate)
    indices = streams.indices(chosen, engine.trainer.stream, np.asarray(labels), range(lanes))
    parts = [slice(i, i + engine.num_lanes) for i in range(0, lanes, engine.num_lanes)]
    placed = [engine.place(lanes_of(range(lanes)[at], hparams, rule, *(x[at] for x in indices))) for at in parts]
    states = [engine.init(each) for each in placed]
    jax.block_until_ready(states)
    start = time.perf_counter()
    for each, state in zip(placed, states, strict=True):
        progress = engine.begin(each, state, restarts.no_restart, 1, count)
        jax.block_until_ready(engine.train(each, progress, 1, count).state)
    return time.perf_counter() - start


def main() -> None:
    """Time and print the table."""
    try:
        import torch

        from experiments.benchmarks import torch_loops
    except ImportError:
        sys.exit("error: this compares with PyTorch, which is not installed: pip install '.[benchmark]'")
    app.use_all_cores()
    torch.set_num_threads(1)
    chosen, mixture = settings(), data.mixture()
    (phase, *_) = schedules.online(chosen, chosen.cells()[0], lambda s: streams.amount(s, mixture))
    trainer = Builder({"mixture": mixture}, {}).engine(chosen).trainer
    together, alone = (Engine(trainer, mixture, n) for n in (LANES, 1))
    epoch = torch_loops.tuned(chosen, mixture.replace(labels=np.random.default_rng(0).permutation(mixture.labels)))

    def in_torch():
        start = time.perf_counter()
        for _ in range(chosen.epochs):
            epoch(phase.num_visible)
        return LANES * (time.perf_counter() - start)

    ways = {
        f"{LANES} lanes in one program": lambda: timed(together, chosen, LANES, phase.num_visible),
        "one after another": lambda: timed(alone, chosen, LANES, phase.num_visible),
        f"PyTorch, one lane times {LANES}": in_torch,
    }
    found = {name: [] for name in ways}
    for repeat in range(REPEATS + 1):
        for name, way in ways.items():
            seconds = way()
            if repeat:
                found[name].append(seconds)
    medians = {name: float(np.median(values)) for name, values in found.items()}
    first, kinds = next(iter(medians.values())), f"{len(jax.devices())} {jax.devices()[0].platform} devices"
    lines = [(name, f"{seconds:.2f}", f"{seconds / first:.1f}") for name, seconds in medians.items()]
    print(f"{kinds}, {chosen.epochs} epochs of {phase.num_visible} samples")
    print(markdown([("what", "seconds", "times as long"), *lines]))


if __name__ == "__main__":
    main()
