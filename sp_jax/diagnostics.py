"""Diagnostics: gradient norms on parts of the data (Figure 5), similarity to the initialisation (Figure 11), and signs
of a loss of plasticity.

`dormant_share`, `effective_rank`, `stable_rank`, `top_singular_values` and `sharpness` are functions of arrays, for any
training loop; the guide `experiments/docs/losing_plasticity.md` says what to make of them. The others are functions of
one lane, off the hot path: `sweeps.Engine.measure` runs them on all lanes.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax.plasticity.redo import dormancy
from sp_jax.random import Purpose, key_for
from sp_jax.training import Lane, Trainer, init_state
from sp_jax.types import Dataset, TrainState

BATCHES = 10  # gradients of so many batches are averaged
PROBE = 512  # samples on which a network is looked at after a round, as in Lee et al. 2024
DORMANT = 0.025  # a unit's share of its layer's mean activation, at most (Sokar et al. 2023)
POWER_STEPS = 20  # of the power iteration
MEASURES = (
    "online_accuracy", "dormant", "effective_rank", "stable_rank", "top_singular_values", "weight_norm", "update_norm",
    "gradient_norm", "distance", "sharpness",
)  # fmt: skip


def gradient_norms(trainer: Trainer) -> Callable[..., dict[str, chex.Array]]:
    """Make a measure of the gradient norms of the old data and of the new data, separately (Figure 5).

    Returns:
      `measure(lane, state, data, num_old, num_visible)`: scalars `gradient_norm_old` and `gradient_norm_new`, the norm
      of the gradient of the mean cross-entropy of a batch, in train mode, averaged over the first ten batches of each.
    """

    def measure(lane: Lane, state: TrainState, data: Dataset, num_old: chex.Numeric, num_visible: chex.Numeric):
        def norm(start, stop):
            return _gradient_norm(trainer, lane, state, data, start, stop)

        return {"gradient_norm_old": norm(0, num_old), "gradient_norm_new": norm(num_old, num_visible)}

    def positions(num_train, num_old, num_visible):
        """Return the positions, in the order of arrival, of the samples that `measure` reads: a stream sends these."""
        del num_visible
        first = np.arange(BATCHES * trainer.batch_size)
        return np.minimum(np.concatenate([first, num_old + first]), num_train - 1)

    measure.positions = positions
    return measure


def _gradient_norm(trainer, lane, state, data, start, stop):
    """Return the mean over the first batches of the samples that arrived from `start` to `stop`; NaN without any."""
    size = trainer.batch_size

    def batch_norm(i):
        positions = start + i * size + jnp.arange(size)
        mask = positions < stop
        samples = data.take(lane.order[jnp.minimum(positions, lane.order.shape[0] - 1)])

        def mean_loss(params):
            outputs, _ = trainer.model.apply(params, state.batch_stats, samples.inputs, mask, True)
            losses = trainer.task.losses(outputs, samples.labels)
            return jnp.sum(jnp.where(mask, losses, 0)) / jnp.maximum(jnp.sum(mask), 1)

        return jnp.where(jnp.any(mask), optax.tree.norm(jax.grad(mean_loss)(state.params)), 0), jnp.any(mask)

    norms, counted = jax.lax.map(batch_norm, jnp.arange(BATCHES))
    return jnp.sum(norms) / jnp.sum(counted)


def dormant_share(
    activations: chex.ArrayTree, *, threshold: chex.Numeric = DORMANT, mask: chex.Array | None = None
) -> chex.Array:
    """Compute the share of hidden units that are dormant (Sokar et al. 2023, Definition 3.2): E|h| <= τ · layer's mean.

    Args:
      activations: of each layer [B, ..., units], after the activation function, in any pytree.
      threshold: τ; 0 counts dead units.
      mask: [B] booleans, False marks padding.

    Returns:
      A scalar in [0, 1], over the units of all layers.

    >>> dormant_share({"hidden": jnp.array([[0.0, 1.0, 2.0, 0.01], [0.0, 3.0, 2.0, 0.01]])})
    Array(0.5, dtype=float32)
    """
    shares = [dormancy(x, mask) <= threshold for x in jax.tree.leaves(activations)]
    return jnp.mean(jnp.concatenate(shares), dtype=float)


def effective_rank(features: chex.Array) -> chex.Array:
    """Compute the effective rank, exp of the entropy of the singular values over their sum (Roy and Vetterli 2007).

    `features` are [B, F], or [..., F], not centred; the result is a scalar from 1 to min(B, F), 0 where all are zero.

    >>> float(effective_rank(jnp.eye(4)).round(3)), float(effective_rank(jnp.ones((4, 4))).round(3))
    (4.0, 1.0)
    """
    values = _singular(features)
    shares = values / jnp.maximum(jnp.sum(values), jnp.finfo(values.dtype).tiny)
    return jnp.where(jnp.sum(values) > 0, jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares))), 0)


def stable_rank(features: chex.Array) -> chex.Array:
    """Compute the stable rank, ‖A‖²_F / σ₁², of features [B, F], or [..., F]: a scalar, 0 where all are zero.

    Other authors call `top_singular_values` the stable rank.
    """
    values = _singular(features)
    return jnp.sum(values**2) / jnp.maximum(values[0] ** 2, jnp.finfo(values.dtype).tiny)


def top_singular_values(features: chex.Array, *, share: chex.Numeric = 0.99) -> chex.Array:
    """Count the largest singular values that make up a share of the sum (Kumar et al. 2021, `srank` with δ = 0.01).

    Args:
      features: [B, F].
      share: 1 - δ.

    Returns:
      An int32 scalar; 0 where all are zero.

    >>> int(top_singular_values(jnp.diag(jnp.array([50.0, 49.0, 1.0]))))
    2
    """
    values = _singular(features)
    reached = jnp.cumsum(values) >= share * jnp.sum(values) * (1 - 1e-6)
    return jnp.where(jnp.sum(values) > 0, jnp.argmax(reached) + 1, 0).astype(jnp.int32)


def sharpness(
    loss: Callable[[chex.ArrayTree], chex.Array], params: chex.ArrayTree, key: chex.PRNGKey, *, steps: int = POWER_STEPS
) -> chex.Array:
    """Compute the largest eigenvalue, in magnitude, of a loss's Hessian by power iteration.

    Args:
      loss: of the parameters, a scalar; twice differentiable.
      params: pytree of floating arrays.
      key: of the first direction; consumed.
      steps: Hessian-vector products, at least 1; the result is the last Rayleigh quotient.

    Returns:
      A scalar, in units of the loss per squared unit of the parameters.
    """

    def product(vector):
        return jax.jvp(jax.grad(loss), (params,), (vector,))[1]

    def unit(vector):
        return optax.tree.scale(1 / jnp.maximum(optax.tree.norm(vector), 1e-30), vector)

    def step(_, carry):
        vector, _ = carry
        turned = product(vector)
        return unit(turned), optax.tree.vdot(vector, turned)

    start = unit(optax.tree.random_like(key, params, jax.random.normal))
    return jax.lax.fori_loop(0, steps, step, (start, jnp.zeros((), float)))[1]


def _singular(features):
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return jnp.linalg.svd(wide.reshape(-1, wide.shape[-1]), compute_uv=False)


def plasticity(trainer: Trainer, names: Sequence[str]) -> Callable[..., dict[str, chex.Array]]:
    """Make a measure of a network after a round: any of `MEASURES` but the online accuracy, which costs nothing.

    Activations, features and losses are those of the first `PROBE` samples in the round's order, in train mode; norms
    are Euclidean, over all parameters.

    Args:
      trainer: the static configuration.
      names: which of `MEASURES`.

    Returns:
      `measure(lane, (state, params before the round), data, num_visible)`: a scalar for each name.

    Raises:
      ValueError: the network does not say its hidden units (`links`), or its last features.
    """
    model, names = trainer.model, [name for name in names if name != "online_accuracy"]
    if "dormant" in names and not model.links:
        raise ValueError("dormant units: the network does not say which they are (it has no links)")
    if model.features is None and {"effective_rank", "stable_rank", "top_singular_values"} & set(names):
        raise ValueError("ranks: the network does not say its last features (it sows none)")

    def measure(lane: Lane, states: tuple, data: Dataset, num_visible: chex.Numeric):
        (state, before), count = states, min(PROBE, lane.order.shape[0])
        samples, mask = data.take(lane.order[:count]), jnp.arange(count) < num_visible
        given = (state.params, state.batch_stats, samples.inputs, mask, True)

        def loss(params):
            outputs, _ = model.apply(params, *given[1:])
            return jnp.sum(jnp.where(mask, trainer.task.losses(outputs, samples.labels), 0)) / jnp.sum(mask)

        def features():
            return jnp.where(mask[:, None], model.features(*given).reshape(count, -1), 0)

        def far(other):
            return optax.tree.norm(optax.tree.sub(state.params, other))

        found = {
            "dormant": lambda: dormant_share(model.activations(*given), mask=mask),
            "effective_rank": lambda: effective_rank(features()),
            "stable_rank": lambda: stable_rank(features()),
            "top_singular_values": lambda: top_singular_values(features()),
            "weight_norm": lambda: optax.tree.norm(state.params),
            "update_norm": lambda: far(before),
            "gradient_norm": lambda: optax.tree.norm(jax.grad(loss)(state.params)),
            "distance": lambda: far(init_state(trainer, lane, 0).params),
            "sharpness": lambda: sharpness(loss, state.params, key_for(lane.seed, Purpose.METHOD)),
        }
        return {name: found[name]().astype(float) for name in names}

    def positions(num_train, num_visible):
        """Return the positions, in the order of arrival, of the samples that `measure` reads: a stream sends these."""
        del num_visible
        return np.arange(min(PROBE, num_train))

    measure.positions = positions
    return measure


def similarity(params: chex.ArrayTree, start: chex.ArrayTree) -> dict[str, chex.Array]:
    """Compute the similarity of a solution to its initialisation, over all parameters together (Figures 11 and 33).

    Scalars, of two pytrees of one structure and shapes: `pearson` (the paper's), `cosine`, `spearman` (Pearson's of the
    ranks; equal values are ranked in the order in which they come) and `distance` (Euclidean, in units of the
    parameters).

    >>> found = similarity({"w": jnp.array([1.0, 2.0, 3.0])}, {"w": jnp.array([2.0, 4.0, 6.0])})
    >>> {name: round(float(value), 2) for name, value in found.items()}
    {'pearson': 1.0, 'cosine': 1.0, 'spearman': 1.0, 'distance': 3.74}
    """
    one, two = (jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (params, start))
    return {
        "pearson": _pearson(one, two),
        "cosine": _cosine(one, two),
        "spearman": _pearson(*(jnp.argsort(jnp.argsort(x)).astype(one.dtype) for x in (one, two))),
        "distance": jnp.linalg.norm(one - two),
    }


def measure_similarity(lane: Lane, states: tuple[chex.ArrayTree, chex.ArrayTree], data: Dataset):
    """Call `similarity` as `sweeps.Engine.measure` does; `states` are the parameters after and before a round."""
    del lane, data
    return similarity(*states)


def _pearson(x, y):
    return _cosine(x - jnp.mean(x), y - jnp.mean(y))


def _cosine(x, y):
    return jnp.vdot(x, y) / (jnp.linalg.norm(x) * jnp.linalg.norm(y))
