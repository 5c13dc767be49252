"""Two CPU devices, as on two accelerators; implicit rank promotion is an error; programs are compiled once."""

import functools
import gc
import os
import tempfile

import jax
import pytest
from absl import flags
from jax._src import compiler

from sp_jax.fitting import kept

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

gc.set_threshold(200_000, 50, 1000)  # what is traced is many objects that live on: a tenth of the time

if "SP_JAX_TESTS_CACHE" not in os.environ:  # the first process; those that it starts share its cache
    _CACHE = tempfile.TemporaryDirectory(prefix="sp_jax-tests-")
    os.environ["SP_JAX_TESTS_CACHE"] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["SP_JAX_TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # reading even the smallest takes half the time


# These hold the arithmetic against NumPy or known numbers, as users have it compiled. All others try how parts work
# together, and compiling takes most of their time.
ARITHMETIC = (
    "test_continual_backprop", "test_contract", "test_dash", "test_data", "test_every_method", "test_fire",
    "test_hare_tortoise", "test_l2_init", "test_models", "test_penalties", "test_redo", "test_regularizers",
    "test_rescaling", "test_restarts", "test_snr", "test_training", "test_transforms", "test_units", "test_upgd",
    "test_vit",
)  # fmt: skip


# XLA's older emitters compile small programs in half the time. Only a program of its own takes options in public.
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


@functools.cache
def quick_options():
    """Return the options that this version of XLA has: all or none."""
    try:
        jax.jit(lambda x: x, compiler_options=QUICK)(0)
    except jax.errors.JaxRuntimeError:
        return {}
    return QUICK


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    quick = request.module.__name__ not in ARITHMETIC
    jax.config.update("jax_disable_most_optimizations", quick)
    with pytest.MonkeyPatch.context() as patch:
        if quick and hasattr(compiler, "get_compile_options"):
            options, given = quick_options(), compiler.get_compile_options
            patch.setattr(compiler, "get_compile_options", functools.partial(_with_options, given, options))
        if request.module.__name__ != "test_docs":
            patch.setattr(kept, "FREE", 256)  # a program for fewer samples has fewer sorts to compile
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # what a finished module has compiled is gigabytes of memory
    gc.collect()


def _with_options(given, options, *args, env_options_overrides=None, **rest):
    return given(*args, env_options_overrides=options | (env_options_overrides or {}), **rest)


@pytest.fixture(autouse=True, scope="module")
def parsed_flags():
    """So that a test may call a binary's `main`."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["tests"])


@pytest.fixture
def tfds_dir():
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not os.path.isdir(os.path.join(folder, "cifar10")):
        pytest.skip("TFDS_DATA_DIR holds no cifar10")
    return folder
