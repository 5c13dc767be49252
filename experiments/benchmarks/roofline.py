"""Lower bounds of training time: a machine's measured rates, and the least work of a training step."""

import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from sp_jax.training import Trainer
from sp_jax.types import Dataset, HParams


class Rates(NamedTuple):
    """The measured rates of all devices of this process together."""

    operations: float  # per second, in a product of two matrices of 2048 x 2048
    bandwidth: float  # bytes per second, in an addition of two arrays of 256 MiB


class Work(NamedTuple):
    """The least work of one sample in training."""

    operations: float  # of the products: one pass forward, two backward
    bytes: float

    def seconds(self, rates: Rates) -> float:
        """Return a lower bound on the time: products and memory traffic at full rates, fully overlapped. Real times may
        be below it where a small network's parameters stay in the cache."""
        return max(self.operations / rates.operations, self.bytes / rates.bandwidth)


def rates(dtype: jnp.dtype = jnp.float32) -> Rates:
    """Measure the rates for about two seconds; the best of several tries."""
    matrix = jnp.ones((2048, 2048), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest" if dtype == jnp.float32 else None))
    array = jnp.ones(2**26, jnp.float32)
    add = jax.jit(lambda a: a + 1)
    return Rates(2 * 2048**3 / _seconds(product, matrix), 2 * array.nbytes / _seconds(add, array))


def _seconds(function, argument):
    jax.block_until_ready(function(argument))
    best, begun = math.inf, time.perf_counter()
    while time.perf_counter() - begun < 1:
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        best = min(best, time.perf_counter() - start)
    return best


def work(trainer: Trainer, data: Dataset) -> Work:
    """Count the operations of the network's products, and the bytes of a step: the `Work` of one sample of a batch.

    Bytes: each parameter, its gradient and its two moments read and written once; the inputs read once; the result of
    each product, and its gradient, written and read once.
    """
    model, size = trainer.model, trainer.batch_size
    state = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    inputs = jax.ShapeDtypeStruct((size, *data.inputs.shape[1:]), data.inputs.dtype)
    jaxpr = jax.make_jaxpr(lambda s, x: model.apply(*s, x, jnp.ones(size, bool), True)[0])(state, inputs)
    operations, results = _products(jaxpr.jaxpr)
    opt_state = jax.eval_shape(lambda params: trainer.optimizer(HParams()).init(params), state[0])
    stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state[0], state[0], opt_state)))
    inputs = math.prod(inputs.shape) * inputs.dtype.itemsize
    return Work(3 * operations / size, (2 * stored + inputs + 4 * results) / size)


def _products(jaxpr):
    """Count operations and result bytes of all matrix products and convolutions of a program without loops."""
    operations = results = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "dot_general" and all(x.aval.ndim > 1 for x in equation.invars):
            (contracted, _), _ = equation.params["dimension_numbers"]
            operations += 2 * out.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            results += out.size * out.dtype.itemsize
        elif equation.primitive.name == "conv_general_dilated":
            operations += 2 * out.size * math.prod(equation.invars[1].aval.shape[:3])  # HWI
            results += out.size * out.dtype.itemsize
        elif equation.primitive.name == "cond":  # one branch for each platform: the last one is the default
            found = _products(equation.params["branches"][-1].jaxpr)
            operations, results = operations + found[0], results + found[1]
        else:
            for inner in jaxprs_in_params(equation.params):
                found = _products(inner)
                operations, results = operations + found[0], results + found[1]
    return operations, results


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes, on the device where the device reports it, else on the host."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
