"""The nightly retraining: files of all formats, whatever is wrong with them, and a month of nights on real data."""

import csv
import json
import os
import pathlib
import shutil
import zipfile

import grain  # noqa: F401  (defines flags when first imported, which flagsaver would forget again)
import jax
import numpy as np
import pandas as pd
import pytest
from absl.testing import flagsaver
from sklearn import datasets

from experiments import retrain
from experiments.config.fields import UsageError
from experiments.nightly import cells, columns, fitting, history, night, page, scaling, tables
from experiments.nightly.columns import Asked, Preparation, Rows
from experiments.nightly.night import Choices
from sp_jax import models
from sp_jax.fitting import Choice, Fit, Tuned
from sp_jax.types import RoundResult, TrainState

COUNT = 20


def frame(seed=0, count=COUNT, start="2026-01-01"):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.normal(40, 10, count),
            "visits": rng.integers(0, 9, count),
            "city": rng.choice(["Zürich", "Bern", "東京"], count),
            "member": rng.integers(0, 2, count).astype(bool),
            "when": pd.Timestamp(start) + pd.to_timedelta(np.arange(count), "min"),
            "weight": rng.uniform(0.5, 2, count),
            "clicked": np.arange(count) % 2,
        }
    )


def put(path, table):
    """Write a data frame, or bytes as they are."""
    if isinstance(table, bytes):
        path.write_bytes(table)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    elif path.suffix == ".npz":
        arrays = {name: np.array(table[name]) for name in table}
        np.savez(path, **{k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()})
    else:
        np.save(path, table, allow_pickle=True)
    return path


def fake_fit(training, preparation, rows, held_out, since, pair=None):
    """A network that nobody trained, for tests of all that is around it."""
    model = models.as_model(fitting.network(preparation), fitting.inputs(rows)[:1])
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e-3, leaf.dtype), params)
    past, count = since.history if since else (), len(rows.numbers)
    result = RoundResult(0, len(past) + 1, count, 3, 3 * count, "threshold", 1.0, 0.1, 0.9, 0.2, 0.5, 1)
    return Fit(model, TrainState(params, {}, ()), (*past, result), {})


def fake_tune(training, preparation, rows, held_out, since):
    table = (Choice(0.6, 0.01, 0.9, 100.0, 1), Choice(0.0, 1.0, 0.8, 10.0 * len(rows.numbers), 1))
    return Tuned(table[0], table, 0.01, 400, 0.1)


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(fitting, "fit", fake_fit)
    monkeypatch.setattr(fitting, "tune", fake_tune)
    monkeypatch.setattr(fitting, "score", lambda *_: fitting.Score(0.9, 0.3))
    monkeypatch.setattr(page, "draw", lambda *_: None)  # takes a second


def call(**given):
    """Call the binary; its exit code."""
    with flagsaver.as_parsed(**{name: str(value) for name, value in given.items()}):
        try:
            retrain.main(["tests"])
        except SystemExit as stop:
            return stop.code
    return 0


def line_of(capsys, code, **given):
    """The one line on stderr that a call ends with."""
    capsys.readouterr()
    assert call(**given) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    (line,) = err.strip().splitlines()
    assert len(line) < 600
    return line


def contents(folder):
    """All that must not change when a night fails."""
    kept = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}


# Reading.


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
def test_all_formats_hold_the_same_rows(tmp_path, suffix):
    original = frame()
    table = tables.read(put(tmp_path / f"day{suffix}", original))
    assert [*table] == [*original]
    np.testing.assert_allclose(table["age"], original["age"])
    assert table["visits"].dtype.kind == "i"
    assert table["city"].tolist() == original["city"].tolist()
    asked = Asked(("clicked",), time="when", weight="weight")
    rows = columns.extract(columns.infer(table, asked), table)
    np.testing.assert_allclose(rows.numbers, original[["age", "visits"]])
    np.testing.assert_allclose(rows.times[1] - rows.times[0], 60)
    assert rows.labels[:3].tolist() == [[0.0], [1.0], [0.0]]
    names = ("city", "member")
    expected = [[cells.bucket(n, str(v), 1024) for n, v in zip(names, row, strict=True)] for row in original[
        [*names]].to_numpy(object)]  # fmt: skip
    np.testing.assert_array_equal(rows.categories, expected)


def test_arrays_without_names_have_numbered_columns(tmp_path):
    values = np.arange(12.0).reshape(4, 3)
    put(tmp_path / "a.npy", values)
    named = np.array([(1.5, "x"), (2.5, "y")], [("size", float), ("kind", "U3")])
    assert [*tables.read(tmp_path / "a.npy")] == ["0", "1", "2"]
    assert tables.read(put(tmp_path / "b.npy", named))["kind"].tolist() == ["x", "y"]
    np.savez(tmp_path / "c.npz", x=values, y=np.arange(4))
    assert [*tables.read(tmp_path / "c.npz")] == ["x[0]", "x[1]", "x[2]", "y"]
    assert columns.infer(tables.read(tmp_path / "c.npz"), Asked(("y",))).numbers == ("x[0]", "x[1]", "x[2]")


def test_files_arrive_in_the_natural_order_of_their_names(tmp_path):
    for name in ("day10.csv", "day2.csv", "day1.npz"):
        (tmp_path / name).touch()
    found = tables.expand("--data", f"{tmp_path}/day*.csv,{tmp_path}/day1.npz,{tmp_path}/day2.csv")
    assert [path.name for path in found] == ["day1.npz", "day2.csv", "day10.csv"]
    with pytest.raises(UsageError, match="names no file"):
        tables.expand("--data", f"{tmp_path}/night*")
    (tmp_path / "day3.xls").touch()
    with pytest.raises(UsageError, match="of no known format"):
        tables.expand("--data", f"{tmp_path}/day*")


def test_hashes_are_the_same_on_every_machine_and_night():
    assert [cells.bucket("city", text, 1024) for text in ("", "Bern", "Zürich", "東京", "\ud800")] == [
        359, 257, 747, 701, 105,
    ]  # fmt: skip
    assert cells.bucket("town", "Bern", 1024) != cells.bucket("city", "Bern", 1024)


def test_text_that_looks_like_numbers_keeps_its_bucket(tmp_path):
    first = pd.DataFrame({"code": ["01", "x", "2"], "y": [0, 1, 0]})
    made = columns.infer(tables.read(put(tmp_path / "1.csv", first)), Asked(("y",)))
    later = tables.read(put(tmp_path / "2.csv", first.assign(code=["01", "1", "2"])), made.text)
    assert later["code"].tolist() == ["01", "1", "2"]


@pytest.mark.parametrize(
    ("values", "task"),
    [
        ([0, 1, 0, 1], "binary"),
        ([True, False, True, False], "binary"),
        ([0.0, 1.0, 1.0, 0.0], "binary"),
        ([0, 1, 2, 3], "classification"),
        ([-5, 7, 7, -5], "classification"),
        (["a", "b", "a", "c"], "classification"),
        (["no", "yes", "no", "no"], "classification"),
        ([0.5, 1.5, 2.0, 1.0], "2 fractions"),
        ([1.0, 2.0, 3.0, 4.0], "give --task=regression"),
        (list(range(40)), "40 whole numbers"),
        ([f"name {i}" for i in range(300)], "300 texts"),
        ([1, 1, 1, 1], "one value, '1'"),
    ],
)
def test_the_label_says_what_the_task_is_or_it_is_asked_for(values, task):
    column = {"y": np.array(values, object if isinstance(values[0], str) else None)}
    if task in columns.TASKS:
        assert columns.infer_task(column) == task
    else:
        with pytest.raises(UsageError, match=task.replace("2 fractions", "4 fractions")):
            columns.infer_task(column)


def test_statistics_are_those_of_the_first_nights_training_rows():
    rows = Rows(np.array([[1.0, 5], [3, 5], [100, 5]]), np.empty((3, 0), np.int32), np.array([[2.0], [4], [9]]))
    made = scaling.measure(Preparation(("y",), "regression", ("a", "b"), ()), rows, np.array([True, True, False]))
    assert (made.means, made.deviations) == ((2.0, 5.0), (1.0, 1.0))
    assert scaling.standardised(made, rows).tolist() == [[-1, 0], [1, 0], [98, 0]]
    np.testing.assert_allclose(scaling.targets(made, rows.labels), [-1, 1, 6])
    outputs = scaling.targets(made, rows.labels)[:, None]
    np.testing.assert_allclose(scaling.readable(made, outputs)["y"], [2, 4, 9])
    assert columns.from_json(columns.to_json(made)) == made


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_missing_values_become_the_mean_or_a_value_of_their_own(fakes, tmp_path, suffix):
    first = objects(GOOD.assign(age=[np.nan, 2.0] * 10), "city", ["Bern"] * 10)
    for i, table in enumerate((first, first.assign(visits=np.nan, member=True)), 1):
        put(tmp_path / f"{i}{suffix}", table)
        given = {"label": "clicked", "time": "when"} | ({"missing": "mean"} if i == 1 else {})
        assert call(data=f"{tmp_path}/*{suffix}", workdir=tmp_path / "m", **given) == 0
    rows, _, _ = history.Folder(tmp_path / "m").read_rows(2)
    np.testing.assert_array_equal(rows.numbers[:, :2], np.zeros((20, 2)))  # the mean of 2, and of what is missing
    expected = [cells.bucket("city", text, 1024) for text in ("Bern", "")]
    assert rows.categories[[0, -1], 0].tolist() == expected


def test_new_classes_come_after_the_old_ones():
    made = Preparation(("y",), "classification", (), ("c",))
    made = scaling.with_classes(made, np.array(["10", "9", "b", "9"], object))
    assert made.classes == ("9", "10", "b")
    assert scaling.with_classes(made, np.array(["a", "10", "1"], object)).classes == ("9", "10", "b", "1", "a")


def test_which_rows_are_held_out():
    rows = Rows(np.zeros((10, 1)), np.zeros((10, 0)), None, None, np.arange(10)[::-1].astype(float))
    assert np.flatnonzero(night.hold_out(rows, Choices(0.3), "ab")).tolist() == [0, 1, 2]  # the newest by the clock
    assert np.flatnonzero(night.hold_out(rows._replace(times=None), Choices(0.3), "ab")).tolist() == [7, 8, 9]
    random = night.hold_out(rows, Choices(0.3, "random"), "ab" * 32)
    assert random.sum() == 3
    np.testing.assert_array_equal(random, night.hold_out(rows, Choices(0.3, "random"), "ab" * 32))
    for holdout in (1e-9, 1 - 1e-9):
        assert 0 < night.hold_out(rows, Choices(holdout), "ab").sum() < 10


# A first night.

GOOD = frame()
NO_ZIP = b"PK\x03\x04 and then nothing"


def objects(table, name, values):
    return table.assign(**{name: pd.Series([*values] + [None] * (len(table) - len(values)), dtype=object)})


FIRST = [  # (the file's name, its content, flags, what the line says)
    ("d.csv", GOOD, {"label": "klicked"}, "has no column 'klicked' (did you mean 'clicked'?)"),
    ("d.csv", GOOD, {"label": "zzz"}, "has no column 'zzz' (it has 'age', 'visits'"),
    ("d.csv", GOOD, {"label": ","}, "--label is an empty list"),
    ("d.csv", GOOD, {}, "--label is missing"),
    ("d.csv", GOOD, {"label": "age"}, "holds 20 fractions, so the task is in doubt"),
    ("d.csv", GOOD, {"label": "clicked,visits"}, "several labels that are not all 0 or 1: give --task=regression"),
    ("d.csv", GOOD, {"label": "clicked,visits", "task": "binary"}, "--task=binary has one label"),
    ("d.csv", GOOD, {"label": "clicked", "columns": "clicked,age"}, "column 'clicked' is asked for in two roles"),
    ("d.csv", GOOD, {"label": "clicked", "columns": "age,agge"}, "has no column 'agge' (did you mean 'age'?)"),
    ("d.csv", GOOD, {"label": "clicked", "weight": "mass"}, "has no column 'mass'"),
    ("d.csv", GOOD, {"label": "clicked", "weight": "city"}, "column 'city' held numbers on the first night, now text"),
    ("d.csv", GOOD, {"label": "clicked", "time": "city"}, "is no time (as 2026-01-31 06:00)"),
    ("d.csv", GOOD, {"label": "clicked", "time": "clock"}, "has no column 'clock'"),
    ("d.csv", GOOD, {"label": "clicked", "time": "weight", "weight": "weight"}, "in two roles"),
    ("d.parquet", GOOD, {"label": "clicked"}, "column 'when' holds times; name it with --time"),
    ("d.parquet", GOOD[["clicked"]], {"label": "clicked"}, "has no column beside the label"),
    ("d.csv", GOOD.assign(clicked=1), {"label": "clicked"}, "has one value, '1', in all 20 rows"),
    ("d.csv", GOOD.assign(clicked=np.inf), {"label": "clicked", "task": "regression"}, "column 'clicked' is infinite"),
    ("d.csv", GOOD, {"label": "city", "task": "regression"}, "column 'city' held numbers"),
    ("d.csv", GOOD, {"label": "visits", "task": "binary"}, "is neither 0 nor 1 (--task=binary)"),
    ("d.csv", GOOD, {"label": "when,city", "task": "multilabel"}, "held numbers on the first night, now text"),
    ("d.parquet", GOOD, {"label": "when"}, "label 'when' holds times"),
    ("d.csv", objects(GOOD, "clicked", "01"), {"label": "clicked"}, "column 'clicked' has no value in rows 3, 4, 5"),
    (
        "d.csv",
        objects(GOOD, "age", "12"),
        {"label": "clicked"},
        "'age' has no value in rows 3, 4, 5, 6, 7, … (18 of 20)",
    ),
    ("d.csv", objects(GOOD, "city", "ab"), {"label": "clicked"}, "column 'city' has no value in rows 3"),
    ("d.csv", GOOD.assign(age=-np.inf), {"label": "clicked"}, "column 'age' is infinite in rows 1"),
    ("d.csv", GOOD.assign(age=1e300), {"label": "clicked"}, "column 'age' is beyond 1e+30"),
    ("d.csv", GOOD.assign(weight=-1), {"label": "clicked", "weight": "weight"}, "is a negative weight"),
    ("d.csv", GOOD.assign(weight=0), {"label": "clicked", "weight": "weight"}, "all weights are 0"),
    ("d.csv", GOOD.iloc[:0], {"label": "clicked"}, "is empty: it has no rows"),
    ("d.parquet", GOOD.iloc[:0], {"label": "clicked"}, "is empty: it has no rows"),
    ("d.csv", GOOD.iloc[:1], {"label": "clicked", "task": "binary"}, "a night needs two rows, one to hold out"),
    ("d.csv", b"", {"label": "clicked"}, "is empty: it has no header"),
    ("d.csv", b"\n\n", {"label": "clicked"}, "is empty"),
    ("d.csv", b"\xff\xfe\x00", {"label": "clicked"}, "is damaged, or no csv"),
    ("d.csv", b"a,a,y\n1,2,0\n3,4,1\n", {"label": "y"}, "has two columns of the name 'a'"),
    ("d.csv", b"a,y\n1,2,0\n3,4,1\n", {"label": "y"}, "has rows with more fields than its header"),
    ("d.csv", b"a,y\n1,2\n3,4,1\n", {"label": "y"}, "is damaged, or no csv"),
    ("d.csv", b",y,a\n0,0,1\n1,1,2\n", {"label": "y"}, "column 'Unnamed: 0' looks like an index"),
    ("d.csv", b'a,y\n"1,2\n3,4', {"label": "y"}, "is damaged, or no csv"),
    ("d.csv", b"a,y\n\x00,0\n1,1\n", {"label": "x"}, "d.csv"),
    ("d.parquet", b"", {"label": "y"}, "is damaged, or no parquet"),
    ("d.parquet", b"PAR1" + bytes(20), {"label": "y"}, "is damaged, or no parquet"),
    ("d.parquet", pd.DataFrame({"a": [[1], [2]], "y": [0, 1]}), {"label": "y"}, "column 'a' holds list<"),
    ("d.parquet", pd.DataFrame({"a": [b"1", b"2"], "y": [0, 1]}), {"label": "y"}, "column 'a' holds binary"),
    ("d.parquet", pd.DataFrame({"a": [{"b": 1}] * 2, "y": [0, 1]}), {"label": "y"}, "column 'a' holds struct<"),
    ("d.parquet", pd.DataFrame({"a": [1, 2], "y": [[0], [1]]}), {"label": "y"}, "label 'y' holds list<"),
    (
        "d.parquet",
        pd.DataFrame({"a": [None, None], "y": [0, 1]}),
        {"label": "y"},
        "column 'a' has no value in rows 1, 2",
    ),
    ("d.npz", b"", {"label": "y"}, "is damaged, or no npz"),
    ("d.npz", NO_ZIP, {"label": "y"}, "is damaged, or no npz"),
    ("d.npz", {"a": np.ones(3), "y": np.arange(2)}, {"label": "y"}, "has columns of unequal length: 'a' 3, 'y' 2"),
    ("d.npz", {"a": np.ones((2, 2, 2)), "y": np.arange(2)}, {"label": "y"}, "array 'a' is of shape (2, 2, 2)"),
    ("d.npz", {"a": np.float64(3), "y": np.arange(2)}, {"label": "y"}, "array 'a' is of shape ()"),
    ("d.npz", {"a": np.ones(2, complex), "y": np.arange(2)}, {"label": "y"}, "column 'a' holds complex128"),
    ("d.npz", {"a": np.ones(0), "y": np.ones(0)}, {"label": "y"}, "is empty"),
    ("d.npy", b"", {"label": "0"}, "is damaged, or no npy"),
    ("d.npy", np.ones(5), {"label": "0"}, "is an array of shape (5,); expected [N, columns]"),
    ("d.npy", np.array([{}, []], object), {"label": "0"}, "is damaged, or no npy (Object arrays cannot be loaded"),
    ("d.npy", np.ones((3, 2)), {"label": "2"}, "has no column '2'"),
    ("d.npy", np.eye(4), {"label": "clicked"}, "has no column 'clicked' (it has '0', '1', '2', '3'"),
    ("d.csv", GOOD, {"label": "clicked", "task": "clasification"}, "did you mean 'classification'?"),
    ("d.csv", GOOD, {"label": "clicked", "missing": "drop"}, "unknown --missing=drop"),
    ("d.csv", GOOD, {"label": "clicked", "holdout": "0"}, "--holdout=0.0 must lie in (0, 1)"),
    ("d.csv", GOOD, {"label": "clicked", "holdout": "nan"}, "--holdout=nan must lie in (0, 1)"),
    ("d.csv", GOOD, {"label": "clicked", "holdout_by": "chance"}, "unknown --holdout_by=chance"),
    ("d.csv", GOOD, {"label": "clicked", "window": "30"}, "--window=30 must be a number of days or rows"),
    ("d.csv", GOOD, {"label": "clicked", "window": "0days"}, "--window=0days must be a number"),
    ("d.csv", GOOD, {"label": "clicked", "model": "resnet18"}, "--model=resnet18 takes no columns"),
    ("d.csv", GOOD, {"label": "clicked", "hidden": "8,x"}, "--hidden must be whole numbers"),
    ("d.csv", GOOD, {"label": "clicked", "hidden": "0"}, "--hidden must be positive layer sizes"),
    ("d.csv", GOOD, {"label": "clicked", "batch_size": "0"}, "--batch_size must be positive"),
    ("d.csv", GOOD, {"label": "clicked", "batch_size": "8,16"}, "--batch_size takes one value"),
    ("d.csv", GOOD, {"label": "clicked", "learning_rate": "nan"}, "--learning_rate must be positive"),
    ("d.csv", GOOD, {"label": "clicked", "train_accuracy": "99"}, "--train_accuracy is a fraction"),
    ("d.csv", GOOD, {"label": "clicked", "out": "x.csv"}, "--out goes with --predict"),
]


@pytest.mark.parametrize(("name", "content", "given", "line"), FIRST, ids=range(len(FIRST)))
def test_a_first_night_that_cannot_begin_gets_a_line_and_leaves_nothing(
    fakes, tmp_path, capsys, name, content, given, line
):
    put(tmp_path / name, content)
    folder = tmp_path / "model"
    capsys.readouterr()
    code = call(data=tmp_path / name, workdir=folder, **given)
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert (code, last[:7]) == (2, "error: ")
    assert line in last
    assert "Traceback" not in out + err
    assert len(err.splitlines()) <= 2
    assert not folder.exists() or not contents(folder)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"data": "x.csv", "label": "y"}, "--workdir is missing"),
        ({"workdir": "m"}, "give --data to retrain, or --predict and --out"),
        ({"workdir": "m", "data": "x.csv", "predict": "x.csv"}, "give --data to retrain, or --predict"),
        ({"workdir": "m", "predict": "x.csv"}, "--out is missing"),
        ({"workdir": "m", "data": "x.csv"}, "--data=x.csv names no file"),
        ({"workdir": "m", "data": ","}, "--data is an empty list"),
        ({"workdir": "m", "data": "~nobody_of_this_name/x"}, "can be no path"),
        ({"workdir": "m", "predict": "x.csv", "out": "y.csv"}, "--predict=x.csv names no file"),
    ],
)
def test_a_command_that_lacks_something_gets_a_line(tmp_path, monkeypatch, capsys, given, line):
    monkeypatch.chdir(tmp_path)
    assert line in line_of(capsys, 2, **given)
    assert not (tmp_path / "m").exists()


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    (tmp_path / "d.csv").write_bytes(b"a,y\n1,0\n2,1\n")
    line = line_of(capsys, 2, data=tmp_path / "d.csv", label="y", workdir=tmp_path / "m")
    assert line == "error: d.csv needs pandas, which is missing: pip install '.[retrain]'"


# Later nights: a folder with one night behind it, made once.

GIVEN = {"label": "clicked", "time": "when", "weight": "weight"}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    place = tmp_path_factory.mktemp("begun")
    put(place / "day1.parquet", GOOD)
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in (("fit", fake_fit), ("tune", fake_tune), ("score", lambda *_: fitting.Score(0.9, 0.3))):
            patch.setattr(fitting, name, fake)
        assert call(data=place / "day1.parquet", workdir=place / "model", hidden="4", **GIVEN) == 0
    return place


@pytest.fixture
def place(begun, tmp_path):
    """The day-old folder and its data, to be spoilt."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return tmp_path


TODAY = frame(1, start="2026-01-02")
LATER = [  # (the new file's name, its content, what the line says)
    ("day2.parquet", TODAY.drop(columns="clicked"), "has no column 'clicked'"),
    (
        "day2.csv",
        TODAY.rename(columns={"age": "Age"}),
        "has no column 'age'; the first night had it (did you mean 'Age'?)",
    ),
    ("day2.csv", TODAY.drop(columns="city"), "has no column 'city'; the first night had it"),
    ("day2.csv", TODAY.drop(columns="when"), "has no column 'when'"),
    ("day2.csv", TODAY.drop(columns="weight"), "has no column 'weight'"),
    ("day2.parquet", GOOD, "repeats the content of day1.parquet; remove one"),
    (
        "day2.parquet",
        frame(1, start="2025-12-31"),
        "goes back in time: its latest 'when' is 2025-12-31 00:19:00, an earlier",
    ),
    ("day2.csv", TODAY.assign(when="tomorrow"), "column 'when' is no time"),
    ("day2.csv", objects(TODAY, "when", ["2026-01-02"]), "column 'when' has no time in rows 2, 3"),
    ("day2.csv", TODAY.assign(age="old"), "column 'age' held numbers on the first night, now text: 'old' in row 1"),
    ("day2.parquet", TODAY.assign(age=["1"] * 19 + ["x"]), "now text: 'x' in row 20"),
    ("day2.parquet", TODAY.assign(age="1"), "now text: '1' in row 1"),
    ("day2.parquet", TODAY.assign(age=pd.Timestamp("2026-01-01")), "column 'age' holds times"),
    ("day2.parquet", TODAY.assign(city=[[1]] * 20), "column 'city' holds list<"),
    ("day2.csv", TODAY.assign(age=np.nan), "column 'age' has no value in rows 1, 2, 3, 4, 5, … (20 of 20); fill them"),
    ("day2.parquet", TODAY.assign(age=[np.nan] + [1.0] * 19), "column 'age' has no value in row 1;"),
    ("day2.parquet", objects(TODAY, "city", ["Bern"] * 18), "column 'city' has no value in rows 19, 20;"),
    ("day2.csv", TODAY.assign(age=np.inf), "column 'age' is infinite"),
    ("day2.csv", TODAY.assign(visits="9" * 40), "column 'visits' is beyond 1e+30"),
    ("day2.parquet", TODAY.assign(age=1e308), "column 'age' is beyond 1e+30"),
    ("day2.csv", TODAY.assign(age="99e29"), "column 'age' is beyond"),
    ("day2.csv", TODAY.assign(clicked=2), "column 'clicked' is neither 0 nor 1"),
    ("day2.csv", TODAY.assign(clicked=0.5), "column 'clicked' is neither 0 nor 1"),
    ("day2.csv", TODAY.assign(clicked="yes"), "column 'clicked' held numbers on the first night, now text"),
    ("day2.csv", objects(TODAY, "clicked", "01"), "column 'clicked' has no label in rows 3, 4"),
    ("day2.parquet", TODAY.assign(clicked=[np.nan] + [0.0] * 19), "column 'clicked' has no label in row 1"),
    ("day2.parquet", TODAY.assign(clicked=[[1]] * 20), "column 'clicked' holds list<"),
    ("day2.csv", TODAY.assign(weight=-0.1), "column 'weight' is a negative weight"),
    ("day2.csv", TODAY.assign(weight=0), "all weights are 0"),
    ("day2.csv", TODAY.assign(weight=np.nan), "column 'weight' has no value"),
    ("day2.csv", TODAY.assign(weight="heavy"), "column 'weight' held numbers"),
    ("day2.csv", TODAY.iloc[:0], "is empty: it has no rows"),
    ("day2.parquet", TODAY.iloc[:0], "is empty: it has no rows"),
    ("day2.csv", b"", "is empty: it has no header"),
    ("day2.csv", b"age\n", "is empty: it has no rows"),
    ("day2.parquet", b"PAR1", "is damaged, or no parquet"),
    ("day2.npz", NO_ZIP, "is damaged, or no npz"),
    ("day2.npy", b"\x93NUMPY\x01\x00\xff\xff", "is damaged, or no npy"),
    ("day2.npy", np.ones((20, 7)), "has no column 'age'"),
    ("day2.npz", {"age": np.ones((20, 2))}, "has no column 'age'; the first night had it (did you mean 'age["),
    ("day2.csv", "twice", "has two columns of the name 'age'"),
    ("day2.csv", "wide", "is damaged, or no csv"),
    ("day2.parquet", "half", "is damaged, or no parquet"),
    ("day2.npz", "flipped", "is damaged, or no npz (Bad CRC-32"),
    ("day2.csv", "latin", "is damaged, or no csv ('utf-8' codec can't decode"),
    ("day2.csv", "secret", "cannot be read (Permission denied)"),
]


def spoil(path, content):
    """Write a file that is damaged in a way that is no table."""
    put(path, TODAY)
    whole = path.read_bytes()
    if content == "twice":
        path.write_bytes(whole.replace(b"visits", b"age", 1))
    elif content == "wide":
        path.write_bytes(whole + b",".join([b"1"] * 30) + b"\n")
    elif content == "half":
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "flipped":
        with zipfile.ZipFile(path) as file:
            at = file.getinfo("age.npy").header_offset + 200
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    elif content == "latin":
        path.write_bytes(whole.decode().encode("utf-16"))
    else:
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")


@pytest.mark.parametrize(("name", "content", "line"), LATER, ids=range(len(LATER)))
def test_a_day_that_cannot_be_used_is_skipped_in_one_line_and_nothing_is_lost(
    fakes, place, capsys, name, content, line
):
    (spoil if isinstance(content, str) else put)(place / name, content)
    folder, data = place / "model", f"{place}/day*"
    before = contents(folder)
    found = line_of(capsys, 1, data=data, workdir=folder)
    assert found.startswith(f"skipped: {place / name} ")
    assert line in found
    after = contents(folder)
    made = {"nights/0002.json", "history.csv", "report.md", "report.html"}
    assert {path: after[path] for path in before if path not in made} == {
        path: content for path, content in before.items() if path not in made
    }
    assert after["history.csv"].startswith(before["history.csv"])
    (_, row) = csv.DictReader(after["history.csv"].decode().splitlines())
    assert row["skipped"].startswith(f"{name}: ")
    assert (row["rows"], row["promoted"], row["reason"]) == ("0", "false", "no new rows")
    assert line_of(capsys, 1, data=data, workdir=folder) == found  # named again, recorded once
    assert contents(folder) == after


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (TODAY, ""),
        (TODAY.assign(more=1), ""),
        (TODAY[[*TODAY.columns[::-1]]], ""),
        (TODAY.assign(city="nowhere seen"), ""),
        (TODAY.assign(visits=TODAY.visits.astype(float)), ""),
        (TODAY.assign(clicked=TODAY.clicked.astype(bool)), ""),
        (TODAY.assign(clicked=0), ""),
        (TODAY.assign(visits=2**62), ""),
        (TODAY.iloc[:2], ""),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_day_that_looks_odd_but_can_be_used_is(fakes, place, content, note, suffix):
    put(place / f"day2{suffix}", content)
    assert call(data=f"{place}/day*", workdir=place / "model", **GIVEN) == 0
    assert history.Folder(place / "model").promoted["night"] == 2


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"label": "age"}, "--label=age, but this folder was begun with clicked"),
        ({"columns": "age"}, "--columns=age, but this folder was begun with age,visits,city,member"),
        ({"weight": "age"}, "--weight=age, but this folder was begun with weight"),
        ({"time": "age"}, "--time=age, but this folder was begun with when"),
        ({"task": "regression"}, "--task=regression, but this folder was begun with binary"),
        ({"buckets": "16"}, "--buckets=16, but this folder was begun with 1024"),
        ({"hidden": "8"}, "--hidden=8, but this folder was begun with 4"),
        ({"missing": "mean"}, "--missing=mean, but this folder was begun with error"),
    ],
)
def test_what_the_first_night_has_fixed_stays(fakes, place, capsys, given, line):
    before = contents(place / "model")
    assert line in line_of(capsys, 2, data=f"{place}/day*", workdir=place / "model", **given)
    assert contents(place / "model") == before
    assert call(data=f"{place}/day*", workdir=place / "model", columns="member,age,visits,city", **GIVEN) == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nights/0001.json", "nights/0001.json is damaged"),
        ("columns.json", "columns.json is damaged"),
        ("rows/0001.npz", "rows/0001.npz is damaged or missing"),
    ],
)
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_folder_gets_a_line(fakes, place, capsys, name, line, how):
    put(place / "day2.csv", TODAY)
    path = place / "model" / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if how == "cut" else content.replace(b"a", b"b"))
    if how == "gone" and name.startswith("nights"):
        path.with_name("0002.json").write_bytes(content)
        line = "nights/0001.json is missing"
    before = contents(place / "model")
    assert line in line_of(capsys, 2, data=f"{place}/day*", workdir=place / "model")
    assert contents(place / "model") == before


def test_what_can_be_made_again_is(fakes, place, capsys):
    before = contents(place / "model")
    for name in ("network.safetensors", "history.csv", "report.md", "report.html"):
        for content in (None, b"cut"):
            (place / "model" / name).unlink(missing_ok=True)
            if content and name != "report.html":
                (place / "model" / name).write_bytes(content)
            if name.startswith("report"):
                (place / "model" / "report.md").unlink(missing_ok=True)
            assert call(data=f"{place}/day*", workdir=place / "model") == 0
            assert contents(place / "model") == before
    for name in ("network.safetensors", "nights/0001.safetensors"):
        (place / "model" / name).write_bytes(b"cut")
    assert "is damaged, and so is" in line_of(capsys, 2, data=f"{place}/day*", workdir=place / "model")


def test_a_file_that_changes_or_moves(fakes, place, capsys):
    put(place / "day2.csv", TODAY)
    assert call(data=f"{place}/day*", workdir=place / "model") == 0
    put(place / "day2.csv", frame(5, start="2026-01-03"))
    line = line_of(capsys, 1, data=f"{place}/day*", workdir=place / "model")
    assert "day2.csv has changed since it was trained on" in line
    (place / "old").mkdir()
    shutil.move(put(place / "day1.parquet", GOOD), place / "old" / "day1.parquet")
    assert call(data=f"{place}/old/day*", workdir=place / "model") == 0
    assert len(history.Folder(place / "model").trained) == 2


def test_good_days_count_beside_bad_ones(fakes, place, capsys):
    put(place / "day2.csv", b"")
    put(place / "day3.csv", TODAY)
    put(place / "day4.csv", TODAY)
    put(place / "day10.csv", frame(3, start="2026-01-10"))
    put(place / "day9.parquet", frame(2, start="2026-01-09"))
    assert call(data=f"{place}/day*", workdir=place / "model") == 1
    assert [line.split()[1].rpartition("/")[2] for line in capsys.readouterr().err.splitlines()] == [
        "day4.csv",
        "day2.csv",
    ]
    record = history.Folder(place / "model").records[-1]
    assert [pathlib.Path(file["name"]).name for file in record["files"]] == ["day3.csv", "day9.parquet", "day10.csv"]
    assert (record["rows"], record["held_out"], record["visible_rows"]) == (60, 12, 64)
    _, held_out, day = history.Folder(place / "model").read_rows(2)
    assert day.tolist() == [1] * 20 + [2] * 20 + [3] * 20
    assert held_out[-12:].all()


@pytest.mark.parametrize(
    ("window", "visible"), [("1days", 16), ("2days", 32), ("9days", 48), ("20rows", 20), ("999rows", 48)]
)
def test_the_window_is_of_days_or_of_rows(fakes, place, window, visible):
    for i in (2, 3):
        put(place / f"day{i}.csv", frame(i, start=f"2026-01-0{i}"))
        assert call(data=f"{place}/day*", workdir=place / "model", window=window) == 0
    assert history.Folder(place / "model").records[-1]["visible_rows"] == visible


def test_when_lambda_and_sigma_are_chosen(fakes, place):
    for i in range(2, 7):
        put(place / f"day{i}.csv", frame(i, start=f"2026-01-0{i}"))
        assert call(data=f"{place}/day*", workdir=place / "model", tune_every=3) == 0
    rows = [history.row(record) for record in history.Folder(place / "model").records]
    assert [row["shrink"] for row in rows] == ["", *["0.6"] * 5]
    assert [row["tuning_samples"] for row in rows] == ["", "400", "", "", "400", ""]
    assert [row["samples_saved"] for row in rows][:3] == ["", str(10 * 32 - 3 * 32), str(10 * 48 - 3 * 48)]


@pytest.mark.parametrize(
    ("after", "before", "promoted", "reason"),
    [
        (0.9, None, True, "the first network"),
        (0.9, 0.8, True, "0.9 against 0.8"),
        (0.79, 0.8, True, "0.79 against 0.8"),
        (0.7, 0.8, False, "0.7 is worse than 0.8 of the promoted one by more than 0.02"),
        (-0.5, -0.4, False, "worse"),
        (None, 0.8, False, "it diverged in epoch 3"),
    ],
)
def test_what_is_promoted(after, before, promoted, reason):
    after, before = (None if x is None else fitting.Score(x, 0.0) for x in (after, before))
    found, why = night.verdict(after, before, 0.02, "in epoch 3")
    assert found == promoted
    assert reason in why


def test_a_worse_network_is_kept_and_the_next_night_begins_with_the_promoted_one(fakes, place, monkeypatch):
    started = []
    monkeypatch.setattr(fitting, "fit", lambda *args: started.append(len(args[4].history)) or fake_fit(*args))
    scores = iter([0.9, 0.5, 0.9, 0.9])
    monkeypatch.setattr(fitting, "score", lambda *_: fitting.Score(next(scores), 0.3))
    network = (place / "model/network.safetensors").read_bytes()
    for i in (2, 3):
        put(place / f"day{i}.csv", frame(i, start=f"2026-01-0{i}"))
        assert call(data=f"{place}/day*", workdir=place / "model") == 0
        assert ((place / "model/network.safetensors").read_bytes() == network) == (i == 2)
        assert (place / f"model/nights/000{i}.safetensors").is_file()
    assert started == [1, 1]
    records = history.Folder(place / "model").records
    assert [record["promoted"] for record in records] == [True, False, True]
    assert "not promoted" in (place / "model/report.md").read_text() or "no " in (place / "model/report.md").read_text()


def test_a_network_that_diverges_is_not_kept(fakes, place, monkeypatch):
    def diverged(*args):
        made = fake_fit(*args)
        last = made.history[-1]._replace(stop_reason="nan", diverged="in epoch 1: the loss was not finite")
        return made._replace(history=(*made.history[:-1], last))

    monkeypatch.setattr(fitting, "fit", diverged)
    put(place / "day2.csv", TODAY)
    assert call(data=f"{place}/day*", workdir=place / "model") == 0
    folder = history.Folder(place / "model")
    assert (folder.promoted["night"], folder.records[1]["promoted"]) == (1, False)
    assert "diverged in epoch 1: the loss was not finite" in folder.records[1]["reason"]
    assert not folder.file("nights", 2).exists()


class Killed(BaseException):
    """What ends a process at once."""


@pytest.mark.parametrize("when", range(12))
def test_a_call_that_is_killed_at_any_write_is_done_again(fakes, place, monkeypatch, when):
    """The nights are those of a call that nobody disturbs, but for the date."""
    put(place / "day2.csv", TODAY)
    writes, real = [], history.write_whole

    def dies(path, content):
        if len(writes) == when:
            raise Killed
        writes.append(path)
        real(path, content)

    for module in ("history", "page"):
        monkeypatch.setattr(f"experiments.nightly.{module}.write_whole", dies)
    before = contents(place / "model")
    ended = False
    try:
        assert call(data=f"{place}/day*", workdir=place / "model") == 0
        ended = True
    except Killed:
        assert "nights/0001.json" in contents(place / "model")
    for module in ("history", "page"):
        monkeypatch.setattr(f"experiments.nightly.{module}.write_whole", real)
    assert contents(place / "model")["rows/0001.npz"] == before["rows/0001.npz"]
    assert call(data=f"{place}/day*", workdir=place / "model") == 0
    folder = history.Folder(place / "model")
    assert [record["night"] for record in folder.records] == [1, 2]
    assert (place / "model/history.csv").read_text() == folder.table()
    assert "Night 2" in (place / "model/report.md").read_text()
    assert ended == (when >= 6)


def test_two_calls_at_once_do_not_mix(fakes, place, capsys):
    from experiments.records import run_folder

    with run_folder.lock(place / "model", resume=True):
        assert "is writing into" in line_of(capsys, 2, data=f"{place}/day*", workdir=place / "model")


# Scores.


@pytest.mark.parametrize("out", ["scores.csv", "scores.parquet", "scores.npz"])
def test_rows_are_scored_without_their_label(place, out):
    put(place / "new.csv", TODAY[["member", "age", "visits", "city"]])
    assert call(predict=place / "new.csv", out=place / out, workdir=place / "model") == 0
    table = tables.read(place / out)
    assert [*table] == ["clicked", "probability of clicked"]
    assert len(table["clicked"]) == COUNT
    assert ((table["probability of clicked"] > 0.5) == (table["clicked"] == 1)).all()


@pytest.mark.parametrize(
    ("name", "content", "given", "line"),
    [
        ("new.csv", TODAY.drop(columns="age"), {}, "has no column 'age'"),
        ("new.csv", TODAY.assign(age=np.nan), {}, "column 'age' has no value"),
        ("new.csv", TODAY.assign(age="x"), {}, "now text: 'x'"),
        ("new.csv", b"", {}, "is empty"),
        ("new.parquet", b"PAR1", {}, "is damaged, or no parquet"),
        ("new.csv", TODAY, {"out": "s.xls"}, "--out=s.xls is of no known format"),
        ("new.csv", TODAY, {"out": "no/where/s.csv"}, "there is no folder"),
        ("new.csv", TODAY, {"workdir": "nowhere"}, "nowhere holds no promoted network yet"),
    ],
)
def test_rows_that_cannot_be_scored_get_a_line(place, monkeypatch, capsys, name, content, given, line):
    monkeypatch.chdir(place)
    put(place / name, content)
    assert line in line_of(capsys, 2, **{"predict": name, "out": "s.csv", "workdir": "model"} | given)
    assert not (place / "s.csv").exists()


# The real functions, on real data.


def digits(folder, nights, spoilt=()):
    """The handwritten digits of scikit-learn, a file a day; from the middle on seen in a mirror."""
    x, y = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    for i, part in enumerate(np.array_split(order, nights)):
        pixels = x[part].reshape(-1, 8, 8)
        pixels = (pixels[..., ::-1] if i >= nights // 2 else pixels).reshape(-1, 64)
        table = pd.DataFrame(pixels, columns=[f"pixel_{j}" for j in range(64)]).assign(digit=y[part], day=i)
        path = put(folder / f"day{i + 1}{'.parquet' if i % 2 else '.csv'}", table)
        if i in spoilt:
            path.write_bytes(path.read_bytes()[:-700] + bytes(9))


def months(folder, nights, monkeypatch, spoilt=2, killed=3, **given):
    """A call a night; one file is damaged, one call is killed. Return the records."""
    digits(folder, nights, {spoilt})
    codes, real = [], fitting.save
    for i in range(1, nights + 1):
        data = ",".join(str(next(folder.glob(f"day{n}.*"))) for n in range(1, i + 1))
        options = {"data": data, "label": "digit", "time": "day", "workdir": folder / "m", "hidden": "32", **given}
        if i - 1 == killed:
            monkeypatch.setattr(fitting, "save", lambda *_: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                call(**options)
            monkeypatch.setattr(fitting, "save", real)
        codes.append(call(**options))
    assert codes == [0] * spoilt + [1] * (nights - spoilt)
    return history.Folder(folder / "m").records


def check_month(records, nights, spoilt):
    assert [record["night"] for record in records] == list(range(1, nights + 1))
    assert [bool(record["rows"]) for record in records] == [i != spoilt for i in range(nights)]
    assert [len(record["skipped"]) for record in records] == [int(i == spoilt) for i in range(nights)]
    trained = [record for record in records if record["rows"]]
    assert all(record["samples_seen"] > 0 and 0 <= record["metric"] <= 1 for record in trained)
    assert trained[-1]["visible_rows"] == sum(record["rows"] - record["held_out"] for record in trained)


@pytest.mark.slow
def test_four_nights_with_the_real_functions(tmp_path, monkeypatch):
    records = months(tmp_path, 5, monkeypatch, max_epochs=30, tune_every=3)
    check_month(records, 5, 2)
    assert records[1]["tuned"]["random_init_epochs"] > 0
    assert records[1]["metric"] > 0.7


@pytest.mark.slow
def test_a_month_with_a_drift_a_damaged_day_and_a_killed_call(tmp_path, monkeypatch):
    records = months(tmp_path, 30, monkeypatch, spoilt=10, killed=20)
    check_month(records, 30, 10)
    assert sum("tuned" in record for record in records) == 4
    drift = records[15]
    assert drift["metric_of_promoted"] < 0.6  # mirrored digits are new to it
    assert np.mean([record["metric"] for record in records[-5:]]) > 0.85
    text = (tmp_path / "m/report.md").read_text()
    assert "day11.csv" in text
    assert json.loads((tmp_path / "m/columns.json").read_text())["classes"] == [str(i) for i in range(10)]


def test_a_night_with_the_real_functions(tmp_path):
    x, y = datasets.load_iris(return_X_y=True)
    put(
        tmp_path / "1.csv",
        pd.DataFrame(x).assign(kind=np.array(["a", "b", "c"], object)[y]).sample(150, random_state=0),
    )
    given = {"label": "kind", "hidden": "16", "epochs": 60, "batch_size": 30, "learning_rate": 0.01}
    assert call(data=tmp_path / "1.csv", workdir=tmp_path / "m", **given) == 0
    (record,) = history.Folder(tmp_path / "m").records
    assert record["metric"] > 0.8
    assert (record["epochs"], record["samples_seen"]) == (60, 60 * 120)


@pytest.mark.slow
def test_a_new_class_makes_the_network_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "tune", fake_tune)
    x, y = datasets.load_digits(return_X_y=True)
    for i, most in enumerate((3, 4), 1):
        few = np.flatnonzero(y < most)[:120]
        put(tmp_path / f"{i}.csv", pd.DataFrame(x[few]).assign(digit=[f"digit {n}" for n in y[few]]))
        assert call(data=f"{tmp_path}/*.csv", label="digit", workdir=tmp_path / "m", hidden="16", epochs=8) == 0
    folder = history.Folder(tmp_path / "m")
    assert folder.preparation().classes == tuple(f"digit {n}" for n in range(4))
    assert folder.outputs() == 4
    assert call(predict=tmp_path / "2.csv", out=tmp_path / "s.csv", workdir=tmp_path / "m") == 0
    assert np.mean(tables.read(tmp_path / "s.csv")["digit"] == tables.read(tmp_path / "2.csv")["digit"]) > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("task", ["binary", "multilabel", "regression"])
def test_other_tasks_with_weights_and_categories(tmp_path, task):
    x, y = datasets.load_breast_cancer(return_X_y=True)
    table = pd.DataFrame(x[:, :8]).rename(columns=str)
    table = table.assign(size=np.where(x[:, 0] > 14, "large", "small"), y=y, z=(x[:, 3] > 500).astype(int), w=1.0)
    label = {"binary": "y", "multilabel": "y,z", "regression": "7"}[task]
    for i, part in enumerate(np.array_split(np.arange(len(table)), 3), 1):
        put(tmp_path / f"{i}.csv", table.iloc[part])
        given = {"task": "regression"} if task == "regression" else {}
        code = call(data=f"{tmp_path}/*.csv", label=label, weight="w", workdir=tmp_path / "m", max_epochs=60, **given)
        assert code == 0
    records = history.Folder(tmp_path / "m").records
    assert [record["rows"] for record in records] == [190, 190, 189]
    assert records[-1]["metric"] > 0.6
    assert call(predict=tmp_path / "3.csv", out=tmp_path / "s.csv", workdir=tmp_path / "m") == 0
