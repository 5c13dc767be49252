"""Weights kept small after each update: soft weight rescaling (Oh et al. 2025), which pulls each layer's norm to its
first one, and weight clipping (Elsayed et al., RLC 2024)."""

import math
from collections.abc import Mapping, Sequence

import chex
import jax.numpy as jnp

from sp_jax.plasticity.arrays import check_output_axis, widen
from sp_jax.plasticity.kinds import Kinds, axis_roles
from sp_jax.plasticity.regularizers import OFFSETS, real_kernels
from sp_jax.plasticity.units import Link, check_links, rebuild
from sp_jax.transforms import check_fraction, filters, like


def weight_norms(params: chex.ArrayTree) -> dict[str, chex.Array]:
    """Return by path the Frobenius norm of each kernel and of each normalisation's scale.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.

    Returns:
      Scalars, at least float32. Embeddings and complex leaves have none.

    >>> import jax.numpy as jnp
    >>> weight_norms({"body": {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.ones(2)}})
    {'body/kernel': Array(5., dtype=float32)}
    """
    layers, leaves = filters.by_layer(params), filters.by_path(params)
    return {path: jnp.sqrt(jnp.sum(widen(x) ** 2)) for path, x in leaves.items() if _is_weight(path, x, layers)}


def soft_rescaling(
    params: chex.ArrayTree,
    initial_norms: Mapping[str, chex.Array],
    *,
    strength: chex.Numeric = 1e-3,
    links: Sequence[Link] = (),
) -> chex.ArrayTree:
    """Rescale each layer's weights after an update, W ← c·W with c = (λ·‖W₀‖ + (1 - λ)·‖W‖)/‖W‖ (Oh et al. 2025).

    Scale and offset of a normalisation are a layer's weights and bias. A bias is multiplied by the product of c over
    the layers since the last normalisation, that one and its own layer included, so that a network of ReLUs changes by
    one factor. Which layer comes before another is known where `links` say so; for a layer that no link, or more than
    one, leads to, the product is its own c, where the paper goes on to the layers before it. A layer of several kernels
    (a recurrent cell's) keeps its biases. A kernel is one layer, whatever its axes, also one of stacked layers.

    The authors published no program. The paper has λ 1e-3, with BatchNorm 1e-4 and another for the classifier, 0.1 to
    1; here all layers have one. Where a schedule lowers the learning rate, it sets ‖W₀‖ to the current norms:
    call `weight_norms` again; `experiments.run` does not.

    Args:
      params: pytree of arrays, nested dictionaries, named as `sp_jax.filters` knows them.
      initial_norms: ‖W₀‖ by path, `weight_norms` of the first parameters.
      strength: λ, a scalar in [0, 1]; 0 keeps the parameters, 1 restores the norms.
      links: which layer reads which, as of `sp_jax.plasticity.Link`; static.

    Returns:
      A pytree like `params`. Weights of zero stay.

    Raises:
      ValueError: λ out of range, links that do not fit, norms of other parameters.

    >>> import jax.numpy as jnp
    >>> params = {"body": {"kernel": jnp.array([[6.0, 8.0]]), "bias": jnp.array([1.0, -1.0])}}
    >>> new = soft_rescaling(params, {"body/kernel": jnp.array(5.0)}, strength=0.5)
    >>> new["body"]["kernel"], new["body"]["bias"]
    (Array([[4.5, 6. ]], dtype=float32), Array([ 0.75, -0.75], dtype=float32))
    """
    check_fraction("strength (λ)", strength)
    links = check_links(params, links)
    norms, leaves, layers = weight_norms(params), filters.by_path(params), filters.by_layer(params)
    if set(norms) != set(initial_norms):
        raise ValueError(f"initial_norms are of {sorted(initial_norms)}, expected weight_norms of these parameters")
    ratios = {path: _ratio(initial_norms[path], norm, strength) for path, norm in norms.items()}
    products = _products(ratios, links)

    def factor(path, x):
        at = (path, x, filters.layer_of(layers, path))
        is_bias = _is_real(x) and (filters.biases(*at) or filters.norms(*at))
        return ratios.get(path, products.get(path.rpartition("/")[0]) if is_bias else None)

    factors = {path: factor(path, x) for path, x in leaves.items()}
    new = {path: x if factors[path] is None else like(widen(x) * factors[path], x) for path, x in leaves.items()}
    return rebuild(params, new)


def clip_weights(
    params: chex.ArrayTree, *, bound: chex.Numeric = 1.0, kinds: Kinds | None = None, output_axis: int = -1
) -> chex.ArrayTree:
    """Clip weights and biases to ±κ/sqrt(fan_in) after an update (Elsayed et al. 2024).

    The fan-in of a bias is that of its layer's kernel. 1/sqrt(fan_in) is the range in which PyTorch draws both, so that
    with κ = 1, the default of the authors' program, none leaves it; their experiments try 1 to 20. Other initialisers
    draw beyond it, and the first update clips them. Normalisations stay as they are: the authors' program clips scale
    and offset too, by the fan-in of the kernel before them. Embeddings stay too, and biases of layers that have not
    exactly one kernel.

    Args:
      params: pytree of arrays, named as `sp_jax.filters` knows them.
      bound: κ > 0, a scalar.
      kinds: what the axes of a kernel are where their number does not tell, see `sp_jax.plasticity.kinds`.
      output_axis: -1 where kernels are [..., in, out] (Flax, Haiku), 0 where [out, in, ...] (Equinox, PyTorch).

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: no kernel, another `output_axis`, or a kernel that may be a convolution, an attention's or stacked
        layers (one line that says what to write).

    >>> import jax.numpy as jnp
    >>> new = clip_weights({"kernel": jnp.array([[2.0], [0.1], [0.3], [-1.0]]), "bias": jnp.array([0.7])})
    >>> new["kernel"][:, 0], new["bias"]
    (Array([ 0.5,  0.1,  0.3, -0.5], dtype=float32), Array([0.5], dtype=float32))
    """
    check_output_axis(output_axis)
    roles = axis_roles(params, filters.pick(params, real_kernels), kinds=kinds, output_axis=output_axis)
    leaves, layers = filters.by_path(params), filters.by_layer(params)
    fans = {path: _fan_in(leaves[path].shape, of_axes) for path, of_axes in roles.items()}
    own = _of_one(fans)

    def clipped(path, x):
        is_bias = _is_real(x) and filters.biases(path, x, filters.layer_of(layers, path))
        fan_in = fans.get(path, own.get(path.rpartition("/")[0]) if is_bias else None)
        if fan_in is None:
            return x
        limit = jnp.asarray(bound / math.sqrt(fan_in), widen(x).dtype)
        return like(jnp.clip(widen(x), -limit, limit), x)

    return rebuild(params, {path: clipped(path, x) for path, x in leaves.items()})


def _is_real(x):
    return filters.is_changeable(x) and not jnp.iscomplexobj(x)


def _is_weight(path, x, layers):
    layer, name = filters.layer_of(layers, path), filters.layer_and_name(path)[1]
    return real_kernels(path, x, layer) or (_is_real(x) and filters.norms(path, x, layer) and name not in OFFSETS)


def _ratio(initial, norm, strength):
    return jnp.where(norm == 0, 1, (strength * initial + (1 - strength) * norm) / jnp.where(norm == 0, 1, norm))


def _of_one(values):
    """Return by layer the value of its only kernel or scale; layers of several are left out."""
    layers = [path.rpartition("/")[0] for path in values]
    found = zip(layers, values.values(), strict=True)
    return {layer: value for layer, value in found if layers.count(layer) == 1}


def _products(ratios, links):
    """Return by layer the product of the ratios since the last normalisation."""
    own, readers = _of_one(ratios), [link.outgoing for link in links]
    before = {link.outgoing: link.norm or link.incoming for link in links if readers.count(link.outgoing) == 1}
    products = {}
    for layer, product in own.items():
        at, seen = layer, {layer}
        while before.get(at) in own and before[at] not in seen:
            at = before[at]
            seen.add(at)
            product = product * own[at]
        products[layer] = product
    return products


def _fan_in(shape, roles):
    return math.prod(n for n, role in zip(shape, roles, strict=True) if role in ("in", "spatial"))
