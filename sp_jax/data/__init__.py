"""Data sets by name, and how their samples arrive.

>>> found = load("mixture")
>>> found.inputs.shape, found.num_classes
((6000, 8, 8, 1), 10)
>>> order, validation = arrival.split(0, len(found.labels))  # of seed 0
>>> len(order), len(validation), arrival.online(len(order), 1_500)
(4000, 2000, (1500, 3000, 4000))
"""

from sp_jax.data import arrival, cache, npz, samples
from sp_jax.data.errors import DataError
from sp_jax.data.mixture import mixture, mixture_source
from sp_jax.data.text import reviews
from sp_jax.data.textures import textures
from sp_jax.types import Dataset

__all__ = ["DataError", "arrival", "cache", "load", "mixture", "mixture_source", "reviews", "samples", "textures"]

EMBEDDED = {make.__name__: make for make in (mixture, mixture_source, textures, reviews)}  # synthetic, by name


def load(name: str, *, data_dir: str | None = None, cache_dir: str | None = None) -> Dataset:
    """Load a data set by name: an embedded one, one's own, or labelled images or texts of TensorFlow Datasets.

    Args:
      name: `mixture`, `mixture_source`, `textures`, `reviews`, the path of an npz file of arrays `inputs` and `labels`,
        or TFDS's name, as `cifar10`.
      data_dir: TFDS's folder; by default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      cache_dir: where decoded images are kept; by default `~/.cache/sp_jax`.

    Returns:
      The training split as a `Dataset`, images as uint8, texts as hashed tokens.

    Raises:
      DataError: one line that says what was wrong, what was expected and what to do.
    """
    if name in EMBEDDED:
        return EMBEDDED[name]()
    if name.endswith(".npz"):
        return npz.load(name)
    from sp_jax.data import tfds_sets  # tensorflow-datasets is imported only where it is needed

    return tfds_sets.load(name, data_dir=data_dir, cache_dir=cache_dir)
