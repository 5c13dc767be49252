"""Small synthetic images for convolutional networks: the class is that of a motif, at any position."""

import numpy as np

from sp_jax.types import Dataset

NUM_CLASSES, MOTIFS, SIZE, SIDE, NUM_SAMPLES = 10, 3, 4, 8, 3_000


def textures() -> Dataset:
    """Draw 10 classes of 3 motifs each, 4x4 pixels of N(0, 1): an image has one motif twice, at random positions
    (wrapped around the edges), and noise N(0, 0.3²); 3,000 float32 images [8, 8, 1], scaled to variance 1.

    Synthetic, and always the same. In `mixture` every pixel has a meaning of its own, which a network that averages
    over positions cannot learn.
    """
    rng = np.random.RandomState(0)  # NumPy promises that this generator's numbers stay the same
    motifs = np.zeros((NUM_CLASSES * MOTIFS, SIDE, SIDE))
    motifs[:, :SIZE, :SIZE] = rng.normal(size=(len(motifs), SIZE, SIZE))
    chosen = rng.randint(len(motifs), size=NUM_SAMPLES)
    images = 0.3 * rng.normal(size=(NUM_SAMPLES, SIDE, SIDE))
    for image, motif, places in zip(images, chosen, rng.randint(SIDE, size=(NUM_SAMPLES, 2, 2)), strict=True):
        for place in places:
            image += np.roll(motifs[motif], place, (0, 1))
    images = (images / images.std())[..., None].astype(np.float32)
    return Dataset(images, (chosen // MOTIFS).astype(np.int32), num_classes=NUM_CLASSES, name="textures")
