"""Training in plain NumPy, float64, gradients by hand: what the engine is checked against. Shares no code with it."""

import numpy as np


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0), x


def dense_back(g, x, p):
    grads = {"kernel": x.T @ g}
    if "bias" in p:
        grads["bias"] = g.sum(0)
    return g @ p["kernel"].T, grads


def conv(x, p):
    """3x3, padding 1, stride 1; [B, H, W, C]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    out = sum(padded[:, i : i + h, j : j + w] @ p["kernel"][i, j] for i in range(3) for j in range(3))
    return out, padded


def conv_back(g, padded, p):
    h, w = g.shape[1:3]
    dx, dk = np.zeros_like(padded), np.zeros_like(p["kernel"])
    for i in range(3):
        for j in range(3):
            dk[i, j] = np.einsum("bhwc,bhwf->cf", padded[:, i : i + h, j : j + w], g)
            dx[:, i : i + h, j : j + w] += g @ p["kernel"][i, j].T
    return dx[:, 1:-1, 1:-1], {"kernel": dk}


def norm(x, p, eps=1e-5):
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    xhat = (x - mean) / np.sqrt(var + eps)
    return xhat * p["scale"] + p["bias"], (xhat, var, mean)


def norm_back(g, cache, p, eps=1e-5):
    xhat, var, _ = cache
    axes = tuple(range(g.ndim - 1))
    gx = g * p["scale"]
    dx = (gx - gx.mean(axes) - xhat * (gx * xhat).mean(axes)) / np.sqrt(var + eps)
    return dx, {"scale": (g * xhat).sum(axes), "bias": g.sum(axes)}


class Net:
    """A chain of layers: names of `dense`, `conv`, `norm`, or the functions tanh, relu, pool, flat."""

    def __init__(self, layers, params, stats=None):
        self.layers, self.params, self.stats = layers, params, stats or {}

    def loss_and_gradient(self, x, y):
        caches = []
        for kind, name in self.layers:
            if kind in ("dense", "conv", "norm"):
                x, cache = {"dense": dense, "conv": conv, "norm": norm}[kind](x, self.params[name])
                if kind == "norm":
                    _, var, mean = cache
                    s = self.stats[name]
                    s["mean"], s["var"] = 0.9 * s["mean"] + 0.1 * mean, 0.9 * s["var"] + 0.1 * var
            elif kind == "tanh":
                x = cache = np.tanh(x)
            elif kind == "relu":
                x, cache = np.maximum(x, 0), x > 0
            elif kind == "pool":
                x, cache = x.mean((1, 2)), x.shape
            elif kind == "flat":
                x, cache = x.reshape(len(x), -1), x.shape
            caches.append(cache)
        shifted = x - x.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        rows = np.arange(len(y))
        losses, correct = -log_p[rows, y], x.argmax(1) == y
        g = np.exp(log_p)
        g[rows, y] -= 1
        g, grads = g / len(y), {}
        for (kind, name), cache in zip(self.layers[::-1], caches[::-1], strict=True):
            if kind in ("dense", "conv", "norm"):
                back = {"dense": dense_back, "conv": conv_back, "norm": norm_back}[kind]
                g, grads[name] = back(g, cache, self.params[name])
            elif kind == "tanh":
                g = g * (1 - cache**2)
            elif kind == "relu":
                g = g * cache
            elif kind == "pool":
                g = np.broadcast_to(g[:, None, None] / (cache[1] * cache[2]), cache)
            elif kind == "flat":
                g = g.reshape(cache)
        return losses, correct, grads


class Sgd:
    def __init__(self, learning_rate, weight_decay):
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def direction(self, path, gradient):
        return gradient

    def step(self, params, grads):
        for layer, leaves in grads.items():
            for leaf, g in leaves.items():
                g = g + self.weight_decay * params[layer][leaf]
                params[layer][leaf] = params[layer][leaf] - self.learning_rate * self.direction((layer, leaf), g)


class Adam(Sgd):
    def __init__(self, *args):
        super().__init__(*args)
        self.m, self.v, self.t = {}, {}, {}

    def direction(self, path, g):
        self.t[path] = self.t.get(path, 0) + 1
        self.m[path] = 0.9 * self.m.get(path, 0) + 0.1 * g
        self.v[path] = 0.999 * self.v.get(path, 0) + 0.001 * g * g
        m, v = self.m[path] / (1 - 0.9 ** self.t[path]), self.v[path] / (1 - 0.999 ** self.t[path])
        return m / (np.sqrt(v) + 1e-8)


def train_round(net, optimizer, inputs, labels, orders, batch_size, threshold=2.0):
    """Epochs in these orders until the online training accuracy reaches the threshold.

    Returns the number of epochs, and accuracy and mean loss of the last one.
    """
    epochs = 0
    for order in orders:
        epochs += 1
        losses, correct = [], []
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch_losses, batch_correct, grads = net.loss_and_gradient(inputs[chosen], labels[chosen])
            optimizer.step(net.params, grads)
            losses.extend(batch_losses)
            correct.extend(batch_correct)
        if np.mean(correct) >= threshold:
            break
    return epochs, np.mean(correct), np.mean(losses)
