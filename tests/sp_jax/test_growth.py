"""Restarts onto networks that have grown, and optimiser states reset where parameters changed."""

from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

import sp_jax
from sp_jax import models, plasticity, restarts
from sp_jax.transforms import growth, optimizer_state
from sp_jax.types import TrainState


class Net(nn.Module):
    width: int
    classes: int
    deep: bool = False

    @nn.compact
    def __call__(self, x, mask=None, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(self.width, name="body")(x), mask=mask)
        x = nn.Dense(4, name="extra")(x) if self.deep else x
        return nn.Dense(self.classes, name="head")(x)


def drawn(seed, shapes):
    """Parameters of these shapes, which no program has to be compiled for."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape).astype(x.dtype)), shapes)


def state(seed, *sizes, offset=0.0):
    """As it begins, but for biases that are not zero, and `offset` more."""

    def make(key):
        params, batch_stats = models.from_module(Net(*sizes), np.zeros((1, 5), np.float32)).init(key)
        return TrainState(params, batch_stats, optax.adam(1e-3).init(params))

    shapes = jax.eval_shape(make, jax.random.key(0))
    statistics = {
        "norm": {name: np.full(x.shape, name == "var", x.dtype) for name, x in shapes.batch_stats["norm"].items()}
    }
    moments = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.opt_state)
    made = TrainState(drawn(seed, shapes.params), statistics, moments)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x) + np.asarray(offset, x.dtype)), made)


class SlowFast(NamedTuple):
    slow: jax.Array
    fast: jax.Array


OLD, WIDER = state(0, 6, 3, offset=2), state(1, 8, 4)
KEY = jax.random.key(2)


def test_the_corner_is_shrunk_and_perturbed_and_the_rest_is_fresh():
    new = sp_jax.grow(OLD.params, WIDER.params, shrink=0.4, noise_scale=0.1)
    old, fresh = (jax.tree.map(np.asarray, tree) for tree in (OLD.params, WIDER.params))
    for layer, name, corner in (
        ("body", "kernel", np.s_[:5, :6]),
        ("body", "bias", np.s_[:6]),
        ("norm", "scale", np.s_[:6]),
        ("head", "kernel", np.s_[:6, :3]),
        ("head", "bias", np.s_[:3]),
    ):
        expected = fresh[layer][name].copy()
        expected[corner] = 0.4 * old[layer][name] + 0.1 * fresh[layer][name][corner]
        np.testing.assert_allclose(new[layer][name], expected, rtol=1e-6)


def test_what_grew_is_told():
    assert sp_jax.grown(OLD.params, state(1, 6, 4).params) == {
        "head/kernel": ((6, 3), (6, 4)),
        "head/bias": ((3,), (4,)),
    }
    assert sp_jax.grown(OLD.params, OLD.params) == {}
    deep = sp_jax.grown(state(0, 4, 3).params, state(1, 4, 3, True).params)
    assert deep == {"extra/kernel": (None, (4, 4)), "extra/bias": (None, (4,))}


def test_a_network_that_did_not_grow_is_plainly_shrunk_and_perturbed():
    fresh = state(1, 6, 3)
    new = jax.jit(sp_jax.grow)(OLD.params, fresh.params, shrink=0.4, noise_scale=0.1)
    expected = sp_jax.shrink_perturb(OLD.params, fresh.params, shrink=0.4, noise_scale=0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, expected)


@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        ({"a": jnp.ones(2)}, r"no leaf 'b'"),
        ({"a": jnp.ones(1), "b": jnp.ones(2)}, r"'a' cannot grow from \(2,\) to \(1,\)"),
        ({"a": jnp.ones((2, 2)), "b": jnp.ones(2)}, r"'a' cannot grow from \(2,\) to \(2, 2\)"),
    ],
)
def test_networks_never_get_smaller(fresh, message):
    with pytest.raises(ValueError, match=message):
        sp_jax.grow({"a": jnp.ones(2), "b": jnp.ones(2)}, fresh)


def test_a_restart_grows_the_whole_state():
    restart = restarts.make_restart(restarts.shrink_perturb, shapes="grow", statistics="keep", optimizer_state="keep")
    new = jax.jit(restart)(KEY, OLD, WIDER, shrink=0.4, noise_scale=0.1)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, WIDER)
    grown = sp_jax.grow(OLD.params, WIDER.params, shrink=0.4, noise_scale=0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new.params, grown)
    np.testing.assert_array_equal(new.batch_stats["norm"]["mean"], [2] * 6 + [0] * 2)
    np.testing.assert_array_equal(new.batch_stats["norm"]["var"], [3] * 6 + [1] * 2)
    np.testing.assert_array_equal(new.opt_state[0].mu["head"]["bias"], [2, 2, 2, 0])
    with pytest.raises(ValueError, match="'body/bias' has shape"):
        restarts.make_restart(restarts.shrink_perturb)(KEY, OLD, WIDER, shrink=0.4, noise_scale=0.1)


def test_a_warm_start_onto_a_deeper_network_keeps_what_was_there():
    old, fresh = state(0, 4, 3), state(1, 4, 3, True)
    new = restarts.make_restart(restarts.warm_start, shapes="grow")(KEY, old, fresh, shrink=1.0, noise_scale=0.0)
    np.testing.assert_array_equal(new.params["body"]["kernel"], old.params["body"]["kernel"])
    np.testing.assert_array_equal(new.params["extra"]["kernel"], fresh.params["extra"]["kernel"])


PARAMS = {"body": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "head": {"kernel": jnp.ones((3, 2))}}
CHANGED = {"body": {"kernel": False, "bias": False}, "head": {"kernel": True}}
GROUPS = sp_jax.labels({"head": sp_jax.layer("head")}, default="body")
OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "chain": optax.chain(optax.clip(1.0), optax.adamw(1e-2), optax.scale_by_schedule(lambda step: 1.0)),
    "masked": optax.chain(optax.masked(optax.adam(1e-2), CHANGED), optax.trace(0.9)),
    "partition": optax.partition({"body": optax.adam(1e-2), "head": optax.sgd(1e-2, momentum=0.9)}, GROUPS),
    "multi_steps": optax.MultiSteps(optax.adam(1e-2), every_k_schedule=4).gradient_transformation(),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(1e-2, 0.0, 10)),
    "noise": optax.chain(optax.ema(0.9), optax.scale_by_rms(), optax.add_noise(0.1, 0.5, 0)),
}


def trained(optimizer, steps=3):
    opt_state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for _ in range(steps):
        _, opt_state = update(jax.tree.map(lambda x: 0.5 * x, PARAMS), opt_state, PARAMS)
    return opt_state


@pytest.mark.parametrize("counts", ["keep", "reset"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_are_reset_where_parameters_changed(name, counts):
    """By the names in the paths: 'head' is reset, 'body' and floats of no parameter stay, integers as was asked."""
    optimizer = OPTIMIZERS[name]
    old, fresh = trained(optimizer), optimizer.init(PARAMS)
    new = sp_jax.reset_changed(old, fresh, PARAMS, CHANGED, counts=counts)
    assert jax.tree.structure(new) == jax.tree.structure(old)
    seen = set()
    for (path, was), now, begun in zip(
        jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), jax.tree.leaves(fresh), strict=True
    ):
        where = jax.tree_util.keystr(path)
        if jnp.issubdtype(was.dtype, jax.dtypes.prng_key):
            assert now is was
            continue
        is_count = jnp.issubdtype(was.dtype, jnp.integer)
        reset = where.endswith("['head']['kernel']") or (is_count and counts == "reset")
        np.testing.assert_array_equal(now, begun if reset else was, err_msg=where)
        if reset and not np.array_equal(was, begun):
            seen.add("count" if is_count else "moment")
    assert "moment" in seen
    assert ("count" in seen) == (counts == "reset")


def test_moments_are_reset_element_by_element():
    optimizer = optax.adam(1e-2)
    old, fresh = trained(optimizer), optimizer.init(PARAMS)
    changed = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), PARAMS)
    changed["body"]["kernel"] = changed["body"]["kernel"].at[:, 1].set(True)
    new = jax.jit(sp_jax.reset_changed)(old, fresh, PARAMS, changed)
    moved = np.asarray(old[0].mu["body"]["kernel"])
    np.testing.assert_array_equal(new[0].mu["body"]["kernel"], moved * [[1, 0, 1]])
    np.testing.assert_array_equal(new[0].mu["head"]["kernel"], old[0].mu["head"]["kernel"])
    assert new[0].count == 3


def test_parameters_that_are_one_array():
    optimizer = optax.adam(1e-2)
    fresh = optimizer.init(jnp.ones(3))
    _, old = optimizer.update(jnp.ones(3), fresh, jnp.ones(3))
    new = sp_jax.reset_changed(old, fresh, jnp.ones(3), True)
    np.testing.assert_array_equal(new[0].mu, np.zeros(3))
    assert new[0].count == 1


def test_the_first_steps_after_a_reset_are_as_long_as_is_said():
    """3.2 learning rates where counts are kept; 0.3 for parameters that were not reset where counts begin anew."""
    params, changed = {"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": True, "b": False}
    optimizer = optax.adam(1.0, eps=0.0)
    opt_state = fresh = optimizer.init(params)
    opt_state = jax.lax.fori_loop(0, 20_000, lambda _, s: optimizer.update(params, s, params)[1], fresh)
    kept = optimizer.update(params, sp_jax.reset_changed(opt_state, fresh, params, changed), params)[0]
    assert abs(float(-kept["a"][0]) - 3.2) < 0.05
    again = sp_jax.reset_changed(opt_state, fresh, params, changed, counts="reset")
    assert abs(float(-optimizer.update(params, again, params)[0]["b"][0]) - 0.3) < 0.05


def reference_steps(reset_at, steps):
    """Adam's steps in NumPy, of one entry with gradients 1 + 0.1 t: moments and count from zero after `reset_at`."""
    mu = nu = count = 0.0
    made = []
    for t in range(steps):
        g, count = 1 + 0.1 * t, count + 1
        mu, nu = 0.9 * mu + 0.1 * g, 0.999 * nu + 0.001 * g**2
        made.append(-0.5 * (mu / (1 - 0.9**count)) / (np.sqrt(nu / (1 - 0.999**count)) + 1e-8))
        if t == reset_at:
            mu = nu = count = 0.0
    return made


def test_a_count_for_each_entry_gives_a_reset_entry_the_steps_of_a_new_adam():
    params, optimizer = {"w": jnp.zeros(2), "b": jnp.zeros(())}, sp_jax.adam_per_entry(0.5)
    state, made = optimizer.init(params), []
    for t in range(60):
        updates, state = optimizer.update(jax.tree.map(lambda x, t=t: x + 1 + 0.1 * t, params), state, params)
        made.append(updates["w"])
        if t == 30:
            changed = {"w": jnp.array([True, False]), "b": False}
            state = sp_jax.reset_changed(state, optimizer.init(params), params, changed)
    np.testing.assert_allclose(made, np.transpose([reference_steps(30, 60), reference_steps(99, 60)]), rtol=2e-5)
    np.testing.assert_array_equal(state[0].count["w"], [29, 60])
    assert state[0].count["b"] == 60


def test_the_steps_of_a_reset_entry_are_never_long_as_they_are_with_a_count_for_all():
    """The gradient is 1: a step is one learning rate. With optax's count it is up to 6.6, as the module says."""
    params, gradient = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}

    def steps(optimizer):
        state = fresh = optimizer.init(params)
        state = jax.lax.fori_loop(0, 20_000, lambda _, s: optimizer.update(gradient, s, params)[1], state)
        state = sp_jax.reset_changed(state, fresh, params, {"w": jnp.array([True, False])})

        def step(state, _):
            updates, state = optimizer.update(gradient, state, params)
            return state, -updates["w"][0]

        return np.asarray(jax.lax.scan(step, state, length=600)[1])

    np.testing.assert_allclose(steps(sp_jax.adam_per_entry(1.0)), np.ones(600), rtol=1e-4)
    t, kept = np.arange(1, 601), steps(optax.adam(1.0))
    np.testing.assert_allclose(kept, (1 - 0.9**t) / np.sqrt(1 - 0.999**t), rtol=1e-3)
    assert (t[kept.argmax()], t[kept > 2][-1], round(kept[:100].sum())) == (12, 287, 466)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_a_reset_it_is_adam(dtype):
    ours, theirs = (
        sp_jax.adam_per_entry(optax.linear_schedule(0.1, 0.0, 50)),
        optax.adam(optax.linear_schedule(0.1, 0, 50)),
    )
    params = {"w": jax.random.normal(KEY, (3, 2), dtype), "c": jnp.full(2, 1 + 1j, jnp.complex64)}
    states = [optimizer.init(params) for optimizer in (ours, theirs)]
    for t in range(20):
        gradient = jax.tree.map(lambda x, t=t: (x * (t - 7)).astype(x.dtype), params)
        (mine, states[0]), (other, states[1]) = (
            jax.jit(o.update)(gradient, s, params) for o, s in zip((ours, theirs), states, strict=True)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7), mine, other)
        assert jax.tree.map(jnp.result_type, mine) == jax.tree.map(jnp.result_type, other)
    jax.tree.map(np.testing.assert_array_equal, states[0][0].nu, states[1][0].nu)


class Dense2(nnx.Module):
    def __init__(self, rngs):
        self.body, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.List([nnx.Linear(4, 2, rngs=rngs)])


NNX = drawn(0, nnx.state(nnx.eval_shape(lambda: Dense2(nnx.Rngs(0))), nnx.Param))
PURE = nnx.to_pure_dict(NNX)
LOOKAHEAD = optax.LookaheadParams.init_synced(PARAMS)
HAIKU = drawn(0, jax.eval_shape(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)).init, KEY, np.ones((1, 3), np.float32)))
ADAM = optax.adam(1e-2)


@pytest.mark.parametrize(
    ("optimizer", "given", "asked", "name"),
    [
        (ADAM, PARAMS, {"params": PARAMS, "batch_stats": {"norm": jnp.ones(2)}}, "head"),
        (ADAM, {"params": PARAMS}, PARAMS, "head"),
        (ADAM, PARAMS, freeze({"params": PARAMS}), "head"),
        (ADAM, NNX, NNX, "head"),
        (ADAM, NNX, PURE, "head"),
        (ADAM, PURE, NNX, "head"),
        (ADAM, PURE, {"params": NNX}, "head"),
        (optax.lookahead(ADAM, 5, 0.5), LOOKAHEAD, LOOKAHEAD, "head"),
        (optax.lookahead(ADAM, 5, 0.5), LOOKAHEAD, LOOKAHEAD.fast, "head"),
        (ADAM, LOOKAHEAD.fast, LOOKAHEAD, "head"),
        (ADAM, HAIKU, HAIKU, "mlp/~/linear_1"),
        (ADAM, HAIKU, {"params": HAIKU}, "mlp/~/linear_1"),
        (optax.sgd(0.1, momentum=0.9), [jnp.ones(2), jnp.ones(3)], (jnp.ones(2), jnp.ones(3)), "1"),
    ],
)
@pytest.mark.parametrize("entries", [False, True])
def test_paths_match_as_those_of_filters_do(optimizer, given, asked, name, entries):
    """Of the state all leaves with the layer's name in their path are begun anew, and no others."""
    fresh = optimizer.init(given)
    old = jax.tree.map(lambda x: x + 1, fresh)

    def where(path, x):
        return bool(sp_jax.layer(name)(sp_jax.filters.path_name(path)))

    changed = jax.tree_util.tree_map_with_path(where, asked)
    changed = jax.tree.map(lambda c, x: jnp.full(x.shape, c), changed, asked) if entries else changed
    new = sp_jax.reset_changed(old, fresh, asked, changed)
    leaves = jax.tree_util.tree_leaves_with_path(old)
    for (path, was), now, begun in zip(leaves, jax.tree.leaves(new), jax.tree.leaves(fresh), strict=True):
        moment = sp_jax.filters.path_name(path).endswith(f"/{name}") or where(path, was)
        np.testing.assert_array_equal(now, begun if moment and was.ndim else was, err_msg=str(path))
    assert any(not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))


@pytest.mark.parametrize("change", [True, jnp.array([[False, False], [False, True], [False, False]])])
def test_a_changed_parameter_of_which_the_state_knows_nothing_raises(change):
    no = {"kernel": False, "bias": False}
    message = (
        "^'{}' changed, but no leaf .* pass params, and changed, as optimizer.init was given them .*0/mu/body/bias"
    )
    renamed = {"trunk": PARAMS["body"], "head": PARAMS["head"]}
    old, fresh = trained(ADAM), ADAM.init(PARAMS)
    for trunk, raises in ({"kernel": True, "bias": False}, True), (no, False):
        asked = (old, fresh, renamed, {"trunk": trunk, "head": {"kernel": False}})
        if raises:
            with pytest.raises(ValueError, match=message.format("trunk/kernel")):
                sp_jax.reset_changed(*asked)
        else:
            jax.tree.map(np.testing.assert_array_equal, sp_jax.reset_changed(*asked), old)
    other = {"a": PARAMS["body"], "b": {"w": PARAMS["head"]["kernel"]}}
    with pytest.raises(ValueError, match=message.format("b/w")):
        sp_jax.reset_changed(old, fresh, other, {"a": no, "b": {"w": change}})
    with pytest.raises(ValueError, match=message.format("b/w")):
        jax.jit(lambda c: sp_jax.reset_changed(old, fresh, other, {"a": no, "b": {"w": c}}))(change)


def test_a_part_of_the_parameters_does_not_stand_for_layers_of_the_same_names():
    layers = {name: {"kernel": jnp.ones(shape)} for name, shape in (("body", (2, 3)), ("head", (3, 2)))}
    old, fresh = ADAM.init(layers), ADAM.init(layers)
    message = r"'kernel' has shape \(3, 2\), but '0/mu/body/kernel' of the optimiser's state \(2, 3\): pass all params"
    with pytest.raises(ValueError, match=message):
        sp_jax.reset_changed(old, fresh, layers["head"], {"kernel": True})


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1),
        optax.chain(plasticity.l2_init(0.1), optax.sgd(0.1)),
        plasticity.hare_tortoise(optax.sgd(0.1), every=3),
        optax.masked(optax.adam(0.1), {"body": False, "head": True}),
        optax.masked(optax.adam(0.1), {"body": {"kernel": False, "bias": True}, "head": True}),
        optax.partition({"body": optax.set_to_zero(), "head": optax.adam(0.1)}, GROUPS),
    ],
)
def test_what_has_no_moments_has_none_to_reset(optimizer):
    state = optimizer.init(PARAMS)
    changed = jax.tree.map(lambda x: True, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, sp_jax.reset_changed(state, state, PARAMS, changed), state)


def test_entries_of_parameters_that_are_one_array_have_their_counts():
    optimizer = sp_jax.adam_per_entry(0.1)
    fresh = optimizer.init(jnp.ones(2))
    _, old = optimizer.update(jnp.ones(2), fresh, jnp.ones(2))
    new = sp_jax.reset_changed(old, fresh, jnp.ones(2), jnp.array([True, False]))
    np.testing.assert_array_equal(new[0].count, [0, 1])


def test_a_parameter_may_be_called_like_what_a_method_remembers():
    params = SlowFast(jnp.ones(2), jnp.ones(2))
    optimizer = optax.adam(1e-2)
    _, old = optimizer.update(params, optimizer.init(params), params)
    new = sp_jax.reset_changed(old, optimizer.init(params), params, SlowFast(True, False))
    np.testing.assert_array_equal(new[0].mu.slow, 0)
    assert (new[0].mu.fast != 0).all()


def test_a_restart_resets_the_optimizer_only_where_its_rule_changed_something():
    restart = restarts.make_restart(restarts.only_layers("head"), optimizer_state="reset_changed")
    fresh = state(1, 6, 3)
    new = jax.jit(restart)(KEY, OLD, fresh, shrink=0.5, noise_scale=0.1)
    np.testing.assert_array_equal(new.opt_state[0].mu["body"]["bias"], OLD.opt_state[0].mu["body"]["bias"])
    np.testing.assert_array_equal(new.opt_state[0].mu["head"]["bias"], np.zeros(3))
    assert new.opt_state[0].count == 2
    warm = restarts.make_restart(restarts.warm_start, optimizer_state="reset_changed")
    kept = warm(KEY, OLD, fresh, shrink=1.0, noise_scale=0.0).opt_state
    jax.tree.map(np.testing.assert_array_equal, kept, OLD.opt_state)


def test_mistakes_get_one_line():
    with pytest.raises(ValueError, match="counts must be one of keep, reset, got 'no'"):
        optimizer_state.reset_changed((), (), {}, {}, counts="no")
    with pytest.raises(ValueError, match="different structure"):
        optimizer_state.reset_changed(optax.adam(1).init(PARAMS), optax.sgd(1).init(PARAMS), PARAMS, CHANGED)
    with pytest.raises(ValueError, match="shapes must be one of same, redraw, grow, got 'bigger'"):
        restarts.make_restart(restarts.warm_start, shapes="bigger")
    assert growth.expand({"a": jnp.ones(1)}, {"a": jnp.zeros(2)})["a"].tolist() == [1, 0]
