"""Whatever happens to a run: killed, stopped, started twice, out of room, damaged. Nothing reported is lost."""

import ctypes
import gc
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import sys
import time

import pytest
import soak
from absl.testing import flagsaver

from experiments import run
from experiments.config.fields import UsageError
from experiments.records import provenance, results, run_folder
from experiments.running import signals
from sp_jax.storage import checkpoints

TINY = {"model": "logistic", "seeds": 2, "rounds": 2, "max_epochs": 3, "restart": "warm_start"}
COLUMNS = ("name", "round", "value")
ROWS = [{"name": "100,100", "round": str(i), "value": f"0.{i}"} for i in range(6)]


def call(**given):
    with flagsaver.flagsaver(**given):
        run.main(["tests"])


def fails(capsys, **given):
    """The one line that it ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call(**given)
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return [line for line in err.splitlines() if line][-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    call(workdir=str(folder), **TINY)
    return folder


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_in_the_same_rows_and_parameters(tmp_path):
    found = soak.soak(tmp_path, 3, seed=0, flags=soak.SHORT)
    assert found["kills"] == 3
    assert (found["rows lost"], found["rows doubled"]) == (0, 0)


@pytest.mark.parametrize(
    "number", [pytest.param(each, marks=[pytest.mark.slow] * (i > 0)) for i, each in enumerate(signals.Stop.SIGNALS)]
)
def test_a_signal_stops_at_the_next_safe_point_and_says_how_to_go_on(
    whole, tmp_path, capsys, caplog, monkeypatch, number
):
    folder, sent = tmp_path / "run", []
    monkeypatch.setattr(logging.getLogger("sp_jax"), "propagate", True)  # app.start turns it off
    caplog.set_level(logging.INFO)

    def send(*_):
        if not sent:
            sent.append(os.kill(os.getpid(), number))

    monkeypatch.setattr("experiments.running.progress.Reporter.chunk", send)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        call(workdir=str(folder), **TINY)
    assert end.value.code == 128 + number
    assert signal.getsignal(number) is before
    asked, line = [line for line in capsys.readouterr().err.splitlines() if line]
    assert asked == "stopping at the next safe point; once more ends at once"
    assert line == f"stopped; go on with: python -m experiments.run --resume --workdir={folder}"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["0.1"]
    call(workdir=str(folder), resume=True)
    assert soak.rows(folder) == soak.rows(whole)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("sp_jax")]
    assert said == ["going on in round 1: the rows repeat an undisturbed run's bit for bit"]


def impatient(folder, given, log):
    """A process of a run in which Ctrl-C is pressed over and over in the middle of its first checkpoint."""

    def pressed(*_):
        while True:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    checkpoints.write_whole = pressed
    soak.child(folder, given, log)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_without_harm(whole, tmp_path):
    folder = tmp_path / "run"
    process = soak.start(folder, *(f"--{name}={value}" for name, value in TINY.items()), target=impatient)
    process.join()
    assert process.exitcode == -signal.SIGINT  # a shell says 130
    (line,) = [line for line in pathlib.Path(f"{folder}.log").read_text().splitlines() if line]
    assert line == "stopping at the next safe point; once more ends at once"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [".unfinished"]
    call(workdir=str(folder), resume=True)
    assert soak.rows(folder) == soak.rows(whole)


GPU = {"device": "1 x H100", "machine": "EPYC, 16 cores", "versions": {"jax": "0.10.2"}, "command": [], "resumed": []}


@pytest.mark.parametrize(
    ("backend", "switches", "exact"),
    [
        ("cpu", "", True),
        ("gpu", "", False),
        ("gpu", "--xla_gpu_deterministic_ops=true", True),
        ("gpu", "--xla_gpu_deterministic_ops", True),
        ("gpu", "--a=1 --xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=false", False),
        ("gpu", "--xla_gpu_exclude_nondeterministic_ops=true", False),  # kernels are still chosen by their time
        ("tpu", "--xla_gpu_deterministic_ops=true", False),
    ],
)
def test_a_run_says_whether_it_repeats_itself_to_the_bit(backend, switches, exact, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", switches)
    found = provenance.start(1)["deterministic"]
    assert found == exact
    said = provenance.promise(GPU | {"deterministic": found})
    assert ("XLA_FLAGS=--xla_gpu_deterministic_ops=true" in said) == (backend == "gpu" and not exact)
    assert said == "bit for bit" if exact else said.startswith("but for rounding")
    assert provenance.promise(GPU | {"resumed": [GPU | {"deterministic": found}]}) == said  # one of them is enough


@pytest.mark.parametrize(
    ("changed", "what"),
    [({"device": "2 x H100"}, "device"), ({"machine": "?"}, "machine"), ({"versions": {"jax": "0.11"}}, "version")],
)
def test_a_run_that_goes_on_elsewhere_promises_no_bits(changed, what):
    promised = provenance.promise(GPU | {"resumed": [GPU, GPU | changed]})
    assert promised == f"but for rounding, as it began on another {what}"


def test_two_runs_in_one_folder_are_refused(whole, capsys):
    with run_folder.lock(whole, resume=True):
        line = fails(capsys, workdir=str(whole), resume=True)
    assert line.startswith(f"error: process {os.getpid()} on ")
    assert f"is writing into {whole}" in line
    call(workdir=str(whole), resume=True)


# Orbax leaves coroutines behind where it cannot write, which say so when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("room", [1500, *(pytest.param(room, marks=pytest.mark.slow) for room in (300, 4000))])
def test_out_of_room_a_run_says_so_and_goes_on_when_there_is_some(whole, tmp_path, capsys, room):
    """Too little for the settings, for a checkpoint, for the figures."""
    folder, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        line = fails(capsys, workdir=str(folder), **TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert line.startswith("error: cannot write ")
    call(workdir=str(folder), resume=True, **TINY)
    assert soak.rows(folder) == soak.rows(whole)


NO_NAMESPACES = 77
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000


def on_a_small_disk(folder, given, log):
    """A process of a run on a file system of its own, which is full at first, and has room later."""
    libc, owner = ctypes.CDLL(None), (os.getuid(), os.getgid())
    pathlib.Path(folder).mkdir()
    if libc.unshare(NEW_USER | NEW_MOUNTS):
        sys.exit(NO_NAMESPACES)
    for name, text in zip(("setgroups", "uid_map", "gid_map"), ("deny", *(f"0 {i} 1" for i in owner)), strict=True):
        pathlib.Path("/proc/self", name).write_text(text)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=600k"):
        sys.exit(NO_NAMESPACES)
    fill = pathlib.Path(folder) / "fill"
    fill.write_bytes(b"0" * 500 * 1024)
    try:
        soak.child(folder, given, log)
    except SystemExit as end:
        assert end.code == 2  # noqa: PT017
        fill.unlink()
        run.main(["tests"])
    shutil.copy(pathlib.Path(folder) / "results.csv", f"{folder}.csv")


@pytest.mark.slow
def test_on_a_full_disk_a_run_says_so_and_goes_on_when_there_is_room(whole, tmp_path):
    folder = tmp_path / "run"
    process = soak.start(folder, *(f"--{name}={value}" for name, value in TINY.items()), target=on_a_small_disk)
    process.join()
    if process.exitcode == NO_NAMESPACES:
        pytest.skip("no file system may be mounted here, even in a namespace of its own")
    said = pathlib.Path(f"{folder}.log").read_text()
    assert "(No space left on device); those before are as they were: make room, then go on with --resume" in said
    assert "Traceback" not in said
    assert process.exitcode == 0
    (tmp_path / "run.csv").rename(folder / "results.csv")
    assert soak.rows(folder) == soak.rows(whole)


def table(path, sound=results.NOTHING):
    return results.Table(path, COLUMNS, ("value",), sound)


def test_rows_that_cannot_be_written_leave_the_file_as_it_was(tmp_path, monkeypatch):
    made = table(tmp_path / "t.csv")
    made.append(ROWS[:2])
    before, sync = made.sound, os.fsync

    def full(_):
        raise OSError(28, "")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*t.csv \(No space left on device\)"):
        made.append(ROWS[2:4])
    monkeypatch.setattr("os.fsync", sync)
    assert made.sound == table(tmp_path / "t.csv").sound == before
    made.append(ROWS[1:])
    assert table(tmp_path / "t.csv").sound == made.sound
    assert (tmp_path / "t.csv").read_text().count("\n") == 7


def test_a_file_cut_anywhere_loses_whole_rows_only_and_none_that_a_checkpoint_vouches_for(tmp_path):
    path = tmp_path / "t.csv"
    made = table(path)
    made.append(ROWS[:3])
    sound = made.sound
    made.append(ROWS[3:])
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if size < sound.size:
            with pytest.raises(UsageError, match="has lost or changed rows"):
                table(path, sound)
            assert path.read_bytes() == content[:size]
        else:
            table(path, sound).append(ROWS)
            assert path.read_bytes() == content
        path.write_bytes(content[:size])
        table(path).append(ROWS)
        assert path.read_bytes() == content


@pytest.mark.parametrize("tail", [b'"100,\n', b"\0" * 40, b"\0" * 20 + b"\n", b"a,1\n", b"\xff\xfe\n"])
def test_what_a_crash_leaves_at_the_end_is_dropped(tmp_path, tail):
    path = tmp_path / "t.csv"
    table(path).append(ROWS)
    content = path.read_bytes()
    path.write_bytes(content + tail)
    table(path)
    assert path.read_bytes() == content


def test_damage_is_named_and_nothing_is_overwritten(whole, tmp_path, capsys):
    for name, line in (("config.json", "config.json is damaged"), ("results.csv", "has lost or changed rows")):
        content = (whole / name).read_bytes()
        flipped = content.replace(b"0.0", b"0.1", 1)
        assert flipped != content
        (whole / name).write_bytes(flipped)
        try:
            assert line in fails(capsys, workdir=str(whole), resume=True)
            assert (whole / name).read_bytes() == flipped
        finally:
            (whole / name).write_bytes(content)
    assert json.loads((whole / "config.json").read_text())["checksum"]


@pytest.mark.slow
def test_a_middle_of_a_round_remembers_the_curves(tmp_path, monkeypatch, capsys):
    given = {"experiment": "online", "curves": True, **TINY}
    call(workdir=str(tmp_path / "whole"), **given)
    chunks = []
    monkeypatch.setattr(signals.Stop, "asked", lambda _: len(chunks.append(0) or chunks) == 6)
    with pytest.raises(SystemExit):
        call(workdir=str(tmp_path / "run"), **given)
    assert checkpoints.Store(tmp_path / "run" / "checkpoints").resume()[1] is not None
    monkeypatch.undo()
    call(workdir=str(tmp_path / "run"), resume=True)
    curves = [(tmp_path / name / "curves.csv").read_text() for name in ("whole", "run")]
    assert curves[0] == curves[1]
