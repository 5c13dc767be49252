"""Penalties on the singular values of kernels: spectral regularisation (Lewandowski et al., ICLR 2025) and Parseval
regularisation (Chung et al., NeurIPS 2024)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from sp_jax.plasticity.arrays import check_output_axis, unit_vectors, widen
from sp_jax.plasticity.kinds import ROLES, Kinds, axis_roles
from sp_jax.transforms import filters

OFFSETS = ("bias", "b", "offset", "beta")  # of a normalisation; its other parameters are scales
HEAD = filters.layer("head")  # the layer that gives the outputs, which Parseval regularisation leaves out
real_kernels = filters.kernels & filters.Filter(
    lambda path, x: jnp.ndim(x) >= 2 and jnp.issubdtype(jnp.result_type(x), jnp.floating)
)


class SingularVectors(NamedTuple):
    """Estimates of each kernel's first singular vectors: dictionaries by the kernel's path."""

    left: dict[str, chex.Array]  # [stacked, out], u
    right: dict[str, chex.Array]  # [stacked, in · window], v


def init_singular_vectors(
    key: chex.PRNGKey, params: chex.ArrayTree, *, kinds: Kinds | None = None, output_axis: int = -1
) -> SingularVectors:
    """Draw the vectors that `power_iteration` begins with.

    Args:
      key: a PRNG key; consumed.
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      kinds: what the axes of a kernel are where their number does not tell, `{"query": ("in", "out", "out")}`: see
        `sp_jax.plasticity.kinds`.
      output_axis: -1 where kernels are [..., in, out] (Flax, Haiku), 0 where [out, in, ...] (Equinox, PyTorch).

    Returns:
      Random unit vectors u; zeros v.

    Raises:
      ValueError: no kernel, another `output_axis`, or a kernel that may be a convolution, an attention's or stacked
        layers (one line that says what to write).
    """
    matrices = kernel_matrices(params, None, kinds, output_axis)
    keys = jax.random.split(key, len(matrices))
    left = {p: jax.random.normal(k, m.shape[:2], m.dtype) for k, (p, m) in zip(keys, matrices.items(), strict=True)}
    right = {path: jnp.zeros_like(m[:, 0]) for path, m in matrices.items()}
    return SingularVectors({path: unit_vectors(u, (-1,)) for path, u in left.items()}, right)


def power_iteration(
    params: chex.ArrayTree, vectors: SingularVectors, *, kinds: Kinds | None = None, output_axis: int = -1
) -> SingularVectors:
    """Improve the estimates by one iteration, v ← Wᵀu/‖Wᵀu‖, u ← Wv/‖Wv‖ (Lewandowski et al. 2025: one a step).

    Args:
      params: pytree of arrays.
      vectors: from `init_singular_vectors`, or from the last step.
      kinds: as for `init_singular_vectors`.
      output_axis: as for `init_singular_vectors`.

    Returns:
      The new estimates; of a kernel of zeros, zeros and the old u.

    Raises:
      ValueError: as `init_singular_vectors`.
    """
    left, right = {}, {}
    for path, matrix in kernel_matrices(params, None, kinds, output_axis).items():
        right[path] = unit_vectors(_product(matrix.mT, vectors.left[path]), (-1,))
        new = unit_vectors(_product(matrix, right[path]), (-1,))
        left[path] = jnp.where(jnp.any(new != 0, axis=-1, keepdims=True), new, vectors.left[path])
    return SingularVectors(left, right)


def spectral_penalty(
    params: chex.ArrayTree,
    vectors: SingularVectors,
    *,
    power: int = 2,
    kinds: Kinds | None = None,
    output_axis: int = -1,
) -> chex.Array:
    """Return Σ (σ₁(W)^k - 1)² + ‖b‖^{2k} over layers, to add to the loss times λ (Lewandowski et al. 2025).

    σ₁ is uᵀWv of the given vectors, which count as constants. A convolution is one matrix [out, in · window]. Of a
    normalisation each unit is a layer of its own: (γ^k - 1)² of its scale, and its offset to the power of 2k. The
    gradient is coupled, so it goes through Adam. Embeddings and complex leaves are left out.

    The authors published no program: this is their paper's formula, λ 1e-4 and k 2.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      vectors: from `power_iteration` of these parameters.
      power: k, a positive Python integer.
      kinds: as for `init_singular_vectors`.
      output_axis: as for `init_singular_vectors`.

    Returns:
      A scalar, at least float32.

    Raises:
      ValueError: as `init_singular_vectors`.

    >>> import jax, jax.numpy as jnp
    >>> params = {"body": {"kernel": jnp.diag(jnp.array([2.0, 0.5])), "bias": jnp.array([0.0, 1.0])}}
    >>> vectors = init_singular_vectors(jax.random.key(0), params)
    >>> for _ in range(9):
    ...     vectors = power_iteration(params, vectors)
    >>> spectral_penalty(params, vectors).round(3)  # (4 - 1)² + 1
    Array(10., dtype=float32)
    """
    matrices = kernel_matrices(params, None, kinds, output_axis)
    total, layers = jnp.float32(0), filters.by_layer(params)
    for path, x in filters.by_path(params).items():
        at = (path, x, filters.layer_of(layers, path))
        if path in matrices:
            u, v = (jax.lax.stop_gradient(each[path]) for each in vectors)
            sigma = jnp.sum(u * _product(matrices[path], v), axis=-1)
            total += jnp.sum((sigma**power - 1) ** 2)
        elif not filters.is_changeable(x) or jnp.iscomplexobj(x):
            continue
        elif filters.biases(*at):
            total += jnp.sum(widen(x) ** 2) ** power
        elif filters.norms(*at):
            is_offset = filters.layer_and_name(path)[1] in OFFSETS
            total += jnp.sum(widen(x) ** (2 * power) if is_offset else (widen(x) ** power - 1) ** 2)
    return total


def parseval_penalty(
    params: chex.ArrayTree,
    *,
    scale: chex.Numeric = 2.0,
    where: Callable | None = None,
    kinds: Kinds | None = None,
    output_axis: int = -1,
) -> chex.Array:
    """Return Σ (64/width)²·‖W·Wᵀ - s·I‖²_F over hidden layers, to add to the loss times λ (Chung et al. 2024).

    Width is a layer's number of outputs, W [out, in]; the authors have one for all layers. s is the square of the gain
    of an orthogonal initialisation, the authors' 2. Here a convolution is one matrix [out, in · window]. A layer of
    more outputs than inputs cannot reach zero: W·Wᵀ has at most the rank of its inputs. The authors begin with
    orthogonal weights, with λ 1e-3 or 1e-4; like theirs, this penalty is of W alone, not of biases or norms.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      scale: s > 0, a scalar.
      where: a filter (`sp_jax.filters`), or a function of a leaf's path, that says which kernels are hidden layers'; by
        default all but those of the layer named `head`, which must exist.
      kinds: what the axes of a kernel are where their number does not tell, see `sp_jax.plasticity.kinds`.
      output_axis: -1 where kernels are [..., in, out] (Flax, Haiku), 0 where [out, in, ...] (Equinox, PyTorch).

    Returns:
      A scalar, at least float32.

    Raises:
      ValueError: no layer is named `head` and there is no `where`, no kernel is picked, another `output_axis`, or a
        kernel that may be a convolution, an attention's or stacked layers; one line.

    >>> import jax.numpy as jnp
    >>> params = {"hidden": {"kernel": jnp.sqrt(2.0) * jnp.eye(64)}, "head": {"kernel": jnp.ones((64, 3))}}
    >>> parseval_penalty(params).round(4), parseval_penalty({**params, "hidden": {"kernel": jnp.eye(64)}})
    (Array(0., dtype=float32), Array(64., dtype=float32))
    """
    if where is None and not any(HEAD(path) for path in filters.by_path(params)):
        raise ValueError(
            "Parseval regularisation leaves out the layer that gives the outputs, and none is named 'head': name it "
            f"so, or say where=, as ~sp_jax.layer('output'); the paths are: {filters.some_paths(params)}"
        )
    total = jnp.float32(0)
    for matrix in kernel_matrices(params, ~HEAD if where is None else where, kinds, output_axis).values():
        width = matrix.shape[1]
        excess = jnp.matmul(matrix, matrix.mT, precision="highest") - scale * jnp.eye(width, dtype=matrix.dtype)[None]
        total += (64 / width) ** 2 * jnp.sum(excess**2)
    return total


def kernel_matrices(
    params: chex.ArrayTree, where: Callable | None, kinds: Kinds | None, output_axis: int
) -> dict[str, chex.Array]:
    """Return by path the kernels that a filter picks (None: all), each [stacked, out, in · window] and in at least
    float32. A ValueError where it picks none, or for an ambiguous kernel (`kinds.axis_roles`); one line."""
    check_output_axis(output_axis)
    picked = filters.pick(params, real_kernels if where is None else real_kernels & where)
    roles = axis_roles(params, picked, kinds=kinds, output_axis=output_axis)
    leaves = filters.by_path(params)
    return {path: _as_matrices(widen(leaves[path]), of_axes) for path, of_axes in roles.items()}


def _as_matrices(kernel, roles):
    order = sorted(range(kernel.ndim), key=lambda i: ("stacked", "out", "spatial", "in").index(roles[i]))  # stable
    sizes = {role: math.prod(n for n, r in zip(kernel.shape, roles, strict=True) if r == role) for role in ROLES}
    return jnp.transpose(kernel, order).reshape(sizes["stacked"], sizes["out"], sizes["spatial"] * sizes["in"])


def _product(matrices, vectors):
    """Return W·x of matrices [stacked, m, n] and vectors [stacked, n]."""
    return jnp.matmul(matrices, vectors[..., None], precision="highest")[..., 0]
