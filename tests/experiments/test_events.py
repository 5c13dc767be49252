"""What --tensorboard writes, read back by TensorBoard itself, after a run that was stopped and went on."""

import collections
import sys

import grain  # noqa: F401  (defines flags when first imported, which flagsaver would forget again)
import pytest
from absl.testing import flagsaver
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.util import tensor_util

from experiments import run
from experiments.records import results
from experiments.running import recorder

GIVEN = {
    "hidden": "4", "seeds": 2, "rounds": 2, "epochs": 2, "samples_per_round": 200, "curves": True, "tensorboard": True,
    "restart": "warm_start,shrink_perturb", "shrink": "0.5",
}  # fmt: skip


def call(**given):
    with flagsaver.flagsaver(**given):
        run.main(["tests"])


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that is stopped after three groups of rows, in the middle of the second round, and goes on."""
    folder, write, calls = tmp_path_factory.mktemp("events") / "run", recorder.Recorder.write, []

    def interrupted(self, member, finished):
        write(self, member, finished)
        calls.append(member)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder.Recorder, "write", interrupted)
        with pytest.raises(SystemExit):
            call(workdir=str(folder), **GIVEN)
    call(workdir=str(folder), resume=True, tensorboard=True)
    return folder


@pytest.fixture(scope="module")
def board(resumed):
    found = EventMultiplexer().AddRunsFromDirectory(str(resumed / "tensorboard"))
    found.Reload()
    return found


def points(board, lane, tag):
    return [(event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for event in board.Tensors(lane, tag)]


@pytest.mark.slow
def test_every_lane_has_its_rounds_once(resumed, board):
    rows = collections.defaultdict(list)
    for row in results.read(resumed / "results.csv"):
        rows[f"{row['restart']}_{row['shrink']}_{row['noise_scale']}-seed{row['seed']}"].append(row)
    assert set(board.Runs()) == set(rows)
    assert len(rows) == 4
    names = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss", "samples_seen", "epochs")
    for lane, found in rows.items():
        for name in (*names, "seconds"):
            expected = [(row["round"], pytest.approx(row[name], rel=1e-6)) for row in found]
            assert points(board, lane, f"round/{name}") == expected


def test_every_epoch_stands_where_it_was_trained(resumed, board):
    curves = [row for row in results.read_curves(resumed / "curves.csv") if row["restart"] == "warm_start"]
    mine = [row for row in curves if row["seed"] == 1 and row["name"] == "validation_accuracy"]
    expected = [pytest.approx(row["value"], rel=1e-6) for row in mine]
    steps = [0, 1, 2, 2, 3, 4]  # the second round begins where the first has ended
    assert points(board, "warm_start_1_0-seed1", "epoch/validation_accuracy") == list(zip(steps, expected, strict=True))


def test_the_seeds_of_a_setting_are_trials_in_the_tab_of_hyperparameters(board):
    context = Context(TBContext(data_provider=MultiplexerDataProvider(board, "logdir")))
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=10)
    request.allowed_statuses.extend(api_pb2.Status.values())
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    found = {group.name: ({s.name for s in group.sessions}, group.hparams) for group in groups}
    assert set(found) == {"warm_start_1_0", "shrink_perturb_0.5_0.01"}
    sessions, values = found["shrink_perturb_0.5_0.01"]
    assert sessions == {f"shrink_perturb_0.5_0.01-seed{seed}" for seed in (0, 1)}
    assert (values["shrink"].number_value, values["noise_scale"].number_value) == (0.5, 0.01)
    assert (values["restart"].string_value, values["model"].string_value) == ("shrink_perturb", "mlp")
    assert values["batch_size"].number_value == 128


def test_without_the_library_a_run_says_so_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "experiments.records.tensorboard", None)
    monkeypatch.delattr("experiments.records.tensorboard", raising=False)
    with pytest.raises(SystemExit) as stop:
        call(workdir=str(tmp_path / "run"), tensorboard=True)
    assert stop.value.code == 2
    message = "error: --tensorboard needs a library that is missing: pip install tensorboard\n"
    assert capsys.readouterr().err == message
    assert not list(tmp_path.iterdir())
