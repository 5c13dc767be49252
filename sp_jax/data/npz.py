"""A user's own labelled samples, in an npz file of two arrays, `inputs` and `labels`."""

import numpy as np

from sp_jax.data import folders, samples
from sp_jax.data.errors import DataError
from sp_jax.types import Dataset

WHAT = "expected arrays inputs [N, ...], uint8 pixels or floats, and labels [N], integers from 0 on"


def load(name: str) -> Dataset:
    """Load an npz file, all of it into memory.

    Args:
      name: its path, which becomes the name of the data set.

    Returns:
      A `Dataset` with as many classes as the largest label says.

    Raises:
      DataError: no such file, a damaged one, or other arrays.
    """
    path = folders.expand("the data set", name)
    try:
        with open(path, "rb") as file:
            arrays = dict(np.load(file, allow_pickle=False).items())
    except FileNotFoundError:
        raise DataError(f"there is no file {name}; {WHAT}") from None
    except Exception as error:  # whatever a damaged zip raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{name} cannot be read as npz ({reason}); {WHAT}") from None
    if not {"inputs", "labels"} <= {*arrays}:
        raise DataError(f"{name} holds {', '.join(arrays) or 'nothing'}; {WHAT}")
    inputs, labels = arrays["inputs"], arrays["labels"]
    if inputs.dtype != np.uint8 and inputs.dtype.kind != "f":
        raise DataError(f"{name}: inputs are {inputs.dtype}; {WHAT}")
    with np.errstate(over="ignore"):
        inputs = inputs if inputs.dtype == np.uint8 else inputs.astype(np.float32)
    samples.check_samples(name, inputs, labels)
    if labels.max() >= len(labels):
        raise DataError(f"{name}: labels up to {labels.max()} with {len(labels)} samples; number the classes from 0 on")
    return Dataset(inputs, labels.astype(np.int32), int(labels.max()) + 1, name)
