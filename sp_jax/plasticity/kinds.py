"""The roles of a kernel's axes, for methods that treat a layer as one matrix, or as many (DASH, FIRE).

A kernel of two axes is a linear layer, one of four a convolution where its window is square and its bias, if there is
one, has one axis. All others must be declared: an attention's query is one matrix, `{"query": ("in", "out", "out")}`, a
layer stacked by `scan` or `vmap` is one matrix for each, `{"block/dense": ("stacked", "in", "out")}`.
"""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.transforms import filters

ROLES = ("stacked", "spatial", "in", "out")
Kinds = Mapping[str | Callable, tuple[str, ...]]  # from the name of a layer, or a filter, to its kernel's axes


def axis_roles(
    params: chex.ArrayTree, picked: chex.ArrayTree, *, kinds: Kinds | None = None, output_axis: int = -1
) -> dict[str, tuple[str, ...]]:
    """Return by path the role of each axis of each leaf that is picked (a pytree like `params` of booleans).

    A bias, and whatever has fewer than two axes, is "whole", save for the stacked axes of its layer.

    Args:
      kinds: for ambiguous kernels, from a layer (as `sp_jax.layer` names it, or any filter) to a role for each axis:
        "stacked" (separate layers), "spatial" (of a convolution's window), "in" or "out".
      output_axis: -1 where kernels are [..., in, out], 0 where [out, in, ...]; of those that `kinds` doesn't name.

    Raises:
      ValueError: a kernel is ambiguous and not named, a role is unknown or missing, their number is not that of the
        axes, or a name matches no kernel; one line.
    """
    layers, found = filters.by_layer(params), {}
    leaves = [(filters.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    given = {path: (key, tuple(roles)) for path, key, roles in _matching(leaves, layers, kinds or {})}
    for (path, leaf), is_picked in zip(leaves, jax.tree.leaves(picked), strict=True):
        if is_picked and (_is_bias(path, leaf, layers) or jnp.ndim(leaf) < 2):
            stacked = _stacked(path, leaf, layers, given)
            found[path] = tuple("stacked" if i in stacked else "whole" for i in range(jnp.ndim(leaf)))
        elif is_picked:
            found[path] = given[path][1] if path in given else _certain(path, leaf, layers, output_axis)
    return found


def vector_axes(roles: tuple[str, ...]) -> tuple[int, ...]:
    """Return the axes of one vector of DASH: a window, where there is one, else the inputs of a unit; all of a bias.

    >>> vector_axes(("spatial", "spatial", "in", "out")), vector_axes(("in", "out", "out"))
    ((0, 1), (0,))
    """
    wanted = ("spatial",) if "spatial" in roles else ("in", "whole")
    return tuple(i for i, role in enumerate(roles) if role in wanted)


def _matching(leaves, layers, kinds):
    """Yield (path, key, roles) of the kernels that `kinds` names, checked; the first name that fits applies."""
    kernels = [
        (path, x) for path, x in leaves if filters.is_changeable(x) and jnp.ndim(x) > 1 and not filters.norms(path, x)
    ]
    kernels = [(path, x) for path, x in kernels if not _is_bias(path, x, layers)]
    taken = set()
    for key, roles in kinds.items():
        where = filters.layer(key) if isinstance(key, str) else key
        if not set(roles) <= set(ROLES) or not {"in", "out"} <= set(roles):
            raise ValueError(f"kinds of {key!r} must be of {', '.join(ROLES)}, with in and out among them, got {roles}")
        fitting = [(path, x) for path, x in kernels if filters.matches(where, path, x, filters.layer_of(layers, path))]
        if not fitting:
            raise ValueError(f"kinds: {key!r} matches no kernel; the paths are: {filters.some_paths(dict(kernels))}")
        for path, x in fitting:
            if len(roles) != jnp.ndim(x):
                raise ValueError(f"kinds of {key!r} has {len(roles)} axes, {path!r} has shape {jnp.shape(x)}")
            if path not in taken:
                yield path, key, roles
        taken |= {path for path, _ in fitting}


def _is_bias(path, leaf, layers):
    return filters.biases(path, leaf, filters.layer_of(layers, path))


def _layers_bias(path, layers):
    prefix = path.rpartition("/")[0]
    own = {f"{prefix}/{name}".lstrip("/"): x for name, x in layers[prefix].items()}
    return next((x for name, x in own.items() if _is_bias(name, x, layers)), None)


def _stacked(path, leaf, layers, given):
    """Return the axes of a bias that are its layer's stacked ones."""
    prefix = path.rpartition("/")[0]
    for other, (_, roles) in given.items():
        kept = [role for role in roles if role in ("stacked", "out")]
        if other.rpartition("/")[0] == prefix and len(kept) == jnp.ndim(leaf):
            return [i for i, role in enumerate(kept) if role == "stacked"]
    return []


def _certain(path, leaf, layers, output_axis):
    shape, bias = jnp.shape(leaf), _layers_bias(path, layers)
    spatial = shape[:2] if output_axis == -1 else shape[2:]
    out = shape[output_axis]
    is_conv = len(shape) == 4 and spatial[0] == spatial[1] and (bias is None or _is_one_axis(bias, out))
    if len(shape) != 2 and not is_conv:
        known = {3: ("in", "out", "out"), 4: ("spatial", "spatial", "in", "out")}
        example = known.get(len(shape), (*("spatial",) * (len(shape) - 2), "in", "out"))
        name = path.rpartition("/")[0] or path
        raise ValueError(
            f"{path!r} of shape {shape} may be a convolution, an attention's kernel or stacked layers: say what its "
            f"axes are, as kinds={{{name!r}: {example}}} (each of {', '.join(ROLES)}), or leave it out (FIRE's "
            "where=, norms= of DASH)"
        )
    roles = (*("spatial",) * (len(shape) - 2), "in", "out")
    return roles if output_axis == -1 else ("out", "in", *roles[:-2])


def _is_one_axis(bias, size):
    """Return whether a bias is one number for each output; Equinox's of convolutions are [out, 1, 1]."""
    return int(np.prod(jnp.shape(bias))) == max(jnp.shape(bias), default=1) == size
