"""Data sets by name, and how their samples arrive."""

from sp_jax.data import arrival
from sp_jax.data.errors import DataError
from sp_jax.data.mixture import mixture
from sp_jax.types import Dataset

__all__ = ["DataError", "arrival", "load", "mixture"]


def load(name: str, *, data_dir: str | None = None, cache_dir: str | None = None) -> Dataset:
    """A data set by name: the embedded `mixture`, or an image-classification set of TensorFlow Datasets.

    Args:
      name: `mixture`, or TFDS's name, as `cifar10`.
      data_dir: TFDS's folder; by default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      cache_dir: where decoded images are kept; by default `~/.cache/sp_jax`.

    Returns:
      The training split as a `Dataset`, images as uint8.

    Raises:
      DataError: one line that says what was wrong, what was expected and what to do.
    """
    if name == "mixture":
        return mixture()
    from sp_jax.data import images  # tensorflow-datasets is imported only where it is needed

    return images.load(name, data_dir=data_dir, cache_dir=cache_dir)
