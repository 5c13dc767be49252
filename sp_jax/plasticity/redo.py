"""ReDo (Sokar et al., ICML 2023): dormant units are periodically drawn anew."""

from collections.abc import Mapping, Sequence

import chex
import jax.numpy as jnp

from sp_jax.plasticity.arrays import unit_means, widen
from sp_jax.plasticity.units import Link, check_activations, check_links, replace_units


def dormancy(activations: chex.Array, mask: chex.Array | None = None) -> chex.Array:
    """Return s_i = E|h_i| / mean_k E|h_k|, a unit's share of its layer's activation.

    Sokar et al. 2023, Definition 3.1.

    Args:
      activations: [B, ..., units], after the activation function; the mean is over samples and positions.
      mask: [B] booleans, False marks padding; None where all samples are real.

    Returns:
      [units], at least float32, of mean 1; zeros where the whole layer is zero.

    >>> import jax.numpy as jnp
    >>> dormancy(jnp.array([[0.0, 1.0, -5.0], [0.0, 1.0, 5.0]]))
    Array([0. , 0.5, 2.5], dtype=float32)
    """
    magnitudes = unit_means(jnp.abs(widen(activations)), mask)
    mean = jnp.mean(magnitudes)
    return magnitudes / jnp.where(mean == 0, 1, mean)


def redo(
    params: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    activations: Mapping[str, chex.Array],
    links: Sequence[Link],
    *,
    threshold: chex.Numeric = 0.025,
    mask: chex.Array | None = None,
) -> tuple[chex.ArrayTree, chex.ArrayTree]:
    """Draw the units with s_i <= τ anew: fresh incoming weights, bias and outgoing weights zero (Sokar et al. 2023).

    With τ = 0 only dead units are redrawn, and unless a norm mixes units the network's function does not change on the
    batch. A layer whose activations are all zero is redrawn as a whole. Reset the optimiser's moments with
    `sp_jax.reset_changed`. The authors' program keeps those of the biases (`sp_jax.plasticity.units.without_biases`)
    and Adam's step count, so that the first steps of a unit's new weights are up to 6.6 learning rates long;
    `sp_jax.transforms.optimizer_state` explains it and has an Adam without this effect.

    Args:
      params: pytree of arrays, nested dictionaries.
      fresh_params: pytree of the same structure and shapes: the network drawn with a new key for each call.
      activations: [B, ..., units] for each incoming path, after the activation function.
      links: the layers whose units may be redrawn; static.
      threshold: τ, a scalar.
      mask: [B] booleans, False marks padding; None where all samples are real.

    Returns:
      A pytree like `params`, and which of its entries changed, as `replace_units`.

    Raises:
      ValueError: as `replace_units`; activations that are missing or don't fit.
    """
    links = check_links(params, links)
    check_activations(params, activations, links)
    replaced = {link.incoming: dormancy(activations[link.incoming], mask) <= threshold for link in links}
    return replace_units(params, fresh_params, replaced, links)
