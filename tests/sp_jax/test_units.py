"""Units that are replaced against plain NumPy: their links, and the moments of their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plasticity_reference import (
    ACTIVATIONS,
    LINKS,
    UNITS,
    assert_close,
    assert_same,
    draw,
    reference_replace,
    some_units,
)

import sp_jax
from sp_jax import plasticity
from sp_jax.plasticity import Link
from sp_jax.transforms import filters


@pytest.mark.parametrize("seed", [0, 1])
def test_replace_units_against_numpy(seed):
    params, fresh, replaced = draw(seed), draw(seed + 50), some_units(seed)
    assert 0 < sum(r.sum() for r in replaced.values()) < sum(UNITS.values())
    new, changed = jax.jit(lambda r: plasticity.replace_units(params, fresh, r, LINKS))(replaced)
    expected, expected_changed = reference_replace(params, fresh, replaced, LINKS)
    assert_close(new, expected, rtol=0, atol=0)
    assert_same(changed, expected_changed)


def test_order_of_links_does_not_matter_and_new_units_are_not_heard():
    params, fresh = draw(15), draw(16)
    replaced = {layer: np.arange(n) == 1 for layer, n in UNITS.items()}
    new, changed = jax.jit(lambda r: plasticity.replace_units(params, fresh, r, LINKS))(replaced)
    again, changed_again = jax.jit(lambda r: plasticity.replace_units(params, fresh, r, LINKS[::-1]))(replaced)
    assert_same((new, changed), (again, changed_again))
    assert not new["head"]["kernel"][1].any()
    kernel = np.asarray(new["dense"]["kernel"])
    assert not kernel[[1, 4, 7, 10], 1].any()  # both ends are new
    np.testing.assert_array_equal(kernel[[0, 2], 1], fresh["dense"]["kernel"][[0, 2], 1])


def test_a_convolution_reads_units_as_its_channels():
    params = draw(17, {"a": {"kernel": (3, 3, 2, 4)}, "b": {"kernel": (3, 3, 4, 2)}})
    replaced = {"a": np.arange(4) == 2}
    new, changed = plasticity.replace_units(params, params, replaced, [Link("a", "b")])
    assert_same(changed["b"]["kernel"], jnp.zeros((3, 3, 4, 2), bool).at[:, :, 2].set(True))
    np.testing.assert_array_equal(new["b"]["kernel"], params["b"]["kernel"] * ~changed["b"]["kernel"])


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (
            [Link("hidden", "head")],
            r"'hidden' needs a kernel of two or more axes, found none; the paths are: conv/kern",
        ),
        ([Link("dense", "norm")], r"'norm' needs a kernel of two or more axes, found none"),
        ([Link("conv", "point", norm="batch")], r"the norm 'batch' has neither scale nor bias"),
        ([Link("conv", "point", norm="point")], r"'point/bias' has shape \(3,\), expected \(4,\), since 'conv/kernel'"),
        ([Link("dense", "dense")], r"'dense' is linked to itself"),
        ([Link("dense", "head"), Link("dense", "head")], r"two links have the incoming layer 'dense'"),
        (
            [Link("point", "head")],
            r"'head/kernel' has shape \(5, 2\), expected \[positions \* 3, out\], since 'point/k",
        ),
        ([Link("head", "point")], r"'point/kernel' has shape \(1, 1, 4, 3\), expected \[\.\.\., 2, out\], since 'head"),
        ([Link("dense", "conv")], r"'conv/kernel' has shape \(3, 3, 2, 4\), expected \[\.\.\., 5, out\], since 'dense"),
    ],
)
def test_links_that_do_not_fit_raise(links, message):
    for check in (plasticity.check_links, plasticity.init_utility):
        with pytest.raises(ValueError, match=message) as error:
            check(draw(0), links)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        plasticity.redo(draw(0), draw(1), {}, links)


def test_other_arguments_of_units_that_do_not_fit_raise():
    params, activations = draw(0), draw(1, ACTIVATIONS)
    with pytest.raises(ValueError, match=r"replaced has the layers \['conv'\], expected those of the links"):
        plasticity.replace_units(params, params, {"conv": np.ones(4, bool)}, LINKS)
    with pytest.raises(ValueError, match=r"leaf 'conv/kernel' has shape"):
        plasticity.replace_units(params, params | {"conv": {"kernel": np.ones((1, 1, 2, 4))}}, some_units(0), LINKS)
    for bad, message in (({}, "found shape none"), ({"dense": np.ones((6, 4))}, r"found shape \(6, 4\)")):
        with pytest.raises(ValueError, match=rf"activations of 'dense': {message}, expected \[B, \.\.\., 5\]"):
            plasticity.redo(params, params, bad, [Link("dense", "head")])
    state = plasticity.init_utility(params, LINKS[:1])
    with pytest.raises(ValueError, match=r"the state has the layers \['conv'\], expected those of the links"):
        plasticity.continual_backprop(state, params, params, activations, LINKS)


def is_moment(path):
    return any(name in path.split("/") for name in ("mu", "nu", "trace", "acc_grads", "v"))


def label(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "adam" if "conv" in str(path) else "sgd", params)


OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), plasticity.l2_init(0.1), optax.adam(0.1)),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "schedule": optax.adamw(optax.linear_schedule(0.1, 0.0, 10), b1=0.5),
    "masked": optax.masked(optax.adam(0.1), lambda p: filters.pick(p, filters.kernels)),
    "partition": optax.partition({"adam": optax.adam(0.1), "sgd": optax.sgd(0.1, momentum=0.9)}, label),
    "multi_steps": optax.MultiSteps(optax.adam(0.1), 2),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=5),
    "hare_tortoise": plasticity.hare_tortoise(optax.chain(plasticity.l2_init(0.1), optax.adam(0.1)), every=9),
}


QUICK = ("adam", "partition", "hare_tortoise")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in OPTIMIZERS]
)
def test_moments_of_new_units_are_zeroed_and_all_else_stays(name):
    optimizer, params = OPTIMIZERS[name], jax.tree.map(jnp.asarray, draw(18))
    _, changed = reference_replace(params, params, some_units(1), LINKS)
    state, update = optimizer.init(params), jax.jit(lambda g, s: optimizer.update(g, s, params)[1])
    for seed in range(3):
        state = update(draw(seed), state)
    new = jax.jit(lambda s: sp_jax.reset_changed(s, optimizer.init(params), params, changed))(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    flat, kept = filters.by_path(changed), 0
    for (path, old), leaf in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(new), strict=True):
        text = filters.path_name(path)
        where = flat["/".join(text.split("/")[-2:])] if is_moment(text) else False
        where = where if np.shape(where) == old.shape else False
        kept += where is False
        np.testing.assert_array_equal(leaf, np.where(where, np.zeros_like(old), old), err_msg=text)
        assert leaf.dtype == old.dtype
    assert 0 < kept < len(jax.tree.leaves(state))


def test_moments_of_labels_from_filters():
    params = jax.tree.map(jnp.asarray, draw(19))
    labels = filters.labels({"head": filters.layer("head")})(params)
    optimizer = optax.partition({"head": optax.sgd(0.1, momentum=0.9), "rest": optax.sgd(0.1)}, labels)
    _, state = optimizer.update(params, optimizer.init(params), params)
    changed = jax.tree.map(lambda x: jnp.ones(x.shape, bool), params)
    new = sp_jax.reset_changed(state, optimizer.init(params), params, changed)
    assert all(x.any() for x in jax.tree.leaves(state))
    assert not any(x.any() for x in jax.tree.leaves(new))
