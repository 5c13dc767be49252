"""The flags of every binary that trains: one for each field of `Settings`, and the folders of the data."""

import dataclasses
import typing

from absl import flags

from experiments.config.fields import UsageError, parse_list, parse_sizes
from experiments.config.settings import FIELDS
from experiments.config.sweep import Product
from sp_jax import data
from sp_jax.data import samples, tfds_sets
from sp_jax.types import Dataset

_DATA_DIR = flags.DEFINE_string("data_dir", None, "TFDS's folder.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Folder for decoded samples.")


def _define(field: dataclasses.Field):
    """Define a flag for a setting; its value is None where it was not given."""
    default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    meaning = field.metadata["help"] + ("" if default is None else f" Default {default}.")
    define = flags.DEFINE_bool if field.type is bool else flags.DEFINE_string
    return define(field.name, None, meaning)


_SETTINGS = [_define(field) for field in FIELDS.values()]


def settings() -> Product:
    """Return the settings that were given as flags, each with its values.

    Raises:
      UsageError: an empty list, or what is no number where one is expected.
    """
    found = {flag.name: _parse(FIELDS[flag.name], flag.value) for flag in _SETTINGS if flag.value is not None}
    if "pairs" in found:
        if "shrink" in found or "noise_scale" in found:
            raise UsageError("--pairs names each λ:σ, --shrink and --noise_scale span a grid; give one or the other")
        found |= {"shrink": (None,), "noise_scale": (None,)}  # an experiment's own grid gives way
    return found


def _parse(field, value):
    """Parse a flag's values."""
    flag = f"--{field.name}"
    if field.type in (tuple[str, ...], tuple[str, ...] | None):
        return (parse_list(flag, value),)
    if field.type == tuple[int, ...]:
        return (parse_sizes(flag, value),)
    if field.type is bool:
        return (value,)
    values = tuple(_number(flag, field.type, item) for item in parse_list(flag, str(value)))
    if len(values) > 1 and field.metadata["one"]:
        raise UsageError(f"{flag} takes one value, got {value}")
    return values


def _number(flag, type_, text):
    """Parse a text as what the setting is: int, float or str."""
    kinds = (type_, *typing.get_args(type_))  # those of `int | None` are int and None
    kind, meaning = (int, "a whole number") if int in kinds else (float, "a number") if float in kinds else (str, "")
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{flag} must be {meaning}, got {text}") from None


def dataset(name: str) -> Dataset:
    """Load a data set from the folders that the flags name; the log says if a class has no samples.

    Raises:
      DataError: it cannot be had, or its samples are not as they must be.
    """
    if _DATA_DIR.value is not None:
        tfds_sets.data_folder(_DATA_DIR.value)  # a mistake here is one, whatever the data set
    found = data.load(name, data_dir=_DATA_DIR.value, cache_dir=_CACHE_DIR.value)
    samples.check(found)
    return found
