"""The trick on one pytree."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sp_jax
from sp_jax import plasticity
from sp_jax.transforms import filters

SPECIAL = np.array([1.5, -0.0, 0.0, np.inf, -np.inf, np.nan, 1e-40, -3.0], np.float32)


class Pair(NamedTuple):
    left: object
    right: object


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    weight: object
    nothing: object = None


def same_bits(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes() and jnp.result_type(a) == jnp.result_type(b)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64])
@pytest.mark.parametrize("jit", [False, True])
def test_edges_are_exact_bit_for_bit(dtype, jit):
    old, fresh = jnp.asarray(SPECIAL).astype(dtype), jnp.asarray(SPECIAL[::-1].copy()).astype(dtype)
    call = jax.jit(sp_jax.shrink_perturb) if jit else sp_jax.shrink_perturb
    assert same_bits(call(old, fresh, shrink=1.0, noise_scale=0.0), old)
    assert same_bits(call(old, fresh, shrink=0.0, noise_scale=1.0), fresh)
    assert same_bits(call(old, fresh, shrink=0.0, noise_scale=0.0), jnp.zeros_like(old))
    assert same_bits(sp_jax.shrink(old, shrink=1), old)
    assert same_bits(sp_jax.perturb(old, fresh, noise_scale=0), old)


def test_formula_against_hand_worked_values():
    params, fresh = {"a": jnp.array([2.0, -4.0])}, {"a": jnp.array([1.0, 10.0])}
    np.testing.assert_allclose(
        sp_jax.shrink_perturb(params, fresh, shrink=0.5, noise_scale=0.1)["a"], [1.1, -1.0], rtol=1e-6
    )
    np.testing.assert_allclose(sp_jax.shrink(params, shrink=0.25)["a"], [0.5, -1.0])
    np.testing.assert_allclose(sp_jax.perturb(params, fresh, noise_scale=0.1)["a"], [2.1, -3.0], rtol=1e-6)


def test_small_dtypes_are_computed_in_float32():
    old, fresh = jnp.array([1.0], jnp.bfloat16), jnp.array([1.0], jnp.bfloat16)
    mixed = sp_jax.shrink_perturb(old, fresh, shrink=0.3, noise_scale=0.3)
    assert mixed.dtype == jnp.bfloat16
    assert mixed[0] == jnp.float32(0.6).astype(jnp.bfloat16)  # 0.3 in bfloat16 twice gives another number


def test_float64_is_computed_in_float64():
    rng = np.random.default_rng(0)
    params, fresh = {"w": rng.normal(size=50)}, {"w": rng.normal(size=50)}
    with jax.enable_x64(True):
        call = jax.jit(sp_jax.shrink_perturb)
        for mix in (call, sp_jax.shrink_perturb, sp_jax.grow):
            new = mix(params, fresh, shrink=0.3, noise_scale=0.1)["w"]
            assert new.dtype == np.float64
            np.testing.assert_allclose(new, 0.3 * params["w"] + 0.1 * fresh["w"], rtol=1e-14, atol=1e-15)


def test_leaves_that_are_not_floating_stay_the_old_ones():
    params = {
        "count": jnp.int32(7),
        "flag": jnp.array([True]),
        "key": jax.random.key(1),
        "w": jnp.ones(2),
        "none": None,
    }
    fresh = {
        "count": jnp.int32(0),
        "flag": jnp.array([False]),
        "key": jax.random.key(2),
        "w": jnp.ones(2),
        "none": None,
    }
    mixed = sp_jax.shrink_perturb(params, fresh, shrink=0.0, noise_scale=2.0)
    assert mixed["count"] == 7
    assert mixed["flag"][0]
    assert (jax.random.key_data(mixed["key"]) == jax.random.key_data(params["key"])).all()
    np.testing.assert_array_equal(mixed["w"], [2.0, 2.0])


def test_shrink_and_noise_may_be_traced_and_vmapped():
    params, fresh = {"w": jnp.arange(3.0)}, {"w": jnp.ones(3)}
    lam, sigma = jnp.array([0.0, 0.5, 1.0]), jnp.array([1.0, 0.1, 0.0])
    many = jax.vmap(lambda a, b: sp_jax.shrink_perturb(params, fresh, shrink=a, noise_scale=b))(lam, sigma)
    for i in range(3):
        one = sp_jax.shrink_perturb(params, fresh, shrink=float(lam[i]), noise_scale=float(sigma[i]))
        assert same_bits(many["w"][i], one["w"])


def test_where_picks_leaves_by_path():
    params = {"body": {"kernel": jnp.ones(2)}, "head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}
    fresh = jax.tree.map(jnp.zeros_like, params)
    mixed = sp_jax.shrink_perturb(params, fresh, shrink=0.5, noise_scale=1.0, where=sp_jax.layer("head"))
    assert mixed["body"]["kernel"] is params["body"]["kernel"]
    np.testing.assert_array_equal(mixed["head"]["kernel"], [0.5, 0.5])
    np.testing.assert_array_equal(mixed["head"]["bias"], [0.5])


def test_a_filter_that_matches_nothing_raises_with_the_paths():
    params = {"head": {"kernel": jnp.ones(2)}, "step": jnp.int32(1)}
    for where in (sp_jax.layer("haed"), lambda path: path == "step"):
        with pytest.raises(ValueError, match=r"matches no floating leaf.*head/kernel"):
            sp_jax.shrink(params, shrink=0.5, where=where)


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        ({"a": {"w": jnp.ones((2, 3))}}, r"params has a leaf 'b' that fresh_params lacks"),
        ({"a": {"w": jnp.ones((2, 3))}, "b": jnp.ones(1), "c": jnp.ones(1)}, r"fresh_params has a leaf 'c'"),
        ({"a": {"w": jnp.ones((3, 2))}, "b": jnp.ones(1)}, r"'a/w' has shape \(2, 3\) in params and \(3, 2\)"),
        ({"a": [jnp.ones((2, 3))], "b": jnp.ones(1)}, r"params has a leaf 'a/w'"),
    ],
)
def test_mismatched_trees_raise_and_name_the_path(fresh, message):
    params = {"a": {"w": jnp.ones((2, 3))}, "b": jnp.ones(1)}
    with pytest.raises(ValueError, match=message):
        sp_jax.shrink_perturb(params, fresh, shrink=0.5, noise_scale=0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda p, q: plasticity.dash(p, q),
        lambda p, q: plasticity.average_gradient(p, q),
        lambda p, q: plasticity.follow(p, q),
        lambda p, q: plasticity.l2_init_penalty(p, q),
        lambda p, q: plasticity.l2_init(0.1).update(p, plasticity.l2_init(0.1).init(q), p),
        lambda p, q: sp_jax.reset_changed(p, q, p, {"a": {"kernel": True}}),
        lambda p, q: sp_jax.reset_changed(p, p, p, jax.tree.map(lambda x: np.ones(x.shape, bool), q)),
    ],
)
def test_trees_of_methods_that_differ_raise_and_name_the_path_and_the_fix(call):
    """Shapes that would broadcast, too."""
    params, other = {"a": {"kernel": jnp.ones((2, 3))}}, {"a": {"kernel": jnp.ones((1, 3))}}
    with pytest.raises(ValueError, match=r"'a/kernel' has shape \(2, 3\) in \w+ and \(1, 3\) in \w+: .+"):
        call(params, other)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: plasticity.average_gradient(p, p, decay=1.5),
        lambda p: plasticity.follow(p, p, decay=-0.1),
        lambda p: plasticity.hare_tortoise(optax.sgd(0.1), decay=np.float32("nan"), every=2),
        lambda p: plasticity.continual_backprop(None, p, p, {}, [], decay=2.0),
        lambda p: plasticity.continual_backprop(None, p, p, {}, [], rate=2.0),
    ],
)
def test_fractions_out_of_range_raise(call):
    with pytest.raises(ValueError, match=r"^(decay|rate) \(.\) must be a scalar in \[0, 1\], got"):
        call({"w": jnp.ones(1)})


def test_labels_of_another_tree_raise_and_name_the_path():
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    amounts = {"shrink": {"x": 1.0}, "noise_scale": {"x": 0.0}}
    with pytest.raises(ValueError, match="params has a leaf 'b' that labels lacks: label each leaf"):
        sp_jax.shrink_perturb(params, params, **amounts, labels={"a": "x"})


def test_same_leaves_in_other_containers_raise():
    with pytest.raises(ValueError, match="different containers"):
        sp_jax.shrink_perturb([jnp.ones(1)], (jnp.ones(1),), shrink=0.5, noise_scale=0.1)


@pytest.mark.parametrize(
    "bad",
    [
        {"shrink": -0.1},
        {"shrink": 1.1},
        {"shrink": float("nan")},
        {"shrink": np.ones(2)},
        {"noise_scale": -1e-9},
        {"noise_scale": float("inf")},
        {"noise_scale": float("nan")},
        {"noise_scale": np.ones(1)},
    ],
)
def test_values_out_of_range_raise(bad):
    with pytest.raises(ValueError, match=r"must be a (finite )?scalar"):
        sp_jax.shrink_perturb({"w": jnp.ones(1)}, {"w": jnp.ones(1)}, **{"shrink": 0.5, "noise_scale": 0.1, **bad})


def test_gaussian_noise_has_unit_variance_and_its_own_draw_for_each_leaf():
    params = {"a": jnp.zeros((200, 100)), "b": jnp.zeros((200, 100)), "n": jnp.int32(3)}
    noise = sp_jax.gaussian_like(jax.random.key(0), params)
    assert noise["n"] == 3
    for name in "ab":
        assert abs(float(jnp.mean(noise[name]))) < 0.03
        assert abs(float(jnp.var(noise[name])) - 1) < 0.03
    assert abs(float(jnp.mean(noise["a"] * noise["b"]))) < 0.03


KEY = jax.random.key(0)
leaves = st.sampled_from(
    [
        np.float32(2.5),
        np.ones((2, 0), np.float32),
        np.int32([3, 4]),
        np.array(True),
        np.ones((2, 1), np.float16),
        None,
        0.5,
        np.float64(1.5),
        KEY,
        "name",
    ]
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["kernel", "Dense_10", "Dense_2"]), inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=2),
        st.builds(Pair, inner, inner),
        st.builds(Record, inner),
    ),
    max_leaves=8,
)


def updates(optimizer, params):
    params = [params]  # optax takes None itself for no parameters at all
    return optimizer.update(params, optimizer.init(params), params)[0][0]


def is_matrix(path, leaf):
    return np.ndim(leaf) > 1


ANY = {
    "shrink_perturb": lambda p, lam, sigma: sp_jax.shrink_perturb(p, p, shrink=lam, noise_scale=sigma),
    "shrink": lambda p, lam, sigma: sp_jax.shrink(p, shrink=lam),
    "perturb": lambda p, lam, sigma: sp_jax.perturb(p, p, noise_scale=sigma),
    "grow": lambda p, lam, sigma: sp_jax.grow(p, p, shrink=lam, noise_scale=sigma),
    "gaussian_like": lambda p, lam, sigma: sp_jax.gaussian_like(KEY, p),
    "restart_at": lambda p, lam, sigma: sp_jax.restart_at(
        KEY, 1, p, lambda _: p, every=1, shrink=lam, noise_scale=sigma
    ),
    "follow": lambda p, lam, sigma: plasticity.follow(p, p, decay=lam),
    "average_gradient": lambda p, lam, sigma: plasticity.average_gradient(p, p, decay=lam),
    "l2_init": lambda p, lam, sigma: updates(plasticity.l2_init(sigma), p),
    "dash": lambda p, lam, sigma: plasticity.dash(p, p, shrink=lam),
    "orthogonalize": lambda p, lam, sigma: plasticity.orthogonalize(p),
}
NEEDS = {"dash": ~(sp_jax.norms | sp_jax.embeddings), "orthogonalize": sp_jax.kernels & filters.Filter(is_matrix)}


def any_picked(tree, where):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return any(filters.is_changeable(x) and where(filters.path_name(path), x) for path, x in leaves)


OPTIMIZERS = {
    "periodic_restart": lambda p, lam, sigma: sp_jax.periodic_restart(
        optax.identity(), lambda _: [p], key=KEY, every=1, shrink=lam, noise_scale=sigma
    ),
    "hare_tortoise": lambda p, lam, sigma: plasticity.hare_tortoise(optax.identity(), decay=lam, every=1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@settings(max_examples=20, deadline=None)
@given(trees, st.floats(0, 1), st.floats(0, 10))
def test_optimisers_take_any_tree_of_floats(name, tree, shrink, noise_scale):
    floats = jax.tree.map(lambda x: jnp.asarray(x) if filters.is_changeable(x) else None, tree)
    new = updates(OPTIMIZERS[name](floats, shrink, noise_scale), floats)
    assert jax.tree.structure(new) == jax.tree.structure(floats)
    for old, leaf in zip(jax.tree.leaves(floats), jax.tree.leaves(new), strict=True):
        assert (old.shape, old.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.parametrize("name", ANY)
@settings(max_examples=30, deadline=None)
@given(trees, st.floats(0, 1), st.floats(0, 10))
def test_any_tree_keeps_structure_shapes_and_dtypes(name, tree, shrink, noise_scale):
    if name in NEEDS and not any_picked(tree, NEEDS[name]):
        with pytest.raises(ValueError, match="matches no floating leaf"):
            ANY[name](tree, shrink, noise_scale)
        return
    new = ANY[name](tree, shrink, noise_scale)
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    for old, leaf in zip(jax.tree.leaves(tree), jax.tree.leaves(new), strict=True):
        if filters.is_changeable(old):
            assert (jnp.shape(old), jnp.result_type(old)) == (jnp.shape(leaf), jnp.result_type(leaf))
        else:
            assert leaf is old


def test_path_names():
    tree = {"a": [jnp.ones(1), Pair(jnp.ones(1), Record(jnp.ones(1)))]}
    names = [filters.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert names == ["a/0", "a/1/left", "a/1/right/weight"]
