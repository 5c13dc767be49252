"""What compilers say of the engine's programs on devices that are not there; estimates, no measurements.

A row for each program: whether it compiles, how long that takes, the memory it needs; and of the training program's
step, beside a plain Flax and optax step of the same shapes, cycles on a TPU, kernels and a roofline on a GPU.
"""

import textwrap
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import hlo, plain
from experiments.benchmarks.targets import Target
from experiments.config import choices
from experiments.config.fields import UsageError
from experiments.running import dry_run
from sp_jax import restarts
from sp_jax.engine import Engine, make_lanes
from sp_jax.engine.program import needed_bytes
from sp_jax.engine.resident import Resident
from sp_jax.errors import first_line
from sp_jax.training import Convergence
from sp_jax.types import Dataset, HParams

SHAPES = {  # of data sets that need not be there: samples, shape, dtype, classes
    "mixture": (6000, (8, 8, 1), np.float32, 10),
    "cifar10": (50_000, (32, 32, 3), np.uint8, 10),
    "imdb": (25_000, (200,), np.int32, 2),
}
HEADER = (
    "what", "device", "program", "lanes", "compiles", "memory", "a step", "a step of a lane, plain = 1",
    "at least, ms", "at most, samples/s",
)  # fmt: skip


class Absent(Resident):
    """Samples whose shapes alone are known."""

    def feed(self, data):
        """Take the shapes."""
        self.data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), data.flat())


class Compiled(NamedTuple):
    """What a compiler says of a program."""

    seconds: float  # that it took
    bytes: int  # on a device: arguments, results and what it needs meanwhile
    temporary: int  # of these, meanwhile
    step: hlo.Loop  # its innermost loop, or the whole program
    error: str = ""  # why it does not compile

    def amount(self, target: Target) -> int:
        """Return the step's cycles on a TPU, its kernels on a GPU."""
        return self.step.cycles if target.peak is None else sum(self.step.kernels.values())


def dataset(name: str) -> Dataset:
    """Return samples of a data set's shape, which take no memory."""
    count, shape, dtype, classes = SHAPES[name]
    inputs = np.broadcast_to(np.ones((), dtype), (count, *shape))
    return Dataset(inputs, np.broadcast_to(np.int32(0), (count,)), classes, f"shapes of {name}")


def engine(settings: Any, lanes: int, target: Target, **options) -> Engine:
    """Make an engine on one device that is not there."""
    data = dataset(settings.dataset)
    options = {"side_by_side": lanes, "devices": target.devices[:1], **options}
    return Engine(choices.trainer(settings, data), data, lanes, source=Absent, **options)


def lowered(made: Engine, restart: restarts.Restart | None = None) -> dict[str, jax.stages.Lowered]:
    """Lower an engine's programs, with the restart by shrink-perturb where none is given."""
    count = len(made.data.labels)
    lanes = make_lanes(range(made.num_lanes), HParams(), Convergence(), count)
    return made.lower(lanes, restart or restarts.make_restart(restarts.shrink_perturb))


def compiled(program: jax.stages.Lowered, target: Target) -> Compiled:
    """Compile a program, and read its costs."""
    start = time.perf_counter()
    try:
        found = program.compile()
    except jax.errors.JaxRuntimeError as error:
        return Compiled(0.0, 0, 0, None, first_line(error))
    seconds, temporary = time.perf_counter() - start, found.memory_analysis().temp_size_in_bytes
    step = hlo.step(hlo.loops(found.as_text(), target))
    return Compiled(seconds, needed_bytes(found), temporary, step)


def plain_step(settings: Any, target: Target) -> Compiled:
    """Compile the plain step."""
    one = NamedSharding(Mesh(np.array(target.devices[:1]), ("one",)), PartitionSpec())
    step, arguments = plain.step(settings, dataset(settings.dataset))
    jitted = jax.jit(step, in_shardings=one, out_shardings=one, donate_argnums=0)
    return compiled(jitted.lower(*arguments), target)


def forecast(target: Target) -> dry_run.Elsewhere:
    """Return a device that is not here for `dry_run.text`: all lanes of an engine side by side on one."""

    def speed(made):
        absent = Engine(made.trainer, made.data, made.num_lanes, source=Absent, devices=target.devices[:1])
        found = compiled(lowered(absent)["train"], target)
        if found.error:
            raise UsageError(f"--compile_for={target.name}: {made.num_lanes} lanes do not compile: {found.error}")
        rate = made.num_lanes * made.trainer.batch_size / target.seconds(found.step)
        return dry_run.Speed(found.seconds, rate, made.num_lanes, found.bytes)

    return dry_run.Elsewhere(target.name, target.memory, speed)


def report(cases: Mapping[str, Any], targets: Sequence[Target], lanes: Sequence[int], tell=print) -> list[tuple]:
    """Compile each case for each device; return the rows of a table, told as they are made.

    Args:
      cases: from what is trained to its `Settings`.
      targets: the devices.
      lanes: how many side by side, each in turn.
      tell: gets each row.
    """
    rows = []
    for what, settings in cases.items():
        for target in targets:
            add = partial(_add, rows, tell, what, target)
            base = plain_step(settings, target)
            add("plain step", "", base, settings.batch_size, 1.0)
            for count in lanes:
                for name, program in lowered(engine(settings, count, target)).items():
                    found = compiled(program, target)
                    is_step = name == "train" and not found.error and not base.error
                    ratio = found.amount(target) / base.amount(target) / count if is_step else None
                    add(name, count, found, settings.batch_size * count if name == "train" else 0, ratio)
    return rows


def _add(rows, tell, what, target, program, lanes, found, samples, ratio):
    unit = "cycles" if target.peak is None else "kernels"
    least = 0 if found.error else target.seconds(found.step)
    costs = ("", "", "", "")
    if samples and not found.error:
        ratio = "" if ratio is None else f"{ratio:.2f}"
        costs = (f"{found.amount(target):,} {unit}", ratio, f"{least * 1e3:.3f}", f"{samples / least:,.0f}")
    compiles = f"no: {textwrap.shorten(found.error, 80)}" if found.error else f"{found.seconds:.0f} s"
    rows.append((what, target.name, program, str(lanes), compiles, f"{found.bytes / 2**20:,.0f} MiB", *costs))
    tell(" | ".join(rows[-1]))
