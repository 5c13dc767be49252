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
    """The networks of `experiments.config.choices` in Flax's own layers."""

    settings: Any
    classes: int

    @nn.compact
    def __call__(self, x, train):
        """Map [B, ...] to logits."""
        settings, options = self.settings, dict(choices.PRECISIONS[self.settings.precision])
        dtype, dense = options.get("dtype"), partial(nn.Dense, **options)
        if settings.model == "birnn":
            lengths = jnp.maximum(jnp.sum(x > 0, axis=1), 1)
            h = nn.Embed(text.VOCABULARY, settings.width, dtype=dtype)(x)
            for _ in range(2):
                rnns = (nn.RNN(nn.GRUCell(settings.width, dtype=dtype)) for _ in range(2))
                carry, h = nn.Bidirectional(*rnns)(h, seq_lengths=lengths, return_carry=True)
            return dense(self.classes)(jnp.concatenate(carry, -1))
        x = x.astype(jnp.float32) / 127.5 - 1 if x.dtype == jnp.uint8 else x
        x = x if dtype is None else x.astype(dtype)
        if settings.model != "resnet18":
            x = x.reshape(len(x), -1)
            for units in settings.hidden if settings.model == "mlp" else ():
                x = getattr(nn, settings.activation)(dense(units)(x))
            return dense(self.classes)(x)
        x = nn.Conv(settings.width, (3, 3), padding=1, use_bias=False, **options)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=dtype)(x))
        for stage, blocks in enumerate(settings.stage_sizes):
            for i in range(blocks):
                x = Block(settings.width * 2**stage, 2 if stage and not i else 1, options)(x, train)
        return dense(self.classes)(x.mean((1, 2)))


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
