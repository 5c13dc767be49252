"""Penalties added to the loss of a batch (Section 3.3, Table 3). The strength is traced, so a sweep can vary it.

All penalties have one signature, and strength 0 is the plain cross-entropy for each:

    penalty(forward, inputs, labels, mask, strength) -> (losses, logits, batch_stats)

`forward(inputs)` is the model in train mode: logits [B, classes] and updated batch statistics. `losses` [B], nats, are
minimised, averaged over the real samples (`mask`); `logits` are those of the clean inputs, by which training accuracy
is counted.
L2 is no penalty here but `HParams.weight_decay`: coupled, it is added to the gradient.

A uniform prediction of two classes has the loss ln 2 = 0.693; its entropy is the same, and β times it is subtracted:

>>> forward, batch = lambda inputs: (inputs, {}), (jnp.zeros((1, 2)), jnp.array([0]), jnp.array([True]))
>>> [round(float(penalty(forward, *batch, 0.1)[0][0]), 3) for penalty in (none, confidence)]
[0.693, 0.624]
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from sp_jax.layers import scale_pixels
from sp_jax.tasks import cross_entropy

Forward = Callable[[chex.Array], tuple[chex.Array, chex.ArrayTree]]
Penalty = Callable[..., tuple[chex.Array, chex.Array, chex.ArrayTree]]


def none(
    forward: Forward,
    inputs: chex.Array,
    labels: chex.Array,
    mask: chex.Array,
    strength: chex.Numeric,
    losses: Callable = cross_entropy,
):
    """Compute the plain loss; `mask` and `strength` are not used.

    Args:
      forward: see the module.
      inputs: [B, ...].
      labels: [B] integers.
      mask: [B] booleans, False marks padding.
      strength: a scalar.
      losses: of a `sp_jax.tasks.Task`; (logits, labels) to [B].

    Returns:
      Losses [B], logits [B, classes], batch statistics.
    """
    del mask, strength
    logits, batch_stats = forward(inputs)
    return losses(logits, labels), logits, batch_stats


def confidence(forward: Forward, inputs: chex.Array, labels: chex.Array, mask: chex.Array, strength: chex.Numeric):
    """Compute the confidence penalty (Pereyra et al. 2017, the paper's [23]): cross-entropy − β · prediction's entropy.

    Args:
      forward: see the module.
      inputs: [B, ...].
      labels: [B] integers.
      mask: [B] booleans, False marks padding.
      strength: β >= 0, a scalar; the entropy is in nats.

    Returns:
      Losses [B], logits [B, classes], batch statistics.
    """
    losses, logits, batch_stats = none(forward, inputs, labels, mask, 0.0)
    log_p = jax.nn.log_softmax(logits.astype(losses.dtype))
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return losses - strength * entropy, logits, batch_stats


def adversarial(forward: Forward, inputs: chex.Array, labels: chex.Array, mask: chex.Array, strength: chex.Numeric):
    """Compute adversarial training's loss (the paper's [24]), by the fast gradient sign of Goodfellow et al. 2015.

    Half the cross-entropy of the samples x, plus half that of x + ε · sign(gradient of the loss with respect to x).

    Args:
      forward: see the module.
      inputs: [B, ...].
      labels: [B] integers.
      mask: [B] booleans, False marks padding.
      strength: ε >= 0, a scalar, in units of the scaled inputs: pixels lie in [-1, 1], so ε = 0.01 is 1.275 of 255 grey
        levels. The perturbed inputs are not clipped.

    Returns:
      Losses [B]; the logits [B, classes] and the batch statistics of the clean inputs.
    """
    inputs = scale_pixels(inputs)

    def total(x):
        losses, logits, batch_stats = none(forward, x, labels, mask, 0.0)
        return jnp.sum(jnp.where(mask, losses, 0)), (losses, logits, batch_stats)

    gradient, (losses, logits, batch_stats) = jax.grad(total, has_aux=True)(inputs)
    moved = inputs + strength * jax.lax.stop_gradient(jnp.sign(gradient)).astype(inputs.dtype)
    moved_losses, _, _ = none(forward, moved, labels, mask, 0.0)
    return (losses + moved_losses) / 2, logits, batch_stats
