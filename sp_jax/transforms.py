"""The trick, on one pytree: θ ← λ·θ + σ·(a freshly drawn network) (Ash and Adams 2020, Section 4).

Pure functions on parameter pytrees of any framework. λ (`shrink`) and σ (`noise_scale`) may be Python numbers, or
scalars traced under `jit`, `vmap` and `scan`. Only floating and complex leaves change: integers, booleans and PRNG keys
stay the old ones. Leaves are computed in at least float32 and returned in their own dtype.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

Filter = Callable[[str], bool]  # from a leaf's path, "encoder/dense/kernel", to whether it is picked


def shrink_perturb(
    params: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    *,
    shrink: chex.Numeric,
    noise_scale: chex.Numeric,
    where: Filter | None = None,
) -> chex.ArrayTree:
    """Shrinks the parameters and adds a scaled, freshly drawn network (Section 4; "in practice, we add noise by adding
    parameters from a scaled, randomly-initialized network").

    Draw `fresh_params` anew for every call, from the network's own initialiser and a new key: Gaussian noise of one
    scale, or the stored first initialisation, is another method. The edges are exact, bit for bit: λ = 1, σ = 0 returns
    `params`; λ = 0, σ = 1 returns `fresh_params`, also where `params` is NaN or infinite.

    Args:
      params: pytree of arrays, the trained θ.
      fresh_params: pytree of the same structure and shapes.
      shrink: λ, a scalar in [0, 1]; 1 keeps the parameters, 0 forgets them.
      noise_scale: σ >= 0, a scalar; multiplies the fresh network.
      where: from a leaf's path ("head/kernel") to whether it changes; the others stay the old ones. All by default.

    Returns:
      A pytree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: trees or shapes that differ (names the path), a filter that matches nothing, λ or σ out of range
        (checked for Python's and NumPy's numbers; JAX's are the caller's to check).

    >>> import jax.numpy as jnp
    >>> shrink_perturb({"w": jnp.ones(2)}, {"w": jnp.full(2, 0.5)}, shrink=0.5, noise_scale=0.25)
    {'w': Array([0.625, 0.625], dtype=float32)}
    """
    check_shrink(shrink)
    check_noise_scale(noise_scale)
    check_same(params, fresh_params)
    picked = pick(params, where)

    def leaf(picked, old, fresh):
        return _shrink_perturb_leaf(old, fresh, shrink, noise_scale) if picked else old

    return jax.tree.map(leaf, picked, params, fresh_params)


def shrink(params: chex.ArrayTree, *, shrink: chex.Numeric, where: Filter | None = None) -> chex.ArrayTree:
    """Multiplies the parameters by λ: `shrink_perturb` without noise (Section 4, Proposition 1).

    Args:
      params: pytree of arrays.
      shrink: λ, a scalar in [0, 1].
      where: as in `shrink_perturb`.

    Returns:
      A pytree like `params`; exact zeros at λ = 0, `params` bit for bit at λ = 1.

    Raises:
      ValueError: λ out of range, or a filter that matches nothing.
    """
    return shrink_perturb(params, params, shrink=shrink, noise_scale=0.0, where=where)


def perturb(
    params: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    *,
    noise_scale: chex.Numeric,
    where: Filter | None = None,
) -> chex.ArrayTree:
    """Adds σ times a freshly drawn network: `shrink_perturb` without shrinking (the row λ = 1 of Figure 8).

    Args:
      params: pytree of arrays.
      fresh_params: pytree of the same structure and shapes; any noise, e.g. from `gaussian_like`.
      noise_scale: σ >= 0, a scalar.
      where: as in `shrink_perturb`.

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: as `shrink_perturb`.
    """
    return shrink_perturb(params, fresh_params, shrink=1.0, noise_scale=noise_scale, where=where)


def gaussian_like(key: chex.PRNGKey, params: chex.ArrayTree) -> chex.ArrayTree:
    """N(0, 1) noise of one scale for every leaf: p of Section 4's formula, and the noise of Table 4.

    Args:
      key: a PRNG key; consumed. Each leaf draws from its own.
      params: pytree of arrays, for structure, shapes and dtypes.

    Returns:
      A pytree like `params`; leaves that are not floating or complex are returned unchanged.
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    noise = [
        jax.random.normal(k, jnp.shape(x), jnp.result_type(x)) if _is_inexact(x) else x
        for k, x in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, noise)


def layer(*names: str) -> Filter:
    """A filter that picks the layers of these names: a path matches if one of its parts is one of them.

    Args:
      *names: parts of paths, as `"head"` in `"head/kernel"`.

    Returns:
      A filter for `where`.

    >>> layer("head")("encoder/head/kernel"), layer("head")("overhead/kernel")
    (True, False)
    """
    return lambda path: any(part in names for part in path.split("/"))


def pick(params: chex.ArrayTree, where: Filter | None) -> chex.ArrayTree:
    """The leaves that a transform changes.

    Args:
      params: pytree of arrays.
      where: a filter on paths; None picks everything.

    Returns:
      A pytree of Python booleans: floating or complex, and picked by `where`.

    Raises:
      ValueError: `where` picks none of the leaves that can change; names some paths that it could have picked.
    """
    inexact = jax.tree.map(_is_inexact, params)
    if where is None:
        return inexact
    picked = jax.tree_util.tree_map_with_path(lambda path, ok: ok and bool(where(path_name(path))), inexact)
    if not any(jax.tree.leaves(picked)):
        paths = [path_name(path) for path, ok in jax.tree_util.tree_leaves_with_path(inexact) if ok]
        some = ", ".join(paths[:8]) + (", …" if len(paths) > 8 else "")
        raise ValueError(f"the filter `where` matches no floating leaf; the paths are: {some or '(none)'}")
    return picked


def path_name(path: tuple) -> str:
    """A leaf's key path as text: `"encoder/dense/kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_shrink(value: chex.Numeric) -> None:
    """Raises a ValueError where λ is no scalar, or a number on the host outside [0, 1] or NaN."""
    if jnp.ndim(value) or (_is_on_host(value) and not 0 <= value <= 1):
        raise ValueError(f"shrink (λ) must be a scalar in [0, 1], got {value}; use jax.vmap for several")


def check_noise_scale(value: chex.Numeric) -> None:
    """Raises a ValueError where σ is no scalar, or a number on the host that is negative, infinite or NaN."""
    if jnp.ndim(value) or (_is_on_host(value) and not 0 <= value < math.inf):
        raise ValueError(f"noise_scale (σ) must be a finite scalar >= 0, got {value}; use jax.vmap for several")


def check_same(params: chex.ArrayTree, fresh_params: chex.ArrayTree) -> None:
    """Raises a ValueError that names the first path where two trees differ in structure or in shape."""
    old = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    new = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(fresh_params)}
    for path in [*old, *new]:
        if path not in new or path not in old:
            has, lacks = ("params", "fresh_params") if path in old else ("fresh_params", "params")
            raise ValueError(f"{has} has a leaf {path!r} that {lacks} lacks: draw both from one initialiser")
        if jnp.shape(old[path]) != jnp.shape(new[path]):
            shapes = f"{jnp.shape(old[path])} in params and {jnp.shape(new[path])} in fresh_params"
            raise ValueError(f"leaf {path!r} has shape {shapes}: draw both from one initialiser")
    if jax.tree.structure(params) != jax.tree.structure(fresh_params):
        raise ValueError(
            "params and fresh_params have the same leaves in different containers: "
            f"{jax.tree.structure(params)} and {jax.tree.structure(fresh_params)}"
        )


def _is_on_host(value) -> bool:
    return isinstance(value, (int, float, np.number, np.ndarray))


def _is_inexact(x) -> bool:
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.inexact)


def _shrink_perturb_leaf(old, fresh, shrink, noise_scale):
    dtype = jnp.result_type(old)
    compute = jnp.float32 if dtype.itemsize < 4 else dtype
    real = jnp.finfo(compute).dtype  # of a complex leaf: λ and σ are real
    lam, sigma = jnp.asarray(shrink, real), jnp.asarray(noise_scale, real)
    old, fresh = jnp.asarray(old, compute), jnp.asarray(fresh, compute)
    # Products and sums lose bits at the edges (0 * inf, -0.0 + 0, denormals flushed to 0): select there.
    kept = jnp.where(lam == 1, old, jnp.where(lam == 0, jnp.zeros((), compute), lam * old))
    noise = jnp.where(sigma == 1, fresh, sigma * fresh)
    mixed = jnp.where(sigma == 0, kept, jnp.where(lam == 0, noise, kept + noise))
    return mixed.astype(dtype)
