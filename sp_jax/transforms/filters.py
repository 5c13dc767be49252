"""Which leaves of a parameter pytree a transform changes: filters by meaning, by layer, by path; labels of groups.

A filter is a predicate on a leaf's path, `"encoder/dense/kernel"`, and on the leaf; filters compose:

>>> (kernels & layer("head"))("head/kernel"), (kernels & ~layer("head"))("head/kernel")
(True, False)

Wherever a filter is expected, any function of a path will do. The last layer is not inferred: pytrees sort names
alphabetically, `Dense_10` before `Dense_2`, so the caller names it.

`kernels`, `biases`, `norms` and `embeddings` are disjoint and know the names that Flax Linen, Flax NNX, Equinox and
Haiku give their parameters. Where a filter is applied to a whole tree (`pick`, `labels`), a normalisation layer that
cannot be told by its name is recognised by its parameters: a scale of one axis, perhaps a bias, and nothing else.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp


class Filter:
    """A predicate on leaves that composes: `a & b`, `a | b`, `~a`."""

    def __init__(self, test: Callable[[str, Any], bool]):
        """Make a filter of `test(path, leaf)`; the leaf may be None, where only a path is known."""
        self._test = lambda path, leaf, layer: test(path, leaf)

    @classmethod
    def of_layers(cls, test: Callable[[str, Any, Mapping[str, Any] | None], bool]) -> "Filter":
        """Make a filter of `test(path, leaf, layer)`; `layer` maps the names of the parameter's layer to their leaves,
        and is None where these are not known."""
        made = cls(lambda path, leaf: False)
        made._test = test
        return made

    def __call__(self, path: str, leaf: Any = None, layer: Mapping[str, Any] | None = None) -> bool:
        """Return whether the leaf at this path is picked."""
        return bool(self._test(path, leaf, layer))

    def __and__(self, other: Callable) -> "Filter":
        """Make a filter of the leaves that both pick."""
        return Filter.of_layers(lambda *at: self(*at) and matches(other, *at))

    def __or__(self, other: Callable) -> "Filter":
        """Make a filter of the leaves that either picks."""
        return Filter.of_layers(lambda *at: self(*at) or matches(other, *at))

    def __invert__(self) -> "Filter":
        """Make a filter of the leaves that this one does not pick."""
        return Filter.of_layers(lambda *at: not self(*at))


def matches(where: Callable, path: str, leaf: Any = None, layer: Mapping[str, Any] | None = None) -> bool:
    """Return whether a filter, or any function of a path, picks a leaf."""
    return where(path, leaf, layer) if isinstance(where, Filter) else bool(where(path))


def layer(*names: str) -> Filter:
    """Pick the layers of these names: one part of the path, or several in sequence, is one of them (Figure 14).

    Args:
      *names: `"head"` for `"head/kernel"`, or `"encoder/dense"` for `"net/encoder/dense/bias"`; whole parts only.

    Returns:
      A filter.

    >>> layer("head")("encoder/head/kernel"), layer("head")("overhead/kernel")
    (True, False)
    """
    return Filter(lambda path, leaf: any(f"/{name}/" in f"/{path}/" for name in names))


def path_matches(pattern: str) -> Filter:
    """Pick the leaves in whose path the regular expression is found.

    Args:
      pattern: as for `re.search`.

    Returns:
      A filter; an `re.error` is raised here where the pattern is none.

    >>> path_matches(r"block_[01]/.*kernel")("block_1/conv/kernel")
    True
    """
    compiled = re.compile(pattern)
    return Filter(lambda path, leaf: compiled.search(path) is not None)


_KERNEL = re.compile(r"(kernel|weight|w)(_.*)?")
_BIAS = re.compile(r"(bias|b)(_.*)?")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of RMSNorm_0: RMS, Norm
_NORM_WORDS = re.compile(r".*norm|norms|normali[sz].*|normed|[bgl]n|rms")  # post_attention_layernorm, bn_init, ln_f
_SCALES, _OFFSETS = ("scale", "gamma"), ("offset", "beta")


def words(name: str) -> list[str]:
    """Return the words of a name, in lower case: divided at underscores, digits and capitals.

    >>> words("RMSNorm_0"), words("bn2d_init")
    (['rms', 'norm'], ['bn', 'd', 'init'])
    """
    return [word.lower() for word in _WORDS.findall(name)]


def layer_and_name(path: str) -> tuple[str, str]:
    """Return the innermost layer's name and the parameter's: parameters in a `PreNormBlock` need not be a norm's."""
    *layers, name = path.split("/")
    return (layers or [""])[-1], name


def is_known_norm(path: str, leaf: Any = None, layer: Mapping[str, Any] | None = None) -> bool:
    """Return whether a leaf's layer is a normalisation by its name, or by its parameters."""
    by_name = any(_NORM_WORDS.fullmatch(word) for word in words(layer_and_name(path)[0]))
    names = {layer_and_name(path)[1]: leaf} if layer is None else layer
    if any(name in ("kernel", "w") and _ndim(x) > 1 for name, x in names.items()):
        return False  # a linear layer, whatever it is called
    scales = [name for name, x in names.items() if name in _SCALES or _is_thin_weight(name, x)]
    others = [name for name in names if name not in scales and not (name in _OFFSETS or _BIAS.fullmatch(name))]
    return by_name or (len(scales) == 1 and not others and _ndim(names[scales[0]]) == 1)


def _is_thin_weight(name, leaf):
    return _KERNEL.fullmatch(name) is not None and 0 <= _ndim(leaf) <= 1


def _ndim(leaf):
    return jnp.ndim(leaf) if is_changeable(leaf) else -1


def _is_norm(path, leaf, layer):
    name = layer_and_name(path)[1]
    return name in (*_SCALES, *_OFFSETS) or _is_thin_weight(name, leaf) or is_known_norm(path, leaf, layer)


def _is_embedding(path, leaf, layer):
    return not _is_norm(path, leaf, layer) and any("embed" in part.lower() for part in layer_and_name(path))


def _is_called(pattern):
    def test(path, leaf, layer):
        named = pattern.fullmatch(layer_and_name(path)[1]) is not None
        return named and not _is_norm(path, leaf, layer) and not _is_embedding(path, leaf, layer)

    return test


norms = Filter.of_layers(_is_norm)  # scale and offset of BatchNorm, LayerNorm, GroupNorm, RMSNorm, …
embeddings = Filter.of_layers(_is_embedding)  # tables: the name of the layer or of the parameter contains "embed"
kernels = Filter.of_layers(_is_called(_KERNEL))  # weights of linear, convolutional and recurrent layers
biases = Filter.of_layers(_is_called(_BIAS))  # of those layers


def path_name(path: tuple) -> str:
    """Return a leaf's key path as text, `"encoder/dense/kernel"`; the `value` within an NNX variable is left out."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(params: chex.ArrayTree) -> dict[str, Any]:
    """Return the leaves by their paths, as `path_name` writes them."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def is_changeable(leaf: Any) -> bool:
    """Return whether a leaf is a floating or complex array or number: a transform may change only these."""
    if isinstance(leaf, (float, complex)):
        return True
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def pick(params: chex.ArrayTree, where: Callable | None) -> chex.ArrayTree:
    """Return which leaves a transform changes: a pytree of Python booleans, floating or complex, and picked by `where`.

    `where` is a filter, or a function of paths; None picks everything.

    Raises:
      ValueError: `where` is no function, or picks none of the leaves that can change; names some paths that it could
        have picked.
    """
    if where is None:
        return jax.tree.map(is_changeable, params)
    if not callable(where):
        raise ValueError(f"where must be a filter, as sp_jax.layer('head'), or a function of a path, got {where!r}")
    layers = by_layer(params)

    def is_picked(path, leaf):
        name = path_name(path)
        return is_changeable(leaf) and matches(where, name, leaf, layer_of(layers, name))

    picked = jax.tree_util.tree_map_with_path(is_picked, params)
    if not any(jax.tree.leaves(picked)):
        raise ValueError(f"the filter `where` matches no floating leaf; the paths are: {some_paths(params)}")
    return picked


def by_layer(params: chex.ArrayTree) -> dict[str, dict[str, Any]]:
    """Return the leaves of each layer by their names; a layer's name is the part of a path before the last slash."""
    layers = {}
    for path, leaf in by_path(params).items():
        layer, _, name = path.rpartition("/")
        layers.setdefault(layer, {})[name] = leaf
    return layers


def layer_of(layers: Mapping[str, Mapping[str, Any]], path: str) -> Mapping[str, Any]:
    """Return the layer of a parameter, from the result of `by_layer`."""
    return layers[path.rpartition("/")[0]]


def some_paths(params: chex.ArrayTree, at_most: int = 8) -> str:
    """Return the first paths of the leaves that can change, for a message."""
    paths = [path for path, leaf in by_path(params).items() if is_changeable(leaf)]
    return (", ".join(paths[:at_most]) + (", …" if len(paths) > at_most else "")) or "(none)"


def labels(groups: Mapping[str, Callable], *, default: str = "rest") -> Callable[[chex.ArrayTree], chex.ArrayTree]:
    """Make a function that labels each leaf with its group, as `optax.partition` and the transforms take it.

    Args:
      groups: from a label to its filter; the first that picks a leaf wins.
      default: the label of leaves that none picks.

    Returns:
      A function from parameters to a pytree of strings.

    Raises:
      ValueError: raised by that function where a group gets no leaf that can change.

    >>> label = labels({"head": layer("head"), "biases": biases})
    >>> label({"body": {"kernel": 1.0, "bias": 0.0}, "head": {"kernel": 2.0}})
    {'body': {'bias': 'biases', 'kernel': 'rest'}, 'head': {'kernel': 'head'}}
    """

    def label(params):
        used, layers = set(), by_layer(params)

        def name(path, leaf):
            at = path_name(path), leaf, layer_of(layers, path_name(path))
            found = next((g for g, where in groups.items() if matches(where, *at)), default)
            used.add(found if is_changeable(leaf) else None)
            return found

        named = jax.tree_util.tree_map_with_path(name, params)
        for group in groups if jax.tree.leaves(params) else ():  # optax calls it for trees without leaves, too
            if group not in used:
                raise ValueError(f"group {group!r} has no floating leaf; the paths are: {some_paths(params)}")
        return named

    return label
