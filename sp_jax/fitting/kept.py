"""Programs that outlast a call: the next day's `fit_rounds` of the same network does not compile again.

Programs are compiled for numbers of samples that are rounded up, so a day with a few more has the same ones. Two calls
have the same configuration where network, optimiser and all other settings are equal; an optimiser that optax makes
anew of the same numbers counts as equal. The samples are let go at the end of a call.
"""

import collections
import enum
import functools
import types
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np

MOST = 4  # configurations kept, the newest
FREE, FREE_BYTES = 2**16, 2**24  # room that there is always: samples, and the most bytes of them
LIBRARIES = ("optax", "jax", "flax", "sp_jax")  # whose closures are equal where all that they enclose is equal

_kept: collections.OrderedDict = collections.OrderedDict()


def room_for(count: int, sample_bytes: int) -> int:
    """Return for how many samples to compile: at least `count`, of the numbers 2^k and 3 · 2^k.

    Where they are few there is room for more, which costs memory alone: `FREE` samples, or `FREE_BYTES` of them. Many
    get at most half as much again.

    >>> [room_for(n, 100) for n in (1, 1000, 65_537, 100_000)], [room_for(n, 10**6) for n in (1, 7, 1000, 1025, 1600)]
    ([65536, 65536, 98304, 131072], [16, 16, 1024, 1536, 2048])
    """
    free = min(FREE, 1 << max(FREE_BYTES // max(sample_bytes, 1), 1).bit_length() - 1)
    return max(free, _rounded(count))


def _rounded(count):
    power = 1 << max(count - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power


def once(
    key: Hashable, sizes: tuple[int, ...], make: Callable[[tuple[int, ...]], Any], *, sample_bytes: int = 0
) -> Any:
    """Return what was made for a configuration and room for these sizes, not more than twice as needed; or make it.

    Args:
      key: the configuration, see `fingerprint`.
      sizes: the numbers of samples.
      make: makes it for the rooms, see `room_for`.
      sample_bytes: of one.
    """
    rooms = [(n, room_for(n, sample_bytes), room_for(2 * n, sample_bytes)) for n in sizes]
    for (known, room), value in reversed(_kept.items()):
        if known == key and all(n <= there <= most for there, (n, _, most) in zip(room, rooms, strict=True)):
            _kept.move_to_end((known, room))
            return value
    room = tuple(least for _, least, _ in rooms)
    value = _kept[key, room] = make(room)
    while len(_kept) > MOST:
        _kept.popitem(last=False)
    return value


def forget() -> None:
    """Let go of all configurations: the next call compiles anew."""
    _kept.clear()


class _Same:
    """Anything that is equal to nothing but itself; it lives on, so that its identity is not given to another."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return isinstance(other, _Same) and other.value is self.value


def fingerprint(value: Any) -> Hashable:
    """Return a key that two values share only where a program compiled with one is right for the other.

    >>> import optax
    >>> (
    ...     fingerprint(optax.adam(0.1)) == fingerprint(optax.adam(0.1)),
    ...     fingerprint(optax.adam(0.1)) == fingerprint(optax.adam(0.2)),
    ... )
    (True, False)
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes, enum.Enum, type)):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), *map(fingerprint, value)
    if isinstance(value, Mapping):
        return dict, *((name, fingerprint(value[name])) for name in sorted(value, key=str))
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and not jax.dtypes.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    if isinstance(value, functools.partial):
        return functools.partial, fingerprint(value.func), fingerprint(value.args), fingerprint(value.keywords)
    if isinstance(value, types.FunctionType) and (value.__module__ or "").split(".")[0] in LIBRARIES:
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        if not any(cell is value for cell in cells):  # a function that calls itself
            return value.__code__, fingerprint((value.__defaults__, value.__kwdefaults__, tuple(cells)))
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return _Same(value) if isinstance(value, types.FunctionType) else value
