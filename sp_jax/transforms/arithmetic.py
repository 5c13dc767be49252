"""Shrink-perturb on one pytree: θ ← λ·θ + σ·(a freshly drawn network) (Ash and Adams 2020, Section 4).

Pure functions on parameter pytrees of any framework. λ (`shrink`) and σ (`noise_scale`) may be Python numbers, or
scalars traced under `jit`, `vmap` and `scan`; one for all leaves, or one for each label of a group. Only floating and
complex leaves change: integers, booleans, PRNG keys, functions and whatever else stay the old ones. Leaves are computed
in at least float32 and returned in their own dtype.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.transforms import filters

Amount = chex.Numeric | Mapping[str, chex.Numeric]  # λ or σ: of all leaves, or of each label
Labels = chex.ArrayTree | Callable[[chex.ArrayTree], chex.ArrayTree]


def shrink_perturb(
    params: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    *,
    shrink: Amount,
    noise_scale: Amount,
    where: Callable | None = None,
    labels: Labels | None = None,
) -> chex.ArrayTree:
    """Shrink the parameters and add a scaled, freshly drawn network (Section 4; "in practice, we add noise by adding
    parameters from a scaled, randomly-initialized network").

    Draw `fresh_params` anew for every call, from the network's own initialiser and a new key: Gaussian noise of one
    scale, or the stored first initialisation, is another method. The limiting cases are exact, bit for bit: λ = 1,
    σ = 0 returns `params`; λ = 0, σ = 1 returns `fresh_params`, also where `params` is NaN or infinite.

    Args:
      params: pytree of arrays, the trained θ.
      fresh_params: pytree of the same structure and shapes.
      shrink: λ, a scalar in [0, 1]; 1 keeps the parameters, 0 forgets them. With `labels`, a mapping from each label.
      noise_scale: σ >= 0, a scalar; multiplies the fresh network. With `labels`, a mapping from each label.
      where: a filter (`sp_jax.filters`), or a function of a leaf's path ("head/kernel"), that says which leaves change;
        the others stay the old ones. All by default.
      labels: a pytree of strings like `params`, or a function that makes one (`sp_jax.filters.labels`), as for
        `optax.partition`: groups with a λ and a σ of their own.

    Returns:
      A pytree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: trees or shapes that differ (names the path), a filter that matches nothing, a label without λ or σ, λ
        or σ out of range (checked for Python's and NumPy's numbers; JAX's are the caller's to check).

    >>> import jax.numpy as jnp
    >>> shrink_perturb({"w": jnp.ones(2)}, {"w": jnp.full(2, 0.5)}, shrink=0.5, noise_scale=0.25)
    {'w': Array([0.625, 0.625], dtype=float32)}

    The encoder at 0.5 and 0.5, the head drawn anew:

    >>> groups = filters.labels({"head": filters.layer("head")}, default="encoder")
    >>> params = {"encoder": {"w": jnp.ones(2)}, "head": {"w": jnp.ones(2)}}
    >>> fresh = {"encoder": {"w": jnp.full(2, 0.5)}, "head": {"w": jnp.full(2, 0.5)}}
    >>> amounts = {"shrink": {"encoder": 0.5, "head": 0.0}, "noise_scale": {"encoder": 0.5, "head": 1.0}}
    >>> shrink_perturb(params, fresh, **amounts, labels=groups)["encoder"]["w"]
    Array([0.75, 0.75], dtype=float32)
    """
    check_same(params, fresh_params)
    amounts = _amounts(params, shrink, noise_scale, labels)
    picked = filters.pick(params, where)

    def leaf(picked, old, fresh, amount):
        return _shrink_perturb_leaf(old, fresh, *amount) if picked else old

    return jax.tree.map(leaf, picked, params, fresh_params, amounts)


def _amounts(params, shrink, noise_scale, labels):
    """Return a pytree like `params` of (λ, σ), checked."""
    both = {"shrink": shrink, "noise_scale": noise_scale}
    if labels is None:
        for name, amount in both.items():
            if isinstance(amount, Mapping):
                raise ValueError(f"{name} is a mapping, which needs labels: say which leaf has which of {[*amount]}")
        check_shrink(shrink)
        check_noise_scale(noise_scale)
        return jax.tree.map(lambda _: (shrink, noise_scale), params)
    for name, amount in both.items():
        if not isinstance(amount, Mapping):
            raise ValueError(f"with labels, {name} must be a mapping from each label to its value, got {amount}")
    jax.tree.map(check_shrink, dict(shrink))
    jax.tree.map(check_noise_scale, dict(noise_scale))
    labelled = labels(params) if callable(labels) else labels
    structure = jax.tree.structure(params)
    if structure != jax.tree.structure(labelled):
        check_same(labelled, params, names=("labels", "params"), advice="label each leaf, as sp_jax.labels does")

    def amount(path, _, label):
        for name, known in both.items():
            if label not in known:
                leaf = filters.path_name(path)
                raise ValueError(f"leaf {leaf!r} has the label {label!r}, for which {name} has no value")
        return shrink[label], noise_scale[label]

    return jax.tree_util.tree_map_with_path(amount, params, labelled)


def shrink(params: chex.ArrayTree, *, shrink: chex.Numeric, where: Callable | None = None) -> chex.ArrayTree:
    """Multiply the parameters by λ: `shrink_perturb` without noise (Section 4, Proposition 1).

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
    params: chex.ArrayTree, fresh_params: chex.ArrayTree, *, noise_scale: chex.Numeric, where: Callable | None = None
) -> chex.ArrayTree:
    """Add σ times a freshly drawn network: `shrink_perturb` without shrinking (the row λ = 1 of Figure 8).

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
    """Draw N(0, 1) noise of one scale for every leaf: p of Section 4's formula, and the noise of Table 4.

    Args:
      key: a PRNG key; consumed. Each leaf draws from its own.
      params: pytree of arrays, for structure, shapes and dtypes.

    Returns:
      A pytree like `params`; leaves that are not floating or complex are returned unchanged.
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    noise = [
        like(jax.random.normal(k, jnp.shape(x), jnp.result_type(x)), x) if filters.is_changeable(x) else x
        for k, x in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, noise)


def check_shrink(value: chex.Numeric) -> None:
    """Raise a ValueError where λ is no scalar, or a number on the host outside [0, 1] or NaN."""
    check_fraction("shrink (λ)", value)


def check_noise_scale(value: chex.Numeric) -> None:
    """Raise a ValueError where σ is no scalar, or a number on the host that is negative, infinite or NaN."""
    if not _is_scalar(value) or (_is_on_host(value) and not 0 <= value < math.inf):
        raise ValueError(f"noise_scale (σ) must be a finite scalar >= 0, got {value!r}; use jax.vmap for several")


def check_same(
    params: chex.ArrayTree,
    other: chex.ArrayTree,
    *,
    names: tuple[str, str] = ("params", "fresh_params"),
    advice: str = "draw both from one initialiser",
) -> None:
    """Raise a ValueError that names the first path where two trees differ in structure or in shape, and the advice."""
    old, new = filters.by_path(params), filters.by_path(other)
    for path in [*old, *new]:
        if path not in new or path not in old:
            has, lacks = names if path in old else names[::-1]
            raise ValueError(f"{has} has a leaf {path!r} that {lacks} lacks: {advice}")
        if filters.is_changeable(old[path]) and jnp.shape(old[path]) != jnp.shape(new[path]):
            shapes = f"{jnp.shape(old[path])} in {names[0]} and {jnp.shape(new[path])} in {names[1]}"
            raise ValueError(f"leaf {path!r} has shape {shapes}: {advice}")
    if jax.tree.structure(params) != jax.tree.structure(other):
        raise ValueError(
            f"{names[0]} and {names[1]} have the same leaves in different containers: {advice}; "
            f"{jax.tree.structure(params)} and {jax.tree.structure(other)}"
        )


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise a ValueError where a value is none of those that are known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_fraction(name: str, value: chex.Numeric) -> None:
    """Raise a ValueError where a value is no scalar, or a number on the host outside [0, 1] or NaN."""
    if not _is_scalar(value) or (_is_on_host(value) and not 0 <= value <= 1):
        raise ValueError(f"{name} must be a scalar in [0, 1], got {value!r}; use jax.vmap for several")


def like(x: chex.Array, leaf: chex.ArrayTree) -> chex.Array:
    """Return an array in the dtype of a leaf (an array of its shape, or a number), weakly typed where the leaf is."""
    x = jnp.asarray(x, jnp.result_type(leaf))
    if not getattr(leaf, "weak_type", False):
        return x
    # `full_like` is JAX's only public function that gives a weak type, and only for scalars.
    return jax.vmap(jax.lax.full_like)(jnp.ravel(leaf), jnp.ravel(x)).reshape(x.shape)


def _is_scalar(value) -> bool:
    """Return whether a value is one real number, traced or not."""
    if isinstance(value, (int, float)):
        return True
    real = hasattr(value, "dtype") and any(jnp.issubdtype(value.dtype, x) for x in (np.integer, np.floating, np.bool_))
    return real and jnp.ndim(value) == 0


def _is_on_host(value) -> bool:
    return isinstance(value, (int, float, np.number, np.ndarray))


def _shrink_perturb_leaf(old_leaf, fresh, shrink, noise_scale):
    dtype = jnp.result_type(old_leaf)
    compute = jnp.float32 if dtype.itemsize < 4 else dtype
    real = jnp.finfo(compute).dtype  # of a complex leaf: λ and σ are real
    lam, sigma = jnp.asarray(shrink, real), jnp.asarray(noise_scale, real)
    old, fresh = jnp.asarray(old_leaf, compute), jnp.asarray(fresh, compute)
    # Products and sums lose bits in the limiting cases (0 * inf, -0.0 + 0, denormals flushed to 0): select there.
    kept = jnp.where(lam == 1, old, jnp.where(lam == 0, jnp.zeros((), compute), lam * old))
    noise = jnp.where(sigma == 1, fresh, sigma * fresh)
    mixed = jnp.where(sigma == 0, kept, jnp.where(lam == 0, noise, kept + noise))
    return like(mixed, old_leaf)
