"""Batches of samples, [B, ...] or pytrees of such: their shapes, and how they lose their padding."""

import chex
import jax
import jax.numpy as jnp


def without_padding(inputs: chex.ArrayTree, mask: chex.Array | None) -> chex.ArrayTree:
    """Return the samples of a batch, with the padding replaced by the real ones (which come first), repeated.

    Args:
      inputs: [B, ...], or a pytree of such.
      mask: [B] booleans, False marks padding, or None.

    Returns:
      Like `inputs`.
    """
    if mask is None:
        return inputs
    places = jnp.arange(mask.shape[0]) % jnp.maximum(jnp.sum(mask), 1)
    return jax.tree.map(lambda x: x[places], inputs)


def count(inputs: chex.ArrayTree) -> int:
    """Return B of inputs [B, ...], arrays or their shapes."""
    return jax.tree.leaves(inputs)[0].shape[0]


def shapes(inputs: chex.ArrayTree, size: int | None = None) -> chex.ArrayTree:
    """Return the shapes of inputs in the devices' dtypes, as `jax.ShapeDtypeStruct`.

    Args:
      inputs: [B, ...], or a pytree of such; arrays or their shapes.
      size: in place of B; None leaves it.
    """

    def leaf(x):
        shape = x.shape if size is None else (size, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(x.dtype))

    return jax.tree.map(leaf, inputs)


def zeros(inputs: chex.ArrayTree, size: int = 1) -> chex.ArrayTree:
    """Return zeros in the shapes of such inputs, with `size` in place of B."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes(inputs, size))


def described(inputs: chex.ArrayTree) -> str:
    """Return dtypes and shapes as text.

    >>> described({"ids": jax.ShapeDtypeStruct((3, 4), int), "x": jax.ShapeDtypeStruct((3,), float)})
    'ids: int32 of shape (3, 4), x: float32 of shape (3,)'
    """
    leaves = jax.tree_util.tree_leaves_with_path(shapes(inputs))
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    texts = [f"{x.dtype} of shape {x.shape}" for _, x in leaves]
    return ", ".join(f"{name}: {text}" if name else text for name, text in zip(names, texts, strict=True))
