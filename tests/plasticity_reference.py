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


class ReferenceResets:
    """Self-normalised resets: each unit's silences are kept as a list."""

    def __init__(self, links, units, threshold):
        self.links = links
        self.age = {layer: [0] * n for layer, n in units.items()}
        self.ended = {layer: [[] for _ in range(n)] for layer, n in units.items()}
        self.threshold = {k: [threshold] * n for k, n in units.items()}

    def step(self, params, fresh, activations, mask):
        replaced = {}
        for layer, ages in self.age.items():
            for i in range(len(ages)):
                if max(unit_samples(activations[layer], i, mask)) <= 0:
                    ages[i] += int(mask.sum())
                else:
                    self.end(layer, i)
            replaced[layer] = np.array([age >= t for age, t in zip(ages, self.threshold[layer], strict=True)])
            for i in np.flatnonzero(replaced[layer]):
                self.end(layer, i)
        return *reference_replace(params, fresh, replaced, self.links), replaced

    def end(self, layer, i):
        if 0 < self.age[layer][i] <= 20_000:
            self.ended[layer][i].append(self.age[layer][i])
        self.age[layer][i] = 0

    def tasks_ended(self, q):
        for layer, units in self.ended.items():
            for i, ended in enumerate(units):
                found, old = 100 if ended else 0, self.threshold[layer][i]
                while ended and sum(age <= found for age in ended) / len(ended) < q:
                    found += 100
                self.threshold[layer][i] = min(max(found if found < old else 2 * old, 100), 20_000)
                units[i] = []


class ReferenceUpgd:
    """UPGD-W by its paper's Algorithm: w ← (1 - α·d)·w - α·(g + ξ)·(1 - sigmoid(Û/η)), η the largest Û."""

    def __init__(self, params, decay):
        self.decay, self.steps, self.utility = decay, 0, jax.tree.map(np.zeros_like, wide(params))

    def step(self, params, gradient, noise, rate, weight_decay):
        self.steps += 1
        new, corrected = wide(params), wide(params)
        for layer in new:
            for name, w in new[layer].items():
                u, g = self.utility[layer][name], np.float64(gradient[layer][name])
                u[...] = self.decay * u - (1 - self.decay) * g * w
                corrected[layer][name] = u / (1 - self.decay**self.steps)
        largest = max(leaf.max() for leaf in jax.tree.leaves(corrected))
        for layer in new:
            for name, w in new[layer].items():
                g = gradient[layer][name] + np.float64(noise[layer][name])
                harm = 1 - 1 / (1 + np.exp(-corrected[layer][name] / largest))
                w[...] = (1 - rate * weight_decay) * w - rate * g * harm
        return new


def matrix_entries(kernel):
    """The entries of a kernel as a matrix [out, in · window]: {(row, column): index}, columns in the kernel's order."""
    *rest, out = kernel.shape
    places = [tuple(place) for place in np.ndindex(*rest)]
    return {(o, column): (*place, o) for o in range(out) for column, place in enumerate(places)}


def as_matrix(kernel):
    matrix = np.zeros((kernel.shape[-1], kernel.size // kernel.shape[-1]))
    for at, index in matrix_entries(kernel).items():
        matrix[at] = kernel[index]
    return matrix


def as_kernel(matrix, like):
    kernel = np.zeros_like(like)
    for at, index in matrix_entries(like).items():
        kernel[index] = matrix[at]
    return kernel


def reference_spectral(params, left, k):
    """The gradient of the spectral penalty after a power iteration from `left`, and the new u and v."""
    gradient, new_left, new_right = wide(params), {}, {}
    for layer, leaves in wide(params).items():
        for name, x in leaves.items():
            if name == "kernel":
                w = as_matrix(x)
                v = w.T @ left[layer]
                v = v / np.sqrt((v**2).sum())
                u = w @ v / np.sqrt(((w @ v) ** 2).sum())
                sigma = u @ w @ v
                gradient[layer][name] = as_kernel(2 * (sigma**k - 1) * k * sigma ** (k - 1) * np.outer(u, v), x)
                new_left[layer], new_right[layer] = u, v
            elif layer == "norm" and name == "scale":
                gradient[layer][name] = 2 * (x**k - 1) * k * x ** (k - 1)
            elif layer == "norm":
                gradient[layer][name] = 2 * k * x ** (2 * k - 1)
            else:  # ‖b‖^2k
                gradient[layer][name] = k * (x**2).sum() ** (k - 1) * 2 * x
    return gradient, new_left, new_right


def reference_parseval(params, scale):
    """The gradient of the Parseval penalty."""
    gradient = jax.tree.map(np.zeros_like, wide(params))
    for layer, leaves in wide(params).items():
        if "kernel" in leaves and layer != "head":
            w = as_matrix(leaves["kernel"])
            excess = w @ w.T - scale * np.eye(len(w))
            gradient[layer]["kernel"] = as_kernel((64 / len(w)) ** 2 * 4 * excess @ w, leaves["kernel"])
    return gradient


ORDER = ("conv", "norm", "point", "dense", "head")  # of the layers of SHAPES, as LINKS say


def reference_rescaling(params, first, strength, order=ORDER):
    new, product = wide(params), 1.0
    for layer in order:
        name = "scale" if layer == "norm" else "kernel"
        now, before = (np.sqrt((np.float64(tree[layer][name]) ** 2).sum()) for tree in (params, first))
        c = (strength * before + (1 - strength) * now) / now
        product = c if layer == "norm" else product * c
        new[layer][name] *= c
        if "bias" in new[layer]:
            new[layer]["bias"] *= product
    return new


def reference_clipping(params, bound):
    new = wide(params)
    for layer, leaves in new.items():
        if layer == "norm":
            continue
        fan_in = np.prod(leaves["kernel"].shape[:-1])
        for leaf in leaves.values():
            for index in np.ndindex(*leaf.shape):
                leaf[index] = min(max(leaf[index], -bound / fan_in**0.5), bound / fan_in**0.5)
    return new


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
