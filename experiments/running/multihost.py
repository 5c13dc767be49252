"""Several hosts as one machine (`jax.distributed`): one command a host, the same but for --process_id.

python -m experiments.run --workdir=/shared/run --coordinator=10.0.0.1:1234 --num_processes=2 --process_id=0
python -m experiments.run --workdir=/shared/run --coordinator=10.0.0.1:1234 --num_processes=2 --process_id=1

All hosts see the same --workdir; the first alone writes results there. On a TPU pod or under Slurm --coordinator=auto
suffices. What C++ has to say goes to `hosts/<process>.log` in that folder. When a host is lost the others end within a
minute; --resume goes on, on as many hosts as there are then.
"""

import ctypes
import logging
import os
import pathlib
import signal
import socket
import sys
import time

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from experiments.config.fields import UsageError

_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several hosts: host:port of the first, or auto (TPU, Slurm).")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several hosts: which of them this is.")
_JOIN_SECONDS = flags.DEFINE_integer("join_seconds", 300, "Several hosts: how long each waits for the others to start.")

HEARTBEAT_SECONDS = 20  # after so long without a sign of life of another host, the others give up


def check(workdir: str | None) -> None:
    """Raise a `UsageError` where the flags do not fit; `workdir` as it was typed. Touch neither network nor disk."""
    address, count, own = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if address is None:
        if count is not None or own is not None:
            raise UsageError("--num_processes and --process_id need --coordinator=<host>:<port> of process 0")
        return
    if workdir is None:
        raise UsageError("--coordinator needs --workdir: one folder that all hosts see")
    if _JOIN_SECONDS.value < 1:
        raise UsageError(f"--join_seconds must be positive, got {_JOIN_SECONDS.value}")
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UsageError(f"--coordinator must be <host>:<port> of process 0, or auto, got {address}")
    if count is None or own is None:
        raise UsageError(f"--coordinator={address} needs --num_processes and --process_id (or --coordinator=auto)")
    if count < 1:
        raise UsageError(f"--num_processes must be positive, got {count}")
    if not 0 <= own < count:
        raise UsageError(f"--process_id must lie between 0 and {count - 1}, got {own}")


def join(workdir: pathlib.Path) -> None:
    """Wait until all hosts have joined; do nothing where --coordinator is not given.

    Raises:
      UsageError: the hosts do not meet.
    """
    address, count, own = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if address is None:
        return
    unmet = f"the hosts did not meet at --coordinator={address} within {_JOIN_SECONDS.value} s"
    if address == "auto":
        address = count = own = None
    else:
        _find(address, own, unmet)
    jax.config.update("jax_enable_preemption_service", False)  # it would make the process deaf to SIGTERM
    log = _part_from_terminal(workdir / "hosts" / f"{socket.gethostname() if own is None else own}.log")
    _on_abort(2, f"{unmet} (details in {log})")
    options = {"initialization_timeout": _JOIN_SECONDS.value, "heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    try:
        jax.distributed.initialize(address, count, own, shutdown_timeout_seconds=HEARTBEAT_SECONDS, **options)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{unmet}: {str(error).strip().splitlines()[0]}") from None
    _on_abort(1, f"another host is gone, or this one failed (details in {log}); start all again with --resume")


def several() -> bool:
    """Return whether the flags ask for several hosts."""
    return _COORDINATOR.value is not None


def first() -> bool:
    """Return whether this host writes."""
    return jax.process_index() == 0


def wait(what: str) -> None:
    """Until all hosts are here; `what` must be the same on all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def least(value: int) -> int:
    """Return the least value of all hosts, below 2³¹."""
    return int(multihost_utils.process_allgather(np.int32(value)).min()) if jax.process_count() > 1 else value


def await_verdict(error: Exception) -> None:
    """Wait after an error of a program: a lost host is often seen there first, and jax soon ends this process."""
    if jax.process_count() > 1 and type(error) in (jax.errors.JaxRuntimeError, ValueError):  # jax raises either
        time.sleep(2 * HEARTBEAT_SECONDS)


def leave(code: int) -> None:
    """End this process at once, without waiting for the other hosts, which then end too."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _find(address, own, unmet):
    """Make sure that process 0 can listen and the others reach it: jax would end the process, or crash."""
    host, _, port = address.rpartition(":")
    if own == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            reason = os.strerror(error.errno)
            raise UsageError(f"cannot listen at --coordinator={address} ({reason}); name a free port") from None
        return
    end = time.monotonic() + _JOIN_SECONDS.value
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UsageError(f"{unmet} ({error.strerror or error})") from None
        time.sleep(0.2)


def _part_from_terminal(path):
    """Send what C++ writes to file descriptor 2 into a file; Python's stderr stays where it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); choose another --workdir") from None
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="replace")
    os.dup2(file, 2)
    os.close(file)
    for handler in logging.getLogger("sp_jax").handlers:
        handler.setStream(sys.stderr)
    return path


def _on_abort(code, text):
    """From now on abort(), by which jax's client ends a process that has lost a host, says so and exits with `code`."""

    def say(_):
        print(f"error: {text}", file=sys.stderr, flush=True)
        os._exit(code)

    # `jax.distributed` takes no callback, and a handler of Python's `signal` would run only after abort() has returned,
    # which it never does.
    global _HANDLER  # kept, as C keeps its address
    _HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(say)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _HANDLER)
