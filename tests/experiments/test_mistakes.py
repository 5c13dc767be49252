"""One clear line for every mistake, in flags and in data; nothing is written, and no code is loaded from data."""

import logging
import pathlib
import re

import grain  # noqa: F401  (defines flags when first imported, which flagsaver would forget again)
import numpy as np
import pytest
from binaries import fails

from sp_jax import data
from sp_jax.types import Dataset

ROOT = pathlib.Path(__file__).parents[2]
WRONG = [
    ({"experiment": "onlin"}, "unknown --experiment=onlin; did you mean 'online'?"),
    ({"experiment": ","}, "--experiment is an empty list"),
    ({"preset": "fast"}, "unknown --preset=fast"),
    ({"dataset": "cifar01"}, "unknown data set 'cifar01'; did you mean 'cifar10'?"),
    (
        {"dry_run": True, "coordinator": "auto"},
        "--dry_run measures this host alone; leave out --coordinator",
    ),
    ({"experiment": "Figure 7"}, "unknown --experiment=Figure 7; what the paper shows there is --experiment=online"),
    ({"experiment": "fig29"}, "what the paper shows there is --experiment=pretraining"),
    (
        {"dataset": "CIFAR10"},
        "'CIFAR10' is no name of a data set; expected one like 'mixture' or 'cifar10'; did you mean 'cifar10'?",
    ),
    ({"dataset": "../x"}, "is no name of a data set"),
    ({"model": "resnet"}, "unknown --model=resnet; did you mean 'resnet18'?"),
    ({"optimizer": "adan"}, "unknown --optimizer=adan; did you mean 'adam'?"),
    ({"activation": "thanh"}, "did you mean 'tanh'?"),
    ({"init": "keras"}, "unknown --init=keras"),
    ({"precision": "fp8"}, "unknown --precision=fp8"),
    ({"statistics": "rest"}, "did you mean 'reset'?"),
    ({"optimizer_state": "kept"}, "did you mean 'keep'?"),
    ({"noise": "gauss"}, "did you mean 'gaussian'?"),
    ({"restart": "warmstart"}, "unknown --restart=warmstart; did you mean 'warm_start'?"),
    ({"restart": ""}, "--restart is an empty list"),
    ({"shrink": "1.1"}, "--shrink=1.1 is out of range: λ must lie in [0, 1]"),
    ({"shrink": "-0.1"}, "--shrink=-0.1 is out of range"),
    ({"shrink": "nan"}, "--shrink=nan is out of range"),
    ({"shrink": "half"}, "--shrink=half is no number"),
    ({"shrink": " , "}, "--shrink is an empty list"),
    ({"noise_scale": "-1"}, "--noise_scale=-1 is out of range: σ must be finite and >= 0"),
    ({"noise_scale": "0.1,inf"}, "--noise_scale=inf is out of range"),
    ({"noise_scale": "NaN"}, "--noise_scale=NaN is out of range"),
    ({"noise_scale": ""}, "--noise_scale is an empty list"),
    ({"train_accuracy": 1.01}, "--train_accuracy is a fraction: it must lie in (0, 1], got 1.01"),
    ({"train_accuracy": 99.0}, "--train_accuracy is a fraction"),
    ({"train_accuracy": float("nan")}, "--train_accuracy is a fraction"),
    ({"seeds": 0}, "--seeds must be positive, got 0"),
    ({"seeds": -1}, "--seeds must be positive, got -1"),
    ({"rounds": 0}, "--rounds must be positive"),
    ({"batch_size": -128}, "--batch_size must be positive"),
    ({"width": 0}, "--width must be positive"),
    ({"learning_rate": 0.0}, "--learning_rate must be positive"),
    ({"learning_rate": float("nan")}, "--learning_rate must be positive"),
    ({"weight_decay": -0.1}, "--weight_decay must be at least 0"),
    ({"patience": 0}, "--patience must be positive"),
    ({"penalty": "confidance"}, "unknown --penalty=confidance; did you mean 'confidence'?"),
    ({"penalty": "confidence", "penalty_strength": -1.0}, "--penalty_strength must be at least 0"),
    ({"method": "l2_int"}, "unknown --method=l2_int; did you mean 'l2_init'?"),
    ({"task_stream": "growing", "noise_rounds": 3}, "--noise_rounds is of --task_stream=label_noise, not of growing"),
    ({"task_stream": "class_incremental", "classes_per_round": 10}, "leaves one round of the 10 classes"),
    ({"contenders": "none"}, "--contenders goes with --experiment=plasticity"),
    ({"method_strength": 0.1}, "--method_strength=0.1 needs a --method other than none: l2_init"),
    ({"method": "redo", "method_strength": -1.0}, "--method_strength must be at least 0"),
    (
        {"method": "redo", "model": "logistic"},
        "--method=redo re-draws hidden units: it needs --model=mlp, resnet18 or vit",
    ),
    ({"method": "redo", "activation": "crelu"}, "with --activation=crelu each is read twice: choose another"),
    (
        {"method": "parseval", "model": "logistic"},
        "--method=parseval acts on hidden layers, and --model=logistic has none",
    ),
    ({"experiment": "pretraining", "restart": "dash"}, "--restart=dash sweeps data through the old network"),
    ({"penalty_strength": 0.1}, "--penalty_strength=0.1 needs --penalty=confidence or adversarial"),
    ({"max_epochs": 0}, "--max_epochs must be positive"),
    ({"epochs": 0}, "--epochs must be positive"),
    ({"hidden": "100,x"}, "--hidden must be whole numbers"),
    ({"hidden": "100,0"}, "--hidden must be positive layer sizes"),
    ({"samples_per_round": 0}, "--samples_per_round must be positive"),
    ({"samples_per_round": 4001}, "between 1 and the 4,000 training samples, got 4,001"),
    ({"experiment": "two_phase", "samples_per_round": 5}, "--samples_per_round only fits the online experiments"),
    ({"data_dir": "/no/where"}, "--data_dir '/no/where' is not a folder"),
    ({"resume": True, "workdir": None}, "--resume needs --workdir"),
    ({"workdir": "~nobody_of_this_name/x"}, "--workdir '~nobody_of_this_name/x' can be no path"),
    ({"workdir": "/dev/null/x"}, "/dev/null is a file; name a folder"),
    ({"pairs": "0.6"}, "--pairs=0.6 is no λ:σ; expected pairs like 0.6:0.01"),
    ({"pairs": "1.6:0"}, "--pairs=1.6 is out of range: λ must lie in [0, 1]"),
    ({"pairs": "0.6:x"}, "--pairs=x is no number"),
    ({"pairs": "0.6:0.1", "shrink": "0.6"}, "give one or the other"),
    ({"learning_rate": "fast"}, "--learning_rate must be a number, got fast"),
    ({"batch_size": "1.5"}, "--batch_size must be a whole number, got 1.5"),
    ({"seeds": "1,2"}, "--seeds takes one value, got 1,2"),
    ({"stage_sizes": "2,0"}, "--stage_sizes must be positive layer sizes"),
    ({"experiment": "first_fraction", "first_fraction": "1.5"}, "--first_fraction must lie in (0, 1], got 1.5"),
    ({"experiment": "pretraining", "fraction": "0"}, "--fraction must lie in (0, 1], got 0.0"),
    (
        {"experiment": "pretraining", "source": "textures", "dataset": "reviews"},
        "does not take reviews, which has words",
    ),
    (
        {"model": "birnn"},
        "--model=birnn does not take mixture, which has images; expected --model=logistic, mlp, resnet18 or vit",
    ),
    ({"experiment": "last_layer", "optimizer_state": "keep"}, "--optimizer_state=keep does not fit --trained=head"),
    ({"model": "birnn", "penalty": "adversarial"}, "--penalty=adversarial moves pixels"),
    ({"model": "resnet18", "stage_sizes": "1,1,1,1,1"}, "needs images of at least 16x16 pixels"),
    ({"model": "vit"}, "--width=16 must be a multiple of --heads=3, which --model=vit divides it among; ViT-Tiny has"),
    ({"model": "vit", "width": 12, "depth": 0}, "--depth must be positive"),
    ({"norm": "batch"}, "unknown --norm=batch"),
    ({"norm": "layer", "model": "logistic"}, "--norm=layer normalises hidden units, and --model=logistic has none"),
    ({"norm": "layer", "hidden": ""}, "--norm=layer normalises hidden units, and --model=mlp has none"),
    ({"max_epochs": 3_000_000_000}, "--max_epochs must be positive and below 2**31, got 3000000000"),
    ({"seeds": "2000000000"}, "--seeds=2000000000 needs"),
    ({"hidden": "2000000000"}, "--hidden=2000000000 needs"),
    ({"hidden": "99999999999999999999"}, "--hidden must be positive layer sizes"),
    ({"batch_size": "2000000000"}, "--batch_size=2000000000 needs"),
    ({"model": "resnet18", "stage_sizes": ""}, "--stage_sizes is an empty list"),
    ({"weight_decay": "1e39"}, "--weight_decay must be at least 0 and finite"),
    ({"learning_rate": "inf"}, "--learning_rate must be positive and below 2**31"),
    ({"noise_scale": "1e39"}, "--noise_scale=1e39 is out of range"),
    ({"pairs": ""}, "--pairs is an empty list"),
    ({"devices_per_lane": 0}, "--devices_per_lane=0 must divide the 2 devices"),
    ({"decay_every": "0"}, "--decay_every must be positive"),
    ({"workdir": "a\0b"}, "--workdir 'a\\x00b' can be no path"),
    ({"workdir": "x" * 300}, "can be no path (File name too long)"),
    ({"data_dir": "a\0b"}, "--data_dir 'a\\x00b' can be no path"),
    ({"data_dir": "~nobody_of_this_name"}, "--data_dir '~nobody_of_this_name' can be no path"),
    ({"dataset": "/etc/passwd"}, "'/etc/passwd' is no name of a data set"),
    ({"dataset": "cifar10/.."}, "'cifar10/..' is no name of a data set"),
    ({"dataset": "cifar10:../../x"}, "'cifar10:../../x' is no name of a data set"),
    ({"dataset": "a\0b"}, "'a\\x00b' is no name of a data set"),
    ({"dataset": "a\nb"}, "'a\\nb' is no name of a data set"),
    ({"experiment": "pretraining", "source": "../x"}, "'../x' is no name of a data set"),
    ({"experiment": "../online"}, "unknown --experiment=../online"),
    ({"experiment": "a\nb"}, "unknown --experiment=a\\nb"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_a_mistake_gets_one_clear_line_and_changes_no_file(tmp_path, capsys, monkeypatch, given, message):
    (tmp_path / "notes.txt").write_text("of a user")
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, **{"workdir": str(tmp_path / "run"), **given})
    assert {path.name: path.read_text() for path in tmp_path.rglob("*")} == {"notes.txt": "of a user"}


X, Y = np.zeros((30, 2, 2, 1), np.float32), np.arange(30, dtype=np.int32) % 3
SPOILT = [
    (np.where(np.arange(30)[:, None, None, None] == 7, np.nan, X), Y, "bad: inputs hold NaN or infinite values"),
    (X + np.inf, Y, "bad: inputs hold NaN or infinite values"),
    (X, Y + 1, "bad: labels must lie in [0, 3), found 3"),
    (X, Y - 1, "bad: labels must be integers from 0 on, got int32 from -1"),
    (X, Y.astype(np.float32), "bad: labels must be integers from 0 on, got float32"),
    (X, Y[:29], "bad must be of shapes [N, features, ...] and [N] with N >= 1, got (30, 2, 2, 1) and (29,)"),
    (X[:0], Y[:0], "with N >= 1, got (0, 2, 2, 1) and (0,)"),
    (X[:, 0, 0, 0], Y, "bad must be of shapes [N, features, ...]"),
    (X.astype(str), Y, "bad: inputs must be pixels, tokens or floats"),
    (X.astype(complex), Y, "bad: inputs must be pixels, tokens or floats, got complex128"),
]


@pytest.mark.parametrize(("inputs", "labels", "message"), SPOILT, ids=[message for *_, message in SPOILT])
def test_a_spoilt_data_set_gets_one_clear_line(tmp_path, capsys, monkeypatch, inputs, labels, message):
    monkeypatch.setattr(data, "load", lambda *_, **__: Dataset(inputs, labels, 3, "bad"))
    assert message in fails(capsys, workdir=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=re.escape(message)):
        data.samples.check(Dataset(inputs, labels, 3, "bad"))


def test_images_that_patches_do_not_divide_get_one_clear_line(tmp_path, capsys, monkeypatch):
    images = Dataset(np.zeros((30, 8, 6, 1), np.float32), Y, 3, "odd")
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    message = fails(capsys, model="vit", width="12", dataset="odd", workdir=str(tmp_path / "run"))
    assert "both sides must be multiples of 4; odd has inputs of shape (8, 6, 1): choose another --model" in message


@pytest.mark.parametrize(("labels", "message"), [
    (Y % 2, "odd: 1 of 3 classes have no sample: 2"), (0 * Y, "odd: all samples are of one class, 0"),
])  # fmt: skip
def test_what_can_be_trained_on_gets_a_line_in_the_log(labels, message, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sp_jax"), "propagate", True)  # app.start turns it off
    data.samples.check(Dataset(X, labels, 3, "odd"))
    assert message in caplog.text


def test_nothing_loads_code_from_data():
    unsafe = re.compile(r"pickle\.|import pickle|(?<![\w.`])(eval|exec|__import__)\(|yaml|shell=True|allow_pickle=True")
    for path in (*(ROOT / "sp_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")):
        for line in path.read_text().splitlines():
            assert not unsafe.search(line), f"{path}: {line}"
            assert "np.load(" not in line or "allow_pickle=False" in line, f"{path}: {line}"


@pytest.mark.parametrize("key", ["../x", "/x", "a/b", "..", "."])
def test_decoded_samples_stay_in_their_folder(tmp_path, key):
    with pytest.raises(data.DataError, match="is no file name"):
        data.cache.arrays(str(tmp_path / "cache"), key, lambda: (X, Y))
    assert list(tmp_path.iterdir()) == []
