"""Direction-aware shrinking, DASH (Shin et al., NeurIPS 2024): between rounds, weights shrink the more, the less they
agree with the direction of descent."""

import chex
import jax
import jax.numpy as jnp

from sp_jax.filters import biases, embeddings, is_changeable, norms, path_name, pick
from sp_jax.plasticity.arrays import check_output_axis, exponential_average, unit_vectors, widen
from sp_jax.transforms import check_fraction, check_same, check_shrink, like


def average_gradient(average: chex.ArrayTree, gradient: chex.ArrayTree, *, decay: chex.Numeric = 0.3) -> chex.ArrayTree:
    """G ← (1 - α)·G + α·(-∇L): the running direction of descent (Shin et al. 2024, Algorithm 1).

    Start from zeros, `optax.tree.zeros_like(params)`, and go through the data seen so far in the order of its arrival,
    one call for each batch, at parameters that stay as they are. The newest batches weigh most.

    Args:
      average: pytree of arrays, G.
      gradient: pytree of the same structure and shapes, ∇L, the gradient of a batch's mean loss.
      decay: α, a scalar in [0, 1]: the weight of the new gradient (not of the old average).

    Returns:
      A pytree like `average`.

    Raises:
      ValueError: trees or shapes that differ (names the path), or α out of range.

    >>> import jax.numpy as jnp
    >>> average_gradient({"bias": jnp.zeros(2)}, {"bias": jnp.array([1.0, -2.0])}, decay=0.5)
    {'bias': Array([-0.5,  1. ], dtype=float32)}
    """

    check_fraction("decay (α)", decay)
    check_same(average, gradient, names=("average", "gradient"), advice="start from zeros like the parameters")

    def leaf(average, gradient):
        return exponential_average(average, -gradient, 1 - decay) if is_changeable(average) else average

    return jax.tree.map(leaf, average, gradient)


def dash(
    params: chex.ArrayTree, average: chex.ArrayTree, *, shrink: chex.Numeric = 0.3, output_axis: int = -1
) -> chex.ArrayTree:
    """w ← w · clip(cos(G, w), λ, 1): the less weights agree with descent, the more they shrink (Shin et al. 2024).

    The cosine is taken for each vector w of a leaf, by the leaf's axes:

    - three or more, a convolution: each pair of input and output channels, over the spatial axes. For a 1x1
      convolution that is a single weight, so it is kept or shrunk to λ by its sign alone;
    - two, a linear layer: each output unit, over its inputs;
    - one or none, and biases of any number (Equinox's of convolutions are [out, 1, 1]): the whole leaf.

    The cosine with a zero vector counts as 0. Normalisation layers stay as they are (`sp_jax.filters.norms`). So do
    embeddings, of which the paper says nothing: the authors' program changes convolutional and linear layers alone.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      average: pytree of the same structure and shapes, G of `average_gradient`.
      shrink: λ, a scalar in [0, 1]; 1 keeps the parameters.
      output_axis: -1 where kernels are [..., in, out] (Flax, Haiku), 0 where [out, in, ...] (Equinox, PyTorch).

    Returns:
      A pytree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: another `output_axis`, λ out of range, trees or shapes that differ (names the path), or nothing to
        shrink.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, 1.0], [4.0, 1.0]])}
    >>> dash(params, {"kernel": jnp.array([[1.0, -1.0], [0.0, -1.0]])}, shrink=0.25)["kernel"]
    Array([[1.8000001, 0.25     ],
           [2.4      , 0.25     ]], dtype=float32)
    """
    check_output_axis(output_axis)
    check_shrink(shrink)
    check_same(params, average, names=("params", "average"), advice="average gradients of these parameters")

    def leaf(path, picked, weight, average):
        if not picked:
            return weight
        axes = _axes(jnp.ndim(weight), biases(path_name(path), weight), output_axis)
        # Of complex leaves JAX's gradient is the conjugate of the direction, so there is nothing to conjugate here.
        products = jnp.real(unit_vectors(average, axes) * unit_vectors(weight, axes))
        cosine = jnp.sum(products, axis=axes, keepdims=True)
        return like(widen(weight) * jnp.clip(cosine, shrink, 1), weight)

    return jax.tree_util.tree_map_with_path(leaf, pick(params, ~(norms | embeddings)), params, average)


def _axes(ndim, is_bias, output_axis):
    """The axes of one vector: all of a bias, the inputs of a linear layer, the spatial ones of a convolution."""
    if is_bias or ndim < 2:
        return tuple(range(ndim))
    if output_axis == -1:
        return tuple(range(max(ndim - 2, 1)))
    return tuple(range(min(ndim - 1, 2), ndim))
