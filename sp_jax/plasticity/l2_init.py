"""L2 Init, regenerative regularisation (Kumar et al. 2023): at every step, a pull back to the first parameters."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from sp_jax.plasticity.arrays import widen
from sp_jax.transforms import check_same, like
from sp_jax.transforms.filters import is_changeable


class L2InitState(NamedTuple):
    """The state of `l2_init`."""

    initial_params: chex.ArrayTree  # θ₀, like the parameters


def l2_init(strength: chex.Numeric) -> optax.GradientTransformation:
    """Add 2·c·(θ - θ₀) to the gradient, which is that of the loss + c·‖θ - θ₀‖² (Kumar et al. 2023).

    This is the paper's formula, on all parameters. The authors' program has (c/2)·‖θ - θ₀‖² and leaves normalisation
    layers out: c here is 2c there.

    Put it before the optimiser, `optax.chain(l2_init(1e-3), optax.adam(1e-3))`: coupled, as in the paper. θ₀ are the
    parameters that `init` sees, copied, so that a step may donate the parameters' memory.

    Args:
      strength: c >= 0, a scalar, per squared unit of the parameters; may be traced, and injected by
        `optax.inject_hyperparams`. The paper sweeps 1e-2 to 1e-5.

    Returns:
      An `optax.GradientTransformation`.

    Raises:
      ValueError: in its `update`: no `params` are given, or of another structure than in `init` (names the path).

    >>> import jax.numpy as jnp
    >>> optimizer = optax.chain(l2_init(0.5), optax.sgd(1.0))
    >>> state = optimizer.init({"w": jnp.array([1.0])})
    >>> optimizer.update({"w": jnp.array([0.0])}, state, {"w": jnp.array([4.0])})[0]
    {'w': Array([-3.], dtype=float32)}
    """

    def init(params):
        return L2InitState(jax.tree.map(lambda x: jnp.array(x) if is_changeable(x) else x, params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("l2_init needs the parameters: call update(gradient, state, params)")
        _check_first(params, state.initial_params)

        def leaf(param, first, gradient):
            if not is_changeable(param):
                return gradient
            # The conjugate, as in JAX's gradient of a complex leaf.
            pull = 2 * strength * jnp.conj(widen(param) - widen(first))
            return like(widen(gradient) + pull, gradient)

        return jax.tree.map(leaf, params, state.initial_params, updates), state

    return optax.GradientTransformation(init, update)


def l2_init_penalty(params: chex.ArrayTree, initial_params: chex.ArrayTree) -> chex.Array:
    """Return ‖θ - θ₀‖², the sum of all squared differences (Kumar et al. 2023), to add to the loss times a strength.

    Args:
      params: pytree of arrays, θ.
      initial_params: pytree of the same structure and shapes, θ₀.

    Returns:
      A scalar, at least float32.

    Raises:
      ValueError: trees or shapes that differ (names the path).

    >>> import jax.numpy as jnp
    >>> l2_init_penalty({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, {"a": jnp.array([0.0]), "b": jnp.array([0.0])})
    Array(25., dtype=float32)
    """
    _check_first(params, initial_params)

    def leaf(param, first):
        if not is_changeable(param):
            return jnp.float32(0)
        difference = widen(param) - widen(first)
        return jnp.sum(jnp.real(difference * jnp.conj(difference)))

    return sum(jax.tree.leaves(jax.tree.map(leaf, params, initial_params)), start=jnp.float32(0))


def _check_first(params, initial_params):
    check_same(params, initial_params, names=("params", "initial_params"), advice="keep those that training began with")
