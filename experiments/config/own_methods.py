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

from experiments.config.fields import UsageError, check_choice
from sp_jax.errors import first_line
from sp_jax.plasticity.methods import METHODS, Method

GROUP = "sp_jax.methods"


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
    paths = {entry.name: entry.value for entry in _registered()}
    if ":" not in name:
        check_choice("--method", name, names())
    path = paths.get(name, name)
    try:
        found = _load(path)
    except Exception as error:  # a user's module can raise anything
        raise UsageError(f"--method={name}: {path} cannot be used ({first_line(error)})") from None
    if not isinstance(found, Method):
        raise UsageError(
            f"--method={name}: {path} is {type(found).__name__}; expected a sp_jax.plasticity.methods.Method, or a "
            "function without arguments that returns one"
        )
    return found


def label(name: str) -> str:
    """Return the name of a method for tables."""
    found = find(name)
    return found.label if name in METHODS or found.label != Method().label else name


def _load(path):
    module, _, name = path.partition(":")
    found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    return found if isinstance(found, Method) or not callable(found) else found()


@functools.cache
def _registered():
    return tuple(importlib.metadata.entry_points(group=GROUP))
