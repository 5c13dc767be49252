"""Growing by what axes hold: with all that is new zero, the grown network is the old one, or growing is refused."""

import functools
import itertools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import sp_jax
from sp_jax import models, restarts
from sp_jax.layers import crelu
from sp_jax.training import Convergence
from sp_jax.transforms import filters, growth, layouts
from sp_jax.transforms.layouts import Grows
from sp_jax.types import TrainState

RNG = np.random.default_rng(0)
X, IMAGES, TEXTS, TOKENS = (
    RNG.normal(size=(4, 6)).astype("float32"),
    RNG.normal(size=(2, 4, 4, 3)).astype("float32"),
    RNG.normal(size=(2, 5, 8)).astype("float32"),
    RNG.integers(1, 9, (6, 5)),
)


class Chain(nn.Module):
    """Plain layers, whose units double; positions are flattened, or averaged."""

    width: int
    classes: int = 3
    flat: bool = False
    norm: bool = False

    @nn.compact
    def __call__(self, x, mask=None, train=False):
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv")(x))
        x = x.reshape(len(x), -1) if self.flat else x.mean((1, 2))
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x, mask=mask) if self.norm else x
        x = nn.relu(nn.Dense(7 if self.flat else 2 * self.width, name="body")(x))
        return nn.Dense(self.classes, name="head")(x)


class Gated(nn.Module):
    """Side by side: queries, keys and values; a value and its gate."""

    width: int
    attends: bool

    @nn.compact
    def __call__(self, x):
        if self.attends:
            q, k, v = jnp.split(nn.Dense(3 * self.width, name="all")(nn.Dense(self.width, name="in")(x)), 3, -1)
            x = nn.Dense(self.width, name="out")(jax.nn.softmax(q @ k.swapaxes(1, 2), -1) @ v).mean(1)
        else:
            x, gate = jnp.split(nn.Dense(2 * self.width, name="all")(x[:, 0]), 2, -1)
            x = x * nn.sigmoid(gate)
        return nn.Dense(3, name="head")(x)


class Joined(nn.Module):
    """Inputs beside units, units beside twice as many."""

    width: int

    @nn.compact
    def __call__(self, x):
        first = jnp.concatenate([x, nn.relu(nn.Dense(self.width, name="a")(x))], -1)
        second = nn.tanh(nn.Dense(2 * self.width, name="b")(first))
        return nn.Dense(3, name="head")(jnp.concatenate([second, first], -1))


class Attention(nn.Module):
    width: int
    heads: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, name="body")(x)
        return nn.Dense(3, name="head")(nn.MultiHeadDotProductAttention(self.heads, name="mixer")(x).mean(1))


class Recurrent(nn.Module):
    width: int
    cell: type = nn.LSTMCell

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.RNN(self.cell(self.width, name="cell"))(x)[:, -1])


class Table(nn.Module):
    count: int
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.Embed(self.count, self.width, name="table_embedding")(x).mean(1))


class Kernel(nn.Module):
    size: int
    groups: int = 1
    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (1, 1), name="first")(x)
        x = nn.Conv(self.width, (self.size, 1), feature_group_count=self.groups, name="conv")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class TwoHeads(nn.Module):
    policy: int
    value: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.policy, name="policy")(x) + jnp.sum(0 * nn.Dense(self.value, name="value")(x))


class Layers(nnx.Module):
    def __init__(self, sizes, rngs):
        self.layers = nnx.List([nnx.Linear(n, m, rngs=rngs) for n, m in itertools.pairwise(sizes)])

    def __call__(self, x):
        for each in self.layers:
            x = nnx.tanh(each(x))
        return x


class NnxConv(nnx.Module):
    def __init__(self, width, rngs):
        self.conv, self.out = nnx.Conv(3, width, (3, 3), rngs=rngs), nnx.Linear(16 * width, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.conv(x)).reshape(len(x), -1))


class Blocks(nn.Module):
    """Flax's automatic names."""

    count: int
    width: int = 4

    @nn.compact
    def __call__(self, x):
        for _ in range(self.count):
            x = nn.tanh(nn.Dense(self.width)(x))
        return nn.Dense(3)(x)


def drawn(seed, shapes):
    """Parameters of these shapes, which no program has to be compiled for."""
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, jax.ShapeDtypeStruct)  # noqa: E731
    return jax.tree.map(
        lambda x: rng.uniform(-0.5, 0.5, x.shape).astype(x.dtype) if is_shape(x) else x, shapes, is_leaf=is_shape
    )


def linen(module, x):
    """(parameters, function of parameters) for a seed."""

    def make(seed):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        others = {name: jax.tree.map(lambda x: np.ones(x.shape, x.dtype), variables[name]) for name in variables}
        return drawn(seed, variables["params"]), lambda params, x: module.apply(others | {"params": params}, x)

    return make


def haiku(forward, x):
    pair = hk.without_apply_rng(hk.transform(forward))
    return lambda seed: (drawn(seed, jax.eval_shape(pair.init, jax.random.key(0), x)), pair.apply)


def haiku_rnn(kind, width):
    def forward(x):
        core = kind(width)
        return hk.Linear(3)(hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))[0][-1])

    return haiku(forward, TEXTS)


def haiku_attention(width):
    def forward(x):
        x = hk.Linear(width)(x)
        return hk.MultiHeadAttention(2, width // 2, w_init=hk.initializers.RandomNormal())(x, x, x)

    return haiku(forward, TEXTS)


def equinox(make_module):
    def make(seed):
        module = drawn(seed, eqx.filter_eval_shape(make_module, jax.random.key(0)))
        params, static = eqx.partition(module, eqx.is_array_like)
        return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)

    return make


def equinox_conv(width):
    def make(key):
        head = eqx.nn.Linear(4 * width, 3, key=key)
        return eqx.nn.Sequential([eqx.nn.Conv2d(3, width, 3, key=key), eqx.nn.Lambda(jnp.ravel), head])

    return equinox(make)


def flax_nnx(make_module):
    def make(seed):
        graph, state = nnx.split(nnx.eval_shape(lambda: make_module(nnx.Rngs(0))))
        return drawn(seed, state), lambda state, x: nnx.merge(graph, state)(x)

    return make


def birnn(width, layers=2):
    return models.BiRNN(3, vocabulary=9, width=width, layers=layers)


def resnet(width):
    return models.ResNet(3, width=width, stage_sizes=(1, 1))


def vit(ratio, classes=3, depth=1, width=6):
    return models.ViT(classes, width=width, depth=depth, heads=2, ratio=ratio)


def crelu_mlp(*hidden):
    return models.MLP(3, hidden=hidden, activation=crelu)


def equinox_mlp(width, depth=2):
    return equinox(lambda key: eqx.nn.MLP(6, 3, width, depth, key=key))


def haiku_mlp(*sizes):
    return haiku(lambda x: hk.nets.MLP(sizes)(x), X)


def nnx_layers(*sizes):
    return flax_nnx(lambda rngs: Layers(sizes, rngs))


CHANNELS_FIRST = np.moveaxis(IMAGES, -1, 1)
KEPT = {  # old, new, inputs, what is declared
    "chain": (linen(Chain(4), IMAGES), linen(Chain(6, 5), IMAGES), IMAGES, None),
    "a class more": (linen(Chain(4), IMAGES), linen(Chain(4, 5), IMAGES), IMAGES, None),
    "flattened": (
        linen(Chain(4, flat=True), IMAGES),
        linen(Chain(6, flat=True), IMAGES),
        IMAGES,
        {"body/kernel": {-2: (16, -1)}},
    ),
    "flattened, norm": (
        linen(Chain(4, flat=True, norm=True), IMAGES),
        linen(Chain(6, flat=True, norm=True), IMAGES),
        IMAGES,
        {"body/kernel": {-2: (16, -1)}, "norm": {-1: (16, -1)}},
    ),
    "fused queries": (
        linen(Gated(4, True), TEXTS),
        linen(Gated(6, True), TEXTS),
        TEXTS,
        {"all": {-1: (3, -1)}},
    ),
    "gate": (linen(Gated(4, False), TEXTS), linen(Gated(6, False), TEXTS), TEXTS, {"all": {-1: (2, -1)}}),
    "joined": (
        linen(Joined(4), X),
        linen(Joined(7), X),
        X,
        {"b/kernel": {-2: [6, -1]}, "head/kernel": {-2: [Grows(8, 14), 6, -1]}},
    ),
    "LSTM": (linen(Recurrent(4), TEXTS), linen(Recurrent(6), TEXTS), TEXTS, None),
    "fused LSTM": (
        linen(Recurrent(4, nn.OptimizedLSTMCell), TEXTS),
        linen(Recurrent(6, nn.OptimizedLSTMCell), TEXTS),
        TEXTS,
        None,
    ),
    "table": (linen(Table(10, 4), TOKENS), linen(Table(12, 6), TOKENS), TOKENS, None),
    "one of two heads": (linen(TwoHeads(3, 1), X), linen(TwoHeads(4, 1), X), X, None),
    "depthwise": (linen(Kernel(3, 4), IMAGES), linen(Kernel(3, 6, 6), IMAGES), IMAGES, None),
    "MLP": (
        linen(models.MLP(3, hidden=(4, 5)), X),
        linen(models.MLP(4, hidden=(8, 10)), X),
        X,
        models.MLP(4, hidden=(8, 10)).layouts(),
    ),
    "CReLU MLP": (linen(crelu_mlp(4, 5), X), linen(crelu_mlp(8, 10), X), X, crelu_mlp(8, 10).layouts()),
    "ViT, more units and a class more": (linen(vit(2), IMAGES), linen(vit(3, 4), IMAGES), IMAGES, vit(3, 4).layouts()),
    "ViT, a block more": (linen(vit(2), IMAGES), linen(vit(2, depth=2), IMAGES), IMAGES, vit(2, depth=2).layouts()),
    "MLP of LayerNorm, a class more": (
        linen(models.MLP(3, (4,), norm="layer"), X),
        linen(models.MLP(4, (4,), norm="layer"), X),
        X,
        models.MLP(4, (4,), norm="layer").layouts(),
    ),
    "BiRNN": (linen(birnn(4), TOKENS), linen(birnn(6), TOKENS), TOKENS, birnn(6).layouts()),
    "ResNet": (linen(resnet(4), IMAGES), linen(resnet(6), IMAGES), IMAGES, resnet(6).layouts()),
    "Haiku MLP": (haiku_mlp(4, 5, 3), haiku_mlp(6, 7, 3), X, None),
    "Haiku RNN": (haiku_rnn(hk.VanillaRNN, 4), haiku_rnn(hk.VanillaRNN, 6), TEXTS, None),
    "Haiku LSTM": (
        haiku_rnn(hk.LSTM, 4),
        haiku_rnn(hk.LSTM, 6),
        TEXTS,
        {"lstm/linear": {-1: (4, -1)}, "lstm/linear/w": {-2: [8, -1]}},
    ),
    "Haiku GRU": (
        haiku_rnn(hk.GRU, 4),
        haiku_rnn(hk.GRU, 6),
        TEXTS,
        {"gru": {-1: (3, -1)}, "gru/w_h": {-2: -1}},
    ),
    "Equinox MLP": (equinox_mlp(4), equinox_mlp(6), X, None),
    "Equinox MLP, square": (equinox_mlp(6), equinox_mlp(8), X, None),
    "Equinox, flattened": (equinox_conv(4), equinox_conv(6), CHANNELS_FIRST, {"layers/2/weight": {1: (-1, 4)}}),
    "NNX": (nnx_layers(6, 4, 4, 3), nnx_layers(6, 5, 7, 4), X, None),
    "NNX, flattened": (
        flax_nnx(lambda rngs: NnxConv(4, rngs)),
        flax_nnx(lambda rngs: NnxConv(6, rngs)),
        IMAGES,
        {"out/kernel": {-2: (16, -1)}},
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_with_all_that_is_new_zero_the_function_is_the_old_one(name):
    old, new, x, declared = KEPT[name]
    (params, before), (fresh, after) = old(0), new(1)
    assert sp_jax.grown(params, fresh, layouts=declared)
    zero = jax.tree.map(np.zeros_like, fresh)
    found = jax.jit(lambda p, f: after(sp_jax.grow(p, f, layouts=declared), x))(params, zero)
    expected = jax.jit(before)(params, x)
    np.testing.assert_allclose(found[..., : expected.shape[-1]], expected, atol=1e-6)
    assert np.ptp(expected) > 1e-3


REFUSED = {  # old, new, message
    "flattened": (
        *KEPT["flattened"][:2],
        r"^'body/kernel' cannot grow from \(64, 7\) to \(96, 7\): axis -2 grows from 64 to 96, 16 times the 4 -> 6 "
        r"units of 'conv/kernel'; declare layouts=\{'body/kernel': \{-2: …\}\}, with \(16, -1\) for \[16, units\]",
    ),
    "flattened, norm": (*KEPT["flattened, norm"][:2], r"'body/kernel' cannot grow"),
    "fused queries": (*KEPT["fused queries"][:2], r"layouts=\{'all': \{-1: …\}\}, with \(3, -1\)"),
    "gate": (*KEPT["gate"][:2], r"'head/kernel' cannot grow from \(4, 3\) to \(6, 3\): .* and no layer's units do"),
    "joined": (*KEPT["joined"][:2], r"'b/kernel' cannot grow from \(10, 8\) .* and no layer's units do"),
    "BiRNN": (*KEPT["BiRNN"][:2], r"'backward_1/in/kernel' cannot grow from \(8, 4\) .* with \(2, -1\)"),
    "Haiku LSTM": (*KEPT["Haiku LSTM"][:2], "'linear/w' cannot grow"),
    "Haiku GRU": (*KEPT["Haiku GRU"][:2], "'gru/w_h' cannot grow"),
    "Equinox, flattened": (*KEPT["Equinox, flattened"][:2], r"4 times the 4 -> 6 units of 'layers/0/weight'"),
    "NNX, flattened": (*KEPT["NNX, flattened"][:2], r"'out/kernel' cannot grow .* units of 'conv/kernel'"),
    "wider heads": (linen(Attention(8), TEXTS), linen(Attention(12), TEXTS), "'mixer/.*heads of attention"),
    "ViT": (linen(vit(2), IMAGES), linen(vit(2, width=8), IMAGES), "'block_0/attention/.*heads of attention"),
    "more heads": (linen(Attention(8, 2), TEXTS), linen(Attention(12, 3), TEXTS), "'mixer/.*heads of attention"),
    "Haiku attention": (haiku_attention(8), haiku_attention(12), "'multi_head_attention/key/w' .*heads of attention"),
    "inputs": (
        linen(models.MLP(3, hidden=(4,)), X),
        linen(models.MLP(3, hidden=(4,)), np.ones((1, 8), "float32")),
        r"'hidden_0/kernel' cannot grow from \(6, 4\) to \(8, 4\): .* no layer's units do",
    ),
    "kernel size": (linen(Kernel(3), IMAGES), linen(Kernel(5), IMAGES), "'conv/kernel' .* neither inputs nor units"),
    "groups": (linen(Kernel(3, 2), IMAGES), linen(Kernel(3, 2, 6), IMAGES), "'conv/kernel' .* no layer's units do"),
    "two heads": (linen(TwoHeads(3, 1), X), linen(TwoHeads(5, 2), X), "'policy/kernel' .* not the only such axis"),
    "a layer in front": (
        linen(Blocks(1), X),
        linen(Blocks(2), X),
        "'Dense_2' is new beside Dense_0, Dense_1, .*'Dense_1'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused_in_one_line(name):
    old, new, message = REFUSED[name]
    params, fresh = old(0)[0], jax.eval_shape(lambda: new(1)[0])
    for call in (sp_jax.grown, sp_jax.grow, growth.expand):
        with pytest.raises(ValueError, match=message) as raised:
            call(params, fresh)
        assert "\n" not in str(raised.value)


NORMED = {  # how to make one of a width, inputs, the first leaf that is refused
    "MLP": (lambda width: models.MLP(3, (width,), norm="layer"), X, "norm_0/"),
    "ResNet": (
        lambda width: models.ResNet(3, width=width, stage_sizes=(1, 2), norm="layer"),
        IMAGES,
        "stage_0_block_0/norm_0/",
    ),
    "BiRNN": (lambda width: models.BiRNN(3, 9, width=width, norm="layer"), TOKENS, "norm/"),
    "ViT": (lambda width: vit(2, width=width), IMAGES, "block_0/norm_0/"),
}


@pytest.mark.parametrize("name", NORMED)
def test_a_network_with_layer_norm_grows_no_wider(name):
    """Each norm is declared with its own size, which no other one fits."""
    module, x, first = NORMED[name]
    old, new = (
        jax.eval_shape(lambda key, width=width: module(width).init(key, x), jax.random.key(0))["params"]
        for width in (4, 6)
    )
    with pytest.raises(ValueError, match=rf"^'{first}.* the layout \(\d+,\) does not make up an axis"):
        sp_jax.grown(old, new, layouts=module(6).layouts())
    sizes = {path.rpartition("/")[0]: leaf.shape for path, leaf in filters.by_path(new).items() if "norm" in path}
    declared = {name: layout[-1] for name, layout in module(6).layouts().items() if "norm" in name}
    assert declared == sizes


def test_a_norm_that_mixes_units_is_told_by_its_name():
    params, fresh = ({"ln_f": {"scale": jnp.ones(n)}, "head": {"kernel": jnp.ones((n, 2))}} for n in (4, 6))
    fresh["body"] = {"kernel": jnp.ones((3, 6))}
    params["body"] = {"kernel": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match=r"'ln_f/scale' .* a norm over more units .* layouts=\{'ln_f': \{-1: …\}\}"):
        sp_jax.grown(params, fresh)
    assert len(sp_jax.grown(params, fresh, layouts={"ln_f": {-1: -1}})) == 3


def test_a_wider_convolution_before_a_flattened_layer_equals_numpy():
    """By [H, W, units, out]."""
    old, new, _, declared = KEPT["flattened"]
    params, fresh = (jax.tree.map(np.asarray, make(seed)[0]) for make, seed in ((old, 0), (new, 1)))
    expected = fresh["body"]["kernel"].reshape(4, 4, 6, 7).copy()
    trained = params["body"]["kernel"].reshape(4, 4, 4, 7)
    expected[:, :, :4] = 0.5 * trained + 0.25 * expected[:, :, :4]
    grown = jax.jit(lambda p, f: sp_jax.grow(p, f, shrink=0.5, noise_scale=0.25, layouts=declared))(params, fresh)
    np.testing.assert_allclose(grown["body"]["kernel"], expected.reshape(96, 7), rtol=1e-6)


@pytest.mark.parametrize(
    ("layout", "old", "new", "expected"),
    [
        (-1, 2, 4, [0, 1]),
        ((2, -1), 4, 6, [0, 1, 3, 4]),
        ((-1, 2), 4, 6, [0, 1, 2, 3]),
        ((2, -1, 2), 8, 12, [0, 1, 2, 3, 6, 7, 8, 9]),
        ((Grows(1, 2), Grows(2, 3)), 2, 6, [0, 1]),
        ([2, -1], 3, 4, [0, 1, 2]),
        ([-1, 2], 3, 4, [0, 2, 3]),
        ([-1, 1, -1], 5, 7, [0, 1, 3, 4, 5]),
        ([Grows(1, 2), Grows(1, 3)], 2, 5, [0, 2]),
        (Grows(2, 3), 2, 3, [0, 1]),
    ],
)
def test_where_the_entries_of_an_axis_come_to_lie(layout, old, new, expected):
    assert layouts.places(layout, old, new).tolist() == expected


@pytest.mark.parametrize("layout", [(3, -1), (-1, -1), [7, -1], [1, -1, -1], (2, 3), "units", (0, -1), Grows(1, 2)])
def test_layouts_that_do_not_fit_raise_with_the_path_and_the_shapes(layout):
    params, fresh = {"head": {"kernel": jnp.ones((4, 2))}}, {"head": {"kernel": jnp.ones((6, 2))}}
    with pytest.raises(
        ValueError, match=r"^'head/kernel' grows from \(4, 2\) to \(6, 2\), axis -2: the layout .* of 4"
    ):
        sp_jax.grow(params, fresh, layouts={"head/kernel": {-2: layout}})


def test_gates_that_lie_side_by_side_stay_refused_where_their_reader_alone_is_declared():
    old, new, *_ = KEPT["gate"]
    with pytest.raises(ValueError, match=r"'all/kernel' .* a multiple of units that another layer reads"):
        sp_jax.grown(old(0)[0], new(1)[0], layouts={"head/kernel": {-2: -1}})


def test_declarations_that_name_nothing_raise():
    params, fresh = {"head": {"kernel": jnp.ones((4, 2))}}, {"head": {"kernel": jnp.ones((6, 2))}}
    for declared, message in (
        ({"haed": {-2: -1}}, "layouts names 'haed', which is no path of the parameters: head/kernel"),
        ({"head/kernel": {-3: -1}}, "layouts names axis -3 of 'head/kernel', which has 2 axes"),
        ({"head": -1}, r"layouts\['head'\] must be a mapping from axes"),
    ):
        with pytest.raises(ValueError, match=message):
            sp_jax.grow(params, fresh, layouts=declared)
    assert sp_jax.grown(params, fresh, layouts={"": {-2: -1}}) == {"head/kernel": ((4, 2), (6, 2))}


MOVED = {  # old, new, from old to new layers, what the message says
    "Flax": (linen(Blocks(2), X), linen(Blocks(3), X), {"Dense_2": "Dense_3"}, r"'Dense_2/kernel' was \(4, 3\) and is"),
    "Haiku": (haiku_mlp(4, 4, 3), haiku_mlp(4, 4, 4, 3), {"mlp/~/linear_2": "mlp/~/linear_3"}, r"\(4, 3\) and is"),
    "Haiku, unnumbered": (
        haiku(lambda x: hk.Linear(3)(x), X),
        haiku(lambda x: hk.Linear(3)(hk.Linear(4)(x)), X),
        {"linear": "linear_1"},
        None,
    ),
    "NNX": (nnx_layers(6, 4, 4, 3), nnx_layers(6, 4, 4, 4, 3), {"layers/2": "layers/3"}, r"\(4, 3\) and is \(4, 4\)"),
    "Equinox": (equinox_mlp(4), equinox_mlp(4, 3), {"layers/2": "layers/3"}, r"\(3, 4\) and is \(4, 4\)"),
}


@pytest.mark.parametrize("name", [name for name in MOVED if MOVED[name][3]])
def test_layers_whose_names_move_are_refused_and_can_be_named(name):
    old, new, renamed, message = MOVED[name]
    params, fresh = old(0)[0], new(1)[0]
    ((before, after),) = renamed.items()
    with pytest.raises(ValueError, match=rf"^'{after}' is new beside .*{message}.*renamed=.*'{before}': '{after}'"):
        sp_jax.grow(params, fresh)
    grown = sp_jax.grown(params, fresh, renamed=renamed)
    assert grown
    assert all(path.startswith(f"{before}/") and was is None for path, (was, _) in grown.items())
    taken = filters.by_path(sp_jax.grow(params, fresh, renamed=renamed))
    for path, leaf in filters.by_path(params).items():
        np.testing.assert_array_equal(taken[layouts.rename(path, renamed)], leaf)
    for path in grown:
        np.testing.assert_array_equal(taken[path], filters.by_path(fresh)[path])


def test_an_automatic_name_is_asked_for_even_where_all_shapes_fit():
    params, fresh = ({f"Dense_{i}": {"kernel": jnp.full((2, 2), i)} for i in range(n)} for n in (2, 3))
    with pytest.raises(ValueError, match=r"'Dense_2' is new .*'Dense_2/kernel' is \(2, 2\).*renamed="):
        sp_jax.grown(params, fresh)
    assert sp_jax.grown(params, fresh, renamed={"Dense_0": "Dense_0"}) == {"Dense_2/kernel": (None, (2, 2))}
    with pytest.raises(ValueError, match="two old leaves are to be 'Dense_1/kernel'"):
        sp_jax.grown(params, fresh, renamed={"Dense_0": "Dense_1"})
    with pytest.raises(ValueError, match="no leaf 'Dense_7/kernel'"):
        sp_jax.grown(params, fresh, renamed={"Dense_1": "Dense_7"})


def test_names_that_someone_gave_may_be_numbered_on():
    old, new = linen(models.MLP(3, hidden=(4, 4)), X), linen(models.MLP(3, hidden=(4, 4, 4)), X)
    assert set(sp_jax.grown(old(0)[0], new(1)[0])) == {"hidden_2/kernel", "hidden_2/bias"}


def whole_state(module, optimizer, seed):
    params, batch_stats = models.from_module(module, IMAGES).init(jax.random.key(seed))
    return TrainState(params, batch_stats, optimizer.init(params))


def test_statistics_and_moments_grow_as_their_parameters_do():
    """In a state whose every leaf counts upwards, each is where NumPy puts it."""
    declared = {"body/kernel": {-2: (16, -1)}, "norm": {-1: (16, -1)}}
    optimizer = optax.chain(optax.adam(1e-3), optax.trace(0.9))
    old, fresh = (whole_state(Chain(n, flat=True, norm=True), optimizer, n) for n in (4, 6))
    old = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), old)
    policies = {"statistics": "keep", "optimizer_state": "keep", "shapes": "grow", "layouts": declared}
    restart = restarts.make_restart(restarts.warm_start, **policies)
    new = jax.jit(restart)(jax.random.key(0), old, fresh, shrink=1.0, noise_scale=0.0)
    kernel, vector = np.arange(64 * 7).reshape(16, 4, 7), np.arange(64).reshape(16, 4)
    adam, trace = new.opt_state[0][0], new.opt_state[1].trace
    for tree in (adam.mu, adam.nu, trace):
        np.testing.assert_array_equal(
            np.asarray(tree["body"]["kernel"]).reshape(16, 6, 7), np.pad(kernel, ((0, 0), (0, 2), (0, 0)))
        )
        np.testing.assert_array_equal(np.reshape(tree["norm"]["scale"], (16, 6)), np.pad(vector, ((0, 0), (0, 2))))
        np.testing.assert_array_equal(tree["conv"]["bias"], [0, 1, 2, 3, 0, 0])
    for name, fill in (("mean", 0), ("var", 1)):
        found = np.reshape(new.batch_stats["norm"][name], (16, 6))
        np.testing.assert_array_equal(found, np.pad(vector, ((0, 0), (0, 2)), constant_values=fill))


def test_a_state_follows_its_layers_to_their_new_names():
    """Also where a nested layer has the same name as one that moves, and whatever Adafactor factors begins anew."""
    params = {"Dense_0": {"kernel": jnp.ones((3, 2))}, "Block_0": {"Dense_0": {"kernel": jnp.full((3, 2), 2.0)}}}
    fresh = {"Dense_0": {"kernel": jnp.zeros((3, 3))}, "Block_0": params["Block_0"], "Dense_1": params["Dense_0"]}
    how = {"renamed": {"Dense_0": "Dense_1"}, "params": params}
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = (optax.TraceState(trace=params), optax.EmptyState())
    trace = growth.expand(state, optimizer.init(fresh), **how)[0].trace
    np.testing.assert_array_equal(trace["Dense_1"]["kernel"], params["Dense_0"]["kernel"])
    np.testing.assert_array_equal(trace["Block_0"]["Dense_0"]["kernel"], 2)
    np.testing.assert_array_equal(trace["Dense_0"]["kernel"], 0)
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    wider = {"kernel": jnp.ones((6, 3))}
    old = jax.tree.map(lambda x: x + 1, factored.init({"kernel": jnp.ones((4, 3))}))
    new = growth.expand(
        old, factored.init(wider), params={"kernel": jnp.ones((4, 3))}, layouts={"kernel": {-2: (2, -1)}}
    )
    assert new.count == 1
    assert sorted((x.shape, float(x.sum())) for x in (new.v_row["kernel"], new.v_col["kernel"])) == [
        ((3,), 3),
        ((6,), 0),
    ]
    with pytest.raises(ValueError, match="the fresh state has no leaf '0/trace/"):
        growth.expand(state, optax.sgd(0.1).init(fresh), params=params)


class Normed(nn.Module):
    """A norm whose name does not tell that it mixes units."""

    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="post")(nn.Dense(self.width, name="body")(x))
        return nn.Dense(2, name="head")(x)


def fit(network, x, **options):
    options = {"convergence": Convergence.exactly(0), "restart": "warm_start", "batch_size": 8} | options
    return sp_jax.fit_rounds(0, x, np.arange(len(x)) % 2, network=network, **options)


@functools.cache
def monday_of(network):
    """A fit that several tests go on from."""
    return fit(network, X if isinstance(network, Normed) else IMAGES)


@pytest.mark.slow
def test_fit_rounds_grows_our_own_networks():
    monday = fit(birnn(4, 1), TOKENS)
    tuesday = fit(birnn(6, 1), TOKENS, since=monday)
    assert tuesday.grown["head/kernel"] == ((8, 3), (12, 3))
    kernel = tuesday.state.params["head"]["kernel"].reshape(2, 6, 3)[:, :4]
    np.testing.assert_array_equal(kernel.reshape(8, 3), monday.state.params["head"]["kernel"])


@pytest.mark.slow
def test_fit_rounds_grows_what_is_declared():
    monday = monday_of(Chain(4, flat=True))
    with pytest.raises(ValueError, match="`since` holds another network: 'body/kernel' cannot grow"):
        fit(Chain(6, flat=True), IMAGES, since=monday)
    tuesday = fit(Chain(6, flat=True), IMAGES, since=monday, layouts={"body/kernel": {-2: (16, -1)}})
    kernel = tuesday.state.params["body"]["kernel"].reshape(16, 6, 7)[:, :4]
    np.testing.assert_array_equal(kernel.reshape(64, 7), monday.state.params["body"]["kernel"])


@pytest.mark.slow
def test_fit_rounds_follows_layers_to_their_new_names():
    monday = fit(Blocks(2), X)
    with pytest.raises(ValueError, match=r"'Dense_3' is new .*renamed="):
        fit(Blocks(3), X, since=monday)
    tuesday = fit(Blocks(3), X, since=monday, renamed={"Dense_2": "Dense_3"})
    for old, new in (("Dense_0", "Dense_0"), ("Dense_1", "Dense_1"), ("Dense_2", "Dense_3")):
        jax.tree.map(np.testing.assert_array_equal, tuesday.state.params[new], monday.state.params[old])
    assert set(tuesday.grown) == {"Dense_2/kernel", "Dense_2/bias"}


@pytest.mark.slow
@pytest.mark.parametrize("restart", ["random_init", sp_jax.make_restart(restarts.random_init, shapes="grow")])
def test_what_keeps_nothing_asks_for_nothing(restart):
    monday = monday_of(Chain(4, flat=True))
    tuesday = fit(Chain(6, flat=True), IMAGES, since=monday, restart=restart)
    assert tuesday.grown["body/kernel"] == ((64, 7), (96, 7))


@pytest.mark.slow
def test_a_norm_that_mixes_units_is_found_by_trying():
    with pytest.raises(
        ValueError, match=r"not the old one where all that is new is zero .* norm mixes .* layouts=\{\}"
    ):
        fit(Normed(6), X, since=monday_of(Normed(4)))


@pytest.mark.slow
def test_a_norm_that_mixes_units_is_found_by_a_choice_too_unless_it_is_said_that_nothing_is_to_be_declared():
    monday = monday_of(Normed(4))
    with pytest.raises(ValueError, match="not the old one"):
        sp_jax.tune_restart(0, X, np.arange(4) % 2, monday, network=Normed(6), validation=(X, np.arange(4) % 2))
    assert len(fit(Normed(6), X, since=monday, layouts={}).grown) == 5


def test_a_network_that_is_not_finite_is_not_compared():
    old, new = (models.as_model(models.MLP(2, hidden=(n,)), X) for n in (4, 5))
    params, stats = old.init(jax.random.key(0))
    growth.check_function(old, params, stats, new, None, None, X)
    growth.check_function(old, jax.tree.map(lambda x: x * jnp.nan, params), stats, new, None, None, X)
