"""Sets of labelled images or texts through TensorFlow Datasets, without TensorFlow wherever TFDS allows it.

Records in `array_record` format are read by `data_source`; those in `tfrecord` format, and the first preparation of
most sets, need TensorFlow. Samples are decoded once: later starts map the decoded arrays from a cache.
"""

import contextlib
import difflib
import importlib.util
import io
import logging
import os
import pathlib
import re
from collections.abc import Iterator

import absl.logging
import numpy as np

from sp_jax.data import EMBEDDED, cache, folders, text
from sp_jax.data.errors import DataError
from sp_jax.errors import first_line
from sp_jax.types import Dataset

logger = logging.getLogger(__name__)

COMMON = (*EMBEDDED, "cifar10", "cifar100", "svhn_cropped", "mnist", "fashion_mnist", "kmnist", "imdb_reviews")
WITHOUT_TENSORFLOW = ("imdb_reviews",)  # those that TFDS prepares without it
CHUNK = 1_000  # records read at a time
NAME = re.compile(r"[a-z][a-z0-9_]*(/\w[\w.+-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)


def load(name: str, *, data_dir: str | None = None, cache_dir: str | None = None) -> Dataset:
    """Load the training split of a TFDS data set that has `label`, and `image` (uint8, of one shape) or `text`.

    The name may have a configuration or a version: `mnist:3.0.1`; for the folders see `sp_jax.data.load`. Arrays are
    memory-mapped: inputs [N, H, W, C] uint8 or hashed tokens [N, TOKENS] int32, labels [N] int32.

    Raises:
      DataError: no such set, neither images nor texts with labels, not prepared and not preparable here, damaged.
    """
    folder = data_folder(data_dir)
    builder = _builder(name, folder)
    with _quiet_tfds():
        _check_features(name, builder.info.features)
        prepared = builder.is_prepared()
    if not prepared:
        builder = _prepare(name, folder)
    split = builder.info.splits.get("train")
    if split is None:
        raise DataError(f"data set {name!r} has no split named 'train' (it has {', '.join(builder.info.splits)})")
    num_classes = builder.info.features["label"].num_classes
    files = [pathlib.Path(path) for path in split.filepaths]
    kind = "" if "image" in builder.info.features else f"-{text.TOKENS}-of-{text.VOCABULARY}"
    key = f"{builder.info.full_name.replace('/', '-')}-train{kind}-{cache.fingerprint(files)}"
    inputs, labels = cache.arrays(cache_dir, key, lambda: _decode(name, builder, split, files))
    return Dataset(inputs, labels, num_classes=num_classes, name=name)


def data_folder(data_dir: str | None) -> pathlib.Path:
    """Return TFDS's folder: `data_dir`, else `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
      DataError: a folder that was named and does not exist.
    """
    source, named = "--data_dir", data_dir
    if data_dir is None:
        source, named = "TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or None
    folder = folders.expand(source, named or "~/tensorflow_datasets")
    if named is not None and not folder.is_dir():
        raise DataError(f"{source} {named!r} is not a folder; name the one that holds TFDS data sets, or create it")
    return folder


def _builder(name, folder):
    import tensorflow_datasets as tfds

    if not NAME.fullmatch(name):
        hint = f"; did you mean {name.lower()!r}?" if NAME.fullmatch(name.lower()) else ""
        raise DataError(f"{name!r} is no name of a data set; expected one like 'mixture' or 'cifar10'{hint}")
    try:
        with _quiet_tfds():
            return tfds.builder(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name, COMMON, n=1, cutoff=0.5)
        near = near or difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"try one of {', '.join(COMMON)}"
        raise DataError(f"unknown data set {name!r}; {hint}") from None
    except ModuleNotFoundError as error:
        missing = str(error).rsplit("No module named ", 1)[-1].strip("'\"")
        raise DataError(f"data set {name!r} needs the package {missing}: pip install {missing}") from None
    except Exception as error:  # TFDS's parsers can raise anything
        raise DataError(f"data set {name!r} in {folder} cannot be read: {_first_line(error)}") from error


@contextlib.contextmanager
def _quiet_tfds():
    """Suppress TFDS's warnings and banners about missing files, which the errors raised here report."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)


def _check_features(name, features):
    found = dict(features.items()) if hasattr(features, "items") else {}
    if not {"image", "text"} & set(found) or not hasattr(found.get("label"), "num_classes"):
        names = ", ".join(found) or type(features).__name__
        raise DataError(
            f"data set {name!r} is no classification of images or texts: "
            f"expected 'label' and 'image' or 'text', found {names}"
        )
    if "image" not in found:
        return
    shape, dtype = features["image"].shape, np.dtype(features["image"].np_dtype)
    if None in shape or dtype != np.uint8:
        raise DataError(f"data set {name!r} has images of shape {shape} and type {dtype}: expected uint8 of one shape")


def _prepare(name, folder):
    """Download and prepare a data set, in the format that needs no TensorFlow to be read."""
    import tensorflow_datasets as tfds

    where = f"data set {name!r} is not prepared in {folder}"
    if importlib.util.find_spec("tensorflow") is None and name.split("/")[0].split(":")[0] not in WITHOUT_TENSORFLOW:
        raise DataError(
            f"{where}, and preparing it needs TensorFlow: pip install tensorflow, then run this again; "
            "or name a folder that has it with --data_dir or TFDS_DATA_DIR"
        )
    if not _network():
        raise DataError(f"{where}, and there is no network to download it; name a folder that has it with --data_dir")
    logger.info("%s: downloading and preparing it, once", where)
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # network, disk, checksum: TFDS can raise anything
        raise DataError(f"{where}, and preparing it failed: {_first_line(error)}") from error
    return builder


def _network() -> bool:
    """Return whether the internet can be reached, within seconds (TFDS would retry silently for minutes)."""
    import requests

    try:
        requests.head("https://storage.googleapis.com/tfds-data", timeout=10)
    except requests.RequestException:
        return False
    return True


def _decode(name, builder, split, files):
    """Decode all images [N, H, W, C] uint8 or tokens [N, TOKENS] int32, and labels [N] int32, of a split."""
    logger.info("decoding %s samples of %s, once", f"{split.num_examples:,}", name)
    count, features = split.num_examples, builder.info.features
    if "image" in features:
        inputs, decoded = np.empty((count, *features["image"].shape), np.uint8), lambda example: example["image"]
    else:
        inputs, decoded = np.empty((count, text.TOKENS), np.int32), lambda example: text.tokens(example["text"])
    labels = np.empty(count, np.int32)
    done = 0
    try:
        for example in _examples(name, builder, count):
            inputs[done], labels[done] = decoded(example), example["label"]
            done += 1
    except DataError:
        raise
    except Exception as error:  # the readers can raise anything
        unreadable = [path for path in files if not _readable(path)] or files
        damaged = unreadable[0] if len(unreadable) == 1 else unreadable[0].parent
        raise DataError(
            f"damaged records of {name!r} in {damaged}: {_first_line(error)}; delete the folder and prepare it again"
        ) from error
    if done != count:
        raise DataError(f"{files[0].parent} holds {done:,} records of {name!r} where {count:,} were announced")
    if labels.min() < 0 or labels.max() >= features["label"].num_classes:
        raise DataError(f"labels of {name!r} must lie in [0, {features['label'].num_classes}), found {labels.min()} "
                        f"to {labels.max()}: its training split is not labelled")  # fmt: skip
    return inputs, labels


def _examples(name, builder, count) -> Iterator[dict]:
    import tensorflow_datasets as tfds

    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        with _quiet_tfds():
            source = builder.as_data_source(split="train")
            for start in range(0, count, CHUNK):
                yield from source.__getitems__(list(range(start, min(start + CHUNK, count))))
        return
    if importlib.util.find_spec("tensorflow") is None:
        kind = builder.info.file_format.value
        raise DataError(
            f"data set {name!r} in {builder.data_path} was prepared as {kind}, which only TensorFlow reads: "
            "pip install tensorflow, or prepare it in array_record format in another --data_dir"
        )
    ordered = tfds.ReadConfig(interleave_cycle_length=1, shuffle_seed=None)
    yield from tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False, read_config=ordered))


def _readable(path) -> bool:
    """Return whether a record file can be read to its end; for formats other than array_record, whether it exists."""
    if not path.is_file() or ".array_record" not in path.name:
        return path.is_file()
    from array_record.python import array_record_module

    try:
        array_record_module.ArrayRecordReader(str(path)).read_all()
    except Exception:  # the reader raises RuntimeError and others for damage
        return False
    return True


def _first_line(error) -> str:
    return first_line(error)
