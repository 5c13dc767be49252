"""The benchmark: what is counted by hand, and its table through the real binary."""

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import benchmark
from experiments.benchmarks import roofline
from sp_jax import models, training
from sp_jax.types import Dataset

PIXELS = Dataset(np.zeros((6, 8, 8, 3), np.uint8), np.arange(6, dtype=np.int32) % 2, 2)


def call(**given):
    with flagsaver.flagsaver(**given):
        benchmark.main(["tests"])


def work(module, optimizer=training.sgd, batch_size=4):
    return roofline.work(training.Trainer(models.from_module(module, PIXELS.inputs), optimizer, batch_size), PIXELS)


def test_the_operations_of_an_mlp_are_those_of_its_matrices():
    assert work(models.MLP(2, (5,))).operations == 3 * 2 * (192 * 5 + 5 * 2)


def test_the_operations_of_a_resnet_are_those_of_direct_convolutions():
    """Whatever form a CPU computes them in."""
    pixels, width = 64, 32
    stem, block, head = 3 * 9 * width * pixels, 2 * 9 * width * width * pixels, width * 2
    assert work(models.ResNet(2, width=width, stage_sizes=(1,))).operations == 3 * 2 * (stem + block + head)


def test_adam_moves_more_bytes_than_sgd_and_a_larger_batch_fewer_for_each_sample():
    sgd, adam = (work(models.MLP(2, (5,)), made).bytes for made in (training.sgd, training.adam))
    parameters = 192 * 5 + 5 + 5 * 2 + 2
    assert adam - sgd == pytest.approx(2 * (2 * parameters + 1) * 4 / 4)  # two moments and a count, read and written
    assert work(models.MLP(2, (5,)), batch_size=8).bytes < sgd


def test_the_floor_is_the_slower_of_products_and_memory():
    rates = roofline.Rates(operations=100.0, bandwidth=10.0)
    assert roofline.Work(200.0, 10.0).seconds(rates) == 2.0
    assert roofline.Work(100.0, 30.0).seconds(rates) == 3.0


@pytest.mark.slow
def test_a_case_gives_a_row_for_each_number_of_lanes(capsys):
    call(case="mlp_mixture", against="", lanes="1,2", repeats=1, seconds=0.01)
    header, _, *rows = capsys.readouterr().out.strip().splitlines()[2:]
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(benchmark.HEADER)
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[1] for row in found] == ["sp_jax, 1 lane", "sp_jax, 2 lanes"]
    for row in found:
        assert float(row[2].replace(",", "")) > 0
        assert row[5].endswith("%")
        assert row[6].endswith(" s")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"case": "mlp"}, "unknown --case=mlp; did you mean 'mlp_"),
        ({"against": "torch"}, "unknown --against=torch"),
        ({"batch_size": "16,32"}, "one setting of a case at a time"),
        ({"lanes": "two"}, "--lanes must be whole numbers"),
        ({"lanes": "0"}, "--lanes must be positive"),
        ({"norm": "layer"}, "--norm: what the engine is compared with has no such setting"),
        ({"activation": "elu"}, "unknown --activation=elu"),
    ],
)
def test_mistakes_get_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as stop:
        call(**{"case": "mlp_mixture", **given})
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_loops_in_pytorch_train_what_they_are_asked_to():
    torch_loops = pytest.importorskip(
        "experiments.benchmarks.torch_loops", reason="PyTorch is not installed", exc_type=ImportError
    )
    from experiments.config.settings import Settings

    settings = Settings(model="resnet18", width=4, stage_sizes=(1, 1), batch_size=4)
    for loop in (torch_loops.dataloader, torch_loops.tuned):
        assert loop(settings, PIXELS)(6) == 6
    tuned = torch_loops.Tuned(settings, PIXELS)
    before = [parameter.clone() for parameter in tuned.model.parameters()]
    tuned.restart((1.0, 0.0))
    assert all((a == b).all() for a, b in zip(before, tuned.model.parameters(), strict=True))
