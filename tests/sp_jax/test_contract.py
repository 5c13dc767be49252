"""What holds of every transform and method, each tried from one list: a new one costs a line."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import sp_jax
from sp_jax import models, plasticity, restarts
from sp_jax.transforms import periodic
from sp_jax.transforms.filters import is_changeable

KEY = jax.random.key(7)
LINKS = (plasticity.Link("body", "head", "norm"),)
SEEN = {"body": jnp.concatenate([jnp.zeros((5, 1)), jnp.ones((5, 3))], axis=1)}  # the first unit is dormant


def draw(seed, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {
        "body": {"bias": jax.random.normal(keys[0], (4,), dtype), "kernel": jax.random.normal(keys[1], (6, 4), dtype)},
        "conv": {"kernel": jax.random.normal(keys[2], (3, 3, 2, 4), dtype)},
        "head": {"kernel": jax.random.normal(keys[3], (4, 2), dtype)},
        "norm": {"bias": jnp.full(4, 0.5, dtype), "scale": jnp.full(4, 2.0, dtype)},
        "none": None,
        "rest": (jnp.int32(3), jnp.array([True]), jax.random.key(1), jnp.zeros((0, 2), dtype)),
    }


def rule(name):
    return lambda p, f, lam, sigma: getattr(restarts, name)(KEY, p, f, shrink=lam, noise_scale=sigma)


def only_floats(tree):
    return jax.tree.map(lambda x: x if is_changeable(x) else None, tree)


def optimizer(make):
    def call(p, f, lam, sigma):
        """One step of gradients like the fresh network's, from a state that began there."""
        made = make(lam, sigma)
        floats, other = only_floats(p), jax.tree.map(lambda x: None if is_changeable(x) else x, p)
        start = jax.tree.map(lambda x, n: None if x is None else n, floats, f, is_leaf=lambda x: x is None)
        updates, _ = made.update(start, made.init(start), floats)
        new = optax.apply_updates(floats, updates)
        return jax.tree.map(lambda a, b: b if a is None else a, new, other, is_leaf=lambda x: x is None)

    return call


def utility(p):
    state = plasticity.init_utility(p, LINKS)
    return state._replace(age={"body": jnp.full(4, 200, jnp.int32)})


# (params, fresh_params, λ or the method's own amount, σ) -> params
TRANSFORMS = {
    "shrink_perturb": lambda p, f, lam, sigma: sp_jax.shrink_perturb(p, f, shrink=lam, noise_scale=sigma),
    "shrink": lambda p, f, lam, sigma: sp_jax.shrink(p, shrink=lam),
    "perturb": lambda p, f, lam, sigma: sp_jax.perturb(p, f, noise_scale=sigma),
    "kernels alone": lambda p, f, lam, sigma: sp_jax.shrink_perturb(
        p, f, shrink=lam, noise_scale=sigma, where=sp_jax.kernels
    ),
    "groups": lambda p, f, lam, sigma: sp_jax.shrink_perturb(
        p,
        f,
        shrink={"head": 0.0, "rest": lam},
        noise_scale={"head": 1.0, "rest": sigma},
        labels=sp_jax.labels({"head": sp_jax.layer("head")}),
    ),
    "grow": lambda p, f, lam, sigma: sp_jax.grow(p, f, shrink=lam, noise_scale=sigma),
    "restart_at": lambda p, f, lam, sigma: periodic.restart_at(
        KEY, 4, p, lambda key: draw(1, p["body"]["bias"].dtype), every=2, shrink=lam, noise_scale=sigma
    ),
    "periodic_restart": lambda p, f, lam, sigma: optimizer(
        lambda lam, sigma: periodic.periodic_restart(
            optax.sgd(0.1), lambda _: only_floats(f), key=KEY, every=1, shrink=lam, noise_scale=sigma
        )
    )(p, f, lam, sigma),
    "warm_start": rule("warm_start"),
    "random_init": rule("random_init"),
    "fresh_noise": rule("fresh_noise"),
    "gaussian_noise": rule("gaussian_noise"),
    "fire": rule("fire"),
    "only_layers": lambda p, f, lam, sigma: restarts.only_layers("head")(KEY, p, f, shrink=lam, noise_scale=sigma),
    "dash": lambda p, f, lam, sigma: plasticity.dash(p, f, shrink=lam),
    "average_gradient": lambda p, f, lam, sigma: plasticity.average_gradient(p, f, decay=lam),
    "hare and tortoise: follow": lambda p, f, lam, sigma: plasticity.follow(p, f, decay=lam),
    "hare_tortoise": optimizer(lambda lam, sigma: plasticity.hare_tortoise(optax.sgd(0.1), decay=lam, every=1)),
    "l2_init": optimizer(lambda lam, sigma: optax.chain(plasticity.l2_init(lam), optax.sgd(0.1))),
    "redo": lambda p, f, lam, sigma: plasticity.redo(p, f, SEEN, LINKS, threshold=sigma)[0],
    "continual_backprop": lambda p, f, lam, sigma: plasticity.continual_backprop(
        utility(p), p, f, SEEN, LINKS, rate=lam
    )[0],
}
IDENTITIES = [  # at λ = 1, σ = 0
    "shrink_perturb", "shrink", "perturb", "kernels alone", "grow", "restart_at", "warm_start", "fresh_noise",
    "only_layers", "gaussian_noise", "dash", "hare and tortoise: follow",
]  # fmt: skip


def floats(tree):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree) if is_changeable(x)]


def close(a, b, tolerance=1e-5):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(floats(a), floats(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


QUICK = ("shrink_perturb", "grow", "periodic_restart", "continual_backprop")


def some(names):
    """These transforms, of which all but some take long together."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in names]


@pytest.fixture(params=some(TRANSFORMS))
def transform(request):
    return TRANSFORMS[request.param]


def test_jit_changes_nothing(transform):
    params, fresh = draw(0), draw(1)
    close(jax.jit(transform)(params, fresh, 0.4, 0.1), transform(params, fresh, 0.4, 0.1))


def test_amounts_may_be_mapped(transform):
    params, fresh = draw(0), draw(1)
    lams, sigmas = jnp.array([0.3, 0.7]), jnp.array([0.1, 0.5])
    many = jax.jit(jax.vmap(transform, (None, None, 0, 0)))(params, fresh, lams, sigmas)
    for i in range(2):
        one = jax.jit(transform)(params, fresh, lams[i], sigmas[i])
        close(jax.tree.map(lambda x, i=i: x[i], many), one)


def test_amounts_that_change_compile_nothing_again(transform):
    jitted = jax.jit(lambda *arguments: transform(*arguments))  # a function of its own has a cache of its own
    for lam, sigma in ((0.4, 0.1), (0.5, 0.0), (1.0, 0.3)):
        jitted(draw(0), draw(1), lam, sigma)
    assert jitted._cache_size() == 1


def test_parameters_may_be_carried_through_a_scan(transform):
    """Which also shows that shapes, dtypes and weak types stay as they are."""
    fresh = draw(1)
    end, _ = jax.lax.scan(lambda p, lam: (transform(p, fresh, lam, 0.1), None), draw(0), jnp.array([0.3, 0.7]))
    jitted = jax.jit(transform)
    close(end, jitted(jitted(draw(0), fresh, 0.3, 0.1), fresh, 0.7, 0.1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_structure_shapes_and_dtypes_stay(transform, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, fresh = (jax.eval_shape(lambda i=i: draw(i, dtype)) for i in range(2))
        new = jax.eval_shape(transform, params, fresh, 0.4, 0.1)
        assert jax.tree.structure(new) == jax.tree.structure(params)
        for old, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(new), strict=True):
            assert (old.shape, old.dtype) == (leaf.shape, leaf.dtype)


def test_what_is_not_floating_stays(transform):
    params = draw(0)
    new = jax.jit(transform)(params, draw(1), 0.4, 0.1)
    assert new["none"] is None
    number, flag, key, empty = new["rest"]
    assert (int(number), bool(flag[0]), empty.shape) == (3, True, (0, 2))
    assert jnp.array_equal(jax.random.key_data(key), jax.random.key_data(params["rest"][2]))


def test_sharding_stays(transform):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    params, fresh = draw(0), draw(1)
    sharded = NamedSharding(mesh, PartitionSpec("d"))
    for tree in (params, fresh):
        tree["body"]["kernel"] = jax.device_put(tree["body"]["kernel"], sharded)
    new = jax.jit(transform)(params, fresh, 0.4, 0.1)["body"]["kernel"]
    assert new.sharding.is_equivalent_to(sharded, 2), new.sharding


@pytest.mark.parametrize("name", some(IDENTITIES))
def test_one_and_zero_change_nothing(name):
    params = draw(0)
    for call in (TRANSFORMS[name], jax.jit(TRANSFORMS[name])):
        for x, y in zip(floats(call(params, draw(1), 1.0, 0.0)), floats(params), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["shrink_perturb", "shrink", "perturb", "grow"])
def test_weak_types_stay(name):
    weak = {"scalar": jnp.asarray(0.5), "array": jnp.full((2, 3), 0.5), "empty": jnp.full((0,), 0.5)}
    strong = jax.tree.map(lambda x: x.astype(jnp.float32), weak)
    assert all(x.weak_type for x in jax.tree.leaves(weak))
    for tree, expected in ((weak, True), (strong, False)):
        for call in (TRANSFORMS[name], jax.jit(TRANSFORMS[name])):
            new = call(tree, strong, 0.4, 0.1)
            assert [x.weak_type for x in jax.tree.leaves(new)] == [expected] * 3


OTHER_TYPES = ("random_init", "periodic_restart", "hare_tortoise", "l2_init")  # the fresh network's, or optax's own


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in OTHER_TYPES])
def test_weak_types_stay_in_every_transform(name):
    def kind(x, weak):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak) if is_changeable(x) else x

    for weak in (True, False):
        params = jax.tree.map(lambda x, weak=weak: kind(x, weak), draw(0))
        fresh = jax.tree.map(lambda x, weak=weak: kind(x, not weak), draw(1))
        new = jax.eval_shape(TRANSFORMS[name], params, fresh, 0.4, 0.1)
        assert {x.weak_type for x in jax.tree.leaves(only_floats(new))} == {weak}


@pytest.mark.slow
@pytest.mark.parametrize("initialization", ["torch", "flax"])
def test_noise_has_the_variance_of_each_layers_own_initialiser(initialization):
    """PyTorch's: uniform in ±1/sqrt(fan_in), biases too; Flax's: LeCun normal, no bias; BatchNorm's none at all."""
    network = models.ResNet(10, width=32, stage_sizes=(1, 1), initialization=initialization)
    model = models.from_module(network, jnp.zeros((1, 8, 8, 3)))
    fresh = jax.jit(model.init)(jax.random.key(1))[0]
    noise = sp_jax.perturb(jax.tree.map(jnp.zeros_like, fresh), fresh, noise_scale=0.1)
    share = 1 / 3 if initialization == "torch" else 1.0
    for layer, fan_in in (("stage_1_block_0/conv_1", 9 * 64), ("stage_1_block_0/shortcut", 32), ("head", 64)):
        kernel = noise[layer.split("/")[0]]
        kernel = kernel[layer.split("/")[1]]["kernel"] if "/" in layer else kernel["kernel"]
        assert float(jnp.var(kernel)) == pytest.approx(0.01 * share / fan_in, rel=0.15)
    bias = noise["head"]["bias"]
    assert (float(jnp.var(bias)) > 0) == (initialization == "torch")
    np.testing.assert_allclose(noise["stem_norm"]["scale"], 0.1, rtol=1e-6)  # a fresh scale is 1, without spread
    np.testing.assert_array_equal(noise["stem_norm"]["bias"], 0)


def test_gradients_flow():
    """By the parameters, the fresh network, λ and σ; where λ is 1 or σ 0, nothing flows to them: an edge is exact."""
    old, fresh = jnp.array([2.0, -3.0]), jnp.array([0.5, 4.0])

    def total(old, fresh, lam, sigma):
        return jnp.sum(sp_jax.shrink_perturb(old, fresh, shrink=lam, noise_scale=sigma))

    by_old, by_fresh, by_lam, by_sigma = jax.grad(total, (0, 1, 2, 3))(old, fresh, 0.4, 0.1)
    np.testing.assert_allclose(by_old, [0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(by_fresh, [0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose([by_lam, by_sigma], [-1.0, 4.5], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(total)(old, fresh, 1.0, 0.0), [1, 1])


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("shrink", 0.4), ("perturb", 1), ("kernels alone", 0.4), ("groups", 0.4), ("grow", 0.4), ("restart_at", 0.4),
        ("hare and tortoise: follow", 0.4), ("average_gradient", 0.6), ("warm_start", 1), ("random_init", 0),
    ],
)  # fmt: skip
def test_gradients_flow_through_what_is_linear(name, slope):
    def total(kernel):
        params = draw(0)
        params["body"]["kernel"] = kernel
        return jnp.sum(TRANSFORMS[name](params, draw(1), 0.4, 0.1)["body"]["kernel"])

    np.testing.assert_allclose(jax.grad(total)(jnp.ones((6, 4))), np.full((6, 4), slope), rtol=1e-6)


@pytest.mark.parametrize("name", ["shrink_perturb", "grow"])
def test_one_pass_over_memory_and_none_for_a_donated_buffer(name):
    """Under `jit`: no more bytes than one multiply-add of two trees, whatever λ and σ, and nothing set aside."""
    shapes = {f"layer_{i}": jax.ShapeDtypeStruct((1000, 250), jnp.float32) for i in range(4)}
    scalar = jax.ShapeDtypeStruct((), jnp.float32)

    def multiply_add(params, fresh, lam, sigma):
        return jax.tree.map(lambda p, f: lam * p + sigma * f, params, fresh)

    def bytes_of(function):
        compiled = jax.jit(function, donate_argnums=0).lower(shapes, shapes, scalar, scalar).compile()
        memory = compiled.memory_analysis()
        return compiled.cost_analysis()["bytes accessed"], memory.temp_size_in_bytes, memory.alias_size_in_bytes

    ours, temporary, aliased = bytes_of(TRANSFORMS[name])
    theirs, _, _ = bytes_of(multiply_add)
    assert ours <= 1.01 * theirs
    assert temporary < 1000
    assert aliased == 4 * 4 * 250_000
