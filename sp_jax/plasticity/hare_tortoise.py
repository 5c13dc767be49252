"""Hare and Tortoise (Lee et al., ICML 2024): slow parameters average the fast, which are periodically reset to them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from sp_jax.plasticity.arrays import exponential_average, widen
from sp_jax.transforms import check_fraction, check_same
from sp_jax.transforms.filters import is_changeable


class HareTortoiseState(NamedTuple):
    """The state of `hare_tortoise`."""

    step: chex.Array  # [] int32, updates made
    slow: chex.ArrayTree  # the tortoise, like the parameters, at least float32
    inner_state: optax.OptState


def follow(
    slow: chex.ArrayTree, fast: chex.ArrayTree, *, decay: chex.Numeric = 0.999, step: chex.Numeric | None = None
) -> chex.ArrayTree:
    """Return μ·slow + (1 - μ)·fast (Lee et al. 2024), for parameters and BatchNorm's running statistics.

    Keep `slow` in float32 where `fast` is bfloat16, in which an average of μ = 0.999 would not change. Leaves that are
    not floating or complex stay those of `slow`.

    Args:
      slow: pytree of arrays, the tortoise.
      fast: pytree of the same structure and shapes, the hare.
      decay: μ, a scalar in [0, 1]; 1 keeps `slow`, 0 copies `fast`.
      step: t >= 1, an integer scalar, the number of averaging steps, this one included: the weight of fast is then
        (1 - μ)/(1 - μ^t), so that the initial value has no weight. For running statistics that begin at 0 and 1; the
        authors' are not corrected, so they need several thousand steps.

    Returns:
      A pytree with the structure, shapes and dtypes of `slow`.

    Raises:
      ValueError: trees or shapes that differ (names the path), or μ out of range.

    >>> import jax.numpy as jnp
    >>> follow({"mean": jnp.array([1.0])}, {"mean": jnp.array([3.0])}, decay=0.75)
    {'mean': Array([1.5], dtype=float32)}
    >>> follow({"mean": jnp.array([1.0])}, {"mean": jnp.array([3.0])}, decay=0.75, step=1)
    {'mean': Array([3.], dtype=float32)}
    """
    check_fraction("decay (μ)", decay)
    check_same(slow, fast, names=("slow", "fast"), advice="start both from one draw")
    kept = decay if step is None else _corrected(decay, step)

    def leaf(slow, fast):
        return exponential_average(slow, fast, kept) if is_changeable(slow) else slow

    return jax.tree.map(leaf, slow, fast)


def _corrected(decay, step):
    """Return 1 - (1 - μ)/(1 - μ^t): 0 at the first step, then ever closer to μ; 1 where μ is 1."""
    decay = jnp.asarray(decay, float)
    left = 1 - decay**step
    return 1 - jnp.minimum((1 - decay) / jnp.where(left > 0, left, 1), 1)


def jumps(step: chex.Numeric, *, every: chex.Numeric, first: chex.Numeric | None = None) -> chex.Array:
    """Return whether the fast weights jump back after a step, or an epoch: at first, first + every, first + 2·every, …

    Args:
      step: integer scalar, made so far.
      every: integer scalar, from one jump to the next.
      first: integer scalar, the first jump; None for `every`.

    Returns:
      Boolean, [].

    >>> [epoch for epoch in range(1, 30) if jumps(epoch, every=10, first=1)]
    [1, 11, 21]
    """
    since = jnp.asarray(step) - (every if first is None else first)
    return (since >= 0) & (since % every == 0)


def hare_tortoise(
    inner: optax.GradientTransformation, *, decay: chex.Numeric = 0.999, every: int, first: int | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser: slow parameters average each step's, and every so many steps fast ← slow (Lee et al. 2024).

    It must be the outermost transformation, as it needs the whole update. The slow parameters, `state.slow`, are those
    to evaluate and to predict with; both start from the same draw. The inner optimiser's state is kept at a jump, which
    the paper does not specify.

    An update sees only parameters. With BatchNorm, the caller must average its running statistics after each step,
    `follow(slow, fast, step=state.step)`, and copy the slow ones where `jumps(state.step, every=…, first=…)`.

    The authors jump after the epochs 0, 10, 20, … of each task, the first included, and begin each task with a new
    optimiser: `every=10 * steps_per_epoch, first=steps_per_epoch`, and `init` at each task.

    A jump is the update slow - params, so the result of `optax.apply_updates`, params + (slow - params), is `slow` up
    to rounding, in the dtype of the parameters.

    Args:
      inner: the optimiser of the fast parameters.
      decay: μ, a scalar in [0, 1], of each step.
      every: steps (not epochs) between jumps, >= 1; the paper's 10 epochs are `10 * steps_per_epoch`.
      first: steps before the first jump, >= 1; by default `every`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `HareTortoiseState`; `update` raises a ValueError without
      `params`.

    Raises:
      ValueError: `every` or `first` is a number below 1, or μ out of range.

    >>> import jax.numpy as jnp
    >>> optimizer = hare_tortoise(optax.sgd(1.0), decay=0.5, every=2)
    >>> params = jnp.array(0.0)
    >>> state = optimizer.init(params)
    >>> for _ in range(2):  # fast 0, 4, 8; slow 0, 2, 5
    ...     updates, state = optimizer.update(jnp.array(-4.0), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params
    Array(5., dtype=float32)
    """
    for name, steps in (("every", every), ("first", first)):
        if isinstance(steps, int) and steps < 1:
            raise ValueError(f"{name} must be a number of steps >= 1, got {steps}")
    check_fraction("decay (μ)", decay)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        # A copy: a step may donate the memory of the parameters.
        slow = jax.tree.map(lambda x: jnp.array(widen(x)) if is_changeable(x) else x, params)
        return HareTortoiseState(jnp.zeros((), jnp.int32), slow, inner.init(params))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("hare_tortoise needs the parameters: call update(gradient, state, params)")
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        slow = follow(state.slow, optax.apply_updates(params, updates), decay=decay)
        step = optax.safe_increment(state.step)
        jump = jumps(step, every=every, first=first)

        def leaf(param, slow, update):
            if not is_changeable(param):
                return update
            return jnp.where(jump, (slow - widen(param)).astype(update.dtype), update)

        return jax.tree.map(leaf, params, slow, updates), HareTortoiseState(step, slow, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
