"""What layers are, for DASH and FIRE: attention's kernels, stacked layers, convolutions, norms; certain, said, or
refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import sp_jax
from sp_jax import models, plasticity, restarts
from sp_jax.plasticity.kinds import axis_roles
from sp_jax.transforms import filters
from sp_jax.types import Batches, TrainState

ATTENTION = {
    **dict.fromkeys(("query", "key", "value"), ("in", "out", "out")),
    "out": ("in", "in", "out"),
}
STACKED = {"dense": ("stacked", "in", "out")}


def draw(seed, tree):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)


def attention():
    return jax.eval_shape(nn.MultiHeadDotProductAttention(num_heads=2).init, jax.random.key(0), jnp.zeros((1, 3, 8)))[
        "params"
    ]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.LayerNorm(name="final_ln")(nn.relu(nn.Dense(4, name="dense")(x))), None


def stacked():
    layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    return jax.eval_shape(layers.init, jax.random.key(0), jnp.zeros((2, 4)), None)["params"]


def fire(kernel):
    """By the singular values, in float64."""
    u, s, v = np.linalg.svd(np.float64(kernel), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(10):
        s = 1.5 * s - 0.5 * s**3
    return u @ np.diag(s) @ v * np.sqrt(kernel.shape[1] / kernel.shape[0])


def dash(vectors, average, shrink=0.3):
    """Each column of a matrix, or the whole of a vector, by its cosine; in float64."""
    w, g = np.float64(vectors), np.float64(average)
    cosines = (w * g).sum(0) / np.sqrt((w * w).sum(0) * (g * g).sum(0))
    return w * np.clip(cosines, shrink, 1)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_attentions_kernels_are_one_matrix_each():
    params, average = draw(0, attention()), draw(1, attention())
    orthogonal = jax.jit(lambda p: plasticity.orthogonalize(p, kinds=ATTENTION))(params)
    shrunk = jax.jit(lambda p, g: plasticity.dash(p, g, kinds=ATTENTION))(params, average)
    for name, shape in (("query", (8, 8)), ("key", (8, 8)), ("value", (8, 8)), ("out", (8, 8))):
        kernel, direction = (tree[name]["kernel"].reshape(shape) for tree in (params, average))
        close(orthogonal[name]["kernel"].reshape(shape), fire(kernel))
        close(shrunk[name]["kernel"].reshape(shape), dash(kernel, direction))
        close(shrunk[name]["bias"].ravel(), dash(params[name]["bias"].ravel(), average[name]["bias"].ravel()))
        np.testing.assert_array_equal(orthogonal[name]["bias"], params[name]["bias"])


def test_stacked_layers_are_each_alone():
    params, average = draw(2, stacked()), draw(3, stacked())
    orthogonal = plasticity.orthogonalize(params, kinds=STACKED)
    shrunk = plasticity.dash(params, average, kinds=STACKED)
    for i in range(3):
        close(orthogonal["dense"]["kernel"][i], fire(params["dense"]["kernel"][i]))
        for name in ("kernel", "bias"):
            close(shrunk["dense"][name][i], dash(params["dense"][name][i], average["dense"][name][i]))
    assert shrunk["final_ln"] == params["final_ln"]


def test_convolutions_and_linear_layers_need_no_word_and_may_have_one():
    params = draw(4, {"conv": {"kernel": np.zeros((3, 3, 2, 4)), "bias": np.zeros(4)}, "w": np.zeros((3, 2))})
    said = {"conv": ("spatial", "spatial", "in", "out"), lambda path: path == "w": ("in", "out")}
    for method in (plasticity.orthogonalize, lambda p, **kinds: plasticity.dash(p, draw(5, p), **kinds)):
        jax.tree.map(np.testing.assert_array_equal, method(params), method(params, kinds=said))


@pytest.mark.parametrize(
    ("kernel", "bias"),
    [((8, 2, 4), (2, 4)), ((3, 4, 4), None), ((3, 3, 3, 2, 4), (4,)), ((5, 5, 2, 4), (2, 4)), ((3, 1, 2, 4), (4,))],
)
def test_what_is_uncertain_is_refused_in_one_line(kernel, bias):
    layer = {"kernel": np.ones(kernel)} | ({} if bias is None else {"bias": np.ones(bias)})
    params = {"block": {"query": layer}}
    for method in (plasticity.orthogonalize, lambda p: plasticity.dash(p, p)):
        with pytest.raises(ValueError, match=r"'block/query/kernel' of shape .* kinds=\{'block/query': \('") as error:
            method(params)
        assert "\n" not in str(error.value)
    plasticity.orthogonalize(params | {"head": {"kernel": np.ones((2, 2))}}, where=sp_jax.layer("head"))


def test_a_token_that_is_no_layer_can_be_left_out():
    params = {"cls": np.ones((1, 1, 4)), "head": {"kernel": np.ones((4, 2))}}
    average = jax.tree.map(np.negative, params)
    with pytest.raises(ValueError, match="norms= of DASH"):
        plasticity.dash(params, average)
    new = plasticity.dash(params, average, norms=sp_jax.norms | sp_jax.layer("cls"))
    assert (new["cls"][0, 0, 0], new["head"]["kernel"][0, 0]) == (1, pytest.approx(0.3))
    assert plasticity.orthogonalize(params)["cls"] is params["cls"]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"query": ("in", "out")}, "'query' has 2 axes, 'query/kernel' has shape"),
        ({"query": ("in", "out", "heads")}, "kinds of 'query' must be of stacked, spatial, in, out"),
        ({"query": ("out", "out", "out")}, "with in and out among them"),
        ({"queries": ("in", "out", "out")}, "'queries' matches no kernel"),
    ],
)
def test_kinds_that_do_not_fit(kinds, message):
    params = {"query": {"kernel": np.ones((8, 2, 4))}}
    with pytest.raises(ValueError, match=message):
        plasticity.orthogonalize(params, kinds=kinds)


def test_the_first_name_that_fits_counts():
    params = {"a": {"kernel": np.ones((2, 3, 4))}, "b": {"kernel": np.ones((2, 3, 4))}}
    kinds = {"a": ("in", "out", "out"), sp_jax.kernels: ("stacked", "in", "out")}
    picked = jax.tree.map(lambda _: True, params)
    assert axis_roles(params, picked, kinds=kinds) == {
        "a/kernel": ("in", "out", "out"), "b/kernel": ("stacked", "in", "out"),
    }  # fmt: skip


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        return nn.Dense(3, name="head")(nn.LayerNorm(name="ln_f")(x).mean(axis=1))


@pytest.mark.slow
def test_restarts_take_kinds():
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(5, 4, 8)).astype(np.float32), rng.integers(0, 3, 5)
    model = models.from_module(Attention(), inputs)
    states = [TrainState(model.init(jax.random.key(i))[0], {}, ()) for i in (0, 1)]
    batches = Batches(inputs[None], np.ones((1, 5), bool), labels[None])
    kinds = {f"attention/{name}": roles for name, roles in ATTENTION.items()}

    def with_kinds(kinds):
        return restarts.make_restart(restarts.make_fire(kinds=kinds)), restarts.make_dash(model, kinds=kinds)

    for restart, refused in zip(with_kinds(kinds), with_kinds(None), strict=True):
        call = {"shrink": 0.3, "noise_scale": 0.0, "batches": batches}
        new = jax.jit(restart)(jax.random.key(2), *states, **call).params
        assert (new["attention"]["query"]["kernel"] != states[0].params["attention"]["query"]["kernel"]).any()
        np.testing.assert_array_equal(new["ln_f"]["scale"], 1)
        with pytest.raises(ValueError, match="say what its axes are, as kinds="):
            refused(jax.random.key(2), *states, **call)


NORMS = (
    "BatchNorm_0", "LayerNorm_1", "RMSNorm_0", "GroupNorm", "bn_init", "bn1", "ln_f", "final_ln", "norm1", "gn", "rms",
    "post_attention_layernorm", "stem_norm", "shortcut_norm", "batch_normalization_3", "layer_norm", "InstanceNorm_0",
    "bn2d", "q_norm", "lnPost",
)  # fmt: skip
OTHERS = ("Dense_0", "conv_init", "normal_dense", "line", "begin", "embryo", "turn_1", "prms", "enormous", "in", "hn")


def test_norms_by_their_names():
    for name in NORMS:
        assert filters.norms(f"net/{name}/bias"), name
        assert not filters.biases(f"net/{name}/bias"), name
    for name in OTHERS:
        assert not filters.norms(f"net/{name}/bias"), name
        assert filters.biases(f"net/{name}/bias"), name


def test_norms_by_what_they_hold():
    vector, matrix = np.ones(3, np.float32), np.ones((3, 3), np.float32)
    params = {
        "calibration": {"gamma": vector, "beta": vector},
        "affine": {"scale": vector, "bias": vector},
        "norm_proj": {"kernel": matrix, "bias": vector},
        "head": {"kernel": matrix, "bias": vector},
    }
    picked = filters.pick(params, filters.norms)
    assert {name: set(leaves.values()) for name, leaves in picked.items()} == {
        "calibration": {True}, "affine": {True}, "norm_proj": {False}, "head": {False},
    }  # fmt: skip
    new = plasticity.dash(params, jax.tree.map(np.negative, params))
    assert [new[name]["bias"][0] for name in ("affine", "norm_proj", "head")] == pytest.approx([1, 0.3, 0.3])


def test_a_scale_that_may_be_a_norms_or_not_is_asked_for():
    params = {"block": {"kernel": np.ones((3, 3)), "layer_scale": np.ones(3)}}
    average = jax.tree.map(np.negative, params)
    with pytest.raises(ValueError, match=r"'block/layer_scale' may be .* norms=sp_jax.norms \| ") as error:
        plasticity.dash(params, average)
    assert "\n" not in str(error.value)
    found = [
        plasticity.dash(params, average, norms=norms)["block"]["layer_scale"][0]
        for norms in (sp_jax.norms | sp_jax.layer("block/layer_scale"), sp_jax.norms & ~sp_jax.layer("block"))
    ]
    assert found == pytest.approx([1, 0.3])
    assert plasticity.dash(params, average, norms=lambda path: "scale" in path)["block"]["layer_scale"][0] == 1


def test_labels_see_the_whole_layer_too():
    params = {"affine": {"scale": np.ones(3), "bias": np.ones(3)}, "head": {"kernel": np.ones((3, 3))}}
    label = sp_jax.labels({"norms": sp_jax.norms})(params)
    assert label == {"affine": {"scale": "norms", "bias": "norms"}, "head": {"kernel": "rest"}}
    optax.partition({"norms": optax.set_to_zero(), "rest": optax.sgd(0.1)}, label).init(params)
