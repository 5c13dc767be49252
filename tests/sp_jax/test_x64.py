"""64-bit numbers: a process of its own, as the choice is made before anything is compiled."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {  # and the cache of compiled programs that tests share
    **os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": os.environ["SP_JAX_TESTS_CACHE"],
}  # fmt: skip


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], env=ENVIRONMENT, cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.slow
def test_every_restart_method_and_penalty_runs_with_64_bits():
    assert "all run" in run(ROOT / "tests" / "x64.py")


@pytest.mark.slow
def test_every_experiment_runs_with_64_bits():
    tests = ROOT / "tests" / "experiments" / "test_experiments.py"
    assert "passed" in run(
        "-m", "pytest", "-n", "0", "-q", "-m", "", "-k", "test_an_experiment_runs_from_its_flags", tests
    )
