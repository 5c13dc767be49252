"""The later methods in plain NumPy, written from their formulas: loops, float64, no code in common."""

import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.plasticity import Link

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


def some_units(seed):
    rng = np.random.default_rng(seed)
    return {layer: rng.random(n) < 0.5 for layer, n in UNITS.items()}


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


def loss(params, x):
    return sum(jnp.sum(jnp.sin(leaf * x)) for leaf in jax.tree.leaves(params))
