"""FIRE, Frobenius-isometry reinitialisation (Han et al., ICLR 2026): between rounds, kernels become orthogonal."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from sp_jax.filters import Filter, kernels, pick
from sp_jax.plasticity.arrays import check_output_axis, unit_vectors
from sp_jax.transforms import like

_matrices = kernels & Filter(lambda path, leaf: jnp.ndim(leaf) >= 2)


def orthogonalize(
    params: chex.ArrayTree, *, iterations: int = 10, where: Callable | None = None, output_axis: int = -1
) -> chex.ArrayTree:
    """Replaces each kernel by an orthogonal matrix close to it, at the scale of an initialisation (Han et al. 2026).

    X ← W/‖W‖_F, then X ← 1.5·X - 0.5·X·Xᵀ·X (Newton and Schulz), then X·sqrt(d_out/d_in). A convolution is a matrix
    for each spatial position, each divided by their number too. All singular values go to 1 before the scaling; those
    below about 1.5^-iterations of the Frobenius norm do not get there. A matrix of zeros stays zero.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      iterations: of Newton and Schulz; the authors' 10.
      where: a filter (`sp_jax.filters`), or a function of a leaf's path, that says which kernels change. By default all
        of two or more axes, the head's too as in the authors' program; never biases, norms or embeddings.
      output_axis: -1 where kernels are [..., in, out] (Flax, Haiku), 0 where [out, in, ...] (Equinox, PyTorch).

    Returns:
      A pytree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: no kernel is picked, or another `output_axis`.

    >>> import jax.numpy as jnp
    >>> orthogonalize({"kernel": jnp.array([[0.0, 2.0], [-1.0, 0.0]])})["kernel"].round(3)
    Array([[ 0.,  1.],
           [-1.,  0.]], dtype=float32)
    """
    check_output_axis(output_axis)
    picked = pick(params, _matrices if where is None else _matrices & where)

    def leaf(picked, kernel):
        return _orthogonalize_kernel(kernel, iterations, output_axis) if picked else kernel

    return jax.tree.map(leaf, picked, params)


def _orthogonalize_kernel(kernel, iterations, output_axis):
    matrices = kernel if output_axis == -1 else jnp.moveaxis(kernel, (1, 0), (-2, -1))  # [..., in, out]
    *spatial, d_in, d_out = matrices.shape

    def step(_, x):
        # X·Xᵀ·X, by the smaller of its two Gram matrices.
        gram = _product(x, jnp.conj(x).mT) if d_in <= d_out else _product(jnp.conj(x).mT, x)
        cube = _product(gram, x) if d_in <= d_out else _product(x, gram)
        return 1.5 * x - 0.5 * cube

    x = jax.lax.fori_loop(0, iterations, step, unit_vectors(matrices, (-2, -1)))
    x = x * (math.sqrt(d_out / d_in) / math.prod(spatial))
    return like(x if output_axis == -1 else jnp.moveaxis(x, (-2, -1), (1, 0)), kernel)


def _product(a, b):
    return jnp.matmul(a, b, precision="highest")
