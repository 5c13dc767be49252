"""Arithmetic that the methods share: in at least float32, well defined for zero vectors."""

import chex
import jax.numpy as jnp

from sp_jax.transforms import like


def widen(x: chex.Array) -> chex.Array:
    """Return the array in its own dtype or float32, whichever is wider."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def exponential_average(average: chex.Array, value: chex.Array, decay: chex.Numeric) -> chex.Array:
    """Return decay · average + (1 - decay) · value, in the dtype of `average`.

    Args:
      average: any shape.
      value: of the same shape.
      decay: a scalar in [0, 1].

    Returns:
      An array like `average`.
    """
    return like(decay * widen(average) + (1 - decay) * widen(value), average)


def unit_vectors(x: chex.Array, axes: tuple[int, ...]) -> chex.Array:
    """Return x / ‖x‖ over some axes; zero where x is zero.

    Args:
      x: any shape.
      axes: those over which a vector (or a matrix, with its Frobenius norm) extends.

    Returns:
      An array of the shape of `x`, at least float32.
    """
    x = widen(x)
    tiny = jnp.finfo(x.dtype).tiny
    # Divide by the largest entry first: the squares of a small gradient would underflow.
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    x = x / jnp.where(largest < tiny, 1, largest)
    norm = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), axis=axes, keepdims=True))
    return x / jnp.where(norm < tiny, 1, norm)


def unit_means(activations: chex.Array, mask: chex.Array | None = None) -> chex.Array:
    """Return the mean of each unit over the real samples and all positions.

    Args:
      activations: [B, ..., units].
      mask: [B] booleans, False marks padding; None where all samples are real.

    Returns:
      [units], at least float32; zeros without a real sample.
    """
    x = widen(activations)
    x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
    if mask is None:
        return jnp.mean(x, axis=0)
    return jnp.sum(jnp.where(mask[:, None], x, 0), axis=0) / jnp.maximum(jnp.sum(mask), 1)


def check_output_axis(output_axis: int) -> None:
    """Raise a ValueError where the axis of a kernel's output units is neither the last nor the first."""
    if output_axis not in (0, -1):
        raise ValueError(f"output_axis must be -1 ([..., in, out]) or 0 ([out, in, ...]), got {output_axis}")
