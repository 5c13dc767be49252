"""Devices that are not there: the compilers of TPUs and NVIDIA GPUs compile for them from a description alone."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from absl import flags
from jax.experimental import topologies

from experiments.config.fields import UsageError, check_choice, parse_list
from sp_jax.errors import first_line

LAUNCH = 2.5e-6  # seconds to launch a kernel on a GPU, about


class Target(NamedTuple):
    """A kind of device, and what its maker says of it."""

    name: str
    devices: Sequence[jax.Device]  # of one host, to compile for
    clock: float  # Hz
    bandwidth: float  # bytes/s of its memory
    memory: int  # bytes
    peak: Mapping[str, float] | None  # operations/s by kind; None for a TPU, whose compiler counts cycles

    def seconds(self, cost) -> float:
        """Return a lower bound on the time of a `hlo.Loop`: cycles of a TPU; of a GPU the launches, or the roofline."""
        if self.peak is None:
            return cost.cycles / self.clock
        return max(cost.seconds, LAUNCH * sum(cost.kernels.values()))


class _Tpu(NamedTuple):
    topology: str  # a host's chips
    clock: float
    bandwidth: float
    memory: int


class _Gpu(NamedTuple):
    cores: int
    lanes: int  # of a core
    capability: tuple[int, int]
    shared: int  # bytes of shared memory of a core
    bandwidth: float
    l2: int
    clock: float
    memory: int
    peak: Mapping[str, float]


GIB = 2**30
TPUS = {"v5e": _Tpu("v5e:2x2", 1.5e9, 819e9, 16 * GIB), "v6e": _Tpu("v6e:2x2", 1.75e9, 1638e9, 32 * GIB)}
GPUS = {
    "h100": _Gpu(132, 128, (9, 0), 233472, 3352e9, 50 << 20, 1.98e9, 80 * GIB,
                 {"f32": 67e12, "tf32": 495e12, "bf16": 989e12}),
    "a100": _Gpu(108, 64, (8, 0), 167936, 1555e9, 40 << 20, 1.41e9, 40 * GIB,
                 {"f32": 19.5e12, "tf32": 156e12, "bf16": 312e12}),
}  # fmt: skip
EXTRAS = {**dict.fromkeys(TPUS, "compile_tpu"), **dict.fromkeys(GPUS, "compile_gpu")}

COMPILE_FOR = flags.DEFINE_string(
    "compile_for", None, f"Devices to compile for, which need not be here: {', '.join(EXTRAS)}, with commas."
)


def asked() -> list[Target]:
    """Return the devices of --compile_for; before JAX looks for devices.

    Raises:
      UsageError: one that is not known, or whose compiler is not installed.
    """
    names = parse_list("--compile_for", COMPILE_FOR.value)
    for name in names:
        check_choice("--compile_for", name, tuple(EXTRAS))
    prepare()
    return [target(name) for name in names]


def prepare() -> None:
    """Let the compilers start where their devices are not; before JAX looks for devices."""
    quiet = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    }
    for name, value in {**quiet, "TF_CPP_MIN_LOG_LEVEL": "3"}.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def target(name: str) -> Target:
    """Describe a kind of device, one of `EXTRAS`, to its compiler.

    Raises:
      UsageError: its compiler is not installed; says what to install.
    """
    try:
        if name in TPUS:
            kind = TPUS[name]
            devices = topologies.get_topology_desc(kind.topology, "tpu").devices
            return Target(name, devices, kind.clock, kind.bandwidth, kind.memory, None)
        kind = GPUS[name]
        description = {"target_config": _described(name, kind), "topology": "1x1x4"}
        devices = topologies.get_topology_desc(name, "cuda", **description).devices
        return Target(name, devices, kind.clock, kind.bandwidth, kind.memory, kind.peak)
    except Exception as error:  # of plugins that are not there, each its own kind
        reason = first_line(error)
        raise UsageError(
            f"--compile_for={name}: its compiler does not start ({reason}); pip install '.[{EXTRAS[name]}]'"
        ) from None


def _described(name, kind):
    """Return a GPU as XLA's text format has it."""
    major, minor = kind.capability
    numbers = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
        "shared_memory_per_core": kind.shared, "threads_per_core_limit": 2048, "core_count": kind.cores,
        "fpus_per_core": kind.lanes, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535, "memory_bandwidth": int(kind.bandwidth), "l2_cache_size": kind.l2,
        "clock_rate_ghz": kind.clock / 1e9, "device_memory_size": kind.memory,
        "shared_memory_per_block_optin": kind.shared - 1024, "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }  # fmt: skip
    text = " ".join(f"{key}: {value}" for key, value in numbers.items())
    return (
        f"gpu_device_info {{ {text} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"'
    )
