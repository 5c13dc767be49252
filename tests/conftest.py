"""Two CPU devices, as on two accelerators; implicit rank promotion is an error; programs are compiled once."""

import gc
import os
import tempfile

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")

gc.set_threshold(200_000, 50, 1000)  # what is traced is many objects that live on: a tenth of the time

if "SP_JAX_TESTS_CACHE" not in os.environ:  # the first process; those that it starts share its cache
    _CACHE = tempfile.TemporaryDirectory(prefix="sp_jax-tests-")
    os.environ["SP_JAX_TESTS_CACHE"] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["SP_JAX_TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


# These hold the arithmetic against NumPy or known numbers, as users have it compiled. All others try how parts work
# together, and compiling takes most of their time.
ARITHMETIC = (
    "test_continual_backprop", "test_contract", "test_dash", "test_data", "test_every_method", "test_fire",
    "test_hare_tortoise", "test_l2_init", "test_models", "test_penalties", "test_redo", "test_restarts",
    "test_training", "test_transforms", "test_units",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    quick = request.module.__name__ not in ARITHMETIC
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # what a finished module has compiled is gigabytes of memory
    gc.collect()


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
