"""The embedded default: a Gaussian mixture that needs no download and shows the paper's effect in seconds."""

import jax
import numpy as np

from sp_jax.types import Dataset

NUM_CLASSES, CLUSTERS, DIMENSIONS, NUM_SAMPLES = 10, 30, 64, 6_000


def mixture() -> Dataset:
    """Draw 10 classes of 30 clusters each: centres N(0, I) in 64 dimensions, samples (centre + N(0, I)) / sqrt(2).

    Synthetic, and always the same: drawn from a fixed key. A sample belongs to each cluster with equal probability:
    6,000 float32 images [8, 8, 1] of mean 0 and variance 1, in NumPy arrays.
    """
    centres_key, *keys = jax.random.split(jax.random.key(0), 3)
    return _draw("mixture", _centres(centres_key), *keys)


def mixture_source() -> Dataset:
    """Draw a related mixture to pre-train on (Section 4.2): `mixture`'s centres, each moved by 0.5 · N(0, I), rescaled
    to variance 1; classes and shapes are the same."""
    moved_key, *keys = jax.random.split(jax.random.key(1), 3)
    centres = _centres(jax.random.split(jax.random.key(0), 3)[0])
    return _draw("mixture_source", (centres + 0.5 * _centres(moved_key)) / np.sqrt(1.25, dtype=np.float32), *keys)


def _centres(key):
    return np.asarray(jax.random.normal(key, (NUM_CLASSES * CLUSTERS, DIMENSIONS), np.float32))


def _draw(name, centres, cluster_key, noise_key):
    cluster = jax.random.randint(cluster_key, (NUM_SAMPLES,), 0, NUM_CLASSES * CLUSTERS, np.int32)
    noise = jax.random.normal(noise_key, (NUM_SAMPLES, DIMENSIONS), np.float32)
    inputs = (centres[cluster] + np.asarray(noise)) / np.sqrt(2, dtype=np.float32)
    labels = (np.asarray(cluster) // CLUSTERS).astype(np.int32)
    return Dataset(inputs.reshape(-1, 8, 8, 1), labels, num_classes=NUM_CLASSES, name=name)
