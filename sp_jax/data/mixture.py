"""The embedded default: a Gaussian mixture that needs no download and shows the paper's effect in seconds."""

import jax
import numpy as np

from sp_jax.types import Dataset

NUM_CLASSES, CLUSTERS, DIMENSIONS, NUM_SAMPLES = 10, 30, 64, 6_000


def mixture() -> Dataset:
    """10 classes of 30 clusters each: centres N(0, I) in 64 dimensions, samples centre + N(0, I), divided by sqrt(2).

    Synthetic, and always the same: drawn from a fixed key. A sample belongs to any cluster with equal chance.

    Returns:
      A `Dataset` of 6,000 float32 images [8, 8, 1] of mean 0 and variance 1, in NumPy arrays.
    """
    centres_key, cluster_key, noise_key = jax.random.split(jax.random.key(0), 3)
    centres = jax.random.normal(centres_key, (NUM_CLASSES * CLUSTERS, DIMENSIONS), np.float32)
    cluster = jax.random.randint(cluster_key, (NUM_SAMPLES,), 0, NUM_CLASSES * CLUSTERS, np.int32)
    noise = jax.random.normal(noise_key, (NUM_SAMPLES, DIMENSIONS), np.float32)
    inputs = (np.asarray(centres)[cluster] + np.asarray(noise)) / np.sqrt(2, dtype=np.float32)
    labels = (np.asarray(cluster) // CLUSTERS).astype(np.int32)
    return Dataset(inputs.reshape(-1, 8, 8, 1), labels, num_classes=NUM_CLASSES, name="mixture")
