"""Redrawing of hidden units: the paths of their weights (`Link`), and their replacement (ReDo, Sokar et al. 2023;
continual backprop, Dohare et al. 2024)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.transforms import check_same, like
from sp_jax.transforms.filters import by_path, is_changeable, path_name, some_paths

KERNEL, SCALE, BIAS = ("kernel", "w"), ("scale",), ("bias", "b", "offset")  # names in Flax and in Haiku


class Link(NamedTuple):
    """A hidden layer whose units can be drawn anew, and the one layer that reads them; paths within the parameters.

    For the MLP `Link("hidden_0", "hidden_1")` and `Link("hidden_1", "head")`; for a block of the ResNet
    `Link("stage_0_block_0/conv_0", "stage_0_block_0/conv_1", norm="stage_0_block_0/norm_0")`. Channels that join a
    shortcut are read by several layers, so they have no link.

    Names and axes are those of Flax or of Haiku, `Link("mlp/~/linear_0", "mlp/~/linear_1")`; Equinox's kernels,
    [out, in, ...], would have to be transposed first.

    `outgoing` reads the units as the channels of a convolution, or as a linear layer, of a flattened [..., units] too:
    input p · units + i is unit i at position p.
    """

    incoming: str  # the layer of the units: `kernel` (Haiku: `w`) [..., units], perhaps `bias` (`b`) [units]
    outgoing: str  # the only layer that reads them: `kernel` [..., units, out], or [positions * units, out]
    norm: str | None = None  # the normalisation between the two, `scale` or `bias` (`offset`) [units]


def check_links(params: chex.ArrayTree, links: Sequence[Link]) -> tuple[Link, ...]:
    """Return links, checked to fit the parameters.

    Args:
      params: pytree of arrays, nested dictionaries.
      links: each incoming layer once; plain tuples, as a network's own `links` may be, become `Link`s.

    Returns:
      The links.

    Raises:
      ValueError: a layer or its kernel is missing, sizes do not fit, two links have one incoming layer, a layer reads
        itself; names the path, the shapes and what was expected.
    """
    shapes = {path: jnp.shape(x) for path, x in by_path(params).items() if is_changeable(x)}
    seen, links = set(), tuple(Link(*link) for link in links)
    for link in links:
        if link.incoming in seen:
            raise ValueError(f"two links have the incoming layer {link.incoming!r}: expected each layer once")
        if link.incoming == link.outgoing:
            raise ValueError(f"{link.incoming!r} is linked to itself: expected the layer that reads its units")
        seen.add(link.incoming)
        for layer in (link.incoming, link.outgoing):
            found = shapes.get(leaf_path(shapes, layer, KERNEL), "none")
            if found == "none" or len(found) < 2:
                raise ValueError(
                    f"{layer!r} needs a kernel of two or more axes, found {found}; the paths are: {some_paths(params)}"
                )
        _check_sizes(shapes, link)
    return links


def _check_sizes(shapes, link):
    kernels = [leaf_path(shapes, layer, KERNEL) for layer in link[:2]]
    incoming, outgoing = (shapes[path] for path in kernels)
    since = f"since {kernels[0]!r} has shape {incoming}"
    units, inputs = incoming[-1], outgoing[-2]
    if inputs != units and (len(outgoing) > 2 or inputs % units):
        expected = f"[..., {units}, out]" if len(outgoing) > 2 else f"[positions * {units}, out]"
        raise ValueError(f"{kernels[1]!r} has shape {outgoing}, expected {expected}, {since}")
    norm = [leaf_path(shapes, link.norm, names) for names in (SCALE, BIAS)]
    for path in (leaf_path(shapes, link.incoming, BIAS), *norm):
        if shapes.get(path, (units,)) != (units,):
            raise ValueError(f"{path!r} has shape {shapes[path]}, expected ({units},), {since}")
    if link.norm is not None and not set(norm) & set(shapes):
        raise ValueError(f"the norm {link.norm!r} has neither scale nor bias: expected one, or norm=None")


def check_activations(params: chex.ArrayTree, activations: Mapping[str, chex.Array], links: Sequence[Link]) -> None:
    """Raise a ValueError where a link has no activations [B, ..., units] of its units; the links fit the parameters."""
    weights = by_path(params)
    for link in links:
        units = weights[leaf_path(weights, link.incoming, KERNEL)].shape[-1]
        shape = jnp.shape(activations[link.incoming]) if link.incoming in activations else "none"
        if shape == "none" or len(shape) < 2 or shape[-1] != units:
            raise ValueError(f"activations of {link.incoming!r}: found shape {shape}, expected [B, ..., {units}]")


def replace_units(
    params: chex.ArrayTree, fresh_params: chex.ArrayTree, replaced: Mapping[str, chex.Array], links: Sequence[Link]
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Draw units anew: fresh incoming weights, bias zero, fresh norm, outgoing weights zero (ReDo, Sokar et al. 2023;
    continual backprop, Dohare et al. 2024).

    First all incoming weights are drawn, then all outgoing ones zeroed: between two replaced units of consecutive
    layers the weight is zero, and no replaced unit contributes at first. BatchNorm's running statistics of such a unit
    are no parameters: they stay the old unit's, unless the caller resets them.

    Args:
      params: pytree of arrays, nested dictionaries.
      fresh_params: pytree of the same structure and shapes: the network drawn with a new key for each call.
      replaced: [units] booleans for each incoming path, True for units to draw anew.
      links: where the weights of the units lie; static, like any sequence of strings.

    Returns:
      A pytree like `params`, and a pytree of its structure with a boolean array for each leaf, True for the entries
      drawn or zeroed, for `sp_jax.reset_changed`.

    Raises:
      ValueError: as `check_links`; trees that differ; `replaced` is for other layers than the links.

    >>> import jax.numpy as jnp
    >>> params = {"body": {"kernel": jnp.ones((1, 2))}, "head": {"kernel": jnp.ones((2, 1))}}
    >>> fresh = {"body": {"kernel": jnp.full((1, 2), 0.5)}, "head": {"kernel": jnp.full((2, 1), 0.5)}}
    >>> new, _ = replace_units(params, fresh, {"body": jnp.array([False, True])}, [Link("body", "head")])
    >>> new["body"]["kernel"], new["head"]["kernel"][:, 0]
    (Array([[1. , 0.5]], dtype=float32), Array([1., 0.], dtype=float32))
    """
    links = check_links(params, links)
    check_same(params, fresh_params)
    if set(replaced) != {link.incoming for link in links}:
        raise ValueError(f"replaced has the layers {sorted(replaced)}, expected those of the links")
    weights, fresh = by_path(params), by_path(fresh_params)
    changed = {path: jnp.zeros(np.shape(x), bool) for path, x in weights.items()}

    def put(path, where, value):
        if path in weights:
            old = weights[path]
            where = jnp.broadcast_to(where, old.shape)
            weights[path] = like(jnp.where(where, jnp.asarray(value, old.dtype), old), old)
            changed[path] = changed[path] | where

    for link in links:
        units = replaced[link.incoming]
        put(leaf_path(weights, link.incoming, BIAS), units, 0)
        for layer, names in ((link.incoming, KERNEL), (link.norm, SCALE), (link.norm, BIAS)):
            path = leaf_path(weights, layer, names)
            put(path, units, fresh.get(path))
    for link in links:
        path = leaf_path(weights, link.outgoing, KERNEL)
        rows = by_unit(weights[path], replaced[link.incoming].shape[0])
        where = jnp.broadcast_to(replaced[link.incoming][None, :, None], rows.shape)
        put(path, where.reshape(weights[path].shape), 0)
    return rebuild(params, weights), rebuild(params, changed)


def without_biases(changed: chex.ArrayTree, links: Sequence[Link]) -> chex.ArrayTree:
    """Return `changed`, of `replace_units`, less the biases, whose moments ReDo's authors keep (Sokar et al. 2023)."""
    leaves = by_path(changed)
    for incoming, *_ in links:
        path = leaf_path(leaves, incoming, BIAS)
        if path in leaves:
            leaves[path] = jnp.zeros_like(leaves[path])
    return rebuild(changed, leaves)


def leaf_path(leaves: Mapping[str, Any], layer: str | None, names: Sequence[str]) -> str:
    """Return the path of a layer's parameter of one of these names; the path of the first name where it has none."""
    paths = [f"{layer}/{name}" for name in names]
    return next((path for path in paths if path in leaves), paths[0])


def rebuild(params: chex.ArrayTree, leaves: Mapping[str, chex.Array]) -> chex.ArrayTree:
    """Return a pytree like `params` of the leaves at these paths."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], params)


def by_unit(kernel: chex.Array, units: int) -> chex.Array:
    """Reshape an outgoing kernel to [positions, units, out]: the pixels of a convolution, or of a flattened image."""
    return kernel.reshape(-1, units, kernel.shape[-1])
