# ruff: noqa: C408  (a call is a list of keywords)
"""Two hundred hostile calls of `fit_rounds`: each gets one line that says what is wrong, before anything is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import linen as nn

import sp_jax
from sp_jax import tasks
from sp_jax.training import Convergence

X = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
Y, R, HELD = (X[:, 0] > 0).astype(int), X[:, 0], (X[40:], (X[40:, 0] > 0).astype(int))
FRAME = pd.DataFrame(X, columns=list("abcdef"))
Rule, exactly = Convergence, Convergence.exactly


class Net(nn.Module):
    """One layer."""

    n: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.n)(x)


class Two(nn.Module):
    """Two results."""

    @nn.compact
    def __call__(self, x):
        return (nn.Dense(2)(x),) * 2


def some(array, where, value):
    """Return a copy with another value in one place."""
    array = np.array(array)
    array[where] = value
    return array


def task_of(losses):
    """Return a user's own task."""
    return tasks.Task("own", losses, lambda outputs, y: outputs[:, 0])


# From a part of the line to the calls that get it.
HOSTILE = {
    "must be of shapes [N, features, ...] and [N] with N >= 1": [
        dict(inputs=X[0]),
        dict(inputs=np.float32(3)),
        dict(inputs=None),
        dict(inputs=X[:40]),
        dict(inputs="file.csv"),
        dict(inputs=iter(X)),
        dict(inputs=set(range(60))),
        dict(inputs=[{"a": 1}] * 60),
        dict(labels=Y[:30]),
        dict(labels=Y[:, None]),
        dict(labels=np.eye(2)[Y]),
        dict(labels=0),
        dict(labels="y"),
    ],
    "there are no samples": [
        dict(inputs=X[:0], labels=Y[:0], validation=None),
        dict(task="regression", labels=R[:0], inputs=X[:0], network=Net(1)),
        dict(validation=(X[:0], Y[:0])),
    ],
    "inputs must be pixels, tokens or floats": [
        dict(inputs=X.astype(object)),
        dict(inputs=X.astype(str)),
        dict(inputs=X + 1j),
        dict(inputs=X.astype("datetime64[s]")),
        dict(inputs=X.astype("S")),
    ],
    "inputs hold NaN or infinite values": [
        dict(inputs=some(X, (3, 2), np.nan)),
        dict(inputs=some(X, (3, 2), np.inf)),
        dict(inputs=FRAME.round().astype("Int64").mask(FRAME > 1)),
    ],
    "not all samples have the same shape": [
        dict(inputs=[X[0], X[1][:3]]),
        dict(labels=[[1], [1, 2]]),
    ],
    "the dictionary of inputs is empty": [
        dict(inputs={}),
    ],
    "inputs and labels['b'] must be [N, ...] with N = 60 targets, N >= 1": [
        dict(inputs={"a": X, "b": X[:5]}),
        dict(inputs={"a": X, "b": None}),
    ],
    "the names in a dictionary of inputs must be texts": [
        dict(inputs={1: X, "b": X}),
    ],
    "the columns a are not numbers: encode them, or leave them out": [
        dict(inputs=FRAME.assign(a="x")),
        dict(inputs=FRAME.assign(a=pd.NaT)),
    ],
    "the columns a, b, c, d, e, f stand there twice": [
        dict(inputs=pd.concat([FRAME, FRAME], axis=1)),
    ],
    "the columns b are not numbers: encode them, or leave them out": [
        dict(inputs=FRAME.assign(b=[None] * 60)),
    ],
    "inputs and labels, as float32,: inputs hold NaN or infinite values": [
        dict(inputs=np.full((60, 6), 1e300)),
    ],
    "integers beyond int32": [
        dict(inputs=np.full((60, 6), 2**40)),
    ],
    "without labels, inputs must be a source of pairs": [
        dict(inputs=X, labels=None),
        dict(inputs=[(X[i], Y[i]) for i in range(60)], labels=None),
        dict(validation=(X[:5], None)),
    ],
    "some values are masked": [
        dict(inputs=np.ma.masked_array(X, X > 1)),
    ],
    "validation inputs are float32": [
        dict(inputs=np.zeros((60, 0), np.float32)),
        dict(inputs=np.zeros((60, 6, 0), np.float32)),
        dict(validation=(X[:5, None], Y[:5])),
    ],
    "no array of numbers: JAX array with PRNGKey dtype cannot be converted": [
        dict(inputs=jax.random.split(jax.random.key(0), 60)),
    ],
    "labels must be integers from 0 on": [
        dict(labels=Y.astype(float)),
        dict(labels=Y.astype(str)),
        dict(labels=Y - 1),
        dict(labels=Y.astype(bool)),
        dict(labels=some(Y.astype(object), 3, None)),
        dict(labels=pd.Series(Y).astype("Int64").mask(Y > 0)),
    ],
    "all 60 samples are of one class, 0: there is nothing to tell apart": [
        dict(labels=Y * 0),
    ],
    "the network must give logits [B, 1000002 or more] for labels 0 to": [
        dict(labels=Y + 10**6),
    ],
    "labels must be below 2**31": [
        dict(labels=np.full(60, 2**40)),
    ],
    "task must be one of classification, binary, multilabel, regression,": [
        dict(task="regresion"),
        dict(task=3),
        dict(task=Net),
    ],
    "targets must be 0 or 1": [
        dict(task="binary", labels=Y + 1),
        dict(task="binary", labels=Y.astype(float) * 0.5),
    ],
    "targets of a binary task are [N]": [
        dict(task="binary", labels=np.stack([Y, Y], 1)),
    ],
    "the network must give outputs [B]": [
        dict(task="binary", network=Net(3)),
        dict(task="regression", labels=R, network=Net(2)),
    ],
    "targets hold NaN or infinite values": [
        dict(task="binary", labels=some(R, 3, np.nan)),
    ],
    "validation targets are float32 of shape (), the others float32 of (2,)": [
        dict(task="multilabel", labels=np.stack([Y, Y], 1), network=Net(3)),
    ],
    "regression: targets hold NaN or infinite values": [
        dict(task="regression", labels=some(R, 2, np.nan), network=Net(1)),
    ],
    "regression: all targets of a column are equal: there is nothing to": [
        dict(task="regression", labels=R * 0, network=Net(1)),
        dict(task="regression", labels=np.stack([R, R * 0], 1), network=Net(2)),
    ],
    "regression: targets must be numbers [N] or [N, K]": [
        dict(task="regression", labels=R.astype(str), network=Net(1)),
        dict(task="regression", labels=R[:, None, None], network=Net(1)),
    ],
    "the task's losses must be [B], one number for each sample": [
        dict(task=task_of(lambda o, y: jnp.mean(o))),
        dict(task=task_of(lambda o, y: o)),
    ],
    "the task's losses do not run on outputs (2, 2): division by zero": [
        dict(task=task_of(lambda o, y: 1 / 0)),
    ],
    "weights must be numbers [60], one for each sample": [
        dict(weights=np.ones(59)),
        dict(weights=np.ones((60, 1))),
        dict(weights=["a"] * 60),
        dict(weights=2.0),
        dict(weights="balanced"),
    ],
    "weights must be finite, at least 0, and not all 0": [
        dict(weights=-np.ones(60)),
        dict(weights=np.zeros(60)),
        dict(weights=some(np.ones(60), 2, np.nan)),
        dict(validation=(X[:5], Y[:5], np.zeros(5))),
    ],
    "class_weights must be 'balanced' or from class to weight": [
        dict(class_weights="balance"),
        dict(class_weights=[1, 2]),
    ],
    "class_weights has no weight for the classes [1]": [
        dict(class_weights={0: 1}),
    ],
    "class_weights: weights must be finite, at least 0, and not all 0": [
        dict(class_weights={0: 1, 1: -1}),
        dict(class_weights={0: 0, 1: 0}),
        dict(class_weights={0: np.nan, 1: 1}),
    ],
    "class_weights must be numbers": [
        dict(class_weights={0: 1, 1: "x"}),
    ],
    "class_weights are for classes": [
        dict(class_weights="balanced", task="regression", labels=R, network=Net(1)),
    ],
    "validation must be a pair (inputs, labels)": [
        dict(validation=()),
        dict(validation=HELD * 2),
        dict(validation="held"),
        dict(validation=0.2),
        dict(validation={"x": X, "y": Y}),
    ],
    "the network must give logits [B, 9 or more] for labels 0 to 8": [
        dict(validation=(X[:5], Y[:5] + 7)),
    ],
    "validation inputs are ['a'] float32": [
        dict(validation=({"a": X}, Y)),
    ],
    "validation inputs are float16": [
        dict(validation=(X[:5].astype(np.float16), Y[:5])),
    ],
    "arrivals must be increasing counts between 1 and the 60 samples": [
        dict(arrivals=[10, 10]),
        dict(arrivals=[-3]),
        dict(arrivals=[True]),
        dict(arrivals=[np.nan]),
    ],
    "arrivals must be a sequence of counts": [
        dict(arrivals="10"),
        dict(arrivals={10}),
        dict(arrivals=[[10, 20]]),
        dict(arrivals=10.0),
    ],
    "window must be a whole number, at least 1": [
        dict(window=0),
        dict(window=-5),
        dict(window="30d"),
        dict(window=2.5),
        dict(window=np.nan),
    ],
    "half_life must be a number of samples above 0": [
        dict(half_life=0),
        dict(half_life="7"),
        dict(half_life=-1.0),
    ],
    "visible must be the indices of at least one round": [
        dict(visible=[]),
    ],
    "visible must be, for each round, at least one index of a sample": [
        dict(visible=[[]]),
        dict(visible=[[0.5]]),
        dict(visible=[0, 1]),
        dict(visible="all"),
        dict(visible=[[True, False]]),
    ],
    "visible must be different indices from 0 to 59": [
        dict(visible=[[0, 0]]),
        dict(visible=[[60]]),
        dict(visible=[[-1]]),
    ],
    "visible says which samples a round has: leave arrivals and window out": [
        dict(visible=[[0, 1]], arrivals=[2]),
        dict(visible=[[0, 1]], window=3),
    ],
    "seeds must lie between 0 and 2**31 - 1": [
        dict(seed=-1),
        dict(seed=1.5),
        dict(seed="0"),
        dict(seed=None),
        dict(seed=2**40),
        dict(seed=True),
        dict(seed=np.array([1, 2])),
    ],
    "shrink (λ) must be a scalar in [0, 1]": [
        dict(shrink=-0.1),
        dict(shrink=np.nan),
        dict(shrink=[0.5]),
        dict(shrink=None),
    ],
    "noise_scale (σ) must be a finite scalar >= 0": [
        dict(noise_scale=np.inf),
        dict(noise_scale="a"),
    ],
    "batch_size must be a whole number, at least 1": [
        dict(batch_size=-1),
        dict(batch_size="32"),
        dict(batch_size=None),
        dict(batch_size=True),
        dict(batch_size=np.inf),
    ],
    "convergence must be a sp_jax.training.Convergence": [
        dict(convergence="plateau"),
    ],
    "patience and max_epochs must be whole numbers, at least 1": [
        dict(convergence=Rule(patience=0)),
        dict(convergence=Rule(patience="5")),
        dict(convergence=Rule(patience=None)),
        dict(convergence=Rule(max_epochs=np.inf)),
        dict(convergence=exactly(-1)),
        dict(convergence=Rule(patience=2.5)),
    ],
    "monitor must be one of train_accuracy, train_loss,": [
        dict(convergence=Rule(monitor="loss")),
    ],
    "train_accuracy is a fraction: it must lie in (0, 1]": [
        dict(convergence=Rule(train_accuracy=0)),
        dict(convergence=Rule(train_accuracy=np.nan)),
    ],
    "max_samples must be a whole number, at least 1": [
        dict(convergence=Rule(max_samples=0)),
    ],
    "max_steps must be a whole number, at least 1": [
        dict(convergence=Rule(max_steps=-1)),
    ],
    "the rule watches validation_loss": [
        dict(convergence=Rule(monitor="validation_loss"), validation=None),
    ],
    "min_improvement must be at least 0": [
        dict(convergence=Rule(min_improvement=np.nan)),
    ],
    "restart must be one of warm_start, random_init, shrink_perturb, or a": [
        dict(restart=None),
        dict(restart=3),
        dict(restart="SHRINK_PERTURB"),
    ],
    "restart must be a function from sp_jax.make_restart, or take (key,": [
        dict(restart=lambda: 1, arrivals=[10, 20]),
        dict(restart=sp_jax.shrink_perturb, arrivals=[10, 20]),
    ],
    "if_diverged must be one of raise, random_init": [
        dict(if_diverged="ignore"),
        dict(if_diverged=None),
    ],
    "`since` must be what fit_rounds returned": [
        dict(since=3),
        dict(since={}),
        dict(since=()),
    ],
    "the network does not run on inputs float32 of shape (1, 6): ": [
        dict(network=None),
        dict(network=lambda x: x),
        dict(network=Net),
        dict(network=nn.Conv(2, (3, 3))),
        dict(network=nn.Embed(5, 2)),
        dict(network=(1, 2)),
        dict(network=optax.adam(0.1)),
    ],
    "the network must give logits [B, 2 or more] for labels 0 to 1": [
        dict(network=Two()),
    ],
    "optimizer must be an optax optimiser, as optax.adam(1e-3)": [
        dict(optimizer="adam"),
        dict(optimizer=0.1),
        dict(optimizer=optax.adam),
        dict(optimizer=lambda lr: optax.sgd(lr)),
    ],
    "params has a leaf 'a' that the network lacks": [
        dict(params={"a": 1}),
    ],
    "params has a leaf '' that the network lacks": [
        dict(params=3),
    ],
    "the network has a leaf 'Dense_0/bias' that params lacks": [
        dict(params={}),
    ],
    "params has a leaf '0' that the network lacks": [
        dict(params=[X]),
    ],
    "leaf 'Dense_0/kernel' has shape (60, 6) in params and (6, 2) in the": [
        dict(params={"Dense_0": {"kernel": X, "bias": Y}}),
    ],
    "round 1 (seed 0) diverged before its first epoch: parameter": [
        dict(params={"Dense_0": {"kernel": np.full((6, 2), np.nan, np.float32), "bias": np.zeros(2, np.float32)}}),
    ],
    "the filter `where` matches no floating leaf": [
        dict(trainable=sp_jax.layer("head")),
        dict(trainable=lambda p: False),
        dict(where=sp_jax.layer("nothing"), arrivals=[10, 20]),
    ],
    "where must be a filter, as sp_jax.layer('head'), or a function of a": [
        dict(trainable="head"),
        dict(trainable=3),
        dict(where="head", arrivals=[10, 20]),
    ],
    "augment(key, inputs) does not run on a batch float32 of (6,):": [
        dict(augment="flip"),
        dict(augment=lambda x: x),
        dict(augment=lambda k, x: 1 / 0),
    ],
    "augment must return inputs of the same shapes and dtypes, float32 of": [
        dict(augment=lambda k, x: x[:3]),
        dict(augment=lambda k, x: None),
    ],
    "augment(key, inputs) does not run on a batch float32 of (6,): Too many": [
        dict(augment=sp_jax.augmentation.flip_crop),
    ],
    "dictionary update sequence element #0 has length 1": [
        dict(switch="train"),
    ],
    "Net has neither an argument nor an attribute 'train'": [
        dict(switch={"train": True}),
    ],
    "Net has no argument 'mask' in its call, which mask= names": [
        dict(mask="mask"),
    ],
    "Net has no argument 3 in its call, which mask= names": [
        dict(mask=3),
    ],
    "layouts names 'x', which is no path of the parameters: Dense_0/bias,": [
        dict(layouts={"x": 1}, arrivals=[10, 20]),
    ],
    "renamed names layers of `since`": [
        dict(renamed={"a": "b"}, arrivals=[10, 20]),
    ],
    "layouts must be a dictionary, by paths": [
        dict(layouts=3, arrivals=[10, 20]),
    ],
}
CALLS = [(call, line) for line, calls in HOSTILE.items() for call in calls]


@pytest.mark.parametrize(("call", "line"), CALLS, ids=range(len(CALLS)))
def test_a_hostile_call_gets_one_line(call, line):
    call = {"seed": 0, "inputs": X, "labels": Y, "network": Net(), "validation": HELD, "batch_size": 16} | call
    call = {"convergence": exactly(2)} | call
    with pytest.raises((ValueError, UserWarning)) as error:
        sp_jax.fit_rounds(**call)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_what_looks_hostile_but_is_not():
    for call in ({"labels": pd.Series(Y).astype("category")}, {"half_life": np.inf}, {"switch": {}}):
        call = {"inputs": X, "labels": Y, "network": Net(), "batch_size": 16, "convergence": exactly(1)} | call
        assert sp_jax.fit_rounds(0, **call).history[-1].stop_reason == "fixed"
