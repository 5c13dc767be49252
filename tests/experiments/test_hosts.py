"""Several hosts: real processes, each with its own CPU device, that train one grid together."""

import csv
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from absl.testing import flagsaver

from experiments import run

ROOT = pathlib.Path(__file__).parents[2]
TINY = {"model": "logistic", "seeds": 3, "rounds": 2, "max_epochs": 3, "restart": "shrink_perturb", "pairs": "0.6:0.01"}
ENVIRONMENT = {  # one device each; compiled as the tests' own process has it
    "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
}  # fmt: skip
MEASURED = ("train_accuracy", "train_loss", "validation_accuracy", "validation_loss")


@pytest.fixture
def port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def call(**given):
    with flagsaver.flagsaver(**given):
        run.main(["tests"])


def start(folder, port, process_id, **given):
    """A process of two, on one device."""
    given = {"workdir": folder, "coordinator": f"localhost:{port}", "num_processes": 2, **TINY, **given}
    command = [sys.executable, "-m", "experiments.run", f"--process_id={process_id}"]
    return subprocess.Popen(
        [*command, *(f"--{name}={value}" for name, value in given.items())],
        env=os.environ | ENVIRONMENT,
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def read(folder):
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def check_equal(folder, expected):
    rows, wanted = read(folder), read(expected)
    assert len(rows) == len(wanted)
    for row, other in zip(rows, wanted, strict=True):
        for name in MEASURED:
            assert float(row.pop(name)) == pytest.approx(float(other.pop(name)), rel=1e-5, abs=1e-5)
        assert {**row, "seconds": ""} == {**other, "seconds": ""}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    call(workdir=str(folder), **TINY)
    return folder


@pytest.mark.slow
def test_two_hosts_train_what_one_does(alone, tmp_path, port):
    """Each batch spread over both, so each step needs the other host; rows come once, from the first."""
    hosts = [start(tmp_path / "run", port, i, devices_per_lane=2) for i in range(2)]
    (out, err), (other_out, other_err) = (host.communicate(timeout=120) for host in hosts)
    assert [host.returncode for host in hosts] == [0, 0], err + other_err
    assert "| shrink_perturb | 0.6 | 0.01 |" in out
    assert "shrink_perturb" not in other_out
    assert other_err == ""
    check_equal(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_lost_host_ends_the_others_and_resume_goes_on(alone, tmp_path, port, capsys):
    folder = tmp_path / "run"
    first, second = (start(folder, port, i) for i in range(2))
    while first.poll() is None and not (folder / "checkpoints").is_dir():  # after the first round
        time.sleep(0.02)
    second.kill()
    killed = time.monotonic()
    second.communicate()
    _, err = first.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert first.returncode == 1, err
    assert err.splitlines()[-1].startswith("error: another host is gone")
    assert "Traceback" not in err
    assert len(read(folder)) == 3
    call(workdir=str(folder), resume=True, devices_per_lane=2)  # one process, on other devices
    check_equal(folder, alone)


@pytest.mark.slow
def test_a_signal_at_one_host_stops_all_at_the_same_point_and_resume_goes_on(alone, tmp_path, port):
    folder = tmp_path / "run"
    hosts = [start(folder, port, i) for i in range(2)]
    while hosts[0].poll() is None and not (folder / "checkpoints").is_dir():  # after the first round
        time.sleep(0.02)
    hosts[1].terminate()
    said = [host.communicate(timeout=60)[1].splitlines() for host in hosts]
    assert [host.returncode for host in hosts] == [128 + signal.SIGINT, 128 + signal.SIGTERM], said
    how = f"go on with: python -m experiments.run --resume --workdir={folder} --coordinator=localhost:{port}"
    assert said[0][-1] == f"stopped, as another host was; {how} --num_processes=2 --process_id=0"
    assert said[1] == [
        "",
        "stopping at the next safe point; once more ends at once",
        f"stopped; {how} --num_processes=2 --process_id=1",
    ]
    assert "1.1" in os.listdir(folder / "checkpoints")  # in the middle of the second round
    call(workdir=str(folder), resume=True, devices_per_lane=2)
    check_equal(folder, alone)


WRONG = [
    ({"process_id": 0}, "--num_processes and --process_id need --coordinator=<host>:<port>"),
    ({"coordinator": "localhost:1234", "workdir": None}, "--coordinator needs --workdir"),
    ({"coordinator": "localhost:1234"}, "needs --num_processes and --process_id"),
    ({"coordinator": "localhost"}, "--coordinator must be <host>:<port> of process 0, or auto, got localhost"),
    ({"coordinator": "localhost:x"}, "--coordinator must be <host>:<port>"),
    ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id must lie between 0 and 1, got 2"),
    ({"coordinator": "a:1", "num_processes": 2, "process_id": -1}, "--process_id must lie between 0 and 1, got -1"),
    ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "--num_processes must be positive, got 0"),
    ({"coordinator": "a:1", "join_seconds": 0}, "--join_seconds must be positive, got 0"),
    (
        {"coordinator": "localhost:{port}", "num_processes": 2, "process_id": 1, "join_seconds": 1},
        "the hosts did not meet at --coordinator=localhost:{port} within 1 s (Connection refused)",
    ),
    ({"devices_per_lane": 0}, "--devices_per_lane=0 must divide the 2 devices"),
    ({"devices_per_lane": 3}, "--devices_per_lane=3 must divide the 2 devices"),
    ({"devices_per_lane": 2, "batch_size": "33"}, "--devices_per_lane=2 must divide --batch_size=33"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_mistake_gets_one_clear_line_and_writes_nothing(tmp_path, capsys, port, given, message):
    given = {name: value.format(port=port) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(SystemExit) as stop:
        call(**{"workdir": str(tmp_path / "run"), **given})
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message.format(port=port)}") or message in line
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named(tmp_path, capsys):
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(SystemExit):
            call(workdir=str(tmp_path / "run"), coordinator=address, num_processes=2, process_id=0)
    assert f"cannot listen at --coordinator={address} (Address already in use)" in capsys.readouterr().err
