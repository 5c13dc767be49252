"""Methods by name: this package's, those that other packages register, and `package.module:name` from outside.

A package registers a method as an entry point of the group `sp_jax.methods`, in its `setup.cfg`:

    [options.entry_points]
    sp_jax.methods =
        gradient_noise = my_package.noise:make

Without it, `--method=my_package.noise:make` does the same. What is named is a `sp_jax.plasticity.methods.Method`, or a
function without arguments that returns one.
"""

import functools
import importlib
import importlib.metadata
import inspect
import math
import os
import pathlib
import sys
import zlib
from collections.abc import Iterable
from typing import Any

from experiments.config.fields import UsageError, check_choice
from sp_jax.errors import first_line, with_kind
from sp_jax.plasticity import methods
from sp_jax.plasticity.methods import METHODS, Method

GROUP = "sp_jax.methods"


class AbsentMethodError(UsageError):
    """The module of a method is not where it can be imported from."""


def names() -> tuple[str, ...]:
    """Return the names of all methods that need no path: ours, and those that other packages register."""
    return (*METHODS, *(entry.name for entry in _registered() if entry.name not in METHODS))


@functools.cache
def find(name: str) -> Method:
    """Return the method of a name.

    Raises:
      UsageError: there is none, its module does not import, or what it names is no method; one line.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        check_choice("--method", name, names())
    path = _path(name)
    try:
        found = _load(path)
    except ImportError as error:
        raise AbsentMethodError(f"--method={name}: {path} cannot be used ({first_line(error)})") from None
    except Exception as error:  # a user's module can raise anything
        raise UsageError(f"--method={name}: {path} cannot be used ({with_kind(error)})") from None
    if not isinstance(found, Method):
        raise UsageError(
            f"--method={name}: {path} is {type(found).__name__}; expected a sp_jax.plasticity.methods.Method, or a "
            "function without arguments that returns one"
        )
    strength = found.default_strength
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not math.isfinite(strength):
        raise UsageError(f"--method={name}: {path} has default_strength={strength!r}; expected a finite number")
    return found


def label(name: str) -> str:
    """Return the name of a method for tables."""
    found = find(name)
    return found.label if name in METHODS or found.label != Method().label else name


def fingerprints(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return of each method from outside what a run that is gone on with must find again: the checksum of the files
    that its functions are written in, and its default strength."""
    return {name: _fingerprint(name) for name in sorted({*names} - {*METHODS})}


def _fingerprint(name):
    method, module = find(name), sys.modules[_path(name).partition(":")[0]]
    codes = (getattr(inspect.unwrap(f), "__code__", None) for f in method if callable(f))
    files = {code.co_filename for code in codes if code is not None} | {getattr(module, "__file__", None) or ""}
    files = sorted(files - {methods.__file__})
    content = b"".join(pathlib.Path(file).read_bytes() for file in files if os.path.isfile(file))
    return {"checksum": zlib.crc32(content), "default_strength": method.default_strength}


def _path(name):
    return {entry.name: entry.value for entry in _registered()}.get(name, name)


def _load(path):
    module, _, name = path.partition(":")
    found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    return found if isinstance(found, Method) or not callable(found) else found()


@functools.cache
def _registered():
    return tuple(importlib.metadata.entry_points(group=GROUP))
