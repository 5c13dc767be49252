"""The later methods, each against plain NumPy written from its formulas: loops, float64, no code in common."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import sp_jax
from sp_jax import plasticity
from sp_jax.plasticity import Link
from sp_jax.plasticity.continual_backprop import is_any_due
from sp_jax.transforms import filters

SHAPES = {
    "conv": {"kernel": (3, 3, 2, 4)},
    "norm": {"scale": (4,), "bias": (4,)},
    "point": {"kernel": (1, 1, 4, 3), "bias": (3,)},
    "dense": {"kernel": (4 * 3, 5), "bias": (5,)},  # reads 2x2 positions of 3 channels
    "head": {"kernel": (5, 2), "bias": (2,)},
}
LINKS = (Link("conv", "point", norm="norm"), Link("point", "dense"), Link("dense", "head"))
ACTIVATIONS = {"conv": (6, 2, 2, 4), "point": (6, 2, 2, 3), "dense": (6, 5)}
UNITS = {layer: shape[-1] for layer, shape in ACTIVATIONS.items()}
MASK = np.array([True, True, False, True, True, False])


def is_shape(x):
    return isinstance(x, tuple)


def draw(seed, shapes=SHAPES, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s).astype(dtype), shapes, is_leaf=is_shape)


def wide(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def lane(tree, i):
    """One of several, as NumPy arrays."""
    return jax.tree.map(lambda x: x[i], jax.device_get(tree))


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol, atol), actual, expected)


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# The methods in plain NumPy.


def cosine(a, b):
    a, b = a.ravel(), b.ravel()
    lengths = np.sqrt(sum(x * x for x in a)) * np.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def reference_dash(params, average, shrink):
    new, average = wide(params), wide(average)
    for layer in new:
        for name, w in new[layer].items():
            g = average[layer][name]
            vectors = []
            if layer == "norm":
                continue
            if w.ndim == 4:
                vectors = [(slice(None), slice(None), i, o) for i in range(w.shape[2]) for o in range(w.shape[3])]
            elif w.ndim == 2:
                vectors = [(slice(None), o) for o in range(w.shape[1])]
            else:
                vectors = [slice(None)]
            for v in vectors:
                w[v] = w[v] * min(max(cosine(g[v], w[v]), shrink), 1)
    return new


def reference_fire(params, iterations=10):
    """By the singular values, which are all that Newton and Schulz's iteration changes."""
    new = wide(params)
    for layer in new:
        w = new[layer].get("kernel")
        if w is None:
            continue
        matrices = [w] if w.ndim == 2 else [w[i, j] for i in range(w.shape[0]) for j in range(w.shape[1])]
        for m in matrices:
            u, s, v = np.linalg.svd(m, full_matrices=False)
            s = s / np.sqrt((s**2).sum())
            for _ in range(iterations):
                s = 1.5 * s - 0.5 * s**3
            m[...] = u @ np.diag(s) @ v * np.sqrt(m.shape[1] / m.shape[0]) / len(matrices)
    return new


def outgoing_rows(kernel, unit, units):
    """The rows of an outgoing kernel that read a unit, as index tuples."""
    if kernel.ndim == 2:
        return [(row,) for row in range(kernel.shape[0]) if row % units == unit]
    return [(i, j, unit) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]


def reference_replace(params, fresh, replaced, links):
    new, changed = wide(params), jax.tree.map(lambda x: np.zeros(x.shape, bool), params)
    for layer, _, norm in links:
        for unit in np.flatnonzero(replaced[layer]):
            entries = [(layer, "kernel", fresh[layer]["kernel"][..., unit])]
            entries += [(layer, "bias", 0.0)] if "bias" in params[layer] else []
            entries += [(norm, name, fresh[norm][name][unit]) for name in ("scale", "bias")] if norm else []
            for where, name, value in entries:
                new[where][name][..., unit] = value
                changed[where][name][..., unit] = True
    for layer, outgoing, _ in links:
        for unit in np.flatnonzero(replaced[layer]):
            for row in outgoing_rows(params[outgoing]["kernel"], unit, len(replaced[layer])):
                new[outgoing]["kernel"][row] = 0
                changed[outgoing]["kernel"][row] = True
    return new, changed


def unit_samples(activations, unit, mask):
    return [h for b, sample in enumerate(activations) if mask[b] for h in sample[..., unit].ravel()]


def reference_dormancy(activations, mask):
    units = activations.shape[-1]
    magnitudes = [np.mean([abs(h) for h in unit_samples(activations, i, mask)]) for i in range(units)]
    return np.array([m / np.mean(magnitudes) if np.mean(magnitudes) else 0.0 for m in magnitudes])


class ReferenceContinualBackprop:
    def __init__(self, links, units, decay, rate, maturity):
        self.links, self.decay, self.rate, self.maturity = links, decay, rate, maturity
        self.u, self.f, self.age = ({k: np.zeros(n) for k, n in units.items()} for _ in range(3))
        self.pending = dict.fromkeys(units, 0.0)

    def step(self, params, fresh, activations, mask):
        params, replaced, absorbed = wide(params), {}, []
        for layer, outgoing, _ in self.links:
            kernel, units = params[outgoing]["kernel"], len(self.age[layer])
            self.age[layer] += 1
            for i in range(units):
                h = unit_samples(activations[layer], i, mask)
                w = np.mean([np.abs(kernel[row]).mean() for row in outgoing_rows(kernel, i, units)])
                self.u[layer][i] = self.decay * self.u[layer][i] + (1 - self.decay) * np.abs(h).mean() * w
                self.f[layer][i] = self.decay * self.f[layer][i] + (1 - self.decay) * np.mean(h)
            correction = 1 - self.decay ** self.age[layer]
            mature = [i for i in range(units) if self.age[layer][i] > self.maturity]
            self.pending[layer] += self.rate * len(mature)
            worst = sorted(mature, key=lambda i: self.u[layer][i] / correction[i])[: int(self.pending[layer])]
            self.pending[layer] -= len(worst)
            replaced[layer] = np.isin(np.arange(units), worst)
            for i in worst:
                given = sum(kernel[row] for row in outgoing_rows(kernel, i, units))
                absorbed.append((outgoing, given * self.f[layer][i] / correction[i]))
            for values in (self.u, self.f, self.age):
                values[layer][worst] = 0
        for outgoing, amount in absorbed:
            if "bias" in params[outgoing]:
                params[outgoing]["bias"] += amount
        return *reference_replace(params, fresh, replaced, self.links), replaced


# DASH


def test_dash_hand_worked():
    params = {
        "conv": {"kernel": jnp.array([3.0, 4.0]).reshape(2, 1, 1, 1)},
        "dense": {"kernel": jnp.array([[1.0, 1.0, 0.0], [0.0, -1.0, 0.0]]), "bias": jnp.array([1.0, -2.0])},
        "point": {"kernel": jnp.array([2.0, -2.0, 0.0]).reshape(1, 1, 1, 3)},
        "norm": {"scale": jnp.array([5.0]), "bias": jnp.array([5.0])},
        "embed": {"embedding": jnp.array([[5.0]])},
    }
    average = {
        "conv": {"kernel": jnp.array([1.0, 0.0]).reshape(2, 1, 1, 1)},  # cosine 0.6
        "dense": {"kernel": jnp.array([[3.0, 1.0, 7.0], [4.0, 1.0, 7.0]]), "bias": jnp.array([0.0, 0.0])},  # 0.6, 0, 0
        "point": {"kernel": jnp.array([1e-30, 3.0, 1.0]).reshape(1, 1, 1, 3)},  # 1, -1, 0
        "norm": {"scale": jnp.array([-1.0]), "bias": jnp.array([-1.0])},
        "embed": {"embedding": jnp.array([[-1.0]])},
    }
    dash = partial(plasticity.dash, kinds={"conv": ("spatial", "spatial", "in", "out")})  # its window is not square
    new = jax.jit(dash)(params, average, shrink=0.25)
    np.testing.assert_allclose(new["conv"]["kernel"].ravel(), [1.8, 2.4], rtol=1e-6)
    np.testing.assert_allclose(new["dense"]["kernel"], [[0.6, 0.25, 0.0], [0.0, -0.25, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(new["dense"]["bias"], [0.25, -0.5])
    np.testing.assert_array_equal(new["point"]["kernel"].ravel(), [2.0, -0.5, 0.0])
    assert new["norm"] is not params["norm"]
    for layer in ("norm", "embed"):
        assert_same(new[layer], params[layer])


def test_dash_against_numpy_and_vmapped_over_shrink():
    params, average = draw(0), draw(1)
    shrinks = np.float32([0.0, 0.3, 0.9, 1.0])
    many = jax.jit(jax.vmap(lambda s: plasticity.dash(params, average, shrink=s)))(shrinks)
    for i, shrink in enumerate(shrinks):
        assert_close(lane(many, i), reference_dash(params, average, float(shrink)))
    assert_same(lane(many, 3), params)


def test_dash_in_the_layout_of_pytorch():
    params, average = draw(2), draw(3)

    def turn(tree):
        return jax.tree.map(lambda x: np.transpose(x, {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[x.ndim]), tree)

    def with_axes(tree):  # Equinox's bias of a convolution
        return tree | {"point": tree["point"] | {"bias": tree["point"]["bias"][:, None, None]}}

    turned = jax.jit(lambda p, g: plasticity.dash(p, g, output_axis=0))(
        with_axes(turn(params)), with_axes(turn(average))
    )
    assert_close(turned, with_axes(turn(reference_dash(params, average, 0.3))))
    with pytest.raises(ValueError, match=r"output_axis must be -1 .* or 0 .*, got 1"):
        plasticity.dash(params, average, output_axis=1)
    with pytest.raises(ValueError, match="shrink"):
        plasticity.dash(params, average, shrink=1.5)


def test_average_gradient_in_a_scan():
    gradients = [draw(seed) for seed in range(4)]
    expected = jax.tree.map(np.zeros_like, wide(gradients[0]))
    for g in gradients:
        expected = jax.tree.map(lambda a, b: 0.6 * a + 0.4 * -b, expected, wide(g))

    @jax.jit
    def run(decay):
        def step(average, gradient):
            return plasticity.average_gradient(average, gradient, decay=decay), None

        zeros = optax.tree.zeros_like(jax.tree.map(jnp.asarray, gradients[0]))
        return jax.lax.scan(step, zeros, jax.tree.map(lambda *x: jnp.stack(x), *gradients))[0]

    assert_close(run(0.4), expected)


# FIRE


@pytest.mark.parametrize("iterations", [0, 3, 10])
def test_fire_against_singular_values(iterations):
    params = draw(4)
    new = jax.jit(lambda p: plasticity.orthogonalize(p, iterations=iterations))(params)
    assert_close(new, reference_fire(params, iterations), rtol=1e-4, atol=1e-5)


def test_fire_makes_kernels_isometries_and_keeps_rotations():
    rng = np.random.default_rng(5)
    wide_kernel = rng.normal(size=(2, 40)).astype(np.float32)
    new = jax.jit(plasticity.orthogonalize)({"kernel": wide_kernel})["kernel"]
    np.testing.assert_allclose(np.linalg.svd(new)[1], np.sqrt(40 / 2), rtol=1e-5)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0].astype(np.float32)
    stack = {"kernel": np.stack([rotation * 7, rotation * 1e-25, 0 * rotation])}
    fire = partial(plasticity.orthogonalize, kinds={"kernel": ("spatial", "in", "out")})
    turned = jax.jit(fire)(stack)["kernel"]
    np.testing.assert_allclose(turned, np.stack([rotation / 3, rotation / 3, 0 * rotation]), atol=1e-5)


def test_fire_in_the_layout_of_pytorch():
    params = {layer: leaves for layer, leaves in draw(5).items() if layer != "norm"}

    def turn(tree):
        return jax.tree.map(lambda x: np.transpose(x, {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[x.ndim]), tree)

    turned = jax.jit(lambda p: plasticity.orthogonalize(p, output_axis=0))(turn(params))
    assert_close(turned, turn(reference_fire(params)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"output_axis must be -1 .* or 0 .*, got 1"):
        plasticity.orthogonalize(params, output_axis=1)


def test_fire_touches_kernels_alone_and_takes_a_filter():
    params = draw(6, {layer: SHAPES[layer] for layer in ("norm", "dense", "head")})
    params |= {"embed": {"embedding": np.ones((3, 2), np.float32)}, "list_norm": {"weight": np.ones(4)}}
    for where, picked in ((None, ["dense", "head"]), (~filters.layer("head"), ["dense"])):
        new = plasticity.orthogonalize(params, where=where)
        for path, leaf in plasticity.units.flatten(params).items():
            layer, name = path.split("/")
            assert (new[layer][name] is leaf) == (name != "kernel" or layer not in picked)
    with pytest.raises(ValueError, match="matches no floating leaf"):
        plasticity.orthogonalize(params, where=filters.biases)


# L2 Init


def loss(params, x):
    return sum(jnp.sum(jnp.sin(leaf * x)) for leaf in jax.tree.leaves(params))


def test_l2_init_is_the_gradient_of_the_penalised_loss():
    first, params = draw(7), draw(8)

    def update(strength):
        optimizer = plasticity.l2_init(strength)
        return optimizer.update(jax.grad(loss)(params, 0.5), optimizer.init(first), params)[0]

    def penalised(params, strength):
        return loss(params, 0.5) + strength * plasticity.l2_init_penalty(params, first)

    strengths = np.float32([0.0, 0.01, 3.0])
    expected = jax.jit(jax.vmap(jax.grad(penalised), in_axes=(None, 0)))(params, strengths)
    assert_close(jax.jit(jax.vmap(update))(strengths), wide(expected))


def test_l2_init_penalty_is_the_sum_of_squares():
    first, params = draw(9), draw(10)
    squares = 0.0
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(first), strict=True):
        for x, y in zip(a.ravel(), b.ravel(), strict=True):
            squares += (float(x) - float(y)) ** 2
    np.testing.assert_allclose(jax.jit(plasticity.l2_init_penalty)(params, first), squares, rtol=1e-5)
    two = {"a": jnp.array([3.0]), "b": jnp.array([4.0]), "n": jnp.int32(9)}  # the square of the norms' sum is 49
    assert plasticity.l2_init_penalty(two, jax.tree.map(jnp.zeros_like, two)) == 25
    z = jnp.array([1 + 2j], jnp.complex64)
    gradient = jax.grad(lambda z: plasticity.l2_init_penalty({"z": z}, {"z": jnp.zeros_like(z)}))(z)
    optimizer = plasticity.l2_init(1.0)
    pull, _ = optimizer.update({"z": jnp.zeros_like(z)}, optimizer.init({"z": jnp.zeros_like(z)}), {"z": z})
    np.testing.assert_allclose(pull["z"], gradient)


def test_l2_init_remembers_the_first_parameters_through_donated_steps():
    params = jax.tree.map(jnp.asarray, draw(11))
    first = wide(params)
    optimizer = optax.inject_hyperparams(
        lambda strength: optax.chain(plasticity.l2_init(strength), optax.sgd(0.25)), hyperparam_dtype=jnp.float32
    )(strength=0.5)

    def step(params, state):
        updates, state = optimizer.update(optax.tree.ones_like(params), state, params)
        return optax.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    state = optimizer.init(params)
    for _ in range(3):
        params, state = donated(params, state)
    offset = 0.0
    for _ in range(3):
        offset -= 0.25 * (1 + 2 * 0.5 * offset)
    assert_close(params, jax.tree.map(lambda x: x + offset, first))
    with pytest.raises(ValueError, match=r"l2_init needs the parameters"):
        plasticity.l2_init(0.1).update(params, plasticity.l2_init(0.1).init(params))


# Hare and Tortoise


@pytest.mark.parametrize("jit", [False, True])
def test_hare_tortoise_against_numpy(jit):
    params = jax.tree.map(jnp.asarray, draw(12))
    fast, slow, trace = wide(params), wide(params), jax.tree.map(np.zeros_like, wide(params))

    def run(decay, every):
        optimizer = plasticity.hare_tortoise(optax.sgd(0.1, momentum=0.9), decay=decay, every=every)

        def step(carry, x):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
            return (optax.apply_updates(params, updates), state), params["head"]["bias"]

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(1.0, 8.0))[0]

    new, state = (jax.jit(run) if jit else run)(0.75, 3)
    for step in range(1, 8):
        gradient = jax.tree.map(lambda w, step=step: step * np.cos(w * step), fast)
        trace = jax.tree.map(lambda t, g: 0.9 * t + g, trace, gradient)
        fast = jax.tree.map(lambda w, t: w - 0.1 * t, fast, trace)
        slow = jax.tree.map(lambda s, w: 0.75 * s + 0.25 * w, slow, fast)
        if step in (3, 6):
            fast = jax.tree.map(np.copy, slow)
    assert state.step == 7
    assert_close(new, fast, rtol=1e-3, atol=1e-4)  # the gradients' steepness multiplies rounding
    assert_close(state.slow, slow, rtol=1e-3, atol=1e-4)


def test_hare_tortoise_is_the_inner_optimiser_between_jumps():
    params, gradient = draw(13)["head"], draw(14)["head"]
    inner = optax.sgd(0.1, momentum=0.9)
    expected, _ = inner.update(gradient, inner.init(params), params)
    optimizer = plasticity.hare_tortoise(inner, every=2)
    state = optimizer.init(params)
    updates, state = optimizer.update(gradient, state, params)
    assert_same(updates, expected)
    params = optax.apply_updates(params, updates)
    updates, state = optimizer.update(gradient, state, params)
    assert_close(optax.apply_updates(params, updates), wide(state.slow), rtol=1e-6, atol=1e-6)


def test_hare_tortoise_keeps_slow_bfloat16_parameters_moving():
    params = {"w": jnp.ones(1, jnp.bfloat16)}
    optimizer = plasticity.hare_tortoise(optax.sgd(1.0), every=200)
    state, gradient = optimizer.init(params), {"w": jnp.full(1, -1.0, jnp.bfloat16)}
    updates, state = optimizer.update(gradient, state, params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(state.slow["w"], [1.001], rtol=1e-6)
    same = plasticity.follow(params, {"w": jnp.full(1, 2.0, jnp.bfloat16)}, decay=0.5)["w"]
    assert same.dtype == jnp.bfloat16
    assert same[0] == 1.5


def test_hare_tortoise_donates_and_raises():
    params = {"w": jnp.ones(2)}
    optimizer = plasticity.hare_tortoise(optax.sgd(1.0), decay=0.5, every=5)
    state = optimizer.init(params)
    step = jax.jit(lambda p, s: optimizer.update({"w": jnp.ones(2)}, s, p), donate_argnums=(0, 1))
    assert_close(step(params, state)[1].slow, {"w": np.array([0.5, 0.5])})
    with pytest.raises(ValueError, match=r"every must be a number of steps >= 1, got 0"):
        plasticity.hare_tortoise(optax.sgd(1.0), every=0)
    with pytest.raises(ValueError, match=r"hare_tortoise needs the parameters"):
        optimizer.update(state.slow, state)


# Units


def some_units(seed):
    rng = np.random.default_rng(seed)
    return {layer: rng.random(n) < 0.5 for layer, n in UNITS.items()}


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_new_units_are_zeroed_and_all_else_stays(name):
    optimizer, params = OPTIMIZERS[name], jax.tree.map(jnp.asarray, draw(18))
    _, changed = reference_replace(params, params, some_units(1), LINKS)
    state, update = optimizer.init(params), jax.jit(lambda g, s: optimizer.update(g, s, params)[1])
    for seed in range(3):
        state = update(draw(seed), state)
    new = jax.jit(lambda s: sp_jax.reset_changed(s, optimizer.init(params), params, changed))(state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    flat, kept = plasticity.units.flatten(changed), 0
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


@pytest.mark.parametrize("optimizer", [plasticity.l2_init(0.1), plasticity.hare_tortoise(optax.adam(0.1), every=2)])
def test_what_methods_remember_can_be_saved(optimizer):
    params = jax.tree.map(jnp.asarray, draw(20))
    for state in (optimizer.init(params), plasticity.init_utility(params, LINKS)):
        empty = jax.tree.map(jnp.zeros_like, state)
        assert_same(serialization.from_bytes(empty, serialization.to_bytes(state)), state)


# ReDo


@pytest.mark.parametrize("layer", ACTIVATIONS)
@pytest.mark.parametrize("mask", [None, MASK])
def test_dormancy_against_numpy(layer, mask):
    activations = draw(20, ACTIVATIONS)[layer]
    activations[..., 0] = 0
    s = jax.jit(plasticity.dormancy)(activations, mask)
    np.testing.assert_allclose(s, reference_dormancy(activations, MASK | (mask is None)), rtol=1e-5)
    assert s[0] == 0
    np.testing.assert_array_equal(plasticity.dormancy(np.zeros_like(activations), mask), np.zeros(UNITS[layer]))


def test_redo_against_numpy_and_vmapped_over_the_threshold():
    params, fresh, activations = draw(21), draw(22), draw(23, ACTIVATIONS)
    thresholds, counts = np.float32([0.0, 0.85, 1.2, 9.0]), []
    activations["dense"][MASK, 2] = 0
    many = jax.jit(
        jax.vmap(lambda t: plasticity.redo(params, fresh, activations, LINKS, threshold=t, mask=jnp.asarray(MASK)))
    )(thresholds)
    for i, threshold in enumerate(thresholds):
        replaced = {layer: reference_dormancy(h, MASK) <= threshold for layer, h in activations.items()}
        counts.append(sum(r.sum() for r in replaced.values()))
        new, changed = lane(many, i)
        expected, expected_changed = reference_replace(params, fresh, replaced, LINKS)
        assert_close(new, expected, rtol=0, atol=0)
        assert_same(changed, expected_changed)
    assert counts[0] == 1
    assert counts[0] < counts[1] < counts[2] < counts[3] == sum(UNITS.values())


MLP_LINKS = (Link("hidden_0", "hidden_1"), Link("hidden_1", "head"))
MLP_SHAPES = {
    "hidden_0": {"kernel": (4, 6), "bias": (6,)},
    "hidden_1": {"kernel": (6, 5), "bias": (5,)},
    "head": {"kernel": (5, 3), "bias": (3,)},
}


def mlp(params):
    """Logits of a ReLU network on eight samples, and its hidden activations, in NumPy."""
    h, hidden = draw(24, (8, 4)), {}
    for layer in ("hidden_0", "hidden_1"):
        h = hidden[layer] = np.maximum(h @ params[layer]["kernel"] + params[layer]["bias"], 0)
    return h @ params["head"]["kernel"] + params["head"]["bias"], hidden


def test_redo_revives_dead_units_and_keeps_the_function():
    params, fresh = draw(29, MLP_SHAPES), draw(30, MLP_SHAPES)
    params["hidden_0"]["bias"][2] = params["hidden_1"]["bias"][0] = params["hidden_1"]["bias"][4] = -100.0
    before, activations = mlp(params)
    dead = {layer: (h == 0).all(0) for layer, h in activations.items()}
    assert dead["hidden_0"][2]
    assert dead["hidden_1"][[0, 4]].all()
    new, _ = jax.device_get(jax.jit(lambda h: plasticity.redo(params, fresh, h, MLP_LINKS, threshold=0.0))(activations))
    for layer in dead:
        assert (new[layer]["kernel"] != params[layer]["kernel"]).any(0)[dead[layer]].all()
        assert not new[layer]["bias"][dead[layer]].any()
    after, revived = mlp(new)
    np.testing.assert_array_equal(after, before)
    for layer in dead:
        assert revived[layer].any(0).all()


# Continual backprop


def test_continual_backprop_against_numpy_over_many_steps():
    steps, options = 12, {"decay": 0.9, "rate": 0.23, "maturity": 1}
    params = jax.tree.map(jnp.asarray, draw(25))
    fresh, learned = [draw(30 + t) for t in range(steps)], [draw(90 + t) for t in range(steps)]
    activations = [draw(60 + t, ACTIVATIONS) for t in range(steps)]

    def run(options):
        def step(carry, inputs):
            params, state = carry
            params, inputs = jax.tree.map(jnp.add, params, inputs[0]), inputs[1:]
            due = is_any_due(state, rate=options["rate"], maturity=options["maturity"])
            params, state, changed = plasticity.continual_backprop(
                state, params, *inputs, LINKS, mask=jnp.asarray(MASK), **options
            )
            return (params, state), (params, changed, state, due)

        inputs = jax.tree.map(lambda *x: jnp.stack(x), *zip(learned, fresh, activations, strict=True))
        return jax.lax.scan(step, (params, plasticity.init_utility(params, LINKS)), inputs)[1]

    outputs = jax.jit(run)(options)
    reference, expected, counts = ReferenceContinualBackprop(LINKS, UNITS, **options), wide(params), []
    for t in range(steps):
        expected = jax.tree.map(np.add, expected, learned[t])
        expected, changed, replaced = reference.step(expected, fresh[t], activations[t], MASK)
        new, new_changed, state, due = lane(outputs, t)
        assert_close(new, expected, rtol=1e-4, atol=1e-5)
        assert_same(new_changed, changed)
        assert_close(state.utility, reference.u)
        assert_close(state.mean_activation, reference.f)
        assert_close(state.age, reference.age)
        assert_close(state.pending, reference.pending, atol=1e-5)
        counts.append(sum(r.sum() for r in replaced.values()))
        assert due == (counts[-1] > 0)
    assert counts[0] == 0
    assert 8 < sum(counts) < 40
    assert max(counts) > 1


def test_continual_backprop_hand_worked():
    params = {
        "body": {"kernel": jnp.array([[1.0, 2.0, 3.0]]), "bias": jnp.array([4.0, 5.0, 6.0])},
        "head": {"kernel": jnp.array([[1.0, -3.0], [0.5, 0.5], [2.0, 2.0]]), "bias": jnp.array([10.0, 20.0])},
    }
    fresh, links = jax.tree.map(lambda x: jnp.full_like(x, 0.125), params), [Link("body", "head")]
    state = plasticity.init_utility(params, links)

    @jax.jit
    def step(state, params, activations):
        options = {"decay": 0.5, "rate": 0.25, "maturity": 0}
        return plasticity.continual_backprop(state, params, fresh, activations, links, **options)

    first = {"body": jnp.array([[-1.0, 4.0, 1.0], [3.0, 4.0, 1.0]])}  # E|h| 2, 4, 1; E h 1, 4, 1; mean|w_out| 2, 0.5, 2
    new, state, changed = step(state, params, first)
    np.testing.assert_array_equal(state.utility["body"], [2.0, 1.0, 1.0])
    np.testing.assert_array_equal(state.mean_activation["body"], [0.5, 2.0, 0.5])
    assert state.pending["body"] == 0.75
    assert_same(new, params)
    assert not any(x.any() for x in jax.tree.leaves(changed))
    second = {"body": jnp.array([[0.0, 1.0, 4.0]])}  # contributions 0, 0.5, 8: u 1, 0.75, 4.5 before correction by 0.75
    new, state, _ = step(state, params, second)
    np.testing.assert_array_equal(state.utility["body"], [1.0, 0.0, 4.5])
    np.testing.assert_array_equal(state.mean_activation["body"], [0.25, 0.0, 2.25])
    np.testing.assert_array_equal(state.age["body"], [2, 0, 2])
    assert state.age["body"].dtype == jnp.int32
    assert state.pending["body"] == 0.5
    np.testing.assert_array_equal(new["body"]["kernel"], [[1.0, 0.125, 3.0]])
    np.testing.assert_array_equal(new["body"]["bias"], [4.0, 0.0, 6.0])
    np.testing.assert_array_equal(new["head"]["kernel"], [[1.0, -3.0], [0.0, 0.0], [2.0, 2.0]])
    np.testing.assert_allclose(new["head"]["bias"], [11.0, 21.0], rtol=1e-6)  # f 1.5 / 0.75 times 0.5


def test_the_bias_absorbs_a_constant_unit_exactly():
    params, fresh = draw(31, MLP_SHAPES), draw(32, MLP_SHAPES)
    params["hidden_0"]["kernel"][:, 3], params["hidden_0"]["bias"][3] = 0.0, 0.75
    params["hidden_1"]["kernel"][3] = 1e-3  # so that it is of least use
    before, hidden = mlp(params)
    state = plasticity.init_utility(params, MLP_LINKS[:1])
    step = jax.jit(
        lambda state: plasticity.continual_backprop(
            state, params, fresh, hidden, MLP_LINKS[:1], decay=0.9, rate=1 / 6, maturity=2
        )
    )
    for number in range(1, 4):
        new, state, changed = jax.device_get(step(state))
        assert changed["hidden_0"]["bias"][3] == (number == 3)
    np.testing.assert_array_equal(changed["hidden_0"]["bias"], np.arange(6) == 3)
    np.testing.assert_array_equal(new["hidden_0"]["kernel"][:, 3], fresh["hidden_0"]["kernel"][:, 3])
    assert not new["hidden_1"]["kernel"][3].any()
    assert not changed["hidden_1"]["bias"].any()
    np.testing.assert_allclose(mlp(new)[0], before, rtol=1e-5, atol=1e-5)
    forgotten = new | {"hidden_1": new["hidden_1"] | {"bias": params["hidden_1"]["bias"]}}
    assert np.abs(mlp(forgotten)[0] - before).max() > 1e-4


def test_continual_backprop_vmapped_over_its_scalars():
    params, fresh, activations = draw(26), draw(27), draw(28, ACTIVATIONS)
    state = plasticity.init_utility(params, LINKS)
    options = {"decay": [0.0, 0.5, 0.9], "rate": [1.0, 0.5, 0.0], "maturity": [0.0, 1.0, 0.0]}

    def call(options):
        return plasticity.continual_backprop(state, params, fresh, activations, LINKS, **options)

    many = jax.jit(jax.vmap(call))(jax.tree.map(jnp.float32, options, is_leaf=lambda x: isinstance(x, list)))
    counts = []
    for i in range(3):
        one = {name: values[i] for name, values in options.items()}
        expected, changed, replaced = ReferenceContinualBackprop(LINKS, UNITS, **one).step(
            params, fresh, activations, np.ones(6, bool)
        )
        new, _, new_changed = lane(many, i)
        assert_close(new, expected)
        assert_same(new_changed, changed)
        counts.append(sum(r.sum() for r in replaced.values()))
    assert counts == [sum(UNITS.values()), 0, 0]


# All of them

OTHER_LEAVES = {"count": jnp.int32(7), "flag": jnp.array([True]), "key": jax.random.key(1), "none": None}


def apply_update(optimizer, params, gradient):
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), params)
    return updates


METHODS = {
    "average_gradient": lambda p, q, h: plasticity.average_gradient(p, q),
    "dash": lambda p, q, h: plasticity.dash(p, q),
    "orthogonalize": lambda p, q, h: plasticity.orthogonalize(p),
    "l2_init": lambda p, q, h: apply_update(plasticity.l2_init(0.3), p, q),
    "follow": lambda p, q, h: plasticity.follow(p, q),
    "replace_units": lambda p, q, h: plasticity.replace_units(p, q, some_units(0), LINKS)[0],
    "redo": lambda p, q, h: plasticity.redo(p, q, h, LINKS, threshold=1.0)[0],
    "continual_backprop": lambda p, q, h: plasticity.continual_backprop(
        plasticity.init_utility(p, LINKS), p, q, h, LINKS, rate=0.5, maturity=0
    )[0],
}


@pytest.mark.parametrize("name", METHODS)
def test_small_dtypes_are_computed_in_float32_and_rounded_once(name):
    trees = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (draw(40), draw(41), draw(42, ACTIVATIONS)))
    new = jax.jit(METHODS[name])(*trees)
    expected = jax.jit(METHODS[name])(*jax.tree.map(lambda x: x.astype(jnp.float32), trees))
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == jnp.bfloat16, new))
    assert_same(new, jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected))
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(trees[0]), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_float64_is_computed_in_float64(name):
    with jax.enable_x64(True):
        p, q, h = draw(43, dtype=np.float64), draw(44, dtype=np.float64), draw(45, ACTIVATIONS, np.float64)
        new = jax.device_get(jax.jit(METHODS[name])(p, q, h))
    every_sample = np.ones(6, bool)
    dormant = {layer: reference_dormancy(x, every_sample) <= 1 for layer, x in h.items()}
    backprop = ReferenceContinualBackprop(LINKS, UNITS, 0.99, 0.5, 0)
    expected = {
        "average_gradient": lambda: jax.tree.map(lambda a, g: 0.7 * a - 0.3 * g, p, q),
        "dash": lambda: reference_dash(p, q, 0.3),
        "orthogonalize": lambda: reference_fire(p),
        "l2_init": lambda: jax.tree.map(lambda a, g: g + 0.6 * (a - g), p, q),
        "follow": lambda: jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, p, q),
        "replace_units": lambda: reference_replace(p, q, some_units(0), LINKS)[0],
        "redo": lambda: reference_replace(p, q, dormant, LINKS)[0],
        "continual_backprop": lambda: backprop.step(p, q, h, every_sample)[0],
    }[name]()
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == np.float64, new))
    assert_close(new, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_leaves_that_are_not_floating_stay(name):
    params, other, activations = draw(46) | {"other": OTHER_LEAVES}, draw(47), draw(48, ACTIVATIONS)
    changed = {"count": jnp.int32(0), "flag": jnp.array([False]), "key": jax.random.key(2), "none": None}
    new = jax.jit(METHODS[name])(params, other | {"other": changed}, activations)["other"]
    kept = changed if name == "l2_init" else OTHER_LEAVES  # l2_init returns the gradient
    assert jax.random.key_data(new.pop("key")).tolist() == jax.random.key_data(kept["key"]).tolist()
    assert_same(new, {leaf: kept[leaf] for leaf in ("count", "flag", "none")})


def test_wrapped_optimisers_leave_other_leaves_alone():
    params = {"w": jnp.ones(2), "count": jnp.int32(7)}
    optimizer = plasticity.hare_tortoise(optax.identity(), every=1)
    updates, state = optimizer.update({"w": jnp.ones(2), "count": jnp.int32(0)}, optimizer.init(params), params)
    assert state.slow["count"] == 7
    assert updates["count"] == 0


@pytest.mark.parametrize("name", plasticity.__all__)
def test_public_names_are_documented(name):
    value = getattr(plasticity, name)
    words = inspect.getdoc(value)
    if inspect.isfunction(value):
        assert "Returns:" in words or name == "check_links"
        for parameter in inspect.signature(value).parameters.values():
            assert re.search(rf"^  {parameter.name}: ", words, re.MULTILINE), parameter
            required = parameter.default is inspect.Parameter.empty
            assert required or parameter.kind is inspect.Parameter.KEYWORD_ONLY or name == "dormancy"
