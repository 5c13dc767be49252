"""Which leaves of a parameter pytree a transform changes: filters by meaning, by layer, by path; labels of groups.

A filter is a predicate on a leaf's path, `"encoder/dense/kernel"`, and on the leaf; filters compose:

>>> (kernels & layer("head"))("head/kernel"), (kernels & ~layer("head"))("head/kernel")
(True, False)

Wherever a filter is expected, any function of a path will do. Nothing guesses which layer is last: pytrees sort names
by the alphabet, `Dense_10` before `Dense_2`, so the caller names it.

`kernels`, `biases`, `norms` and `embeddings` are disjoint and know the names that Flax Linen, Flax NNX, Equinox and
Haiku give their parameters. A normalisation layer whose path says nothing of it (Equinox's, in a list) is found by its
weight of one axis alone; its bias then counts as a bias.
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
        """`test(path, leaf)`; the leaf may be None, where only a path is at hand."""
        self._test = test

    def __call__(self, path: str, leaf: Any = None) -> bool:
        """Whether the leaf at this path is picked."""
        return bool(self._test(path, leaf))

    def __and__(self, other: Callable) -> "Filter":
        """Leaves that both pick."""
        return Filter(lambda path, leaf: self(path, leaf) and matches(other, path, leaf))

    def __or__(self, other: Callable) -> "Filter":
        """Leaves that either picks."""
        return Filter(lambda path, leaf: self(path, leaf) or matches(other, path, leaf))

    def __invert__(self) -> "Filter":
        """Leaves that this one does not pick."""
        return Filter(lambda path, leaf: not self(path, leaf))


def matches(where: Callable, path: str, leaf: Any = None) -> bool:
    """Whether a filter, or any function of a path, picks a leaf."""
    return where(path, leaf) if isinstance(where, Filter) else bool(where(path))


def layer(*names: str) -> Filter:
    """Picks the layers of these names: one part of the path, or several in sequence, is one of them (Figure 14).

    Args:
      *names: `"head"` for `"head/kernel"`, or `"encoder/dense"` for `"net/encoder/dense/bias"`; never half a part.

    Returns:
      A filter.

    >>> layer("head")("encoder/head/kernel"), layer("head")("overhead/kernel")
    (True, False)
    """
    return Filter(lambda path, leaf: any(f"/{name}/" in f"/{path}/" for name in names))


def path_matches(pattern: str) -> Filter:
    """Picks the leaves in whose path the regular expression is found.

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
_NORM_LAYER = re.compile(r"(?i).*norm.*|(bn|ln|gn)_?\d*")
_NORM_LEAVES = ("scale", "offset", "gamma", "beta")


def _parts(path):
    """The innermost layer's name and the parameter's: what an enclosing `PreNormBlock` holds need not be a norm."""
    *layers, name = path.split("/")
    return (layers or [""])[-1], name


def _is_norm(path, leaf):
    layer, name = _parts(path)
    thin = leaf is not None and jnp.ndim(leaf) <= 1 and _KERNEL.fullmatch(name)
    return name in _NORM_LEAVES or _NORM_LAYER.fullmatch(layer) is not None or bool(thin)


def _is_embedding(path, leaf):
    return not _is_norm(path, leaf) and any("embed" in part.lower() for part in _parts(path))


def _is_called(pattern):
    def test(path, leaf):
        named = pattern.fullmatch(_parts(path)[1]) is not None
        return named and not _is_norm(path, leaf) and not _is_embedding(path, leaf)

    return test


norms = Filter(_is_norm)  # scale and offset of BatchNorm, LayerNorm, GroupNorm, RMSNorm, …
embeddings = Filter(_is_embedding)  # tables: the name of the layer or of the parameter contains "embed"
kernels = Filter(_is_called(_KERNEL))  # weights of linear, convolutional and recurrent layers
biases = Filter(_is_called(_BIAS))  # of those layers


def path_name(path: tuple) -> str:
    """A leaf's key path as text, `"encoder/dense/kernel"`; the `value` within an NNX variable is left out."""
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_changeable(leaf: Any) -> bool:
    """Whether a leaf is an array or number that is floating or complex: all that a transform may change."""
    if isinstance(leaf, (float, complex)):
        return True
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def pick(params: chex.ArrayTree, where: Callable | None) -> chex.ArrayTree:
    """The leaves that a transform changes.

    Args:
      params: pytree of arrays.
      where: a filter, or a function of paths; None picks everything.

    Returns:
      A pytree of Python booleans: floating or complex, and picked by `where`.

    Raises:
      ValueError: `where` is no function, or picks none of the leaves that can change; names some paths that it could
        have picked.
    """
    if where is None:
        return jax.tree.map(is_changeable, params)
    if not callable(where):
        raise ValueError(f"where must be a filter, as sp_jax.layer('head'), or a function of a path, got {where!r}")
    picked = jax.tree_util.tree_map_with_path(
        lambda path, leaf: is_changeable(leaf) and matches(where, path_name(path), leaf), params
    )
    if not any(jax.tree.leaves(picked)):
        raise ValueError(f"the filter `where` matches no floating leaf; the paths are: {some_paths(params)}")
    return picked


def some_paths(params: chex.ArrayTree, at_most: int = 8) -> str:
    """The first paths of the leaves that can change, for a message."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [path_name(path) for path, leaf in leaves if is_changeable(leaf)]
    return (", ".join(paths[:at_most]) + (", …" if len(paths) > at_most else "")) or "(none)"


def labels(groups: Mapping[str, Callable], *, default: str = "rest") -> Callable[[chex.ArrayTree], chex.ArrayTree]:
    """Names a group for each leaf, as `optax.partition` and the transforms take it.

    Args:
      groups: from a label to its filter; the first that picks a leaf wins.
      default: the label of leaves that none picks.

    Returns:
      A function from parameters to a pytree of strings.

    Raises:
      ValueError: of that function: a filter is the first to pick nothing at all.

    >>> label = labels({"head": layer("head"), "biases": biases})
    >>> label({"body": {"kernel": 1.0, "bias": 0.0}, "head": {"kernel": 2.0}})
    {'body': {'bias': 'biases', 'kernel': 'rest'}, 'head': {'kernel': 'head'}}
    """

    def label(params):
        used = set()

        def name(path, leaf):
            found = next((g for g, where in groups.items() if matches(where, path_name(path), leaf)), default)
            used.add(found if is_changeable(leaf) else None)
            return found

        named = jax.tree_util.tree_map_with_path(name, params)
        for group in groups if jax.tree.leaves(params) else ():  # optax asks for the labels of no leaves at all
            if group not in used:
                raise ValueError(f"group {group!r} has no floating leaf; the paths are: {some_paths(params)}")
        return named

    return label
