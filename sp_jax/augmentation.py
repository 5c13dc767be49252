"""Augmentation: pure functions `augment(key, inputs)` of a batch, for training alone.

A batch's key depends on seed, round, epoch and step, so a lane draws the same alone, beside others, and after a stop.

>>> flip_crop(jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8)).shape
(2, 8, 8, 3)
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

Augmentation = Callable[[chex.PRNGKey, chex.ArrayTree], chex.ArrayTree]


def flip(key: chex.PRNGKey, images: chex.Array) -> chex.Array:
    """Mirror each image left to right, or not, with probability 1/2.

    Args:
      key: consumed.
      images: [B, H, W, C], of any dtype.

    Returns:
      [B, H, W, C].
    """
    mirrored = jax.random.bernoulli(key, shape=images.shape[:1])
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop(key: chex.PRNGKey, images: chex.Array, *, margin: int = 4) -> chex.Array:
    """Move each image by up to `margin` pixels in each direction; what comes in at its edges is 0.

    Args:
      key: consumed.
      images: [B, H, W, C], of any dtype.
      margin: pixels.

    Returns:
      [B, H, W, C].
    """
    count, height, width, channels = images.shape
    edges = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    corners = jax.random.randint(key, (count, 2), 0, 2 * margin + 1)

    def one(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

    return jax.vmap(one)(jnp.pad(images, edges), corners)


def flip_crop(key: chex.PRNGKey, images: chex.Array) -> chex.Array:
    """Mirror and move each image, as is usual for CIFAR: `flip`, then `crop` by up to 4 pixels."""
    one, two = jax.random.split(key)
    return crop(two, flip(one, images))


AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "flip": flip, "crop": crop, "flip_crop": flip_crop}
