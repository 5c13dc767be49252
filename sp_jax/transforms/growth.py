"""Restarts onto networks that have grown: new classes, wider layers, new layers.

Where all new entries are zero, the grown network computes the old function: the trained weights lie where the layers
read them. An axis that packs two meanings must be declared, or it is refused (`sp_jax.transforms.layouts`), and so are
layers whose automatic names move. The paper re-draws a head for other classes (Section 4.2); keeping the old classes is
an extension of this library.
"""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.transforms import arithmetic
from sp_jax.transforms import layouts as layouts_module
from sp_jax.transforms.filters import by_path, is_changeable, path_name
from sp_jax.transforms.layouts import Grows, Layouts, Shape
from sp_jax.types import Model

__all__ = ["Grows", "check_function", "expand", "grow", "grown", "keep_new"]


def grown(
    params: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    *,
    layouts: Layouts | None = None,
    renamed: Mapping[str, str] | None = None,
) -> dict[str, tuple[Shape | None, Shape]]:
    """Return which leaves grew, and check that it is unambiguous how each did.

    Args:
      params: pytree of arrays, of the trained network.
      fresh_params: pytree of arrays, of the grown one: all paths of `params`, of no smaller shapes, and maybe more.
      layouts: how axes are made up that pack two meanings, by path and axis: see `sp_jax.transforms.layouts`.
      renamed: from the paths of old layers to those of new ones, where they differ; an identical pair confirms.

    Returns:
      From the path of each leaf that grew to its old shape, None where it is new, and its new shape.

    Raises:
      ValueError: a leaf that is lost, has other axes, or gets smaller; an axis whose growth is ambiguous; a new layer
        among those of automatic names. Names the path, the shapes, and what to write.

    >>> import jax.numpy as jnp
    >>> grown({"head": jnp.ones((4, 10))}, {"head": jnp.ones((4, 12))})
    {'head': ((4, 10), (4, 12))}
    """
    old, new = _shapes(params), _shapes(fresh_params)
    layouts_module.check_names(old, new, renamed)
    found = differences(params, fresh_params, renamed=renamed)
    moved = {layouts_module.rename(path, renamed): shape for path, shape in old.items()}
    layouts_module.check_layouts(moved, new, layouts)
    return found


def differences(
    params: chex.ArrayTree, fresh_params: chex.ArrayTree, *, renamed: Mapping[str, str] | None = None
) -> dict[str, tuple[Shape | None, Shape]]:
    """Return which leaves grew, like `grown`, without checking that it is unambiguous how."""
    new, before = _shapes(fresh_params), {}
    for path, shape in _shapes(params).items():
        name = layouts_module.rename(path, renamed)
        if name not in new:
            raise ValueError(f"the fresh network has no leaf {name!r}: a network that grows keeps its layers' names")
        if name in before:
            raise ValueError(f"two old leaves are to be {name!r}: renamed must give each its own")
        if len(shape) != len(new[name]) or any(m < n for n, m in zip(shape, new[name], strict=True)):
            raise ValueError(
                f"leaf {path!r} cannot grow from {shape} to {new[name]}: no axis may be lost or get smaller"
            )
        before[name] = shape
    return {path: (before.get(path), shape) for path, shape in new.items() if before.get(path) != shape}


def expand(
    tree: chex.ArrayTree,
    fresh: chex.ArrayTree,
    fill: Callable[[chex.Array], chex.Array] | None = None,
    *,
    layouts: Layouts | None = None,
    renamed: Mapping[str, str] | None = None,
    params: chex.ArrayTree | None = None,
):
    """Put the leaves of `tree` into those of `fresh`; the new entries are taken from `fresh`.

    Also for BatchNorm statistics and optimiser states, which grow with the parameters.

    Args:
      tree: pytree of arrays.
      fresh: pytree of arrays, as `grown` has it.
      fill: from a leaf of `fresh` to the array whose values the new entries get; by default the leaf itself.
      layouts, renamed: as `grown` has them.
      params: the old parameters, where `tree` is what belongs to them and so is not checked again: of an optimiser's
        state, what mirrors a parameter (its path ends with that one's) grows as it does, and what has another shape
        (Adafactor's rows) begins anew where that changes; BatchNorm's statistics grow as is declared of their paths.

    Returns:
      A pytree like `fresh`.

    Raises:
      ValueError: as `grown`; with `params`, a leaf that is lost.
    """
    if params is None:
        grown(tree, fresh, layouts=layouts, renamed=renamed)
    shapes = _shapes(tree if params is None else params)
    old = {}
    for path, x in by_path(tree).items():
        end = next((end for end in _ends(path) if end in shapes), path)
        name = layouts_module.rename(end, renamed)
        old[path.removesuffix(end) + name] = x, name, shapes.get(end, jnp.shape(x)) == jnp.shape(x)

    def leaf(path, new):
        around = new if fill is None else fill(new)
        x, name, mirrors = old.pop(path_name(path), (None, "", False))
        if x is not None and jnp.shape(x) == jnp.shape(new):
            return x
        return jnp.asarray(around).at[_places(name, x, new, layouts)].set(x) if mirrors else around

    made = jax.tree_util.tree_map_with_path(leaf, fresh)
    if old:
        raise ValueError(f"the fresh state has no leaf {next(iter(old))!r}: draw it of the same kind as the old one")
    return made


def grow(
    params: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    *,
    shrink: chex.Numeric = 1.0,
    noise_scale: chex.Numeric = 0.0,
    layouts: Layouts | None = None,
    renamed: Mapping[str, str] | None = None,
) -> chex.ArrayTree:
    """Shrink-perturb onto a grown network: λ·θ + σ·fresh where the old network reaches, the fresh network elsewhere.

    The old entries of a wider layer are perturbed by fresh parameters of the wider layer, drawn for its own fan-in.
    `grown` tells which leaves grew.

    Args:
      params: pytree of arrays, the trained θ.
      fresh_params: pytree of arrays, freshly drawn, as `grown` has it.
      shrink: λ, a scalar in [0, 1], of the old entries.
      noise_scale: σ >= 0, a scalar, of the old entries.
      layouts, renamed: as `grown` has them.

    Returns:
      A pytree like `fresh_params`.

    Raises:
      ValueError: as `grown` and `sp_jax.shrink_perturb`.

    >>> import jax.numpy as jnp
    >>> grow({"bias": jnp.ones(2)}, {"bias": 0.1 * jnp.ones(3)}, shrink=0.5)
    {'bias': Array([0.5, 0.5, 0.1], dtype=float32)}

    A kernel that reads two flattened positions of two units, then of three:

    >>> kernel, layouts = jnp.arange(1, 5)[:, None], {"kernel": {-2: (2, -1)}}
    >>> grow({"kernel": kernel * 1.0}, {"kernel": jnp.zeros((6, 1))}, layouts=layouts)["kernel"][:, 0]
    Array([1., 2., 0., 3., 4., 0.], dtype=float32)
    """
    how = {"layouts": layouts, "renamed": renamed}
    expanded = expand(params, fresh_params, **how)
    mixed = arithmetic.shrink_perturb(expanded, fresh_params, shrink=shrink, noise_scale=noise_scale)
    return keep_new(params, mixed, fresh_params, **how)


def keep_new(
    params: chex.ArrayTree,
    mixed: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    *,
    layouts: Layouts | None = None,
    renamed: Mapping[str, str] | None = None,
) -> chex.ArrayTree:
    """Return `mixed` at the old entries and `fresh_params` at the new ones, undoing a rule's change of the latter.

    `params` are those before they grew; all else is as `grown` and `expand` have it.
    """
    how = {"layouts": layouts, "renamed": renamed}
    if not grown(params, fresh_params, **how):
        return mixed
    ones = jax.tree.map(lambda x: jnp.ones(jnp.shape(x), bool), params)
    inside = expand(ones, fresh_params, lambda x: jnp.zeros(jnp.shape(x), bool), **how)
    return jax.tree.map(lambda i, m, f: jnp.where(i, m, f) if is_changeable(f) else m, inside, mixed, fresh_params)


def check_function(
    old_model: Model,
    old_params: chex.ArrayTree,
    old_stats: chex.ArrayTree,
    new_model: Model,
    layouts: Layouts | None,
    renamed: Mapping[str, str] | None,
    inputs: chex.Array,
) -> None:
    """Check on a few samples, `inputs` [B, ...], that the grown network computes the old function where all new entries
    are zero; `layouts` and `renamed` are as `grown` has them.

    Networks with new layers are not checked, nor are old ones whose logits are not finite.

    Raises:
      ValueError: the logits of the old classes differ by more than rounding, in evaluation mode.
    """
    how = {"layouts": layouts, "renamed": renamed}
    shapes = jax.eval_shape(new_model.init, jax.random.key(0))[0]
    if any(before is None for before, _ in differences(old_params, shapes, renamed=renamed).values()):
        return

    def logits(params, stats, inputs):
        fresh = new_model.init(jax.random.key(0))
        zeros = jax.tree.map(lambda x: jnp.zeros_like(x) if is_changeable(x) else x, fresh)
        new = expand(params, zeros[0], **how), expand(stats, zeros[1], **how, params=params)
        before, after = (
            model.apply(*variables, inputs, None, False)[0]
            for model, variables in ((old_model, (params, stats)), (new_model, new))
        )
        return before, after[:, : before.shape[1]]

    before, after = map(np.asarray, jax.jit(logits)(old_params, old_stats, jnp.asarray(inputs)))
    scale, difference = (float(np.max(np.abs(x.astype(np.float32)))) for x in (before, after - before))
    tolerance = 1e-3 if before.dtype.itemsize >= 4 else 3e-2
    if not np.isfinite(scale) or difference <= tolerance * scale + 1e-6:
        return
    raise ValueError(
        f"the grown network is not the old one where all that is new is zero (logits of size {scale:.3g} differ by "
        f"{difference:.3g}): an axis packs two meanings, or a norm mixes its units; declare layouts= as "
        "sp_jax.transforms.layouts has it, or layouts={} to go on all the same"
    )


def _places(name, old, new, layouts):
    """Return the index of an old leaf in a grown one."""
    declared = layouts_module.of_leaf(layouts, name, jnp.ndim(new))
    pairs = list(zip(jnp.shape(old), jnp.shape(new), strict=True))
    if not declared:
        return tuple(slice(n) for n, _ in pairs)
    return np.ix_(*(layouts_module.places(declared.get(i - len(pairs), -1), *pair) for i, pair in enumerate(pairs)))


def _ends(path):
    """Return a path and its suffixes, the longest first."""
    parts = path.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _shapes(tree):
    return {path: tuple(jnp.shape(leaf)) for path, leaf in by_path(tree).items()}
