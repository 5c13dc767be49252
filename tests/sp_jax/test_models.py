"""The paper's networks, their initialisation, and the convolution for CPUs."""

import importlib
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_jax
from experiments.config import choices
from sp_jax import models, plasticity
from sp_jax.plasticity import methods

ROOM = importlib.import_module("sp_jax.layers.convolution")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def count(params):
    return sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize(("width", "parameters"), [(64, 11_173_962), (16, 701_466)])
def test_resnet_18_has_the_parameters_of_the_standard_one_and_of_the_authors(width, parameters):
    model = models.from_module(models.ResNet(10, width=width), PIXELS)
    params, batch_stats = jax.eval_shape(model.init, jax.random.key(0))
    assert count(params) == parameters
    assert count(batch_stats) == 2 * (parameters_of_norms(params) // 2)
    assert "head" in params


def parameters_of_norms(params):
    return sum(count(x) for path, x in flat_layers(params) if "norm" in path)


def flat_layers(params):
    for name, value in params.items():
        if isinstance(next(iter(value.values())), dict):
            yield from ((f"{name}/{inner}", x) for inner, x in flat_layers(value))
        else:
            yield name, value


def resnet_by_hand(params, x, mask, norm=None):
    """A ResNet of stages (1, 1) with XLA's convolution and plain NumPy; batch statistics over the real samples, or
    another norm."""

    def conv(x, kernel, stride=1):
        pad = kernel.shape[0] // 2
        dims = ("NHWC", "HWIO", "NHWC")
        padding = ((pad, pad), (pad, pad))
        return np.asarray(jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=dims))

    def batch_norm(x, p):
        real = x[mask]
        return (x - real.mean((0, 1, 2))) / np.sqrt(real.var((0, 1, 2)) + 1e-5) * p["scale"] + p["bias"]

    norm = norm or batch_norm

    def block(x, p, stride):
        y = np.maximum(norm(conv(x, p["conv_0"]["kernel"], stride), p["norm_0"]), 0)
        y = norm(conv(y, p["conv_1"]["kernel"]), p["norm_1"])
        if "shortcut" in p:
            x = norm(conv(x, p["shortcut"]["kernel"], stride), p["shortcut_norm"])
        return np.maximum(x + y, 0)

    x = np.maximum(norm(conv(x / 127.5 - 1, params["stem"]["kernel"]), params["stem_norm"]), 0)
    x = block(block(x, params["stage_0_block_0"], 1), params["stage_1_block_0"], 2)
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def test_the_resnet_equals_one_by_hand_masks_strides_and_shortcuts_included():
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 7, 3), dtype=np.uint8)
    mask = np.array([True, True, True, False, False])
    model = models.from_module(models.ResNet(10, width=4, stage_sizes=(1, 1), precision="highest"), pixels)
    rng = np.random.default_rng(0)  # for which nothing has to be compiled
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), params)
    stats = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), stats)
    logits, updated = jax.jit(model.apply, static_argnums=4)(params, stats, pixels, mask, True)
    expected = resnet_by_hand(jax.tree.map(np.asarray, params), pixels.astype(np.float32), mask)
    np.testing.assert_allclose(logits[mask], expected[mask], rtol=1e-3, atol=1e-4)
    assert jax.tree.structure(updated) == jax.tree.structure(stats)
    assert all(not np.allclose(a, b) for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(stats), strict=True))
    kept = []
    logits = jax.eval_shape(lambda x: kept.append(model.apply(params, stats, x, None, False)) or kept[0][0], pixels)
    assert logits.shape == (5, 10)
    assert kept[0][1] is stats


def test_mlp_and_logistic_regression():
    mlp = models.from_module(models.MLP(10), PIXELS)
    params, stats = jax.eval_shape(mlp.init, jax.random.key(0))
    assert stats == {}
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "hidden_0": (3072, 100), "hidden_1": (100, 100), "head": (100, 10),
    }  # fmt: skip
    logistic, _ = jax.eval_shape(models.from_module(models.MLP(10, ()), PIXELS).init, jax.random.key(0))
    assert count(logistic) == 30_730
    bare, _ = jax.eval_shape(models.from_module(models.MLP(10, use_bias=False), PIXELS).init, jax.random.key(0))
    assert all(list(layer) == ["kernel"] for layer in bare.values())


def test_pixels_are_scaled_to_minus_one_and_one():
    scaled = models.scale_pixels(jnp.array([0, 255, 51], jnp.uint8))
    np.testing.assert_allclose(scaled, [-1, 1, -0.6], atol=1e-6)
    floats = jnp.array([0.25])
    assert models.scale_pixels(floats) is floats


@pytest.mark.parametrize(
    "module",
    [
        models.MLP(10, (200, 100)),
        pytest.param(models.ResNet(10, width=32, stage_sizes=(1,)), marks=pytest.mark.slow),
    ],
)
def test_torch_initialisation_is_uniform_in_one_over_the_root_of_fan_in(module):
    params, _ = jax.jit(models.from_module(module, PIXELS).init)(jax.random.key(0))
    for path, layer in flat_layers(params):
        if "norm" in path:
            assert (layer["scale"] == 1).all()
            assert (layer["bias"] == 0).all()
            continue
        bound = np.prod(layer["kernel"].shape[:-1]) ** -0.5
        for x in layer.values():
            assert np.abs(x).max() <= bound
            if x.size > 500:
                assert np.std(x) == pytest.approx(bound / 3**0.5, rel=0.1)
                assert np.abs(x).max() > 0.95 * bound
    assert float(jnp.std(params["head"]["bias"])) > 0


def test_tanhs_gain_is_of_the_weights_alone():
    """As `torch.nn.init.kaiming_uniform_(weight, nonlinearity="tanh")`: deviation 5/3 over the root of the fan-in."""
    module = models.MLP(10, (200, 100), initialization="torch_tanh")
    params, _ = jax.jit(models.from_module(module, PIXELS).init)(jax.random.key(0))
    plain, _ = jax.jit(models.from_module(module.clone(initialization="torch"), PIXELS).init)(jax.random.key(0))
    for name, layer in params.items():
        spread = 5 / 3 * layer["kernel"].shape[0] ** -0.5
        assert float(jnp.std(layer["kernel"])) == pytest.approx(spread, rel=0.05)
        assert float(jnp.abs(layer["kernel"]).max()) == pytest.approx(3**0.5 * spread, rel=0.01)
        np.testing.assert_array_equal(layer["bias"], plain[name]["bias"])


def test_flax_initialisation_and_unknown_ones():
    params, _ = jax.jit(models.from_module(models.MLP(10, initialization="flax"), PIXELS).init)(jax.random.key(0))
    assert (params["head"]["bias"] == 0).all()
    assert float(jnp.std(params["hidden_0"]["kernel"])) == pytest.approx(3072**-0.5, rel=0.05)
    with pytest.raises(ValueError, match="init must be one of torch, torch_tanh, flax, got 'keras'"):
        models.from_module(models.MLP(10, initialization="keras"), PIXELS).init(jax.random.key(0))


@pytest.mark.parametrize(
    ("size", "stride", "image", "channels", "features"),
    [
        (3, 1, (8, 8), 3, 4),
        (5, 2, (7, 6), 3, 4),
        (3, 1, (8, 8), 32, 32),  # Winograd's products
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *itertools.product((1,), (1, 2), ((8, 8), (7, 6)), (3,), (4,)),
                *((3, 1, (7, 6), 3, 4), (3, 2, (8, 8), 3, 4), (3, 2, (7, 6), 3, 4)),
                (3, 1, (2, 4), 32, 48),
                (3, 1, (7, 8), 32, 32),  # which odd sizes don't suit
                (3, 2, (8, 6), 32, 64),
            )
        ),
    ],
)
def test_the_convolution_for_cpus_equals_xlas(size, stride, image, channels, features):
    rng = np.random.default_rng(size)
    x = jnp.asarray(rng.normal(size=(6, *image, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, channels, features)) / channels, jnp.float32)
    pad = size // 2

    def ours(x, kernel):
        return models.convolution(x, kernel, stride=stride, precision="highest")

    def general(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=dims, precision="highest"
        )

    def both_ways(convolution):
        y, pull = jax.vjp(convolution, x, kernel)
        return y, pull(dy)

    dy = jnp.asarray(rng.uniform(-1, 1, jax.eval_shape(general, x, kernel).shape), jnp.float32)
    (one, ours_pulled), (other, generals_pulled) = (jax.jit(both_ways, static_argnums=0)(c) for c in (ours, general))
    np.testing.assert_allclose(one, other, atol=2e-5)
    for a, b in zip(ours_pulled, generals_pulled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_winograds_products_in_chunks_equal_those_of_all_images(monkeypatch):
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(6, 4, 4, 32)), jnp.float32) for _ in range(2))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 32, 32)) / 32, jnp.float32)

    def both_ways(x, kernel, dy):
        y, pull = jax.vjp(lambda x, kernel: models.convolution(x, kernel), x, kernel)
        return y, pull(dy)

    whole, pulled = jax.jit(lambda *arguments: both_ways(*arguments))(x, kernel, dy)
    monkeypatch.setattr(ROOM, "CACHE_BYTES", 0)
    monkeypatch.setattr(ROOM, "CHUNK_ROWS", 8)
    monkeypatch.setattr(ROOM, "SHARED", 0)
    chunks, pulled_chunks = jax.jit(lambda *arguments: both_ways(*arguments))(x, kernel, dy)
    np.testing.assert_allclose(chunks, whole, atol=1e-6)
    for a, b in zip(pulled_chunks, pulled, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_every_convolution_on_a_cpu_has_the_order_that_is_fast_in_a_loop():
    """XLA:CPU runs any other one 30 to 40 times slower inside a loop, and all training is a loop."""
    model = models.from_module(models.ResNet(10, width=16, stage_sizes=(1, 1, 1)), PIXELS)
    params, stats = model.init(jax.random.key(0))
    loss = lambda p: model.apply(p, stats, PIXELS, None, True)[0].sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    found = re.findall(r" convolution\(.*?\), (.*?)dim_labels=(\S+?)[,\s]", compiled)
    assert {labels for _, labels in found} == {"b01f_01io->b01f"}
    assert not any("dilate" in window for window, _ in found)
    assert any("/conv_1/" in line and " dot(" in line for line in compiled.splitlines())  # Winograd's


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 1.0), st.integers(0, 2**31 - 1))
def test_proposition_1_shrinking_a_relu_network_without_bias_keeps_every_prediction(shrink, seed):
    module = models.MLP(5, (16, 16), activation=nn.relu, use_bias=False)
    rng = np.random.default_rng(seed)
    x = np.float32(rng.normal(size=(32, 8)))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda x: np.float32(rng.uniform(-0.3, 0.3, x.shape)), shapes)
    logits = module.apply({"params": params}, x)
    shrunk = module.apply({"params": sp_jax.shrink(params, shrink=shrink)}, x)
    np.testing.assert_allclose(shrunk, shrink**3 * logits, rtol=1e-3, atol=1e-6)
    top = jnp.sort(logits, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-4 * jnp.abs(top[:, -1])  # a tie within rounding may fall either way
    assert (jnp.argmax(shrunk, 1) == jnp.argmax(logits, 1))[clear].all()


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = models.from_module(models.ResNet(10, width=4, stage_sizes=(1,), dtype=jnp.bfloat16), PIXELS)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    logits, updated = jax.eval_shape(lambda *state: model.apply(*state, PIXELS, None, True), params, stats)
    assert logits.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((params, updated))} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def birnn():
    tokens = np.random.default_rng(0).integers(1, 50, (6, 9)).astype(np.int32)
    model = models.from_module(models.BiRNN(2, vocabulary=50, width=5), tokens)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
    return model, jax.tree.map(lambda x: np.float32(rng.uniform(-0.45, 0.45, x.shape)), shapes), tokens


@pytest.mark.slow
@pytest.mark.parametrize("length", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 9))])
def test_padding_changes_nothing_in_a_recurrent_network(birnn, length):
    model, params, tokens = birnn
    short = tokens[:, :length]
    padded = np.pad(short, ((0, 0), (0, 7)))

    def loss(params, x):
        logits = model.apply(params, {}, x, None, True)[0]
        return jnp.sum(logits[:, 0] ** 2), logits

    call = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, one), gradient = call(params, short)
    (_, two), other = call(params, padded)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(other["embedding"]["embedding"][0], 0)  # nothing is learned from padding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, other)


def test_a_recurrent_network_reads_in_both_directions(birnn):
    model, params, tokens = birnn
    apply = jax.jit(lambda tokens: model.apply(params, {}, tokens, None, False)[0])
    logits = apply(tokens)
    for position in (0, 4, 8):
        changed = tokens.copy()
        changed[:, position] = 1 + tokens[:, position] % 49
        assert (np.abs(apply(changed) - logits) > 1e-6).all()
    assert np.isfinite(apply(np.zeros_like(tokens))).all()  # an empty text


def test_a_recurrent_network_is_a_gru_in_each_direction(birnn):
    model, params, tokens = birnn

    def gru(p, x):
        h = np.zeros(5)
        for step in x:
            r, z = (
                1 / (1 + np.exp(-(step @ p[f"i{g}"]["kernel"] + p[f"i{g}"]["bias"] + h @ p[f"h{g}"]["kernel"])))
                for g in "rz"
            )
            n = np.tanh(step @ p["in"]["kernel"] + p["in"]["bias"] + r * (h @ p["hn"]["kernel"] + p["hn"]["bias"]))
            h = (1 - z) * n + z * h
            yield h

    params = jax.tree.map(np.asarray, params)
    expected = []
    for text in tokens:
        h = params["embedding"]["embedding"][text]
        for i in range(2):
            forward = np.array(list(gru(params[f"forward_{i}"], h)))
            backward = np.array(list(gru(params[f"backward_{i}"], h[::-1])))[::-1]
            h = np.concatenate([forward, backward], axis=1)
        last = np.concatenate([forward[-1], backward[0]])
        expected.append(last @ params["head"]["kernel"] + params["head"]["bias"])
    found = jax.jit(lambda tokens: model.apply(params, {}, tokens, None, False)[0])(tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pytorch_initialisation_of_a_recurrent_network(birnn):
    model, *_ = birnn
    params, _ = jax.jit(model.init)(jax.random.key(0))
    for name in ("forward_0", "backward_1"):
        for leaf in jax.tree.leaves(params[name]):
            assert np.abs(leaf).max() <= 5**-0.5
            assert np.std(leaf) > 0.1
    assert np.std(params["embedding"]["embedding"]) == pytest.approx(1, abs=0.2)
    flax = models.from_module(models.BiRNN(2, vocabulary=50, width=5, initialization="flax"), np.ones((1, 9), np.int32))
    assert (flax.init(jax.random.key(0))[0]["forward_0"]["ir"]["bias"] == 0).all()


FLOATS = np.random.default_rng(2).normal(size=(3, 6)).astype(np.float32)


def normed(x, p, axes=-1):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def some_params(model, seed=0):
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(model.init, jax.random.key(0))[0]
    return jax.tree.map(lambda x: np.float32(0.5 * rng.normal(size=x.shape)), shapes)


ACTIVATIONS = {  # of our command line, as NumPy has them
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "crelu": lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], -1),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["own", "layer"])
def test_an_mlp_of_other_activations_and_layer_norm_equals_one_by_hand(name, norm):
    activation = choices.ACTIVATIONS[name]
    model = models.from_module(models.MLP(3, (4, 5), activation=activation, precision="highest", norm=norm), FLOATS)
    params, x = some_params(model), FLOATS
    for i in range(2):
        layer = params[f"hidden_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = ACTIVATIONS[name](normed(x, params[f"norm_{i}"]) if norm == "layer" else x)
    np.testing.assert_allclose(model.features(params, {}, FLOATS), x, rtol=1e-4, atol=1e-5)
    expected = x @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(model.apply(params, {}, FLOATS, None, True)[0], expected, rtol=1e-4, atol=1e-5)
    if name == "crelu":
        assert model.links == ()
        with pytest.raises(ValueError, match="re-draws hidden units"):
            methods.check_method(methods.redo, model)
    else:
        plasticity.check_links(params, model.links)
        assert all(len(link) == (3 if norm == "layer" else 2) for link in model.links)


def test_a_resnet_of_layer_norm_has_no_statistics_and_normalises_the_channels_of_each_pixel():
    module = models.ResNet(3, width=4, stage_sizes=(1, 1), norm="layer", precision="highest")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    model = models.from_module(module, pixels)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    own, _ = jax.eval_shape(models.from_module(module.clone(norm="own"), pixels).init, jax.random.key(0))
    assert stats == {}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, own)
    params = some_params(model)
    expected = resnet_by_hand(params, pixels.astype(np.float32), None, normed)
    call = jax.jit(lambda p: model.apply(p, {}, pixels, np.array([True, False]), True)[0])
    np.testing.assert_allclose(call(params), expected, rtol=1e-3, atol=1e-3)


def test_a_recurrent_network_of_layer_norm_normalises_what_the_head_reads(birnn):
    plain, params, tokens = birnn
    module = models.BiRNN(2, vocabulary=50, width=5, norm="layer")
    model = models.from_module(module, tokens)
    rng = np.random.default_rng(3)
    norm = {"scale": np.float32(rng.normal(size=10)), "bias": np.float32(rng.normal(size=10))}
    call = jax.jit(lambda p: (plain.features(p, {}, tokens), model.features(p | {"norm": norm}, {}, tokens)))
    before, after = call(params)
    np.testing.assert_allclose(after, normed(np.asarray(before), norm), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "module", [models.MLP(3, norm="batch"), models.ResNet(3, norm="batch"), models.BiRNN(3, 9, norm="batch")]
)
def test_unknown_norms_raise(module):
    x = np.ones((1, 9), np.int32) if isinstance(module, models.BiRNN) else PIXELS[:1]
    with pytest.raises(ValueError, match="norm must be one of own, layer, got 'batch'"):
        jax.eval_shape(module.init, jax.random.key(0), x)


OURS = {
    "MLP": (models.MLP(3, (4,)), FLOATS),
    "logistic": (models.MLP(3, ()), FLOATS),
    "ResNet": (models.ResNet(3, width=2, stage_sizes=(1,)), np.zeros((3, 4, 4, 1), np.float32)),
    "BiRNN": (models.BiRNN(3, 9, width=2, layers=1), np.ones((3, 5), np.int32)),
    "ViT": (models.ViT(3, width=4, depth=1, heads=2), np.zeros((3, 4, 4, 1), np.float32)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("MLP", "logistic"))) for name in OURS]
)
def test_features_are_what_the_head_reads_and_no_activations_of_units(name):
    module, x = OURS[name]
    model = models.from_module(module, x)

    def call(key):
        params, stats = model.init(key)
        params = jax.tree.map(lambda x: x + 0.1, params)
        seen = {train: model.features(params, stats, x, np.ones(3, bool), train) for train in (False, True)}
        logits = {train: model.apply(params, stats, x, np.ones(3, bool), train)[0] for train in seen}
        head = {train: seen[train] @ params["head"]["kernel"] + params["head"]["bias"][None] for train in seen}
        return logits, head, model.activations(params, stats, x, None, True)

    logits, head, units = jax.jit(call)(jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), logits, head)
    assert set(units) == {link[0] for link in model.links}


class Sowing(nn.Module):
    """A network of a user."""

    sown: str = "features"
    times: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(4)(x))
        for _ in range(self.times):
            self.sow("intermediates", self.sown, x)
        return nn.Dense(3)(x)


class Around(nn.Module):
    """One of ours within another network, whose last features it does not have."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(models.MLP(5, (4,), name="inner")(x)))


def test_a_users_network_has_features_where_it_sows_them_itself():
    model = models.as_model(Sowing(), FLOATS)
    params = some_params(model)
    layer = params["Dense_0"]
    expected = np.maximum(FLOATS @ layer["kernel"] + layer["bias"], 0)
    np.testing.assert_allclose(model.features(params, {}, FLOATS), expected, rtol=1e-5, atol=1e-6)
    for other in (
        Sowing("others"),
        Sowing(times=2),
        Around(),
        (lambda key: {"w": jnp.ones((6, 3))}, lambda p, x: x @ p["w"]),
    ):
        assert models.as_model(other, FLOATS).features is None
    assert hash(model) == hash(model._replace(features=None))
    assert model != model._replace(features=None)
