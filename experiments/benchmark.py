"""Measures the engine against PyTorch, in turn on one machine: samples/s, whole experiments, what the machine could do.

pip install '.[benchmark]'                                  brings PyTorch
python -m experiments.benchmark                             MLPs, ResNet-18 of width 16 and 64, a whole experiment
python -m experiments.benchmark --case=resnet18_16          one of them
python -m experiments.benchmark --case=mlp_cifar10 --precision=tf32 --lanes=1,5
python -m experiments.benchmark --compile_for=v5e,h100      what the compilers say of devices that are not here

The flags of experiments.run that name model, optimiser, batch size and precision override those of every case. Where
there is no CIFAR-10 (--data_dir), random pixels of its shape stand in: no rate depends on what they show.

--compile_for measures nothing: `pip install '.[compile_tpu]'` or `'.[compile_gpu]'` brings a compiler, which compiles
every program for a device from its description, and counts: cycles that a TPU's compiler estimates, kernels and a lower
bound of a GPU's time. Beside it a plain Flax and optax step of the same shapes.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.benchmarks import compiling, roofline, targets, workers
from experiments.benchmarks.workers import Contender
from experiments.config import app, setting_flags, sweep
from experiments.config.fields import UsageError, check_choice, parse_list, parse_sizes
from experiments.config.settings import Settings
from experiments.reporting.summary import markdown
from sp_jax.data import DataError, arrival
from sp_jax.types import Dataset

flags.adopt_module_key_flags(app)
flags.adopt_module_key_flags(setting_flags)


class Case(NamedTuple):
    """What is trained."""

    what: str
    preset: Mapping[str, Any]


RELU = {"activation": "relu"}
CIFAR10, RESNET = {"dataset": "cifar10"}, {"dataset": "cifar10", "model": "resnet18"}
CASES = {
    "mlp_mixture": Case("MLP on mixture", {}),
    "mlp_cifar10": Case("MLP on CIFAR-10", {**CIFAR10, **RELU}),
    "resnet18_16": Case("ResNet-18, width 16", {**RESNET, "width": 16}),
    "resnet18_64": Case("ResNet-18, width 64", {**RESNET, "width": 64}),
    "vit": Case("ViT on CIFAR-10, 12 blocks of width 192", {**CIFAR10, "model": "vit", "width": 192}),
    "experiment": Case("Figure 7 on mixture, to convergence", {}),
    "birnn": Case("BiRNN on IMDB, 200 tokens", {"dataset": "imdb", "model": "birnn", "width": 64}),
}
ALONE = ("vit", "birnn")  # PyTorch loops are of the others
COMPARED = {  # the settings that PyTorch's loops and the plain step know, too
    "activation", "batch_size", "depth", "heads", "hidden", "learning_rate", "precision", "stage_sizes", "width",
}  # fmt: skip
AMOUNTS = ((1.0, 0.0), (0.0, 1.0), (0.6, 0.01))  # λ and σ of the whole experiment

_CASE = flags.DEFINE_string("case", None, f"Any of {', '.join(CASES)}, with commas; by default all that can be.")
flags.declare_key_flag("compile_for")
_AGAINST = flags.DEFINE_string("against", "dataloader,tuned", "PyTorch loops to measure, with commas; empty for none.")
_LANES = flags.DEFINE_string("lanes", None, "Lanes of the engine, with commas.")
_CORES = flags.DEFINE_string("cores", None, "CPU devices of the engine, with commas.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each, in turn; their median counts.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", workers.SECONDS, "About how long a measurement takes.", lower_bound=0.01)


def samples(name: str) -> Dataset:
    """Load the data set, or make random pixels of CIFAR-10's shape where it is not available."""
    try:
        found = setting_flags.dataset(name)
    except DataError:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
        return Dataset(pixels, rng.integers(0, 10, 50_000).astype(np.int32), 10, f"random pixels for {name}")
    return found.replace(inputs=np.asarray(found.inputs), labels=np.asarray(found.labels))


def contend(case: str, settings: Settings, data: Dataset) -> list[Contender]:
    """List what is measured: the PyTorch loops, then the engine with each number of lanes and cores."""
    against = parse_list("--against", _AGAINST.value) if _AGAINST.value else ()
    for name in against:
        check_choice("--against", name, ("dataloader", "tuned"))
    default = {"mlp_mixture": "1,8", "mlp_cifar10": "1,8", "experiment": "1,5"}.get(case, "1,2")
    lanes = parse_sizes("--lanes", _LANES.value or default)
    cores = parse_sizes("--cores", _CORES.value) if _CORES.value else (None,)
    for flag, numbers in (("--lanes", lanes), ("--cores", cores)):
        if not all(number is None or number > 0 for number in numbers):
            raise UsageError(f"{flag} must be positive, got {','.join(map(str, numbers))}")
    if case == "experiment":
        count = arrival.num_training(len(data.labels))
        arguments = (arrival.online(count, -(-count // 16)), AMOUNTS)
        torch = [Contender("tuned", "experiment_in_torch", settings, arguments=arguments)] if "tuned" in against else []
        kind, what = "experiment", "seeds"
    else:
        arguments, kind, what = (), "engine", "lanes"
        torch = [Contender(name, name, settings) for name in against]
    ours = [Contender(_name(n, what, c), kind, settings, n, c, arguments) for c in cores for n in lanes]
    return torch + ours


def _name(lanes, what, cores):
    return f"sp_jax, {lanes} {what if lanes > 1 else what[:-1]}{f', {cores} devices' if cores else ''}"


def run(case: str, settings: Settings, repeats: int, seconds: float) -> list[str]:
    """Measure a case; return a table row for each contender.

    Raises:
      UsageError: PyTorch is missing, or a contender fails.
    """
    data = samples(settings.dataset)
    who = contend(case, settings, data)
    print(f"measuring {CASES[case].what} …", file=sys.stderr, flush=True)
    running = []
    try:
        running += [workers.Running(one, data) for one in who]
        found = workers.measure(running, data, repeats, seconds)
        facts = [each.ask("facts") for each in running]
    except RuntimeError as error:
        hint = "; pip install '.[benchmark]'" if "No module named 'torch'" in str(error) else ""
        raise UsageError(f"--case={case}: {error}{hint}") from None
    finally:
        for each in running:
            each.close()
    return _rows(CASES[case].what, who, found, facts)


def _rows(what, who, found, facts):
    rates = [statistics.median(m.samples / m.seconds for m in measured) for measured in found]
    base = {one.name: rate for one, rate in zip(who, rates, strict=True) if one.name in ("dataloader", "tuned")}
    made = []
    for one, rate, (seconds, peak, machine, work) in zip(who, rates, facts, strict=True):
        ratios = [f"{rate / base[name]:.2f}x" if name in base else "" for name in ("dataloader", "tuned")]
        reached = f"{rate * work.seconds(machine):.0%}" if machine else ""
        compiled = f"{seconds:.1f} s" if seconds else ""
        made.append((what, one.name, f"{rate:,.0f}", *ratios, reached, compiled, f"{peak / 2**20:,.0f} MiB"))
    return made


HEADER = ("what", "who", "samples/s", "dataloader", "tuned", "of the floor", "compile", "peak memory")


def compile_for(cases: Mapping[str, Settings]) -> str:
    """Return the table of what compilers say of the programs of each case.

    Raises:
      UsageError: a device that is not known, or whose compiler is not installed.
    """
    kinds = targets.asked()
    lanes = parse_sizes("--lanes", _LANES.value or "1,5")
    rows = compiling.report(cases, kinds, lanes, tell=lambda line: print(line, file=sys.stderr, flush=True))
    return f"{markdown([compiling.HEADER, *rows])}\n\nEstimates by compilers, and lower bounds; nothing was measured."


def main(argv: Sequence[str]) -> None:
    """Measure each case and print one table."""
    with app.one_line_errors(argv):
        possible = [case for case in CASES if case not in (("experiment",) if targets.COMPILE_FOR.value else ALONE)]
        cases = parse_list("--case", _CASE.value or ",".join(possible))
        for case in cases:
            check_choice("--case", case, tuple(possible))
        given = setting_flags.settings()
        for name in sorted({*given} - COMPARED):
            raise UsageError(f"--{name}: what the engine is compared with has no such setting; leave the flag out")
        for value in given.get("activation", ()):
            check_choice("--activation", value, ("tanh", "relu"))
        chosen = {case: sweep.resolve(CASES[case].preset, given).variants for case in cases}
        if any(len(variants) > 1 for variants in chosen.values()):
            raise UsageError("the benchmark measures one setting of a case at a time; give one value to each flag")
        if targets.COMPILE_FOR.value:
            print(compile_for({CASES[case].what: settings for case, (settings,) in chosen.items()}))
            return
        rows = []
        for case, (settings,) in chosen.items():
            rows += run(case, settings, _REPEATS.value, _SECONDS.value)
        machine = roofline.rates()
        print(
            f"{jax.local_device_count()} x {jax.devices()[0].device_kind}: {machine.operations / 1e9:,.0f} GFLOP/s "
            f"(float32 products), {machine.bandwidth / 1e9:,.1f} GB/s; median of {_REPEATS.value}, in turn\n"
        )
        print(markdown([HEADER, *rows]))


if __name__ == "__main__":
    app.start(main)
