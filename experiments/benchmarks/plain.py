"""A training step as anyone would write it in Flax and optax: what the engine's is compared with."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from experiments.config import choices
from sp_jax.data import text
from sp_jax.types import Dataset


class Block(nn.Module):
    """Two convolutions beside an identity."""

    features: int
    stride: int
    options: dict

    @nn.compact
    def __call__(self, x, train):
        """Map images to images."""
        conv = partial(nn.Conv, use_bias=False, **self.options)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.options.get("dtype"))
        y = nn.relu(norm()(conv(self.features, (3, 3), self.stride, padding=1)(x)))
        y = norm()(conv(self.features, (3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = norm()(conv(self.features, (1, 1), self.stride)(x))
        return nn.relu(x + y)


class Network(nn.Module):
    """The networks of `experiments.config.choices`, with their own norms, in Flax's own layers."""

    settings: Any
    classes: int

    @nn.compact
    def __call__(self, x, train):
        """Map [B, ...] to logits."""
        settings, options = self.settings, dict(choices.PRECISIONS[self.settings.precision])
        last = {"logistic": _flat, "mlp": _mlp, "resnet18": _resnet, "vit": _vit, "birnn": _birnn}[settings.model]
        if x.dtype == jnp.uint8:
            x = x.astype(jnp.float32) / 127.5 - 1
        if options.get("dtype") and x.dtype == jnp.float32:
            x = x.astype(options["dtype"])
        return nn.Dense(self.classes, **options)(last(settings, options, x, train))


def _flat(settings, options, x, train):
    return x.reshape(len(x), -1)


def _mlp(settings, options, x, train):
    x = x.reshape(len(x), -1)
    for units in settings.hidden:
        x = getattr(nn, settings.activation)(nn.Dense(units, **options)(x))
    return x


def _resnet(settings, options, x, train):
    x = nn.Conv(settings.width, (3, 3), padding=1, use_bias=False, **options)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=options.get("dtype"))(x))
    for stage, blocks in enumerate(settings.stage_sizes):
        for i in range(blocks):
            x = Block(settings.width * 2**stage, 2 if stage and not i else 1, options)(x, train)
    return x.mean((1, 2))


class Tokens(nn.Module):
    """A class token before the patches, and the positions of all."""

    @nn.compact
    def __call__(self, x):
        """Map [B, N, W] to [B, 1 + N, W]."""
        first = self.param("class_token", nn.initializers.normal(0.02), (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (len(x), *first.shape[1:])), x], axis=1)
        return x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)


def _vit(settings, options, x, train):
    width, norm = settings.width, partial(nn.LayerNorm, dtype=options.get("dtype"))
    x = Tokens()(nn.Conv(width, (4, 4), 4, **options)(x).reshape(len(x), -1, width))
    for _ in range(settings.depth):
        x = x + nn.MultiHeadDotProductAttention(settings.heads, **options)(norm()(x))
        y = nn.gelu(nn.Dense(4 * width, **options)(norm()(x)), approximate=False)
        x = x + nn.Dense(width, **options)(y)
    return norm()(x[:, 0])


def _birnn(settings, options, x, train):
    dtype, lengths = options.get("dtype"), jnp.maximum(jnp.sum(x > 0, axis=1), 1)
    h = nn.Embed(text.VOCABULARY, settings.width, dtype=dtype)(x)
    for _ in range(2):
        rnns = (nn.RNN(nn.GRUCell(settings.width, dtype=dtype)) for _ in range(2))
        carry, h = nn.Bidirectional(*rnns)(h, seq_lengths=lengths, return_carry=True)
    return jnp.concatenate(carry, -1)


def step(settings: Any, data: Dataset) -> tuple:
    """Return a step of Adam, `step(carry, x, y)`, called from a Python loop, and its arguments as shapes."""
    network, optimizer = Network(settings, data.num_classes), optax.adam(settings.learning_rate)
    batch = data.batch(settings.batch_size)
    x, y = batch.inputs, batch.labels
    variables = jax.eval_shape(lambda key, x: network.init(key, x, False), jax.random.key(0), x)
    params, stats = variables["params"], variables.get("batch_stats", {})

    def step(carry, x, y):
        params, stats, state = carry

        def loss(params):
            logits, new = network.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), y)
            return losses.mean(), (new.get("batch_stats", {}), jnp.sum(jnp.argmax(logits, -1) == y))

        (value, (new, right)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), new, state), value, right

    return step, ((params, stats, jax.eval_shape(optimizer.init, params)), x, y)
