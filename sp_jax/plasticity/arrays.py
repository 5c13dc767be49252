"""Arithmetic that the methods share: in at least float32, well defined for zero vectors."""

import chex
import jax.numpy as jnp

from sp_jax.transforms import like


def widen(x: chex.Array) -> chex.Array:
    """Return the array in its own dtype or float32, whichever is wider."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def exponential_average(average: chex.Array, value: chex.Array, decay: chex.Numeric) -> chex.Array:
    """Return decay · average + (1 - decay) · value, decay in [0, 1], in the dtype of `average`; both have one shape."""
    return like(decay * widen(average) + (1 - decay) * widen(value), average)


def unit_vectors(x: chex.Array, axes: tuple[int, ...]) -> chex.Array:
    """Return x / ‖x‖ over the axes of a vector (or a matrix: Frobenius norm), in at least float32; zero where x is
    zero."""
    x = widen(x)
    tiny = jnp.finfo(x.dtype).tiny
    # Divide by the largest entry first: the squares of a small gradient would underflow.
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0)
    x = x / jnp.where(largest < tiny, 1, largest)
    norm = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), axis=axes, keepdims=True))
    return x / jnp.where(norm < tiny, 1, norm)


def unit_means(activations: chex.Array, mask: chex.Array | None = None) -> chex.Array:
    """Return the mean [units] of each unit's activations [B, ..., units] over the real samples and all positions, in at
    least float32; zeros without a real sample. The mask [B] is False for padding; None where all are real."""
    x = widen(activations)
    x = jnp.mean(x, axis=tuple(range(1, x.ndim - 1)))
    if mask is None:
        return jnp.mean(x, axis=0)
    return jnp.sum(jnp.where(mask[:, None], x, 0), axis=0) / jnp.maximum(jnp.sum(mask), 1)


def check_output_axis(output_axis: int) -> None:
    """Raise a ValueError where the axis of a kernel's output units is neither the last nor the first."""
    if output_axis not in (0, -1):
        raise ValueError(f"output_axis must be -1 ([..., in, out]) or 0 ([out, in, ...]), got {output_axis}")
