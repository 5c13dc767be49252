"""Layouts of the axes of a network that grows, and the correspondence of its old layers to new ones.

An axis that holds one thing grows at its end. One that packs two, as the positions and the units of a flattened image,
two directions, or gates side by side, must be declared, for each leaf (or each layer) and axis:

    layouts = {
        "head/kernel": {-2: (64, -1)},  # [64 positions, units], flattened: as for `reshape`, -1 is what grows
        "rnn/w": {-2: [3, -1], -1: (4, -1)},  # 3 inputs beside the units; four gates of units each
        "embedding": {-1: -1},  # plain: what was there leads, what is new follows
    }

A tuple is a product of factors, the last one changing fastest; a list has parts side by side, those of -1 of one size.
A factor or part whose sizes -1 cannot express is `Grows(old, new)`. The key `""` stands for all leaves, a longer key
for fewer.

An axis that is not declared is inferred from the shapes where they are unambiguous: an input axis grows as some layer's
units do, units grow as some layer's inputs do or are those of the only head. Everything else is refused.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sp_jax.transforms import filters

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # by the paths of leaves


class Grows(NamedTuple):
    """A factor or a part of an axis, of these sizes in the old and in the grown network."""

    old: int
    new: int


Layout = int | tuple | list  # -1, or a product, or parts side by side
Layouts = Mapping[str, Mapping[int, Layout]]


def of_leaf(layouts: Layouts | None, path: str, ndim: int) -> dict[int, Layout]:
    """Return the declared layouts of a leaf of so many axes, by negative axis; of two keys for one, the longer's.

    Raises:
      ValueError: an entry that is no mapping, or a key that names the leaf itself and an axis that it lacks.
    """
    found = {}
    for key in sorted(filter(lambda key: is_under(path, key), layouts or ()), key=len):
        if not isinstance(layouts[key], Mapping):
            raise ValueError(f"layouts[{key!r}] must be a mapping from axes, as {{-2: (64, -1)}}, got {layouts[key]!r}")
        for axis, layout in layouts[key].items():
            if -ndim <= axis < ndim:
                found[axis - ndim if axis >= 0 else axis] = layout
            elif key == path:
                raise ValueError(f"layouts names axis {axis} of {path!r}, which has {ndim} axes")
    return found


def is_under(path: str, key: str) -> bool:
    """Return whether a key is the path itself, a layer that it lies in, or empty."""
    return not key or f"{path}/".startswith(f"{key}/")


def rename(path: str, renamed: Mapping[str, str] | None) -> str:
    """Return an old leaf's path in the grown network; `renamed` maps old layers to new ones, the longest key wins."""
    key = max((key for key in renamed or () if is_under(path, key)), key=len, default=None)
    return path if key is None else renamed[key] + path[len(key) :]


def places(layout: Layout, old: int, new: int) -> np.ndarray:
    """Return where the entries of an axis of size `old` lie in the grown one of size `new`: [old] integers below it.

    Raises:
      ValueError: a layout that does not fit the sizes.

    >>> places((2, -1), 4, 6), places([1, -1], 3, 4)
    (array([0, 1, 3, 4]), array([0, 1, 2]))
    """
    before, after = sizes(layout, old, 0), sizes(layout, new, 1)
    if not isinstance(layout, list):
        return np.arange(new).reshape(after)[tuple(map(slice, before))].ravel()
    starts = itertools.accumulate(after, initial=0)
    return np.concatenate([start + np.arange(part) for start, part in zip(starts, before, strict=False)])


def sizes(layout: Layout, size: int, side: int) -> list[int]:
    """Return the factors or parts of an axis of a size, in the old network (`side` 0) or in the grown one (1)."""
    parts = list(layout) if isinstance(layout, (tuple, list)) and not isinstance(layout, Grows) else [layout]
    parts = [part[side] if isinstance(part, Grows) else part for part in parts]
    fixed, open_parts = [part for part in parts if part != -1], parts.count(-1)
    is_sum, known = isinstance(layout, list), all(isinstance(part, int) and part > 0 for part in fixed)
    if known and is_sum and open_parts:
        share, rest = divmod(size - sum(fixed), open_parts)
    elif known and open_parts == 1:
        share, rest = divmod(size, math.prod(fixed))
    else:
        share, rest = 0, size - (sum(fixed) if is_sum else math.prod(fixed)) if known and not open_parts else 1
    if rest or share < 0:
        raise ValueError(f"the layout {layout!r} does not make up an axis of {size}")
    return [share if part == -1 else part for part in parts]


def check_names(old: Shapes, new: Shapes, renamed: Mapping[str, str] | None) -> None:
    """Check that layers which are numbered in order keep their numbers where layers are added.

    `renamed` maps old layers to new ones; an entry for one layer confirms all that are numbered with it.

    Raises:
      ValueError: a new layer beside numbered ones, of Flax's automatic names (`Dense_3`), or (`layers/3`, `linear_3`)
        where the shape of one has changed; names both, their shapes, and what to write.
    """
    kept = {prefix for path in old for prefix in _prefixes(rename(path, renamed))}
    added = [(path, prefix) for path in new for prefix in _prefixes(path) if prefix not in kept]
    for path, prefix in added:
        parent, _, name = prefix.rpartition("/")
        numbered = re.fullmatch(r"(.*?)_?\d+", name)
        if not numbered:
            continue
        known, siblings = ({*_siblings(shapes, parent, numbered[1])} for shapes in (old, new))
        moved = [p for p in old if old[p] != new.get(p, old[p]) and any(is_under(p, s) for s in known)]
        moved = max(moved, key=lambda p: len(old[p]), default=None)
        if known and not known & set(renamed or ()) and (moved or re.fullmatch(r"[A-Z]\w*_\d+", name)):
            seen = f"{moved!r} was {old[moved]} and is {new[moved]}" if moved else f"{path!r} is {new[path]}"
            raise ValueError(
                f"{prefix!r} is new beside {', '.join(sorted(known))}, whose names are numbers in order ({seen}): say "
                f"which old layer is which new one, as renamed={_matched(known, siblings, old, new)}"
            )


def _prefixes(path):
    return ["/".join(path.split("/")[: i + 1]) for i in range(path.count("/") + 1)]


def _siblings(shapes, parent, stem):
    """Return the layers of one parent that are numbered with one stem; Haiku's first has no number."""
    start = f"{parent}/" if parent else ""
    names = {path[len(start) :].split("/")[0] for path in shapes if path.startswith(start)}
    return [start + name for name in names if re.fullmatch(rf"{re.escape(stem)}(_?\d+)?" if stem else r"\d+", name)]


def _matched(known, siblings, old, new):
    """Return a mapping from old layers to new ones of the same shapes, to the layer of the same name where it fits."""

    def within(shapes, layer):
        return {path[len(layer) :]: shape for path, shape in shapes.items() if is_under(path, layer)}

    def number(layer):
        return int(re.search(r"\d*$", layer)[0] or 0)

    left, found = sorted(siblings, key=number), {}
    for layer in sorted(known, key=number):
        fits = [each for each in left if within(new, each) == within(old, layer)]
        found[layer] = layer if layer in fits or not fits else fits[0]
        left = [each for each in left if each != found[layer]]
    return found


class _Growing(NamedTuple):
    """An axis that grows."""

    path: str
    axis: int  # negative
    old: int
    new: int
    role: str  # input, units, rows (of a table), vector (a bias or a norm), other
    layout: Layout | None  # where declared


_ATTENTION = re.compile(r"(?i)attention|attn")
_QUERY = re.compile(r"(?i)(\w+_)?(q|qk|qv|qkv|query)(_?proj\w*)?")
_KEY = re.compile(r"(?i)(\w+_)?(k|v|kv|key|value)(_?proj\w*)?")
_MIXING_NORMS = re.compile(r"(?i)(layer|group|rms)_?norm|(^|/|_)(ln|gn)(_?\w?|\d*)(/|$)")
_HOW = "-1 where the new entries follow the old ones, (k, -1) for [k, units], [n, -1] for n entries beside the units"


def check_layouts(old: Shapes, new: Shapes, layouts: Layouts | None) -> None:
    """Check that the growth of each axis that grows is unambiguous, by its declaration or by the shapes; `old` are
    those of the trained network under the names of the grown one.

    Raises:
      ValueError: a key of `layouts` that names nothing, a layout that does not fit, or an axis whose growth is
        ambiguous; names the path, the shapes, and what to write.
    """
    for key in layouts or ():
        if not any(is_under(path, key) for path in new):
            raise ValueError(f"layouts names {key!r}, which is no path of the parameters: {', '.join(list(new)[:8])}")
    growing = [each for path in new if path in old for each in _growing(path, old, new, layouts)]
    made = [(each.path, _units(each)) for each in growing if each.role == "units"]
    read = [_units(each) for each in growing if each.role == "input"]
    ends = {each: _units(each) for each in growing if each.role == "units" and _units(each) not in read}
    for each in sorted(growing, key=lambda each: each.role != "input"):  # inputs first: other axes depend on them
        doubt = each.layout is None and _doubt(each, made, read, ends, new)
        if doubt:
            layer = each.path.rpartition("/")[0]
            key = each.path if each.role == "input" or not layer else layer  # a layer's biases have its units
            raise ValueError(
                f"{each.path!r} cannot grow from {old[each.path]} to {new[each.path]}: {doubt[0]}; declare "
                f"layouts={{{key!r}: {{{each.axis}: …}}}}, with {doubt[1] or _HOW}"
            )


def _growing(path, old, new, layouts):
    declared = of_leaf(layouts, path, len(new[path]))
    roles = _roles(path, new)
    for axis in range(-len(new[path]), 0):
        before, after = old[path][axis], new[path][axis]
        layout = declared.get(axis)
        if layout is not None:
            try:
                places(layout, before, after)
            except ValueError as error:
                raise ValueError(f"{path!r} grows from {old[path]} to {new[path]}, axis {axis}: {error}") from None
        if before != after:
            yield _Growing(path, axis, before, after, roles.get(axis, "other"), layout)


def _roles(path, shapes):
    """Return the role of each axis of a leaf, by its name and its shape."""
    shape, (layer, _, name) = shapes[path], path.rpartition("/")
    leaf = np.broadcast_to(0.0, shape)
    if len(shape) < 2 or filters.biases(path, leaf) or filters.norms(path, leaf):
        return dict.fromkeys(range(-len(shape), 0), "vector")
    bias = next((shapes[p] for p in (f"{layer}/bias", f"{layer}/b") if p in shapes), None)
    is_kernel = bias is not None or re.fullmatch(r"(kernel|w)(_.*)?", name)
    if filters.embeddings(path, leaf) and not is_kernel:
        return {-1: "units", -2: "rows"}
    # PyTorch's order of axes, in Equinox too, unless the bias tells otherwise.
    turned = re.fullmatch(r"weight(_.*)?", name) and (bias is None or max(bias) == shape[0])
    return {-len(shape): "units", 1 - len(shape): "input"} if turned else {-1: "units", -2: "input"}


def _units(each):
    """Return the old and the new size of the units of an axis: of a packed one, those of the factor or part that
    grows."""
    if each.layout is None:
        return each.old, each.new
    pairs = zip(sizes(each.layout, each.old, 0), sizes(each.layout, each.new, 1), strict=True)
    return next((pair for pair in pairs if pair[0] != pair[1]), (each.old, each.new))


def _doubt(each, made, read, ends, paths):
    """Return why an axis's growth is ambiguous, and advice; None where it is not."""
    grows = f"axis {each.axis} grows from {each.old} to {each.new}"
    others = [(path, pair) for path, pair in made if path != each.path]
    packed = min(((k, path, *u) for path, u in others if (k := _multiple(each, u))), default=None)
    known = {pair for _, pair in (others if each.role == "input" else made)}
    if _is_attention(each.path, paths):
        return f"{grows}, and heads of attention may lie side by side in it", None
    if each.role == "vector" and _MIXING_NORMS.search(each.path):
        return f"{grows}, and a norm over more units is not the old function", "-1 to go on all the same"
    if each.role == "rows" or (each.role in ("input", "vector") and (each.old, each.new) in known):
        return None
    if each.role == "units" and each not in ends:
        return None
    if packed:
        k, path, old, new = packed
        orders = f"({k}, -1) for [{k}, units], (-1, {k}) for [units, {k}], -1 where it is one plain axis"
        return f"{grows}, {k} times the {old} -> {new} units of {path!r}", orders
    if each.role == "units" and any(_multiple(each, pair) for pair in read):
        return f"{grows}, a multiple of units that another layer reads", None
    if each.role == "units" and len(set(ends.values())) > 1:
        return f"{grows}, which no layer reads, and it is not the only such axis", None
    if each.role == "input":
        return f"{grows}, and no layer's units do", None
    return (f"{grows}, which is neither inputs nor units", None) if each.role == "other" else None


def _is_attention(path, paths):
    """Return whether a layer belongs to attention, by its name; one named key or value does beside a query's."""
    layer = path.rpartition("/")[0]
    parent, _, name = layer.rpartition("/")
    if _ATTENTION.search(path) or _QUERY.fullmatch(name):
        return True
    beside = {each.rpartition("/")[0] for each in paths}
    queries = (each.rpartition("/") for each in beside)
    return bool(_KEY.fullmatch(name)) and any(p == parent and _QUERY.fullmatch(n) for p, _, n in queries)


def _multiple(each, pair):
    """Return how many times an axis holds units that grow between the sizes of a pair; 0 where it is no multiple."""
    k, rest = divmod(each.old, max(pair[0], 1))
    return k if k > 1 and not rest and each.new == k * pair[1] else 0


def merged(first: Layouts | None, second: Layouts | None) -> Layouts | None:
    """Merge two declarations, the second's entries taking precedence; None where there is neither."""
    if first is None or second is None:
        return second if first is None else first
    return {key: {**first.get(key, {}), **second.get(key, {})} for key in [*first, *second]}
