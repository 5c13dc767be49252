"""One's own arrays as a data set of experiments.run: `--dataset=path.npz`."""

import numpy as np
import pytest
from binaries import call
from sklearn import datasets

from experiments import trained
from sp_jax import data

PIXELS, LABELS = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6) % 2


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        (None, "there is no file"),
        (b"", "cannot be read as npz"),
        (b"PK\x03\x04", "cannot be read as npz"),
        ({"x": PIXELS, "labels": LABELS}, "holds x, labels; expected arrays inputs"),
        ({"inputs": PIXELS}, "holds inputs; expected"),
        ({"inputs": np.array([{}] * 6), "labels": LABELS}, "cannot be read as npz"),
        ({"inputs": PIXELS.astype(np.int64), "labels": LABELS}, "inputs are int64; expected"),
        ({"inputs": PIXELS.astype(complex), "labels": LABELS}, "inputs are complex128; expected"),
        ({"inputs": PIXELS * np.nan, "labels": LABELS}, "inputs hold NaN or infinite values"),
        ({"inputs": PIXELS + 1e300, "labels": LABELS}, "inputs hold NaN or infinite values"),
        ({"inputs": PIXELS[:5], "labels": LABELS}, "must be of shapes"),
        ({"inputs": PIXELS[:0], "labels": LABELS[:0]}, "must be of shapes"),
        ({"inputs": PIXELS, "labels": LABELS - 1}, "labels must be integers from 0 on"),
        ({"inputs": PIXELS, "labels": LABELS + 0.5}, "labels must be integers from 0 on"),
        ({"inputs": PIXELS, "labels": LABELS * 10**12}, "number the classes from 0 on"),
    ],
)
def test_a_file_that_is_no_data_set_gets_a_line(tmp_path, arrays, line):
    path = tmp_path / "own.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays:
        np.savez(path, **arrays)
    with pytest.raises(data.DataError, match=line) as error:
        data.load(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_experiment_runs_on_ones_own_arrays_and_measures_them_again(tmp_path, capsys):
    x, y = datasets.load_iris(return_X_y=True)
    np.savez(tmp_path / "iris.npz", inputs=x, labels=y)
    few = {"hidden": "8", "seeds": 1, "rounds": 2, "samples_per_round": 40, "max_epochs": 3, "pairs": "0.6:0.01"}
    call(dataset=str(tmp_path / "iris.npz"), workdir=str(tmp_path / "run"), restart="warm_start,shrink_perturb", **few)
    assert "iris.npz" in (tmp_path / "run/report.md").read_text()
    capsys.readouterr()
    call(trained, workdir=str(tmp_path / "run"), evaluate=True)
    assert capsys.readouterr().out.splitlines()[-1] == "4 of 4 as in results.csv"
