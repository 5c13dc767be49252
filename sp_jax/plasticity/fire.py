"""FIRE, Frobenius-isometry reinitialisation (Han et al., ICLR 2026): between rounds, kernels become orthogonal."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from sp_jax.plasticity.arrays import check_output_axis, unit_vectors
from sp_jax.plasticity.kinds import ROLES, Kinds, axis_roles
from sp_jax.transforms import like
from sp_jax.transforms.filters import Filter, kernels, path_name, pick

_matrices = kernels & Filter(lambda path, leaf: jnp.ndim(leaf) >= 2)


def orthogonalize(
    params: chex.ArrayTree,
    *,
    iterations: int = 10,
    where: Callable | None = None,
    kinds: Kinds | None = None,
    output_axis: int = -1,
) -> chex.ArrayTree:
    """Replace each kernel by an orthogonal matrix close to it, at the scale of an initialisation (Han et al. 2026).

    X ← W/‖W‖_F, then X ← 1.5·X - 0.5·X·Xᵀ·X (Newton and Schulz), then X·sqrt(d_out/d_in). A convolution is a matrix
    for each spatial position, each divided by their number too. All singular values tend to 1 before the scaling; those
    below about 1.5^-iterations of the Frobenius norm do not reach it. A matrix of zeros stays zero.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      iterations: of Newton and Schulz; the authors' 10.
      where: a filter (`sp_jax.filters`), or a function of a leaf's path, that says which kernels change. By default all
        of two or more axes, the head's too as in the authors' program; never biases, norms or embeddings.
      kinds: what the axes of a kernel are where their number does not tell, `{"query": ("in", "out", "out")}`: see
        `sp_jax.plasticity.kinds`.
      output_axis: -1 where kernels are [..., in, out] (Flax, Haiku), 0 where [out, in, ...] (Equinox, PyTorch).

    Returns:
      A pytree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: no kernel is picked, another `output_axis`, or a kernel that may be a convolution, an attention's or
        stacked layers (one line that says what to write).

    >>> import jax.numpy as jnp
    >>> orthogonalize({"kernel": jnp.array([[0.0, 2.0], [-1.0, 0.0]])})["kernel"].round(3)
    Array([[ 0.,  1.],
           [-1.,  0.]], dtype=float32)
    """
    check_output_axis(output_axis)
    picked = pick(params, _matrices if where is None else _matrices & where)
    roles = axis_roles(params, picked, kinds=kinds, output_axis=output_axis)

    def leaf(path, picked, kernel):
        return _orthogonalize_kernel(kernel, roles[path_name(path)], iterations) if picked else kernel

    return jax.tree_util.tree_map_with_path(leaf, picked, params)


def _orthogonalize_kernel(kernel, roles, iterations):
    order = sorted(range(kernel.ndim), key=lambda i: ROLES.index(roles[i]))  # stable: [stacked, spatial, in, out]
    turned = jnp.transpose(kernel, order)
    alone = [kernel.shape[i] for i in order if roles[i] in ("stacked", "spatial")]
    sizes = {role: math.prod(n for n, r in zip(kernel.shape, roles, strict=True) if r == role) for role in ROLES}
    d_in, d_out = sizes["in"], sizes["out"]

    def step(_, x):
        # X·Xᵀ·X, by the smaller of its two Gram matrices.
        gram = _product(x, jnp.conj(x).mT) if d_in <= d_out else _product(jnp.conj(x).mT, x)
        cube = _product(gram, x) if d_in <= d_out else _product(x, gram)
        return 1.5 * x - 0.5 * cube

    x = jax.lax.fori_loop(0, iterations, step, unit_vectors(turned.reshape(*alone, d_in, d_out), (-2, -1)))
    x = x * (math.sqrt(d_out / d_in) / sizes["spatial"])
    return like(jnp.transpose(x.reshape(turned.shape), [order.index(i) for i in range(kernel.ndim)]), kernel)


def _product(a, b):
    return jnp.matmul(a, b, precision="highest")
