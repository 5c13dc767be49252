"""Utility-based perturbed gradient descent (UPGD; the paper of Elsayed and Mahmood, ICLR 2024): useful weights are
protected."""

import chex
import jax
import jax.numpy as jnp

from sp_jax.plasticity.arrays import exponential_average, widen
from sp_jax.transforms import check_fraction, check_noise_scale, check_same, like
from sp_jax.transforms.filters import is_changeable

DECAY = 0.999  # β of the utility, the authors'


def init_weight_utility(params: chex.ArrayTree) -> chex.ArrayTree:
    """Return the utility of each weight before the first step: zeros (Elsayed and Mahmood 2024).

    Args:
      params: pytree of arrays.

    Returns:
      A pytree like `params` of real arrays, at least float32; leaves that are not floating or complex stay.
    """
    return jax.tree.map(lambda x: jnp.zeros_like(jnp.real(widen(x))) if is_changeable(x) else x, params)


def weight_utility(
    utility: chex.ArrayTree, params: chex.ArrayTree, gradient: chex.ArrayTree, *, decay: chex.Numeric = DECAY
) -> chex.ArrayTree:
    """Return the running mean U ← β·U + (1 - β)·(-g·w) of each weight's utility: the first-order estimate of what the
    loss would gain without the weight (Elsayed and Mahmood 2024, the utility of first order).

    Args:
      utility: pytree like `params`, from `init_weight_utility` or the last step.
      params: pytree of arrays, those of the gradient: before the step.
      gradient: pytree of the same structure and shapes, of the loss.
      decay: β, a scalar in [0, 1].

    Returns:
      A pytree like `utility`.

    Raises:
      ValueError: β out of range, trees or shapes that differ (names the path).

    >>> import jax.numpy as jnp
    >>> weight_utility({"w": jnp.array([4.0])}, {"w": jnp.array([2.0])}, {"w": jnp.array([-1.0])}, decay=0.5)
    {'w': Array([3.], dtype=float32)}
    """
    check_fraction("decay (β)", decay)
    check_same(params, gradient, names=("params", "gradient"), advice="take the gradient of these parameters")
    check_same(params, utility, names=("params", "utility"), advice="begin with init_weight_utility(params)")

    def leaf(old, weight, gradient):
        if not is_changeable(weight):
            return old
        # JAX's gradient of a complex weight is the conjugate of the direction.
        return exponential_average(old, -jnp.real(widen(gradient) * widen(weight)), decay)

    return jax.tree.map(leaf, utility, params, gradient)


def upgd(
    gradient: chex.ArrayTree, utility: chex.ArrayTree, noise: chex.ArrayTree, *, noise_scale: chex.Numeric = 0.001
) -> chex.ArrayTree:
    """Return (g + s·ξ)·(1 - sigmoid(Û/η)), the update of UPGD (Elsayed and Mahmood 2024, global and of first order).

    Û is the utility corrected for its bias towards the initial zero, and η the largest Û of all weights, as the paper
    has it; the correction is the same for all and cancels. The authors' program divides the corrected Û by the largest
    uncorrected U: its ratios are 1/(1 - β^t) times as large, 1,000 times at the first step. The most useful weight
    takes 0.27 of its step, one of no utility a half, one that does harm all of it.

    With plain SGD and coupled weight decay it is UPGD-W, w ← (1 - α·d)·w - α·(g + s·ξ)·(1 - sigmoid(Û/η)). The
    authors have no moments; before Adam, which divides by the gradient's size, it is another method.

    Args:
      gradient: pytree of arrays, of the loss.
      utility: pytree like it, from `weight_utility` of this gradient.
      noise: pytree like it, ξ of N(0, 1) drawn anew for each step, as by `sp_jax.gaussian_like`.
      noise_scale: s >= 0, a scalar: the noise's standard deviation, per unit of the gradient.

    Returns:
      A pytree like `gradient`; leaves that are not floating or complex stay.

    Raises:
      ValueError: s out of range, trees or shapes that differ (names the path).

    >>> import jax.numpy as jnp
    >>> gradient, utility = {"w": jnp.array([1.0, 1.0])}, {"w": jnp.array([0.0, 2.0])}
    >>> upgd(gradient, utility, {"w": jnp.array([0.0, -500.0])}, noise_scale=0.001)["w"].round(3)
    Array([0.5  , 0.134], dtype=float32)
    """
    check_noise_scale(noise_scale)
    for name, other in (("utility", utility), ("noise", noise)):
        check_same(gradient, other, names=("gradient", name), advice="both belong to the same parameters")
    leaves = zip(jax.tree.leaves(gradient), jax.tree.leaves(utility), strict=True)
    largest = [jnp.max(u, initial=-jnp.inf) for g, u in leaves if is_changeable(g)]
    largest = jnp.max(jnp.stack(largest)) if largest else jnp.zeros(())
    # Where no weight is useful the ratio is 0 for those of no utility, and far below for all others.
    largest = jnp.where(largest == 0, jnp.finfo(largest.dtype).tiny, largest)

    def leaf(gradient, utility, noise):
        if not is_changeable(gradient):
            return gradient
        perturbed = widen(gradient) + noise_scale * widen(noise)
        return like(perturbed * jax.nn.sigmoid(-utility / largest), gradient)

    return jax.tree.map(leaf, gradient, utility, noise)
