"""Self-normalised resets (SNR; the paper of Farias and Jozefiak, ICLR 2025): units silent for long are drawn anew."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp

from sp_jax.plasticity.units import KERNEL, Link, check_links, leaf_path, replace_units
from sp_jax.transforms import check_fraction
from sp_jax.transforms.filters import by_path

BIN, LARGEST = 100, 20_000  # samples: a histogram's bin, which is the smallest threshold too; the largest threshold


class SilenceState(NamedTuple):
    """How long each unit is silent: dictionaries by incoming path."""

    age: dict[str, chex.Array]  # [units] int32, samples since the unit was last positive
    threshold: dict[str, chex.Array]  # [units] int32, samples: a unit of this age is drawn anew
    # [units, 200] int32: how many silences ended at an age in (0, 100], (100, 200], … (19,900, 20,000] samples
    histogram: dict[str, chex.Array]


def init_silence(params: chex.ArrayTree, links: Sequence[Link], *, threshold: chex.Numeric = 10_000) -> SilenceState:
    """Return the state before the first step of self-normalised resets (Farias and Jozefiak 2025).

    Args:
      params: pytree of arrays, nested dictionaries.
      links: the layers whose units may be replaced; static.
      threshold: the first one of all units, in samples, an integer scalar. The authors' program is given it, and what
        they gave it is not published; here it is half of the largest.

    Returns:
      Ages and histograms of zero.

    Raises:
      ValueError: as `check_links`.
    """
    links = check_links(params, links)
    weights = by_path(params)
    units = {link.incoming: weights[leaf_path(weights, link.incoming, KERNEL)].shape[-1] for link in links}
    return SilenceState(
        age={layer: jnp.zeros(n, jnp.int32) for layer, n in units.items()},
        threshold={layer: jnp.full(n, threshold, jnp.int32) for layer, n in units.items()},
        histogram={layer: jnp.zeros((n, LARGEST // BIN), jnp.int32) for layer, n in units.items()},
    )


def observe_silence(
    state: SilenceState, activations: Mapping[str, chex.Array], *, mask: chex.Array | None = None
) -> SilenceState:
    """Count a batch: the age of a unit that is at most 0 on all its samples and positions grows by their number; that
    of any other is recorded in its histogram and becomes 0 (Farias and Jozefiak 2025).

    Args:
      state: from `init_silence`, or from the last step.
      activations: [B, ..., units] for each incoming path, after the activation function.
      mask: [B] booleans, False marks padding; None where all samples are real.

    Returns:
      The new state.

    Raises:
      ValueError: activations of other units than the state's.

    >>> import jax.numpy as jnp
    >>> state = SilenceState({"a": jnp.array([0, 150])}, {}, {"a": jnp.zeros((2, 200), jnp.int32)})
    >>> new = observe_silence(state, {"a": jnp.array([[-1.0, 2.0], [0.0, 0.0]])})
    >>> new.age["a"], new.histogram["a"][1, :3]
    (Array([2, 0], dtype=int32), Array([0, 1, 0], dtype=int32))
    """
    age, histogram = {}, {}
    for layer, old in state.age.items():
        h = jnp.asarray(activations[layer]) if layer in activations else jnp.zeros(())
        if h.ndim < 2 or h.shape[-1:] != old.shape:
            raise ValueError(f"activations of {layer!r}: found shape {h.shape}, expected [B, ..., {len(old)}]")
        positive = h > 0 if mask is None else (h > 0) & jnp.reshape(mask, (-1, *[1] * (h.ndim - 1)))
        fires = jnp.any(positive, axis=tuple(range(h.ndim - 1)))
        samples = len(h) if mask is None else jnp.sum(mask)
        age[layer] = jnp.where(fires, 0, old + samples).astype(old.dtype)
        histogram[layer] = _recorded(state.histogram[layer], old, fires)
    return state._replace(age=age, histogram=histogram)


def replace_silent(
    state: SilenceState, params: chex.ArrayTree, fresh_params: chex.ArrayTree, links: Sequence[Link]
) -> tuple[chex.ArrayTree, SilenceState, chex.ArrayTree]:
    """Draw the units anew whose age has reached their threshold; call it after each step (Farias and Jozefiak 2025).

    Their incoming weights are drawn anew, their bias and outgoing weights become zero; the age is recorded in the
    histogram and becomes 0. The authors' program zeroes Adam's moments there, the biases' too, and keeps its count:
    `sp_jax.reset_changed`.

    Args:
      state: from `observe_silence`.
      params: pytree of arrays, nested dictionaries.
      fresh_params: pytree of the same structure and shapes: the network drawn with a new key for each call.
      links: as for `init_silence`; static.

    Returns:
      A pytree like `params`; the new state; which entries of the parameters were drawn or zeroed, as `replace_units`.

    Raises:
      ValueError: as `replace_units`.
    """
    old = {layer: age >= state.threshold[layer] for layer, age in state.age.items()}
    params, changed = replace_units(params, fresh_params, old, links)
    histogram = {layer: _recorded(state.histogram[layer], age, old[layer]) for layer, age in state.age.items()}
    age = {layer: jnp.where(old[layer], 0, age).astype(age.dtype) for layer, age in state.age.items()}
    return params, state._replace(age=age, histogram=histogram), changed


def update_thresholds(state: SilenceState, *, percentile: chex.Numeric = 0.92) -> SilenceState:
    """Adapt each unit's threshold to its own silences, and begin new histograms (Farias and Jozefiak 2025).

    The percentile is the upper end of the first bin of 100 samples below which a share of at least q of the recorded
    silences lies. The new threshold is the percentile where that is below the old one, else twice the old one; in any
    case at least 100 and at most 20,000 samples. As in the authors' program, a unit that was never silent, of an empty
    histogram, gets the smallest threshold: a batch of 100 samples without it then resets it. There a bin is one sample
    and each batch 100, so that ages are multiples of 100 and the results the same.

    Args:
      state: after the last step of a task. The authors update after every 16 tasks.
      percentile: q, a scalar in [0, 1].

    Returns:
      The new state; ages stay.

    Raises:
      ValueError: q out of range.
    """
    check_fraction("percentile (q)", percentile)
    thresholds = {}
    for layer, histogram in state.histogram.items():
        real = jnp.promote_types(jnp.result_type(percentile), jnp.float32)
        below, total = jnp.cumsum(histogram, axis=1).astype(real), jnp.sum(histogram, axis=1, keepdims=True)
        reached = below / jnp.maximum(total, 1).astype(real) >= percentile
        found = jnp.where(total[:, 0] == 0, 0, BIN * (jnp.argmax(reached, axis=1) + 1))
        old = state.threshold[layer]
        thresholds[layer] = jnp.clip(jnp.where(found < old, found, 2 * old), BIN, LARGEST).astype(old.dtype)
    return state._replace(threshold=thresholds, histogram={k: jnp.zeros_like(x) for k, x in state.histogram.items()})


def is_any_silent(state: SilenceState) -> chex.Array:
    """Return whether (boolean, []) any unit's age has reached its threshold; otherwise `replace_silent` changes nothing
    and does not use its `fresh_params`."""
    return jnp.any(jnp.stack([jnp.any(age >= state.threshold[layer]) for layer, age in state.age.items()]))


def _recorded(histogram, age, where):
    """Return the histogram with these ages, in samples, of some units; ages of 0 and above 20,000 are none."""
    place = jnp.where(where & (age > 0) & (age <= LARGEST), (age - 1) // BIN, histogram.shape[1])
    return histogram.at[jnp.arange(len(age)), place].add(1, mode="drop")
