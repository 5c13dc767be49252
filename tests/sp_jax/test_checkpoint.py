"""Where a run stands, saved in the middle of rounds too; what is damaged is named and the newest sound state used."""

import hashlib
import itertools
import json
import logging
import shutil

import jax
import numpy as np
import pytest

from sp_jax import data, models, restarts, sweeps, training
from sp_jax.storage import checkpoints
from sp_jax.storage.checkpoints import CheckpointError, Store
from sp_jax.types import Dataset, HParams

FULL = data.mixture()
SMALL = Dataset(FULL.inputs[:300], FULL.labels[:300], 10, "small")
TREE = {"a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "none": np.zeros((2, 0), np.int32)}}
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), TREE)


@pytest.fixture(scope="module")
def groups():
    """Three groups with BatchNorm-free networks and Adam; all but the first round is one pool of six lanes."""
    model = models.from_module(models.MLP(10, (8,)), SMALL.inputs)
    engine = sweeps.Engine(training.Trainer(model, training.adam, 32), SMALL, 6)
    made = []
    for name, shrink in (("warm_start", 1.0), ("shrink_perturb", 0.5), ("random_init", 0.0)):
        hparams = HParams(0.01, shrink=shrink, noise_scale=float(shrink < 1))
        lanes = sweeps.make_lanes([0, 1], hparams, training.Convergence(0.9, max_epochs=8), 300)
        restart = restarts.make_restart(getattr(restarts, name))
        made.append(sweeps.Group(name, sweeps.rounds(engine, lanes, restart, (60, 120))))
    return made


def train(groups, folder, stop_after=None, **options):
    """Results without their times; the states at the end, leaf by leaf."""
    chunks = itertools.count(1)
    watch = sweeps.Callbacks(stop=lambda: next(chunks) == stop_after, **options)
    store, found = Store(folder, every=0.0), []
    for finished in sweeps.run(groups, store=store, watch=watch):
        found += [(finished.group.name, *result._replace(seconds=0.0)) for result in finished.results]
    shapes = {g.name: g.phases[-1].engine.shapes(g.phases[-1].lanes) for g in groups}
    return found, jax.tree.leaves(store.load(Store(folder).resume()[0], shapes))


def test_a_run_that_is_stopped_after_any_chunk_goes_on_to_the_same_bits(groups, tmp_path, monkeypatch):
    monkeypatch.setattr("sp_jax.engine.engine.CHUNK_SECONDS", 1e-6)  # an epoch each
    whole, states = train(groups, tmp_path / "whole")
    for stop_after in (1, 8, 12):  # of 16: 8 epochs in each round, the last chunk of the first too
        folder = tmp_path / str(stop_after)
        with pytest.raises(sweeps.Stopped):
            train(groups, folder, stop_after)
        part = Store(folder).resume()[1]
        assert part.note["round"] == 1 + (stop_after > 8)
        assert len(part.note["seconds"]) == (1 if stop_after <= 8 else 3)
        seen = []
        rest, again = train(groups, folder, on_chunk=lambda _, r, p, seen=seen: seen.append((r, int(p.epoch.max()))))
        assert seen[0] == ((1, min(stop_after + 1, 8)) if stop_after <= 8 else (2, stop_after - 7))  # the epoch after
        assert rest == whole[-len(rest) :]
        jax.tree.map(np.testing.assert_array_equal, states, again)
    assert train(groups, tmp_path / "whole")[0] == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


DAMAGE = {
    "flipped": lambda folder: flip(largest(folder)),
    "truncated": lambda folder: truncate(largest(folder)),
    "missing": lambda folder: largest(folder).unlink(),
    "manifest flipped": lambda folder: flip(folder / "manifest"),
    "manifest cut": lambda folder: truncate(folder / "manifest"),
    "manifest missing": lambda folder: (folder / "manifest").unlink(),
    "emptied": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.fixture
def said(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sp_jax"), "propagate", True)  # app.start turns it off
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name == "sp_jax"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage, tmp_path, said):
    store = Store(tmp_path)
    for number in (1, 2, 3):
        store.save(TREE, {"is": number})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    DAMAGE[damage](tmp_path / "3")
    whole, part = Store(tmp_path).resume()
    assert (whole.note, part) == ({"is": 2}, None)
    (line,) = said()
    assert line.startswith(f"the checkpoint {tmp_path / '3'} is damaged (")
    assert line.endswith(f"; going on from {tmp_path / '2'}")
    assert "\n" not in line
    jax.tree.map(np.testing.assert_array_equal, TREE, Store(tmp_path).load(whole, LIKE))
    DAMAGE[damage](tmp_path / "2")
    with pytest.raises(CheckpointError, match=r"is damaged .* and no older one is left"):
        Store(tmp_path).resume()


def test_the_middle_of_a_round_is_kept_twice_until_the_round_has_ended(tmp_path, said):
    store = Store(tmp_path)
    for part in (1, 2, 3):
        store.save(TREE, {"is": part}, midway=True)
    flip(largest(tmp_path / "0.3"))
    assert [point and point.note for point in Store(tmp_path).resume()] == [None, {"is": 2}]
    truncate(largest(tmp_path / "0.2"))
    assert Store(tmp_path).resume() == (None, None)
    assert said()[-1].endswith("going on from the beginning")
    store.save(TREE, {})
    store.save(TREE, {}, midway=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1.1"]
    flip(largest(tmp_path / "1"))
    with pytest.raises(CheckpointError, match="no older one is left"):  # what it was the middle of is gone
        Store(tmp_path).resume()


def test_after_damage_the_middle_of_a_round_belongs_to_the_sound_one_before_it(tmp_path):
    store = Store(tmp_path)
    for number in (1, 2, 3):
        store.save(TREE, {"is": number})
    flip(largest(tmp_path / "3"))
    Store(tmp_path).save(TREE, {"is": "part"}, midway=True)
    assert [point.note["is"] for point in Store(tmp_path).resume()] == [2, "part"]
    Store(tmp_path).save(TREE, {"is": "again"})
    whole, part = Store(tmp_path).resume()
    assert (whole.number, whole.note["is"], part) == (3, "again", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


def rewrite(folder, **changes):
    """Changes what a checkpoint says of itself, checksum and all."""
    _, text = (folder / "manifest").read_text().splitlines()
    text = json.dumps(json.loads(text) | changes)
    (folder / "manifest").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")


def test_after_an_upgrade_it_goes_on_or_says_what_to_do(tmp_path, said):
    Store(tmp_path).save(TREE, {})
    older = dict.fromkeys(checkpoints.PACKAGES, "0.0.1")
    rewrite(tmp_path / "1", versions=older)
    whole, _ = Store(tmp_path).resume()
    assert "jax 0.0.1 is now " in said()[0]
    jax.tree.map(np.testing.assert_array_equal, TREE, Store(tmp_path).load(whole, LIKE))
    other = {"a": {"kernel": jax.ShapeDtypeStruct((2, 3), np.float64), "more": LIKE["a"]["none"]}}
    with pytest.raises(
        CheckpointError, match=r"a: kernel is float32\[2, 3\], not float64.*what wrote it \(jax 0.0.1, "
    ):
        Store(tmp_path).load(whole, other)
    rewrite(tmp_path / "1", format=2)
    with pytest.raises(CheckpointError, match="is of format 2, this program reads 1: go on with the release"):
        Store(tmp_path).resume()
    (tmp_path / "warm_start_1_0" / "1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="warm_start_1_0 is no checkpoint of this release"):
        Store(tmp_path).resume()


def test_what_cannot_be_written_leaves_the_others_as_they_are(tmp_path):
    store = Store(tmp_path)
    store.save(TREE, {"is": 1})
    limits = checkpoint_limit(1000)
    try:
        with pytest.raises(CheckpointError, match=r"cannot write the checkpoint .*/2 .*make room") as error:
            store.save({"a": np.random.default_rng(0).normal(size=10_000)}, {})
    finally:
        checkpoint_limit(*limits)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    store.save(TREE, {"is": 2})
    assert Store(tmp_path).resume()[0].note == {"is": 2}


def checkpoint_limit(soft, hard=None):
    """Sets how large a file may be, in bytes, and returns what it was."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1] if hard is None else hard))
    return before
