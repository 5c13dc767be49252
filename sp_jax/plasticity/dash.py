"""Direction-aware shrinking, DASH (Shin et al., NeurIPS 2024): between rounds, weights shrink the more, the less they
agree with the direction of descent."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from sp_jax.plasticity.arrays import check_output_axis, exponential_average, unit_vectors, widen
from sp_jax.plasticity.kinds import Kinds, axis_roles, vector_axes
from sp_jax.transforms import check_fraction, check_same, check_shrink, filters, like
from sp_jax.transforms.filters import embeddings, is_changeable, path_name, pick


def average_gradient(average: chex.ArrayTree, gradient: chex.ArrayTree, *, decay: chex.Numeric = 0.3) -> chex.ArrayTree:
    """Return (1 - α)·G + α·(-∇L), the running direction of descent (Shin et al. 2024, Algorithm 1).

    Start from zeros, `optax.tree.zeros_like(params)`, and go through the data seen so far in the order of its arrival,
    one call for each batch, at fixed parameters. The newest batches weigh most.

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
    params: chex.ArrayTree,
    average: chex.ArrayTree,
    *,
    shrink: chex.Numeric = 0.3,
    norms: Callable | None = None,
    kinds: Kinds | None = None,
    output_axis: int = -1,
) -> chex.ArrayTree:
    """Return w · clip(cos(G, w), λ, 1): weights shrink the more, the less they agree with descent (Shin et al. 2024).

    The cosine is taken for each vector w of a leaf:

    - of a convolution: each pair of input and output channels, over the window. For a 1x1 convolution that is a single
      weight, so it is kept or shrunk to λ by its sign alone;
    - of a linear layer: each output unit, over its inputs;
    - of a bias, or whatever else has one axis or none: the whole leaf.

    The cosine with a zero vector counts as 0. Normalisation layers stay as they are. So do embeddings, which the paper
    does not mention: the authors' program changes only convolutional and linear layers.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      average: pytree of the same structure and shapes, G of `average_gradient`.
      shrink: λ, a scalar in [0, 1]; 1 keeps the parameters.
      norms: a filter (`sp_jax.filters`), or a function of a leaf's path: what belongs to normalisation layers. By
        default those that are known by their names, or hold a scale of one axis, perhaps a bias, and nothing else.
      kinds: what the axes of a kernel are where their number does not tell, `{"query": ("in", "out", "out")}`: see
        `sp_jax.plasticity.kinds`.
      output_axis: -1 where kernels are [..., in, out] (Flax, Haiku), 0 where [out, in, ...] (Equinox, PyTorch).

    Returns:
      A pytree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: another `output_axis`, λ out of range, trees or shapes that differ (names the path), nothing to
        shrink; a scale that may or may not be a norm's, or a kernel that may be a convolution, an attention's or
        stacked layers (one line that says what to write).

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([[3.0, 1.0], [4.0, 1.0]])}
    >>> dash(params, {"kernel": jnp.array([[1.0, -1.0], [0.0, -1.0]])}, shrink=0.25)["kernel"]
    Array([[1.8000001, 0.25     ],
           [2.4      , 0.25     ]], dtype=float32)
    """
    check_output_axis(output_axis)
    check_shrink(shrink)
    check_same(params, average, names=("params", "average"), advice="average gradients of these parameters")

    if norms is None:
        norms = filters.norms
        _check_scales(params)
    picked = pick(params, ~(embeddings | norms))
    roles = axis_roles(params, picked, kinds=kinds, output_axis=output_axis)

    def leaf(path, picked, weight, average):
        if not picked:
            return weight
        axes = vector_axes(roles[path_name(path)])
        # Of complex leaves JAX's gradient is the conjugate of the direction, so there is nothing to conjugate here.
        products = jnp.real(unit_vectors(average, axes) * unit_vectors(weight, axes))
        cosine = jnp.sum(products, axis=axes, keepdims=True)
        return like(widen(weight) * jnp.clip(cosine, shrink, 1), weight)

    return jax.tree_util.tree_map_with_path(leaf, picked, params, average)


def _check_scales(params):
    """Raise a ValueError for a scale in a layer that is not known to be a norm."""
    for layer, leaves in filters.by_layer(params).items():
        for name, leaf in leaves.items():
            path = f"{layer}/{name}".lstrip("/")
            scales = {"scale", "gamma", "gain"} & {*filters.words(name)}
            if scales and is_changeable(leaf) and not filters.is_known_norm(path, leaf, leaves):
                raise ValueError(
                    f"{path!r} may be a normalisation's scale or not: say which, as norms=sp_jax.norms | "
                    f"sp_jax.layer({path!r}) where it is (it stays), & ~sp_jax.layer({path!r}) where not (it shrinks)"
                )
