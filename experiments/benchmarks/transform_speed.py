"""Measures one call of shrink-perturb on a large pytree, against `jax.tree.map` of one multiply-add, in turn.

python -m experiments.benchmarks.transform_speed                       100 million float32 parameters: 0.8 GB, twice
python -m experiments.benchmarks.transform_speed --millions=10

Both under `jit`, with λ and σ traced and the old parameters' buffers donated, so each is one pass over memory.
"""

import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

import sp_jax
from experiments.config import app

_MILLIONS = flags.DEFINE_float("millions", 100, "Parameters, in millions.", lower_bound=0.01)
_REPEATS = flags.DEFINE_integer("repeats", 11, "Measurements of each, in turn; their median is printed.", lower_bound=1)
LAYERS = 10  # leaves of the pytree


def multiply_add(params, fresh, shrink, noise_scale):
    """Compute λ·θ + σ·fresh, without the exact limiting cases and the checks."""
    return jax.tree.map(lambda p, f: shrink * p + noise_scale * f, params, fresh)


def shrink_perturb(params, fresh, shrink, noise_scale):
    """Call the library's shrink-perturb."""
    return sp_jax.shrink_perturb(params, fresh, shrink=shrink, noise_scale=noise_scale)


def seconds(function, params, fresh, shrink):
    """Return one call's wall time, and its result."""
    start = time.perf_counter()
    params = jax.block_until_ready(function(params, fresh, shrink, 0.01))
    return time.perf_counter() - start, params


def main(argv: Sequence[str]) -> None:
    """Measure in turn and print medians and their ratio."""
    with app.one_line_errors(argv):
        size = int(_MILLIONS.value * 1e6 / LAYERS)
        fresh = {f"layer_{i}": jnp.full(size, 0.5) for i in range(LAYERS)}
        functions = {f.__name__: jax.jit(f, donate_argnums=0) for f in (multiply_add, shrink_perturb)}
        kept = {name: jax.tree.map(jnp.copy, fresh) for name in functions}
        times = {name: [] for name in functions}
        for i in range(1 + _REPEATS.value):  # the first one compiles
            for name, function in functions.items():
                found, kept[name] = seconds(function, kept[name], fresh, 0.5 + 0.01 * i)
                times[name].append(found)
        medians = {name: statistics.median(found[1:]) for name, found in times.items()}
        compiles = {name: function._cache_size() for name, function in functions.items()}
        print(f"{_MILLIONS.value:g} million parameters, {jax.devices()[0].device_kind}, median of {_REPEATS.value}")
        for name, median in medians.items():
            ratio, rate = median / medians["multiply_add"], 3 * 4 * size * LAYERS / median / 1e9
            print(f"{name:14} {1e3 * median:8.1f} ms   {ratio:5.2f}x   {rate:6.1f} GB/s   {compiles[name]} compile")


if __name__ == "__main__":
    app.start(main)
