"""A network in one file that other programs can read: safetensors, each array under its path, and a checksum.

>>> import pathlib, tempfile
>>> import numpy as np
>>> import safetensors.numpy
>>> path = pathlib.Path(tempfile.mkdtemp()) / "net.safetensors"
>>> save(path, {"head": {"kernel": np.ones((2, 3), np.float32)}}, note={"day": "Monday"})
>>> load(path).params["head"]["kernel"].shape, load(path).note
((2, 3), {'day': 'Monday'})
>>> list(safetensors.numpy.load_file(path))  # without sp_jax
['params/head/kernel']
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from sp_jax.storage.atomic import write_whole
from sp_jax.storage.checkpoints import CheckpointError
from sp_jax.transforms.filters import path_name

KEY = "sp_jax"  # of the metadata; only one, as the library writes several in no fixed order


class Network(NamedTuple):
    """The content of a file."""

    params: chex.ArrayTree  # NumPy arrays
    batch_stats: chex.ArrayTree  # of BatchNorm; {} without
    note: dict[str, Any]


def save(
    path: str | pathlib.Path,
    params: chex.ArrayTree,
    batch_stats: chex.ArrayTree | None = None,
    *,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write a network atomically, in place of an older one; the same network gives the same bytes.

    Args:
      path: of the file; its folder is made.
      params: any pytree of arrays. A leaf's name is its path: `params/dense_0/kernel`.
      batch_stats: the same, under `batch_stats/…`.
      note: plain JSON, kept in the file's metadata.

    Raises:
      CheckpointError: it cannot be written, or a leaf is of a type that the format does not know (complex128).
    """
    path, text = pathlib.Path(path), json.dumps(dict(note or {}))
    named = _named({"params": params, "batch_stats": batch_stats or {}})
    arrays = {name: np.asarray(_plain(leaf), order="C") for name, leaf in named.items()}
    about = json.dumps({"note": text, "sha256": _checksum(arrays, text)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, safetensors.numpy.save(arrays, {KEY: about}))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write the network {path} ({_reason(error)})") from error


def load(path: str | pathlib.Path, *, like: tuple[chex.ArrayTree, chex.ArrayTree] | None = None) -> Network:
    """Read a network back, on any machine, and verify its checksum.

    Args:
      path: of the file.
      like: `(params, batch_stats)` of the network's structure, arrays or `jax.ShapeDtypeStruct`, as `model.init` gives
        them; by default the trees are dictionaries of dictionaries, as those of Flax are.

    Returns:
      A `Network`.

    Raises:
      CheckpointError: there is no such file, it is damaged, or its arrays are not those of `like`.
    """
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()[KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        note = json.loads(about["note"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None
    if about.get("sha256") != _checksum(arrays, about["note"]):
        raise _unreadable(path, ValueError("it is not what was written"))
    if like is None:
        tree = _nested(arrays)
        return Network(tree.get("params", {}), tree.get("batch_stats", {}), note)
    tree = _as(path, arrays, dict(zip(("params", "batch_stats"), like, strict=True)))
    return Network(tree["params"], tree["batch_stats"], note)


def read_note(path: str | pathlib.Path) -> dict[str, Any]:
    """Return the note that `save` was given, without reading the file's arrays or verifying its checksum.

    Raises:
      CheckpointError: there is no such file, or it is damaged.
    """
    try:
        with safe_open(path, framework="np") as file:
            return json.loads(json.loads(file.metadata()[KEY])["note"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from None


def _named(tree):
    """Return leaves by their path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {path_name(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise CheckpointError("cannot write a network in which two arrays have the same path; rename a layer")
    return named


def _nested(arrays):
    """Return nested dictionaries: the reverse of `_named`."""
    tree = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = array
    return tree


def _as(path, arrays, like):
    """Return the arrays in the structure of `like`."""
    have, want = ({k: (x.dtype, x.shape) for k, x in each.items()} for each in (arrays, _shapes(like)))
    name = next((name for name in {**want, **have} if have.get(name) != want.get(name)), None)
    if name is not None:
        found, wanted = (f"{x[name][0]}{list(x[name][1])}" if name in x else "missing" for x in (have, want))
        raise CheckpointError(f"the network {path} is another one: {name} is {found}, the model's is {wanted}")
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    return structure.unflatten(_unplain(arrays[path_name(key)], leaf) for key, leaf in leaves)


def _shapes(like):
    return {k: jax.eval_shape(_plain, x) if _is_key(x) else x for k, x in _named(like).items()}


def _is_key(leaf):
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)


def _plain(leaf):
    """Return a random key's data as numbers; any other leaf as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _unplain(array, like):
    if not _is_key(like):
        return array
    impl = []
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(array, impl=impl[0])


def _checksum(arrays, text):
    """Return the SHA-256 of names, dtypes, shapes, values and the note."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _unreadable(path, error):
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"there is no network {path}")
    return CheckpointError(
        f"the network {path} is damaged, or none of sp_jax ({_reason(error)}); restore it from a copy"
    )


def _reason(error):
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return reason.splitlines()[0]
