"""Networks that draw random numbers while they train, or keep more than BatchNorm's statistics: every kind of network
against a plain loop of its own library."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from helpers import some_slow

import sp_jax
from sp_jax import models, restarts, tasks, training
from sp_jax.tasks import cross_entropy
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Batches, HParams, TrainState

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0)
MASK = np.ones(16, bool)


def numbers(x):
    """Return a leaf as NumPy has it; of a random key, its data."""
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(numbers(x), numbers(y)), a, b))


class Net(nn.Module):
    """Two streams, one of a name of its own; BatchNorm where asked for."""

    rate: float = 0.5
    norm: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(self.rate, deterministic=not train)(nn.Dense(8, name="body")(x))
        x = nn.BatchNorm(not train, momentum=0.5, name="bn")(x) if self.norm else x
        if train and self.rate:
            x = x + 0.1 * jax.random.normal(self.make_rng("jitter"), x.shape)
        return nn.Dense(3, name="head")(x)


class EqxNet(eqx.Module):
    body: eqx.nn.Linear
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.body, self.head = eqx.nn.Linear(6, 8, key=first), eqx.nn.Linear(8, 3, key=second)
        self.drop = eqx.nn.Dropout(0.5)

    def __call__(self, x, *, key):
        used, _ = jax.random.split(key)  # in evaluation, too
        return self.head(self.drop(self.body(x), key=used))


def hk_net(x, is_training=False):
    key, hidden = hk.next_rng_key(), hk.Linear(8)(x)
    return hk.Linear(3)(hk.dropout(key, 0.5, hidden) if is_training else hidden)


HK_NET = hk.transform(hk_net)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.body, self.head = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.drop(self.body(x)))


NETWORKS = {"linen": Net(norm=True), "haiku": HK_NET, "equinox": EqxNet, "nnx": NnxNet}


@functools.cache  # compiling an initialiser takes most of the time
def drawn(model, seed=0):
    return jax.jit(model.init)(jax.random.key(seed))


@functools.cache
def adapted(name):
    return models.as_model(NETWORKS[name], X)


def step_key(stream, count):
    """Return the key of a call as the format says: the stream's, with the count folded in."""
    return jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(stream["key"]), impl="threefry2x32"), count)


def plain_loop(forward, params, others, steps=3):
    """Train by SGD; `forward(params, others, x, step)` returns logits and what goes on."""

    def loss(params, others, x, y, step):
        logits, new = forward(params, others, x, step)
        return jnp.mean(cross_entropy(logits, y)), new

    gradient_of = jax.jit(jax.grad(loss, has_aux=True))
    for i in range(steps):
        gradient, others = gradient_of(params, others, X[16 * i : 16 * i + 16], Y[16 * i : 16 * i + 16], i)
        params = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(0.1) * np.asarray(g), params, gradient)
    return params, others


@functools.cache
def trained(model):
    """Train three steps by the engine's own."""
    trainer = Trainer(model, lambda hparams: optax.sgd(0.1), 16)
    state = TrainState(*drawn(model), trainer.optimizer(None).init(()))
    step = jax.jit(lambda state, x, y: training.train_step(trainer, HParams(), state, x, y, MASK)[0])
    for i in range(3):
        state = step(state, X[16 * i : 16 * i + 16], Y[16 * i : 16 * i + 16])
    return state


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_linens_dropout_trains_as_a_plain_loop():
    model, net = adapted("linen"), Net(norm=True)
    params, held = drawn(model)
    assert set(held) == {"bn", "rngs"}
    variables = net.init(jax.random.key(0), X[:1])
    assert equal((params, held["bn"]), (variables["params"], variables["batch_stats"]["bn"]))

    def forward(params, stats, x, step):
        key = step_key(held["rngs"], step)
        rngs = {"dropout": jax.random.fold_in(key, 0), "jitter": jax.random.fold_in(key, 1)}
        variables = {"params": params, "batch_stats": stats}
        logits, new = net.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
        return logits, new["batch_stats"]

    found, (params, stats) = trained(model), plain_loop(forward, params, {"bn": held["bn"]})
    assert_close((found.params, found.batch_stats["bn"]), (params, stats["bn"]))
    assert (int(found.batch_stats["rngs"]["count"]), found.batch_stats["rngs"]["count"].dtype) == (3, jnp.uint32)


def test_a_dropout_that_drops_nothing_needs_no_stream():
    model = models.as_model(Net(0.0), X)
    assert drawn(model)[1] == {}

    class Without(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(nn.Dense(8, name="body")(x))

    assert equal(trained(model), trained(models.as_model(Without(), X)))


@pytest.mark.slow
def test_haikus_dropout_trains_as_a_plain_loop():
    model = adapted("haiku")
    params, held = drawn(model)
    assert set(held) == {"rngs"}
    assert_close(params, HK_NET.init(jax.random.key(0), X[:1], is_training=True))

    def forward(params, _, x, step):
        return HK_NET.apply(params, step_key(held["rngs"], step), x, is_training=True), ()

    assert_close(trained(model).params, plain_loop(forward, params, ())[0])


def test_an_equinox_module_trains_as_a_plain_loop():
    model = adapted("equinox")
    params, held = drawn(model)
    arrays, static = eqx.partition(EqxNet(jax.random.key(0)), eqx.is_inexact_array)
    assert set(held) == {"rngs"}
    assert equal(jax.tree.leaves(params), jax.tree.leaves(arrays))

    def forward(arrays, _, x, step):
        net, keys = eqx.combine(arrays, static), jax.random.split(step_key(held["rngs"], step), len(x))
        return jax.vmap(lambda x, key: net(x, key=key))(x, keys), ()

    found, (arrays, _) = trained(model), plain_loop(forward, arrays, ())
    assert_close(jax.tree.leaves(found.params), jax.tree.leaves(arrays))
    net = eqx.nn.inference_mode(eqx.combine(arrays, static))
    logits = model.apply(found.params, found.batch_stats, X, None, False)[0]
    assert_close(logits, jax.vmap(lambda x: net(x, key=jax.random.key(5)))(X))


class EqxNormed(eqx.Module):
    body: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    table: jax.Array

    def __init__(self, key):
        self.body, self.table = eqx.nn.Linear(6, 3, key=key), jnp.arange(6)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch", momentum=0.5)

    def __call__(self, x, state):
        return self.norm(self.body(x[self.table]), state)


@pytest.mark.parametrize(
    "make",
    [EqxNormed, pytest.param(eqx.nn.make_with_state(EqxNormed), marks=pytest.mark.slow)],
    ids=["module", "with state"],
)
def test_equinoxs_batch_norm_trains_as_a_plain_loop(make):
    model = models.as_model(make, X)
    net, state = eqx.nn.make_with_state(EqxNormed)(jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_inexact_array)

    def call(net, x, state):
        return jax.vmap(net, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    def forward(arrays, state, x, step):
        return call(eqx.combine(arrays, static), x, state)

    found, (arrays, state) = trained(model), plain_loop(forward, arrays, state)
    assert_close(jax.tree.leaves(found.params), jax.tree.leaves(arrays))
    assert_close(list(found.batch_stats["state"].values()), jax.tree.leaves(state))
    logits, held = model.apply(found.params, found.batch_stats, X, None, False)
    assert held is found.batch_stats
    assert_close(logits, call(eqx.nn.inference_mode(eqx.combine(arrays, static)), X, state)[0])
    spoilt = X[:4] + 1e3 * np.array([0, 0, 0, 1], np.float32)[:, None]
    padded = model.apply(found.params, held, spoilt, np.arange(4) < 3, True)[1]
    assert_close(padded["state"], model.apply(found.params, held, X[[0, 1, 2, 0]], None, True)[1]["state"])


@pytest.mark.parametrize("name", NETWORKS)
def test_draws_differ_from_step_to_step_and_evaluation_has_none(name):
    model = adapted(name)
    apply = jax.jit(model.apply, static_argnums=4)
    params, held = drawn(model)
    one, after = apply(params, held, X, None, True)
    two, later = apply(params, after, X, None, True)
    assert not np.allclose(one, two)
    still, same = apply(params, later, X, None, False)
    assert equal(same, later)
    assert equal(still, apply(params, held, X, None, False)[0]) or name == "linen"  # with BatchNorm
    assert not any("rngs" in path for path in models.fixed_statistics(model, X))


@pytest.mark.slow
@pytest.mark.parametrize("name", some_slow(NETWORKS, "haiku", "nnx"))
def test_a_lane_alone_draws_as_beside_others_and_after_an_interruption(name):
    model = adapted(name)

    def step(params, held):
        output, held = model.apply(params, held, X, None, True)
        return params, held, output

    one, many = jax.jit(step), jax.jit(jax.vmap(step))
    lanes = jax.tree.map(lambda *x: jnp.stack(x), *(drawn(model, seed) for seed in range(3)))
    second = jax.tree.map(lambda x: x[1], many(*many(*lanes)[:2]))
    begun = jax.tree.map(lambda x: x[1], lanes)
    half = one(*begun)[:2]
    np.testing.assert_allclose(second[2], (whole := one(*half))[2], rtol=1e-5, atol=1e-6)
    leaves, structure = jax.tree.flatten(half)
    read = [x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x) for x in leaves]
    assert equal(one(*structure.unflatten(read)), whole)


def test_the_draws_of_lanes_are_the_same_bits():
    """Of a network without a sum, whose order would differ by rounding."""

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            scale = self.param("scale", nn.initializers.ones, 6)
            return nn.Dropout(0.5, deterministic=not train)(x * scale[None])

    model = models.as_model(Scaled(), X)
    lanes = jax.tree.map(lambda *x: jnp.stack(x), *(drawn(model, seed) for seed in range(3)))
    apply = jax.jit(lambda params, held: model.apply(params, held, X, None, True))
    together = jax.jit(jax.vmap(apply))(*lanes)
    for i in range(3):
        alone = apply(*jax.tree.map(lambda x, i=i: x[i], lanes))
        assert equal(alone, jax.tree.map(lambda x, i=i: x[i], together))
    assert not equal(together[0][0], together[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "haiku", "equinox"])
def test_a_fit_that_was_saved_goes_on_with_its_draws(name, tmp_path):
    network, path = NETWORKS[name], tmp_path / "fit.safetensors"
    how = {"network": network, "batch_size": 16, "convergence": Convergence.exactly(2)}
    monday = sp_jax.fit_rounds(0, X, Y, [32], **how)
    sp_jax.save_fit(path, monday)
    loaded = sp_jax.load_fit(path, X, network=network)
    one, two = (sp_jax.fit_rounds(0, X, Y, since=each, **how) for each in (monday, loaded))
    assert equal(jax.tree.leaves(one.state), jax.tree.leaves(two.state))
    stream, before = one.state.batch_stats["rngs"], monday.state.batch_stats["rngs"]
    assert (int(before["count"]), int(stream["count"])) == (2 * 2, 2 * 3)  # each round has a stream of its own
    assert not equal(stream["key"], before["key"])


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["reset", "keep", "recalibrate"])
def test_restarts_cope_with_a_stream(statistics):
    model = adapted("linen")
    old = trained(model)
    fresh = TrainState(*drawn(model, 7), old.opt_state)
    restart = restarts.make_restart(restarts.shrink_perturb, statistics=statistics, model=model)
    batches = Batches(jnp.asarray(X).reshape(3, 16, 6), jnp.ones((3, 16), bool))
    new = jax.jit(restart)(jax.random.key(1), old, fresh, shrink=0.5, noise_scale=0.1, batches=batches)
    kept = old if statistics == "keep" else fresh
    assert equal(new.batch_stats["rngs"], kept.batch_stats["rngs"])
    assert equal(new.batch_stats, kept.batch_stats) == (statistics != "recalibrate")
    assert not training.holds_nan(new)


# What Linen modules look at, and what is refused.


class ByStream(nn.Module):
    """Drops where it is given a stream."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x))


class Unconditional(nn.Module):
    """Asks for a key in evaluation, too, and does not use it."""

    @nn.compact
    def __call__(self, x, train=False):
        key = self.make_rng("noise")
        return nn.Dense(3)(x + jax.random.normal(key, x.shape) if train else x)


class InScan(nn.Module):
    split: bool

    @nn.compact
    def __call__(self, x, train=False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dropout(0.5, deterministic=not train)(nn.Dense(6)(x)), None

        split = {"params": True} | ({"dropout": True} if self.split else {})
        x, _ = nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=2)()(x, None)
        return nn.Dense(3)(x)


@pytest.mark.parametrize("network", [ByStream(), Unconditional(), InScan(True)], ids=lambda x: type(x).__name__)
def test_streams_are_found_by_tracing(network):
    model = models.as_model(network, X)
    params, held = drawn(model)
    assert set(held) == {"rngs"}
    one, two, three = (model.apply(params, held, X, None, train)[0] for train in (True, False, False))
    assert equal(two, three)
    assert not np.allclose(one, two)


class Sampled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x + jax.random.normal(self.make_rng("noise"), x.shape))


class Rngs(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(not train, name="rngs")(x))
        return nn.Dense(3)(x)


class EqxIdle(eqx.Module):
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key):
        self.head, self.drop = eqx.nn.Linear(6, 3, key=key), eqx.nn.Dropout(0.5, inference=True)

    def __call__(self, x, *, key=None):
        return self.head(self.drop(x, key=key))


class EqxAxes(EqxNormed):
    other: eqx.nn.BatchNorm

    def __init__(self, key):
        super().__init__(key)
        self.other = eqx.nn.BatchNorm(3, "rows", mode="batch")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Sampled(), "Sampled draws random numbers in evaluation, too: name its switch"),
        (InScan(False), "InScan draws random numbers of the stream 'dropout' where it has none: pass it on in split_r"),
        (Rngs(), "Rngs has a layer and a collection of variables 'rngs': rename the layer"),
        (
            hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(3)(x))),
            "the Haiku network draws random numbers in evaluation, too: name its switch",
        ),
        (EqxIdle, "EqxIdle has a dropout that drops nothing while it trains: make it with inference=False"),
        (EqxAxes, "EqxAxes has BatchNorms of several axes .'batch', 'rows'.: give all one axis_name"),
        (lambda key: eqx.nn.MLP(5, 3, 8, 1, key=key), "the network does not run on inputs float32 of shape"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(network, message):
    with pytest.raises(ValueError, match=message) as found:
        models.as_model(network, X)
    assert "\n" not in str(found.value)


# Other collections than parameters and BatchNorm's statistics.


class Collections(nn.Module):
    """Constants, a state of its own, sown values, a count that goes on in evaluation, too."""

    norm: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        shift = self.variable("constants", "shift", lambda: jnp.arange(6.0))
        mean = self.variable("averages", "mean", jnp.zeros, 6)
        calls = self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            calls.value = calls.value + 1
            if train:
                mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
        self.sow("losses", "size", jnp.sum(x))
        x = nn.BatchNorm(not train, name="bn")(x) if self.norm else x
        return nn.Dense(3)(x + (shift.value - mean.value)[None])


@pytest.mark.slow
@pytest.mark.parametrize("norm", some_slow([False, True], False))
def test_all_collections_are_carried_and_training_updates_them(norm):
    net, model = Collections(norm), models.as_model(Collections(norm), X)
    params, held = drawn(model)
    assert set(held) == {"constants", "averages", "counts"} | ({"bn"} if norm else set())
    variables = net.init(jax.random.key(0), X[:1])
    names = ["constants", "averages", "counts", *(["batch_stats"] if norm else [])]

    def forward(params, others, x, step):
        return net.apply({"params": params, **others}, x, train=True, mutable=names)

    found = trained(model)
    params, others = plain_loop(forward, params, {name: variables[name] for name in names})
    statistics = others.pop("batch_stats", {})
    assert_close((found.params, found.batch_stats), (params, {**statistics, **others}))
    logits, same = model.apply(found.params, found.batch_stats, X, None, False)
    assert same is found.batch_stats
    variables = {"params": params, "batch_stats": statistics, **others}
    assert_close(logits, net.apply(variables, X, mutable=["counts"])[0])
    assert models.fixed_statistics(model, X) == {"constants/shift"}


def test_a_tree_of_batch_norm_alone_is_the_collection():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            self.sow("losses", "size", jnp.sum(x))
            return nn.Dense(3)(self.perturb("x", nn.BatchNorm(not train)(x)))

    held = models.as_model(Normed(), X).init(jax.random.key(0))[1]
    assert equal(held, Normed().init(jax.random.key(0), X[:1])["batch_stats"])


def test_a_state_that_moves_where_a_boolean_is_turned_has_a_switch():
    class Quiet(nn.Module):
        @nn.compact
        def __call__(self, x, quiet=True):
            mean = self.variable("averages", "mean", jnp.zeros, 6)
            mean.value = mean.value if quiet else 0.9 * mean.value + x.mean(0)
            return nn.Dense(3)(x - mean.value[None])

    with pytest.raises(ValueError, match="Quiet updates 'averages/mean' only where 'quiet' is turned: name its switch"):
        models.as_model(Quiet(), X)
    assert models.fixed_statistics(models.as_model(Quiet(), X, switch={"quiet": False}), X) == set()


# Inputs that are a dictionary of arrays.

TREE = {"features": X, "ids": RNG.integers(0, 9, (48, 4)).astype(np.int32), "known": X[:, :4] > 0}


def mixed(table, inputs):
    """Return [B, 7]: the features, and the mean embedding [1] of the known tokens; of one sample, [7]."""
    weights = inputs["known"].astype(jnp.float32)
    mean = jnp.sum(table[inputs["ids"]] * weights, -1, keepdims=True) / (1 + weights.sum(-1, keepdims=True))
    return jnp.concatenate([inputs["features"], mean], axis=-1)


class TreeLinen(nn.Module):
    @nn.compact
    def __call__(self, inputs, mask=None, train=False):
        x = mixed(self.param("table", lambda key, *shape: jnp.arange(9.0), (9,)), inputs)
        x = nn.BatchNorm(not train, name="bn")(x, mask=None if mask is None else mask[:, None])
        return nn.Dense(3, kernel_init=nn.initializers.constant(0.1))(x)


class TreeNnx(nnx.Module):
    def __init__(self, rngs):
        self.table, self.head = nnx.Param(jnp.arange(9.0)), nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, inputs):
        return self.head(mixed(self.table[...], inputs))


class TreeEqx(eqx.Module):
    table: jax.Array
    head: eqx.nn.Linear

    def __init__(self, key):
        self.table, self.head = jnp.arange(9.0), eqx.nn.Linear(7, 3, key=key)

    def __call__(self, inputs):
        return self.head(mixed(self.table, inputs))


def tree_hk(inputs):
    return hk.Linear(3)(mixed(hk.get_parameter("table", (9,), init=jnp.ones), inputs))


TREES = {
    "linen": TreeLinen(),
    "nnx": TreeNnx,
    "haiku": hk.transform(tree_hk),
    "equinox": TreeEqx,
    "functions": (lambda key: jnp.arange(9.0), lambda table, inputs: mixed(table, inputs)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", some_slow(TREES, "nnx", "haiku"))
def test_inputs_may_be_a_dictionary(name):
    model = models.as_model(TREES[name], TREE)
    params, held = drawn(model)
    mask = np.arange(48) < 40
    spoilt = TREE | {"features": np.where(mask[:, None], X, 1e3).astype(np.float32)}
    params = jax.tree.map(np.asarray, params)
    apply = jax.jit(model.apply, static_argnums=4)
    (_, one), (_, two) = (apply(params, held, x, mask, True) for x in (TREE, spoilt))
    assert_close(jax.tree.map(numbers, one), jax.tree.map(numbers, two))
    logits = apply(params, held, TREE, None, False)[0]
    known = TREE["known"].astype(np.float32)
    table = {"equinox": lambda: params.table, "haiku": lambda: params["~"]["table"], "functions": lambda: params}
    values = np.asarray(table.get(name, lambda: params["table"])())[TREE["ids"]] * known
    x = np.concatenate([X, values.sum(1, keepdims=True) / (1 + known.sum(1, keepdims=True))], axis=1)
    dense = {
        "linen": lambda: x / np.sqrt(np.float32(1 + 1e-5)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"],
        "nnx": lambda: x @ params["head"]["kernel"] + params["head"]["bias"],
        "haiku": lambda: x @ params["linear"]["w"] + params["linear"]["b"],
        "equinox": lambda: x @ params.head.weight.T + params.head.bias,
        "functions": lambda: x,
    }
    np.testing.assert_allclose(logits, dense[name](), rtol=1e-4, atol=1e-5)
    models.check_independent(model, TREE)
    assert models.check_logits(model, TREE, 3) == (7 if name == "functions" else 3)
    assert models.fixed_statistics(model, TREE) == set()


def test_messages_of_dictionaries_name_their_arrays():
    wrong = {"features": X, "ids": X}
    with pytest.raises(ValueError, match=r"on inputs features: float32 of shape .48, 6., ids: float32 of shape .48, 6"):
        models.as_model(TreeEqx, wrong)
    model = models.from_functions(lambda key: jnp.ones(()), lambda w, inputs: w * (inputs["a"] + inputs["b"].sum()))
    with pytest.raises(ValueError, match=r"depend on the others in its batch: .*samples of shapes .'a': .6,., 'b': .."):
        models.check_independent(model, {"a": X, "b": X[:, 0]})


def test_padding_of_dictionaries_is_replaced():
    found = models.padding.without_padding(
        {"a": jnp.arange(4), "b": {"c": jnp.arange(8).reshape(4, 2)}}, np.arange(4) < 3
    )
    np.testing.assert_array_equal(found["a"], [0, 1, 2, 0])
    np.testing.assert_array_equal(found["b"]["c"][:, 0], [0, 2, 4, 0])


# What a task wants of the outputs.


@pytest.mark.parametrize(
    ("task", "targets", "apply", "message"),
    [
        ("classification", Y, lambda x: x[:, :2], r"must give logits \[B, 3 or more\] for labels 0 to 2, got \(1, 2\)"),
        ("classification", Y, lambda x: (x, x), r"must give logits \[B, 3 or more\] for labels 0 to 2, got tuple"),
        ("regression", X[:, 0], lambda x: x, r"must give outputs \[B\], got \(1, 6\)"),
        ("regression", X[:, :2], lambda x: x, r"must give outputs \[B, 2\], got \(1, 6\)"),
    ],
)
def test_outputs_that_do_not_fit_the_task(task, targets, apply, message):
    model = models.from_functions(lambda key: (), lambda params, x: apply(x))
    with pytest.raises(ValueError, match=f"the network {message}"):
        models.check_outputs(model, X, tasks.as_task(task, targets), targets)


@pytest.mark.parametrize(
    ("task", "targets", "apply", "shape"),
    [
        ("classification", Y, lambda x: x, (1, 6)),
        ("regression", X[:, 0], lambda x: x[:, 0], (1,)),
        ("regression", X[:, 0], lambda x: x[:, :1], (1, 1)),
        (tasks.Task("own", *[lambda outputs, y: outputs.sum((1, 2))] * 2), X, lambda x: x[:, None], (1, 1, 6)),
    ],
)
def test_outputs_that_fit_the_task(task, targets, apply, shape):
    model = models.from_functions(lambda key: (), lambda params, x: apply(x))
    assert models.check_outputs(model, X, tasks.as_task(task, targets), targets) == shape


def test_a_tasks_own_outputs_must_be_an_array():
    model = models.from_functions(lambda key: (), lambda params, x: {"a": x})
    with pytest.raises(ValueError, match="the network must give one array of outputs, got dict"):
        models.check_outputs(model, X, tasks.Task("own", cross_entropy, cross_entropy), X)
