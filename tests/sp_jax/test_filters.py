"""Which leaves a transform changes, by meaning, in the names of four libraries."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import sp_jax
from sp_jax import plasticity
from sp_jax.transforms import filters

MEANINGS = {"kernels": sp_jax.kernels, "biases": sp_jax.biases, "norms": sp_jax.norms, "embeddings": sp_jax.embeddings}


class Linen(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        x = linen.Embed(7, 4)(tokens)
        x = linen.LayerNorm()(linen.Dense(3)(x))
        return linen.Dense(2, name="head")(linen.BatchNorm(use_running_average=True)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.body = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)


class Equinox(eqx.Module):
    embed: eqx.nn.Embedding
    layers: list
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        self.embed = eqx.nn.Embedding(7, 4, key=key)
        self.layers = [eqx.nn.Linear(4, 3, key=key), jax.nn.relu, eqx.nn.LayerNorm(3)]
        self.norm = eqx.nn.LayerNorm(3)
        self.head = eqx.nn.Linear(3, 2, key=key)


def haiku_net(tokens):
    x = hk.LayerNorm(-1, True, True)(hk.Linear(3)(hk.Embed(7, 4)(tokens)))
    return hk.Linear(2, name="head")(x)


TOKENS = jnp.zeros((1, 5), jnp.int32)
TREES = {
    "linen": functools.cache(lambda: jax.jit(Linen().init)(jax.random.key(0), TOKENS)["params"]),
    "nnx": functools.cache(lambda: nnx.state(Nnx(nnx.Rngs(0)), nnx.Param)),
    "equinox": functools.cache(lambda: Equinox(jax.random.key(0))),
    "haiku": functools.cache(lambda: hk.transform(haiku_net).init(jax.random.key(0), TOKENS)),
}
EXPECTED = {
    "linen": {
        "kernels": "Dense_0/kernel head/kernel",
        "biases": "Dense_0/bias head/bias",
        "norms": "BatchNorm_0/bias BatchNorm_0/scale LayerNorm_0/bias LayerNorm_0/scale",
        "embeddings": "Embed_0/embedding",
    },
    "nnx": {
        "kernels": "body/kernel head/kernel",
        "biases": "body/bias head/bias",
        "norms": "norm/bias norm/scale",
        "embeddings": "embed/embedding",
    },
    "equinox": {
        "kernels": "layers/0/weight head/weight",
        "biases": "layers/0/bias head/bias",
        "norms": "layers/2/weight layers/2/bias norm/weight norm/bias",  # a LayerNorm in a list, by what it holds
        "embeddings": "embed/weight",
    },
    "haiku": {
        "kernels": "head/w linear/w",
        "biases": "head/b linear/b",
        "norms": "layer_norm/offset layer_norm/scale",
        "embeddings": "embed/embeddings",
    },
}


def paths(tree, where):
    picked = jax.tree_util.tree_leaves_with_path(filters.pick(tree, where))
    return [filters.path_name(path) for path, is_picked in picked if is_picked]


@pytest.mark.parametrize("library", TREES)
@pytest.mark.parametrize("meaning", MEANINGS)
def test_meanings_in_each_library(library, meaning):
    assert paths(TREES[library](), MEANINGS[meaning]) == EXPECTED[library][meaning].split()


@pytest.mark.parametrize("library", TREES)
def test_one_call_serves_each_library(library):
    """The library's own parameters, for Equinox the whole module with its functions, through the same call."""
    params = TREES[library]()
    fresh = jax.tree.map(lambda x: x + 1 if filters.is_changeable(x) else x, params)
    mixed = sp_jax.shrink_perturb(params, fresh, shrink=0.5, noise_scale=0.1, where=sp_jax.layer("head"))
    assert jax.tree.structure(mixed) == jax.tree.structure(params)
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mixed), strict=True):
        if filters.path_name(path).startswith("head"):
            np.testing.assert_allclose(new, 0.5 * old + 0.1 * (old + 1), rtol=1e-6)
        else:
            assert new is old


def step(make):
    """An optimiser's update; the fresh network stands for the gradient."""
    return lambda p, f, axis: make(f).update(f, make(f).init(p), p)[0]


RULE = {"shrink": 0.5, "noise_scale": 0.1}
CALLS = {
    "shrink": lambda p, f, axis: sp_jax.shrink(p, shrink=0.5),
    "perturb": lambda p, f, axis: sp_jax.perturb(p, f, noise_scale=0.5),
    "grow": lambda p, f, axis: sp_jax.grow(p, f, **RULE),
    "restart_at": lambda p, f, axis: sp_jax.restart_at(KEY, 2, p, lambda _: f, every=2, **RULE),
    "dash": lambda p, f, axis: plasticity.dash(p, f, output_axis=axis),
    "orthogonalize": lambda p, f, axis: plasticity.orthogonalize(p, output_axis=axis),
    "follow": lambda p, f, axis: plasticity.follow(p, f, decay=0.5),
    "average_gradient": lambda p, f, axis: plasticity.average_gradient(p, f),
    "periodic_restart": step(lambda f: sp_jax.periodic_restart(optax.sgd(1.0), lambda _: f, key=KEY, every=1, **RULE)),
    "l2_init": step(lambda f: plasticity.l2_init(0.1)),
    "hare_tortoise": step(lambda f: plasticity.hare_tortoise(optax.sgd(0.1), every=1)),
}
KEY = jax.random.key(3)


def arrays(library):
    return eqx.filter(TREES[library](), eqx.is_array)  # as optimisers take it; of the others it picks all


def by_path(tree):
    return {filters.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("library", TREES)
@pytest.mark.parametrize("name", CALLS)
def test_every_transform_and_method_serves_each_library(library, name):
    """The same as of a dictionary from the leaves' paths."""
    params, axis = arrays(library), 0 if library == "equinox" else -1
    fresh = jax.tree.map(lambda x: 1 - x, params)
    new = CALLS[name](params, fresh, axis)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    expected = CALLS[name](by_path(params), by_path(fresh), axis)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), by_path(new), expected)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True))


LINKS = {
    "linen": plasticity.Link("Dense_0", "head", norm="LayerNorm_0"),
    "nnx": plasticity.Link("body", "head", norm="norm"),
    "haiku": plasticity.Link("linear", "head", norm="layer_norm"),
}


@pytest.mark.parametrize("library", LINKS)
def test_methods_on_units_serve_the_libraries_of_flax_and_haiku(library):
    params, link = arrays(library), LINKS[library]
    fresh = jax.tree.map(lambda x: 7.0 + x, params)
    seen = {link.incoming: jnp.array([[0.0, 1.0, 1.0]])}
    state = plasticity.init_utility(params, [link])
    redone, _ = plasticity.redo(params, fresh, seen, [link])
    replaced, state, _ = plasticity.continual_backprop(state, params, fresh, seen, [link], rate=0.4, maturity=0)
    assert state.age[link.incoming].tolist() == [0, 1, 1]
    for new in (redone, replaced):
        assert jax.tree.structure(new) == jax.tree.structure(params)
        new, old, young = by_path(new), by_path(params), by_path(fresh)
        kernel, bias = EXPECTED[library]["kernels"].split()[:2], EXPECTED[library]["biases"].split()[:2]
        for path in [p for p in (*kernel, *bias) if not p.startswith("head")]:
            first = young[path][..., 0] if path in kernel else 0
            np.testing.assert_array_equal(new[path][..., 0], first)
            np.testing.assert_array_equal(new[path][..., 1:], old[path][..., 1:])
        for path in [p for p in kernel if p.startswith("head")]:
            np.testing.assert_array_equal(new[path], old[path] * np.array([[0], [1], [1]]))
        for path in [p for p in old if p.startswith(f"{link.norm}/")]:
            np.testing.assert_array_equal(new[path], np.where(np.arange(3) == 0, young[path], old[path]))


def test_an_nnx_module_is_updated_with_the_result():
    model, fresh = Nnx(nnx.Rngs(0)), Nnx(nnx.Rngs(1))
    kernel, other = model.head.kernel[...], fresh.head.kernel[...]
    states = nnx.state(model, nnx.Param), nnx.state(fresh, nnx.Param)
    nnx.update(model, sp_jax.shrink_perturb(*states, shrink=0.5, noise_scale=0.1))
    np.testing.assert_allclose(model.head.kernel[...], 0.5 * kernel + 0.1 * other, rtol=1e-6)


def test_filters_compose_with_each_other_and_with_functions_of_a_path():
    tree = TREES["linen"]()
    head = sp_jax.layer("head")
    assert paths(tree, sp_jax.kernels & head) == ["head/kernel"]
    assert paths(tree, (sp_jax.kernels | sp_jax.biases) & ~head) == ["Dense_0/bias", "Dense_0/kernel"]
    assert paths(tree, sp_jax.kernels & (lambda path: "Dense" in path)) == ["Dense_0/kernel"]
    assert paths(tree, sp_jax.embeddings | (lambda path: path == "head/bias")) == ["Embed_0/embedding", "head/bias"]
    assert paths(tree, sp_jax.path_matches(r"_0/(bias|scale)$")) == [
        "BatchNorm_0/bias", "BatchNorm_0/scale", "Dense_0/bias", "LayerNorm_0/bias", "LayerNorm_0/scale",
    ]  # fmt: skip


def test_an_enclosing_block_says_nothing_of_its_layers():
    paths = ["PreNormBlock_0/Dense_0/kernel", "PreNormBlock_0/LayerNorm_0/scale", "PatchEmbed/proj/kernel"]
    assert [sp_jax.kernels(p) for p in paths] == [True, False, True]
    assert [sp_jax.norms(p) for p in paths] == [False, True, False]


def test_layers_are_whole_parts_of_a_path():
    where = sp_jax.layer("Dense_1", "block/conv")
    assert [where(p) for p in ("Dense_1/kernel", "a/Dense_1/b", "Dense_10/kernel")] == [True, True, False]
    assert [where(p) for p in ("block/conv/w", "x/block/conv/w", "block/x/conv/w", "block/conv_1/w")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_meanings_are_disjoint():
    for tree in TREES.values():
        found = [path for where in MEANINGS.values() for path in paths(tree(), where)]
        assert len(found) == len(set(found))


def test_each_group_has_its_own_amounts():
    params = {"encoder": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2)}, "count": jnp.int32(3)}
    fresh = jax.tree.map(lambda x: x * 10, params)
    groups = sp_jax.labels({"head": sp_jax.layer("head"), "encoder": sp_jax.layer("encoder")})
    amounts = {"encoder": 0.5, "head": 0.0, "rest": 1.0}, {"encoder": 0.5, "head": 1.0, "rest": 0.0}
    mixed = sp_jax.shrink_perturb(params, fresh, shrink=amounts[0], noise_scale=amounts[1], labels=groups)
    np.testing.assert_array_equal(mixed["encoder"]["kernel"], [5.5, 5.5])
    np.testing.assert_array_equal(mixed["head"]["kernel"], [10.0, 10.0])
    assert mixed["count"] == 3
    again = sp_jax.shrink_perturb(params, fresh, shrink=amounts[0], noise_scale=amounts[1], labels=groups(params))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, mixed, again))


def test_amounts_of_groups_may_be_traced():
    params, fresh = {"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    groups = sp_jax.labels({"a": sp_jax.layer("a")})

    def call(lam):
        amounts = {"shrink": {"a": lam, "rest": 1.0}, "noise_scale": {"a": 0.0, "rest": 0.0}}
        return sp_jax.shrink_perturb(params, fresh, **amounts, labels=groups)

    many = jax.jit(jax.vmap(call))(jnp.array([0.0, 0.25]))
    np.testing.assert_array_equal(many["a"], [[0, 0], [0.25, 0.25]])
    np.testing.assert_array_equal(many["b"], np.ones((2, 2)))


def test_labels_are_those_of_optax():
    params = {"body": {"kernel": jnp.ones(1)}, "head": {"kernel": jnp.ones(1)}}
    groups = sp_jax.labels({"head": sp_jax.layer("head")}, default="body")
    optimizer = optax.partition({"head": optax.sgd(1.0), "body": optax.set_to_zero()}, groups)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert (updates["head"]["kernel"][0], updates["body"]["kernel"][0]) == (-1, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": {"a": "x"}, "shrink": 0.5, "noise_scale": {"x": 0.0}}, "with labels, shrink must be a mapping"),
        ({"labels": {"a": "x"}, "shrink": {"x": 1.0}, "noise_scale": 0.1}, "with labels, noise_scale must be a mapp"),
        ({"labels": {"a": "x"}, "shrink": {"y": 1.0}, "noise_scale": {"x": 0.1}}, "leaf 'a' has the label 'x', for wh"),
        ({"labels": {"a": "x"}, "shrink": {"x": 2.0}, "noise_scale": {"x": 0.1}}, r"must be a scalar in \[0, 1\]"),
        (
            {"labels": sp_jax.labels({"q": sp_jax.layer("q")}), "shrink": {}, "noise_scale": {}},
            "group 'q' has no float",
        ),
        ({"where": sp_jax.layer("q"), "shrink": 0.5, "noise_scale": 0.0}, "matches no floating leaf; the paths are: a"),
        ({"shrink": {"x": 0.5}, "noise_scale": 0.0}, "shrink is a mapping, which needs labels"),
    ],
)
def test_mistakes_get_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        sp_jax.shrink_perturb({"a": jnp.ones(1)}, {"a": jnp.ones(1)}, **arguments)
