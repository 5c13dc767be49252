"""Continual backprop (Dohare et al., Nature 2024): at every step, a few mature units of low utility are drawn anew."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp

from sp_jax.plasticity.arrays import exponential_average, unit_means, widen
from sp_jax.plasticity.units import (
    BIAS,
    KERNEL,
    Link,
    by_unit,
    check_activations,
    check_links,
    leaf_path,
    rebuild,
    replace_units,
)
from sp_jax.transforms import check_fraction, like
from sp_jax.transforms.filters import by_path


class Utility(NamedTuple):
    """The state of continual backprop for each unit: dictionaries by incoming path."""

    utility: dict[str, chex.Array]  # [units], running mean of E|h| · mean|w_out|, from zero
    mean_activation: dict[str, chex.Array]  # [units], running mean of E h, from zero
    age: dict[str, chex.Array]  # [units] int32, steps since the unit was drawn
    pending: dict[str, chex.Array]  # [] float32, units due to be replaced: a fraction remains


def init_utility(params: chex.ArrayTree, links: Sequence[Link]) -> Utility:
    """Return the state before the first step.

    Args:
      params: pytree of arrays, nested dictionaries.
      links: the layers whose units may be replaced; static.

    Returns:
      Zeros; statistics in the dtype of the layer's kernel, at least float32.

    Raises:
      ValueError: as `check_links`.
    """
    links = check_links(params, links)
    weights = by_path(params)
    kernels = {link.incoming: widen(weights[leaf_path(weights, link.incoming, KERNEL)]) for link in links}

    def zeros():
        return {layer: jnp.zeros(kernel.shape[-1], kernel.dtype) for layer, kernel in kernels.items()}

    age = {layer: jnp.zeros(kernel.shape[-1], jnp.int32) for layer, kernel in kernels.items()}
    return Utility(zeros(), zeros(), age, {layer: jnp.zeros((), jnp.float32) for layer in kernels})


def continual_backprop(
    state: Utility,
    params: chex.ArrayTree,
    fresh_params: chex.ArrayTree,
    activations: Mapping[str, chex.Array],
    links: Sequence[Link],
    *,
    decay: chex.Numeric = 0.99,
    rate: chex.Numeric = 1e-4,
    maturity: chex.Numeric = 100,
    mask: chex.Array | None = None,
) -> tuple[chex.ArrayTree, Utility, chex.ArrayTree]:
    """Replace the fraction ρ of the mature units of least utility; call it after each step (Dohare et al. 2024).

    In each layer: age ← age + 1, u ← η·u + (1 - η)·E|h|·mean|w_out|, f ← η·f + (1 - η)·E h; ρ times the number of units
    of age > m is added to the pending fraction, and as many units as its integer part are replaced: those of age > m of
    the lowest u / (1 - η^age), the first of equal ones. Their incoming weights are drawn anew, their bias becomes zero,
    and f / (1 - η^age) times their outgoing weights is added to the bias of the next layer before these weights become
    zero; u, f and age are reset to zero.

    To the bias of a convolution the sum over its positions is added, which is exact away from the padding; a layer
    without bias (as our convolutions, which a BatchNorm follows) gets nothing. For a flattened image, E|h| and
    mean|w_out| are means over positions before they are multiplied. The next layer's bias does not count as changed: as
    in the authors' program, its moments stay. Reset the others with `sp_jax.reset_changed`; that program's Adam counts
    the steps of each entry and resets those counts too, as `sp_jax.adam_per_entry` does. With Adam's one count a new
    unit's steps are up to 6.6 learning rates long.

    Args:
      state: from `init_utility`, or from the last step.
      params: pytree of arrays, nested dictionaries.
      fresh_params: pytree of the same structure and shapes: the network drawn with a new key for each call.
      activations: [B, ..., units] for each incoming path, after the activation function.
      links: as for `init_utility`; static.
      decay: η, a scalar in [0, 1).
      rate: ρ, a scalar in [0, 1], per step and mature unit.
      maturity: m, a scalar, in steps.
      mask: [B] booleans, False marks padding; None where all samples are real.

    Returns:
      A pytree like `params`; the new state; which entries of the parameters were drawn or zeroed, as `replace_units`.

    Raises:
      ValueError: as `replace_units`; activations that are missing or don't fit; a state of other links; η or ρ out of
        range.
    """
    check_fraction("decay (η)", decay)
    check_fraction("rate (ρ)", rate)
    links = check_links(params, links)
    check_activations(params, activations, links)
    if set(state.age) != {link.incoming for link in links}:
        raise ValueError(f"the state has the layers {sorted(state.age)}, expected those of the links")
    state = _observe(state, params, activations, links, decay, mask)
    replaced, means, pending = {}, {}, {}
    for layer, age in state.age.items():
        correction = 1 - jnp.asarray(decay, state.utility[layer].dtype) ** age
        means[layer] = state.mean_activation[layer] / correction
        due = state.pending[layer] + (rate * jnp.sum(age > maturity)).astype(jnp.float32)
        replaced[layer] = _least_useful(state.utility[layer] / correction, age > maturity, jnp.floor(due))
        pending[layer] = due - jnp.sum(replaced[layer])
    params = _absorb(params, means, replaced, links)
    params, changed = replace_units(params, fresh_params, replaced, links)
    return params, _start_again(state._replace(pending=pending), replaced), changed


def is_any_due(state: Utility, *, rate: chex.Numeric = 1e-4, maturity: chex.Numeric = 100) -> chex.Array:
    """Return whether (boolean, []) the next step may replace a unit; otherwise its `fresh_params` are not used and need
    not be drawn. `rate` ρ and `maturity` m are those of `continual_backprop`."""
    due = [state.pending[layer] + rate * jnp.sum(age + 1 > maturity) > 0.999 for layer, age in state.age.items()]
    return jnp.any(jnp.stack(due))


def _observe(state, params, activations, links, decay, mask):
    weights, utility, mean_activation = by_path(params), {}, {}
    for layer, outgoing, _ in links:
        h, units = widen(activations[layer]), state.age[layer].shape[0]
        outgoing = jnp.mean(jnp.abs(by_unit(widen(weights[leaf_path(weights, outgoing, KERNEL)]), units)), axis=(0, 2))
        contribution = unit_means(jnp.abs(h), mask) * outgoing
        utility[layer] = exponential_average(state.utility[layer], contribution, decay)
        mean_activation[layer] = exponential_average(state.mean_activation[layer], unit_means(h, mask), decay)
    age = {layer: age + 1 for layer, age in state.age.items()}
    return Utility(utility, mean_activation, age, state.pending)


def _least_useful(utility, eligible, number):
    """Return [units] booleans, True for the `number` least useful eligible units, or for all if they are fewer."""
    rank = jnp.argsort(jnp.argsort(jnp.where(eligible, utility, jnp.inf)))
    return eligible & (rank < number)


def _absorb(params, means, replaced, links):
    """Add the mean contribution of the replaced units to the biases of the next layers."""
    weights = by_path(params)
    for layer, outgoing, _ in links:
        path = leaf_path(weights, outgoing, BIAS)
        if path in weights:
            bias = weights[path]
            kernel = by_unit(widen(weights[leaf_path(weights, outgoing, KERNEL)]), replaced[layer].shape[0])
            gone = jnp.where(replaced[layer], means[layer], 0)
            absorbed = jnp.sum(gone[None, :, None] * kernel, axis=(0, 1))
            weights[path] = like(widen(bias) + absorbed, bias)
    return rebuild(params, weights)


def _start_again(state, replaced):
    def zero(values):
        return {layer: jnp.where(replaced[layer], 0, value).astype(value.dtype) for layer, value in values.items()}

    return state._replace(utility=zero(state.utility), mean_activation=zero(state.mean_activation), age=zero(state.age))
