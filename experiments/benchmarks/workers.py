"""The contenders of `experiments.benchmark`: each in a process of its own, all alive, one at work at a time.

So neither the threads nor the memory of one disturb another, and measurements alternate.
"""

import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import roofline
from experiments.config import app, choices
from experiments.config.settings import Settings
from experiments.config.sweep import Grid
from experiments.running import builder
from experiments.specs.base import RoundSpec
from sp_jax import restarts, sweeps, training
from sp_jax.data import arrival
from sp_jax.types import Dataset, HParams

SECONDS = 2.0  # about how long one measurement takes


class Contender(NamedTuple):
    """A program to measure; `kind` is one of `ENGINES`, or a function of `experiments.benchmarks.torch_loops`."""

    name: str
    kind: str
    settings: Settings
    lanes: int = 1
    cores: int | None = None  # CPU devices of the engine, by default one a core
    arguments: tuple = ()  # further ones, of `torch_loops.experiment_in_torch`


class Measured(NamedTuple):
    """One measurement of a contender."""

    samples: int  # trained on, of all lanes together
    seconds: float  # compiling left out


class Running:
    """A contender in its process."""

    def __init__(self, contender: Contender, data: Dataset):
        """Start the process; it has finished compiling after its first answer."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share a GPU
        self._process = context.Process(target=_serve, args=(theirs, contender, data))
        self._process.start()
        theirs.close()
        self.contender = contender

    def ask(self, question: str, *arguments: Any) -> Any:
        """Ask for `measure` or `facts`; raise a RuntimeError where the contender failed."""
        self._pipe.send((question, *arguments))
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.contender.name} ended") from None
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.contender.name}: {answer}") from answer
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


def _serve(pipe, contender, data):
    try:
        made = ENGINES[contender.kind](contender, data) if contender.kind in ENGINES else _Torch(contender, data)
        while True:
            question, *arguments = pipe.recv()
            pipe.send(getattr(made, question)(*arguments))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


class _Torch:
    """A loop of `experiments.benchmarks.torch_loops`."""

    def __init__(self, contender, data):
        from experiments.benchmarks import torch_loops  # the extra `benchmark`

        self._epoch = getattr(torch_loops, contender.kind)(contender.settings, data, *contender.arguments)
        self.compile_seconds = 0.0

    def measure(self, samples):
        """Measure an epoch of so many samples."""
        start = time.perf_counter()
        return Measured(self._epoch(samples), time.perf_counter() - start)

    def facts(self):
        """Return compile time in seconds, peak memory in bytes, the machine's rates and the work of a sample."""
        return self.compile_seconds, roofline.peak_bytes(), None, None


class _Engine:
    """Epochs in the engine, all lanes at once."""

    def __init__(self, contender, data):
        settings, lanes = contender.settings, contender.lanes
        _use_cores(contender.cores)
        self._trainer, self._data = choices.trainer(settings, data), data
        self._engine = sweeps.Engine(self._trainer, data, lanes)
        hparams = HParams(settings.learning_rate, settings.weight_decay)
        one_epoch = training.Convergence.exactly(1)
        self._lanes = self._engine.place(sweeps.make_lanes(range(lanes), hparams, one_epoch, len(data.labels)))
        self._state = self._engine.init(self._lanes)

    def measure(self, samples):
        """Measure an epoch of so many samples in each lane."""
        engine = self._engine
        progress = jax.block_until_ready(engine.begin(self._lanes, self._state, restarts.no_restart, 1, samples))
        start, compiled = time.perf_counter(), engine.compile_seconds
        jax.block_until_ready(engine.train(self._lanes, progress, 1, samples))
        seconds = time.perf_counter() - start - (engine.compile_seconds - compiled)
        return Measured(engine.num_lanes * samples, seconds)

    def facts(self):
        peak = roofline.peak_bytes()
        return self._engine.compile_seconds, peak, roofline.rates(), roofline.work(self._trainer, self._data)


class _Experiment:
    """Whole experiments: all rounds of warm start, random init and shrink-perturb, to convergence."""

    def __init__(self, contender, data):
        _use_cores(contender.cores)
        arrivals, amounts = contender.arguments
        names = ("warm_start", "random_init", "shrink_perturb")
        pairs = tuple(f"{shrink}:{sigma}" for shrink, sigma in amounts[2:])
        self._settings = dataclasses.replace(contender.settings, seeds=contender.lanes, pairs=pairs, restart=names)
        self._arrivals, self._data, self.compile_seconds = arrivals, data, 0.0

    def measure(self, _):
        """Measure all of it, compiling included; `compile_seconds` is that part."""
        start = time.perf_counter()
        phases = [RoundSpec(self._settings, count) for count in self._arrivals]
        plan = dict.fromkeys(Grid(self._settings).members(), phases)
        made = builder.Builder({self._settings.dataset: self._data}, plan)
        groups = [made.group(member, phases) for member in plan]
        visited = sum(r.samples_seen for f in sweeps.run(groups) if f.trained for r in f.results)
        self.compile_seconds = made.engine(self._settings).compile_seconds
        return Measured(visited, time.perf_counter() - start)

    def facts(self):
        return self.compile_seconds, roofline.peak_bytes(), None, None


ENGINES: dict[str, Callable] = {"engine": _Engine, "experiment": _Experiment}


def _use_cores(cores):
    app.use_compile_cache()
    jax.config.update("jax_num_cpu_devices", cores or len(os.sched_getaffinity(0)))


def measure(running: Sequence[Running], data: Dataset, repeats: int, seconds: float = SECONDS) -> list[list[Measured]]:
    """Measure all contenders in turn, several times, each on as many batches as take about so long; experiments once.

    Returns:
      For each contender its measurements.
    """
    if running[0].contender.arguments:
        return [[each.ask("measure", 0)] for each in running]
    counts = [_samples(each, data, seconds) for each in running]
    found = [[] for _ in running]
    for _ in range(repeats):
        for each, count, measured in zip(running, counts, found, strict=True):
            measured.append(_several(each, count, seconds))
    return found


def _samples(running, data, seconds):
    """Return the samples of so many whole batches that an epoch of them takes about so long, or all whole batches."""
    size = running.contender.settings.batch_size
    most = arrival.num_training(len(data.labels)) // size * size
    running.ask("measure", min(size, most))  # compiles
    count = size
    while count < most:
        tried = running.ask("measure", count)
        if tried.seconds > seconds / 2:
            break
        count = min(most, 4 * count, max(size, int(count * seconds / tried.seconds) // size * size))
    return count


def _several(running, count, seconds):
    """Measure epochs until so much time has passed."""
    total = Measured(0, 0.0)
    while total.seconds < seconds:
        one = running.ask("measure", count)
        total = Measured(total.samples + one.samples, total.seconds + one.seconds)
    return total
