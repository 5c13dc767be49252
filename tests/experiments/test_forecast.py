"""--dry_run: what it says of a run is what the run then does, and its arithmetic."""

import types

import grain  # noqa: F401  (defines flags when first imported, which flagsaver would forget again)
import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import run
from experiments.records import results
from experiments.running import builder, dry_run, recorder
from sp_jax import sweeps, training
from sp_jax.engine.program import LANES, Program
from sp_jax.types import HParams

GIVEN = {
    "hidden": "4", "seeds": 3, "rounds": 2, "epochs": 2, "samples_per_round": 100, "batch_size": "50,100",
    "restart": "warm_start,random_init",
}  # fmt: skip


def call(**given):
    with flagsaver.flagsaver(**given):
        run.main(["tests"])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A dry run; then the run, and what it has trained and compiled."""
    base = tmp_path_factory.mktemp("forecast")
    texts, trained, engines, write = [], [], [], recorder.Recorder.write

    class Counted(sweeps.Engine):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            engines.append(self)

    def counted(self, member, finished):
        write(self, member, finished)
        trained.append(len(finished.results) * finished.trained)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "print", lambda *_, **__: None, raising=False)
        patch.setattr(dry_run, "SECONDS", 0.05)
        patch.setattr(run, "print", lambda text, **_: texts.append(text), raising=False)
        call(workdir=str(base / "run"), dry_run=True, **GIVEN)
        assert not list(base.iterdir())
        patch.setattr(recorder.Recorder, "write", counted)
        patch.setattr(builder.sweeps, "Engine", Counted)
        call(workdir=str(base / "run"), **GIVEN)
    return base / "run", texts[0], trained, engines


@pytest.mark.slow
def test_it_says_what_the_run_then_does(both):
    folder, text, trained, engines = both
    rows = results.read(folder / "results.csv")
    lanes = {(row["batch_size"], row["restart"], row["seed"]) for row in rows}
    assert f"4 cells x 3 seeds = {len(lanes)} lanes, 2 rounds of 100 to 200 samples" in text
    assert f"; {sum(trained)} lane-rounds to train" in text
    assert sum(trained) == 18 < len(rows)
    assert f"{len(engines)} static configurations to compile" in text
    assert len(engines) == text.count("mlp on mixture, batch_size=") == 2
    assert "mixture: 6,000 samples, 1.5 MiB" in text


@pytest.mark.slow
def test_what_is_finished_is_not_counted_again(both, capsys, monkeypatch):
    folder, *_ = both
    monkeypatch.setattr(dry_run, "measure", lambda *_: dry_run.Speed(0.0, 1000.0, 2, 0))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    call(workdir=str(folder), resume=True, rounds=3, dry_run=True)
    text = capsys.readouterr().out
    assert "; 12 lane-rounds to train" in text
    assert "time      7 s, for as many epochs as are asked for" in text  # 2 pools, 6 lanes x 300 samples x 2 epochs
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    call(workdir=str(folder), resume=True, dry_run=True)
    assert "; 0 lane-rounds to train" in capsys.readouterr().out


def test_the_arithmetic(tmp_path, capsys, monkeypatch):
    """Three lanes on two devices take two turns; the first round is shared; open ends are a range below the cap."""
    monkeypatch.setattr(dry_run, "measure", lambda *_: dry_run.Speed(2.0, 100.0, 2, 3 << 20))
    call(workdir=str(tmp_path / "run"), dry_run=True, **GIVEN | {"batch_size": "100"})
    out = capsys.readouterr().out
    assert f"time      {2 + (4 * 100 + 6 * 200) * 2 / 100:.0f} s, " in out
    call(workdir=str(tmp_path / "run"), dry_run=True, **GIVEN | {"batch_size": "100", "epochs": None, "max_epochs": 50})
    low, high = (2 + (4 * 100 + 6 * 200) * epochs / 100 for epochs in (5, 50))
    assert f"time      {low:.0f} s to {high / 60:.1f} min; an epoch of each lane-round is 1,500 samples" in (
        capsys.readouterr().out
    )
    call(workdir=str(tmp_path / "run"), dry_run=True, curves=True, **GIVEN | {"batch_size": "100"})  # each cell alone
    assert f"time      {2 + (4 * 100 + 2 * 4 * 200) * 2 / 100:.0f} s, " in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("rate", "overhead"), [(300.0, 0.0), (50_000.0, 0.3), (1e6, 0.001)])
def test_the_rate_is_without_what_every_call_takes(rate, overhead):
    now = [0.0]

    class Fake:
        num_lanes, side_by_side, compile_seconds, program_bytes = 5, 1, 0.0, 7
        mesh = types.SimpleNamespace(shape={LANES: 2})
        trainer = types.SimpleNamespace(batch_size=10)
        place = staticmethod(lambda lanes: lanes)
        init = staticmethod(lambda lanes: lanes)

        def begin(self, lanes, *_):
            now[0] += 1.0  # does not count
            return lanes

        def train(self, lanes, progress, round_, num_visible):
            if not self.compile_seconds:
                self.compile_seconds = 4.0
                now[0] += 4.0
            samples = int(np.sum(lanes.convergence.max_epochs)) * num_visible
            now[0] += overhead + samples / rate

    lanes = sweeps.make_lanes(range(5), HParams(), training.Convergence(), 60)
    speed = dry_run.measure(Fake(), sweeps.RoundPlan(None, lanes, 40), 40, lambda: now[0])
    assert speed == (4.0, pytest.approx(rate), 2, 7)
    assert now[0] < 60


@pytest.mark.slow
def test_a_program_tells_what_it_needs(both):
    *_, engines = both
    data = sum(x.nbytes for x in jax.tree.leaves((engines[0].data.inputs, engines[0].data.labels)))
    assert data < engines[0].program_bytes < data + (8 << 20)
    assert Program(lambda lane, carry: carry, engines[0].mesh, side_by_side=1).bytes == 0
