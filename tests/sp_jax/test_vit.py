"""The vision transformer against plain NumPy and Flax's own attention."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sp_jax
from sp_jax import models, plasticity, restarts
from sp_jax.layers import Dense
from sp_jax.models import vit
from sp_jax.plasticity import methods
from sp_jax.transforms import filters
from sp_jax.types import TrainState

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
TINY = {"width": 12, "depth": 2, "heads": 3, "precision": "highest"}


def made(pixels=PIXELS, **given):
    return models.from_module(models.ViT(5, **{**TINY, **given}), pixels)


def drawn(model):
    """Parameters of N(0, 0.3²), for which nothing has to be compiled; norms too, so that their part shows."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))[0]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: np.float32(0.3 * rng.normal(size=x.shape)), shapes)


def layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def attention(x, p, heads):
    """One sample, [T, W], head by head."""
    query, key, value = (dense(x, p[name]) for name in ("query", "key", "value"))
    size, parts = x.shape[1] // heads, []
    for i in range(heads):
        q, k, v = (each[:, i * size : (i + 1) * size] for each in (query, key, value))
        shares = np.exp(q @ k.T / math.sqrt(size))
        parts.append(shares / shares.sum(1, keepdims=True) @ v)
    return dense(np.concatenate(parts, 1), p["out"])


def by_hand(params, image, depth, heads=3, size=4):
    """Return the logits of one image, its features, and the hidden units of the first block."""
    image = image.astype(np.float64) / 127.5 - 1
    rows, columns = (range(0, n, size) for n in image.shape[:2])
    x = np.stack([image[i : i + size, j : j + size].ravel() for i in rows for j in columns])
    tokens = params["tokens"]
    x = np.concatenate([tokens["class_token"][None], dense(x, params["patches"])]) + tokens["positions"]
    units = []
    for i in range(depth):
        p = params[f"block_{i}"]
        x = x + attention(layer_norm(x, p["norm_0"]), p["attention"], heads)
        y = dense(layer_norm(x, p["norm_1"]), p["mlp_0"])
        units.append(y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2)
        x = x + dense(units[-1], p["mlp_1"])
    features = layer_norm(x, params["norm"])[0]
    return dense(features, params["head"]), features, units[0]


@pytest.mark.parametrize("depth", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_network_equals_one_by_hand(depth):
    model = made(depth=depth)
    params = drawn(model)
    expected = [by_hand(jax.tree.map(np.float64, params), image, depth) for image in PIXELS]
    call = jax.jit(lambda p: (model.apply(p, {}, PIXELS, None, True)[0], model.features(p, {}, PIXELS)))
    for found, each in zip(call(params), zip(*expected, strict=True), strict=False):
        np.testing.assert_allclose(found, each, rtol=1e-4, atol=1e-4)
    seen = jax.jit(model.activations)(params, {}, PIXELS)
    assert {name: x.shape for name, x in seen.items()} == {f"block_{i}/mlp_0": (3, 7, 48) for i in range(depth)}
    np.testing.assert_allclose(seen["block_0/mlp_0"][0], expected[0][2], rtol=1e-4, atol=1e-4)


def test_attention_equals_flaxs():
    x = np.float32(RNG.normal(size=(2, 5, 12)))
    ours = vit.Attention(3, "highest", Dense)
    params = {name: {"kernel": RNG.normal(size=(12, 12)), "bias": RNG.normal(size=12)} for name in "qkvo"}
    params = jax.tree.map(np.float32, dict(zip(("query", "key", "value", "out"), params.values(), strict=True)))
    shapes = {"kernel": (12, 3, 4), "bias": (3, 4)}
    heads = {name: {k: v.reshape(shapes[k]) for k, v in layer.items()} for name, layer in params.items()}
    heads["out"] = {"kernel": params["out"]["kernel"].reshape(3, 4, 12), "bias": params["out"]["bias"]}
    theirs = nn.MultiHeadDotProductAttention(3, precision="highest")
    found, expected = (m.apply({"params": p}, x) for m, p in ((ours, params), (theirs, heads)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_vit_tiny_has_the_standard_number_of_parameters():
    """A patch, 64 positions, and 12 blocks of 444,864."""
    model = models.from_module(models.ViT(10), np.zeros((1, 32, 32, 3), np.uint8))
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    assert stats == {}
    assert sum(x.size for x in jax.tree.leaves(params)) == 5_362_762
    block = 2 * 384 + 4 * (192 * 192 + 192) + 192 * 768 + 768 + 768 * 192 + 192
    assert sum(x.size for x in jax.tree.leaves(params["block_0"])) == block
    plasticity.check_links(params, model.links)
    assert all(x.ndim == 2 for path, x in filters.by_path(params).items() if path.endswith("kernel"))


@pytest.mark.slow
def test_fire_as_its_authors_takes_queries_and_keys_alone():
    params = drawn(made(depth=1))
    rule = restarts.make_fire(where=sp_jax.layer("query", "key"))
    new = rule(jax.random.key(0), params, params)
    changed = {path for path, x in filters.by_path(jax.tree.map(lambda a, b: (a != b).any(), new, params)).items() if x}
    assert changed == {f"block_0/attention/{name}/kernel" for name in ("query", "key")}


@pytest.mark.slow
def test_positions_and_class_token_are_drawn_with_a_small_spread():
    params = vit.Tokens().init(jax.random.key(0), jnp.zeros((1, 16, 48)))["params"]
    assert {name: x.shape for name, x in params.items()} == {"class_token": (48,), "positions": (17, 48)}
    for x in params.values():
        assert float(jnp.std(x)) == pytest.approx(0.02, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("initialization", ["torch", "flax"])
def test_initialisation(initialization):
    params, _ = jax.jit(made(width=48, depth=0, initialization=initialization).init)(jax.random.key(0))
    spread = 48**-0.5 / (3**0.5 if initialization == "torch" else 1)
    assert float(jnp.std(params["patches"]["kernel"])) == pytest.approx(spread, rel=0.1)
    assert (params["head"]["bias"] == 0).all() == (initialization == "flax")


@pytest.mark.slow
def test_padding_has_no_say_and_samples_are_independent():
    model = made(depth=1)
    params, mask = drawn(model), np.array([True, True, False])

    def loss(params, pixels, mask):
        logits, _ = model.apply(params, {}, pixels, mask, True)
        return jnp.sum(jnp.where(mask[:, None], logits, 0) ** 2), logits

    call = jax.jit(jax.grad(loss, has_aux=True))
    other = np.where(mask[:, None, None, None], PIXELS, 255 - PIXELS)
    (one, logits), (two, others) = (call(params, pixels, mask) for pixels in (PIXELS, other))
    np.testing.assert_array_equal(logits[:2], others[:2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)
    assert np.abs(logits[2] - others[2]).max() > 1e-3


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    model = made(depth=1, dtype=jnp.bfloat16)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    logits, _ = jax.eval_shape(lambda p: model.apply(p, {}, PIXELS, None, True), params)
    assert logits.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_bfloat16_is_near_float32():
    drawn_params = drawn(made(depth=1))
    exact = made(depth=1).apply(drawn_params, {}, PIXELS, None, False)[0]
    rounded = made(depth=1, dtype=jnp.bfloat16).apply(drawn_params, {}, PIXELS, None, False)[0]
    np.testing.assert_allclose(rounded, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("given", "shape", "message"),
    [
        ({"width": 13}, (1, 8, 8, 3), "a width of 13 cannot be divided among 3 heads"),
        ({}, (1, 8, 10, 3), r"images must be \[B, H, W, C\] with H and W multiples of 4, got \(1, 8, 10, 3\)"),
        ({}, (1, 64), r"images must be \[B, H, W, C\]"),
    ],
)
def test_sizes_that_cannot_be_divided_raise_in_one_line(given, shape, message):
    with pytest.raises(ValueError, match=message) as raised:
        models.as_model(models.ViT(5, **{**TINY, **given}), np.zeros(shape, np.float32))
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_methods_on_units_redraw_the_perceptrons(monkeypatch):
    monkeypatch.setattr(methods, "REDO_STEPS", 1)
    model = made(depth=1)
    methods.check_method(methods.redo, model)
    params, optimizer = drawn(model), optax.adam(1e-3)
    memory = methods.redo.init(jax.random.key(1), model, params, {})
    state = TrainState(params, {}, optimizer.init(params), memory)
    new = jax.jit(lambda s, x: methods.redo.after_step(model, optimizer, s, x, None, 1e9))(state, PIXELS).params
    np.testing.assert_array_equal(new["block_0"]["mlp_1"]["kernel"], 0)
    jax.tree.map(np.testing.assert_array_equal, new["block_0"]["attention"], params["block_0"]["attention"])
