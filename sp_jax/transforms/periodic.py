"""Periodic restarts inside one long run: shrink-perturb every k-th step, as reinforcement learning uses it.

Restarting at every step of SGD is weight decay plus noise (Ash and Adams 2020, Section 4.1); restarting rarely is what
the agents SR-SPR (D'Oro et al. 2023) and BBF (Schwarzer et al. 2023) do. Two forms of one restart:

- `restart_at(key, step, params, init, ...)`, a pure function of the parameters, exact. Call it after
  `optax.apply_updates`.
- `periodic_restart(optimizer, init, ...)`, an optax wrapper, for loops that cannot be edited. It also restarts the
  optimiser's state. Being an update that is added to the parameters, it is exact only to rounding.

BBF: every 40,000 gradient steps (20,000 of the agent's) the encoder and the transition model are moved half of the way
to a fresh network; projection, predictor and head, all else, are drawn anew, and the optimiser's state begins anew as a
whole. The target network gets the same with a draw of its own. No reset comes so late that the next one would lie
beyond the 100,000 steps of the agent: the last is at 80,000. SR-SPR has 0.8 and 0.2 in place of 0.5 and 0.5, and also
40,000 gradient steps, which are 5,000 of its agent's, so that the last is at 760,000.

>>> import jax, jax.numpy as jnp, optax
>>> def init(key):
...     names = ("encoder", "transition_model", "projection", "predictor", "head")
...     keys = jax.random.split(key, len(names))
...     return {name: {"w": jax.random.normal(k, [2])} for name, k in zip(names, keys)}
>>> torso = filters.layer("encoder", "transition_model")
>>> bbf = {
...     "every": 40_000,
...     "last_step": 160_000,
...     "shrink": {"torso": 0.5, "rest": 0.0},
...     "noise_scale": {"torso": 0.5, "rest": 1.0},
...     "labels": filters.labels({"torso": torso}, default="rest"),
... }
>>> key, params = jax.random.key(0), jax.tree.map(jnp.ones_like, init(jax.random.key(1)))
>>> new, fresh = restart_at(key, 40_000, params, init, **bbf), init(jax.random.fold_in(key, 40_000))
>>> bool((new["encoder"]["w"] == 0.5 * 1.0 + 0.5 * fresh["encoder"]["w"]).all())
True
>>> [bool((new[name]["w"] == fresh[name]["w"]).all()) for name in ("projection", "predictor", "head")]
[True, True, True]
>>> target = restart_at(jax.random.key(2), 40_000, params, init, **bbf)  # a draw of its own
>>> bool((restart_at(key, 200_000, params, init, **bbf)["head"]["w"] == 1.0).all())
True

The same as an optimiser, whose state begins anew as a whole:

>>> optimizer = periodic_restart(optax.adamw(1e-4), init, key=key, **bbf, optimizer_state="reset")
>>> optimizer.init(params).step
Array(0, dtype=int32)
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax.transforms import arithmetic, filters
from sp_jax.transforms.optimizer_state import COUNTS, reset_changed

OPTIMIZER_STATES = ("keep", "reset", "reset_changed")

Init = Callable[[chex.PRNGKey], chex.ArrayTree]


class PeriodicState(NamedTuple):
    """The state of `periodic_restart`: plain arrays, so that any checkpoint library can save them.

    A run that continues from it is the same as an uninterrupted one.
    """

    step: chex.Array  # [], int32: updates so far
    key: chex.Array  # uint32 key data, [2] for threefry: the same for the whole run
    inner_state: optax.OptState


def is_due(step: chex.Numeric, *, every: chex.Numeric, last_step: chex.Numeric | None = None) -> chex.Array:
    """Return whether a restart follows a step: at every, 2·every, 3·every, …, up to and with `last_step`.

    Args:
      step: integer scalar, steps made so far; 0, before the first, is never due. May be traced, as the others.
      every: integer scalar, in steps.
      last_step: integer scalar, no restart after this step; None for no end.

    Returns:
      Boolean, [].

    Raises:
      ValueError: a value that is no integer scalar, or is out of range (Python's and NumPy's numbers; JAX's are the
        caller's to check).

    >>> [step for step in range(12) if is_due(step, every=3, last_step=8)]
    [3, 6]
    """
    _check_integer("step", step, 0, "count the steps made so far")
    _check_integer("every", every, 1, "to restart never, give last_step=0")
    due = (jnp.asarray(step) > 0) & (jnp.asarray(step) % every == 0)
    if last_step is None:
        return due
    _check_integer("last_step", last_step, 0, "give None for no end")
    return due & (jnp.asarray(step) <= last_step)


def restart_at(
    key: chex.PRNGKey,
    step: chex.Numeric,
    params: chex.ArrayTree,
    init: Init,
    *,
    every: chex.Numeric,
    shrink: arithmetic.Amount,
    noise_scale: arithmetic.Amount,
    last_step: chex.Numeric | None = None,
    where: Callable | None = None,
    labels: arithmetic.Labels | None = None,
) -> chex.ArrayTree:
    """Shrink-perturb the parameters where a restart is due, and return them bit for bit where it is not.

    Call it after `optax.apply_updates`, with the number of steps made. All of `shrink_perturb` holds: the limiting
    cases are exact, so λ = 0, σ = 1 gives the fresh network also where parameters are NaN. BatchNorm's statistics and
    the optimiser's state are no parameters: reset them yourself where `is_due`.

    Between restarts the draw costs nothing: it is under `jax.lax.cond`. Under a `vmap` that maps `step`, `every` or
    `last_step`, both branches run at every step, as always; one that maps λ, σ, the key or the parameters is as cheap.

    Args:
      key: a PRNG key, the same at all steps; it is folded with the step and not otherwise to be used.
      step: integer scalar, steps made so far, this one included. May be traced, as all scalars here.
      params: pytree of arrays, the parameters after the step.
      init: from a key to freshly drawn parameters of the same structure and shapes: the model's own initialiser, so
        that each leaf has the noise that it began with.
      every: integer scalar, steps from one restart to the next.
      shrink: λ in [0, 1], a scalar, or with `labels` a mapping from each label.
      noise_scale: σ >= 0, a scalar, or with `labels` a mapping from each label.
      last_step: integer scalar, no restart after this step; None for no end.
      where, labels: which leaves change, and their groups, as for `shrink_perturb`.

    Returns:
      A pytree like `params`; leaves that `where` does not pick are the same objects.

    Raises:
      ValueError: as `is_due` and `shrink_perturb`; what the latter finds shows when it is traced, outside `jit` at the
        first restart.

    Source: Ash and Adams 2020, Section 4; D'Oro et al. 2023; Schwarzer et al. 2023.

    >>> import jax, jax.numpy as jnp
    >>> params, init = {"w": jnp.ones(2)}, lambda key: {"w": jnp.ones(2)}
    >>> rule = {"every": 10, "shrink": 0.5, "noise_scale": 0.25}
    >>> restart = jax.jit(lambda step: restart_at(jax.random.key(0), step, params, init, **rule))
    >>> restart(10)["w"], restart(11)["w"]
    (Array([0.75, 0.75], dtype=float32), Array([1., 1.], dtype=float32))
    """
    leaves, treedef = jax.tree.flatten(params)
    picked = jax.tree.leaves(filters.pick(params, where))

    def restarted():
        fresh = init(jax.random.fold_in(key, step))
        new = arithmetic.shrink_perturb(
            params, fresh, shrink=shrink, noise_scale=noise_scale, where=where, labels=labels
        )
        return _at(picked, jax.tree.leaves(new))

    # Only what may change goes through the condition: other leaves need not be arrays.
    changed = iter(_cond(is_due(step, every=every, last_step=last_step), restarted, lambda: _at(picked, leaves)))
    return treedef.unflatten([next(changed) if p else leaf for p, leaf in zip(picked, leaves, strict=True)])


def periodic_restart(
    inner: optax.GradientTransformation,
    init: Init,
    *,
    key: chex.PRNGKey,
    every: chex.Numeric,
    shrink: arithmetic.Amount,
    noise_scale: arithmetic.Amount,
    last_step: chex.Numeric | None = None,
    where: Callable | None = None,
    labels: arithmetic.Labels | None = None,
    optimizer_state: str = "keep",
    counts: str = "keep",
) -> optax.GradientTransformationExtraArgs:
    """Make an optimiser that shrink-perturbs the parameters after its updates number every, 2·every, 3·every, …

    At a restart the update leads to λ·(θ + u) + σ·fresh, where u is the inner optimiser's update; at other steps, and
    for leaves that do not change (not picked, or λ = 1 and σ = 0), it is u, bit for bit. Put it outermost, or last in
    a chain: whatever scales its updates scales the restart too. `optax.MultiSteps(periodic_restart(…), n)` counts real
    updates (and draws at each mini-step of a due one); `periodic_restart(optax.MultiSteps(…), …)` counts mini-steps.

    What an update cannot do exactly (`restart_at` can, after `optax.apply_updates`):

    - The update is added: the parameters become p + (new - p), which is rounded. λ = 0, σ = 1 is the fresh network
      only to rounding, relative to the larger of p and new.
    - NaN and infinite parameters stay so, since NaN + x is NaN.
    - An optimiser does not see BatchNorm's statistics: reset or recalibrate them yourself where
      `is_due(state.step, every=…)` of the new state.

    Between restarts the draw costs nothing, except under a `vmap` that maps the state's step: there it is made at every
    step. To map λ, σ or the key alone, keep the step unmapped: `PeriodicState(None, 0, 0)` as the state's axes.

    Args:
      inner: any optax transformation; extra arguments of `update` are passed on to it.
      init: from a key to freshly drawn parameters, as for `restart_at`. Within `optax.masked` or `optax.partition`,
        where the wrapper sees some parameters alone, it must draw just these; choose with `where` instead.
      key: a PRNG key; consumed. The restart after update t draws from `jax.random.fold_in(key, t)`.
      every, shrink, noise_scale, last_step, where, labels: as for `restart_at`; updates are the steps.
      optimizer_state: what becomes of the inner state at a restart. `"keep"`: nothing; `"reset"`: `inner.init` of the
        new parameters, all of it (schedules, injected hyperparameters and seeds begin anew too); `"reset_changed"`:
        only what belongs to leaves that change.
      counts: of `"reset_changed"`, what becomes of step counts: see `sp_jax.transforms.optimizer_state`.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `PeriodicState`; its update needs the parameters. Updates are
      in the wider of a parameter's dtype and its inner update's.

    Raises:
      ValueError: an unknown policy or `every` out of range (here), no parameters, or as `shrink_perturb` (in update).

    Source: Ash and Adams 2020, Sections 4 and 4.1; D'Oro et al. 2023; Schwarzer et al. 2023.

    >>> import jax, jax.numpy as jnp, optax
    >>> init = lambda key: {"w": jnp.ones(1)}
    >>> optimizer = periodic_restart(optax.sgd(1.0), init, key=jax.random.key(0), every=2, shrink=0.5, noise_scale=0.25)
    >>> params = {"w": jnp.full(1, 4.0)}
    >>> state = optimizer.init(params)
    >>> for _ in range(3):
    ...     updates, state = optimizer.update({"w": jnp.ones(1)}, state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(params["w"])
    [3.]
    [1.25]
    [0.25]
    """
    is_due(0, every=every, last_step=last_step)  # raises for invalid arguments before a long run
    arithmetic.check_choice("optimizer_state", optimizer_state, OPTIMIZER_STATES)
    arithmetic.check_choice("counts", counts, COUNTS)
    inner = optax.with_extra_args_support(inner)
    impl = jax.random.key_impl(key)

    def init_fn(params):
        return PeriodicState(jnp.zeros([], jnp.int32), jax.random.key_data(key), inner.init(params))

    def update_fn(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("periodic_restart needs the parameters: call update(updates, state, params)")
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        updates = jax.tree.map(_widened, updates, params)
        step = optax.safe_increment(state.step)

        def restart():
            run_key = jax.random.wrap_key_data(state.key, impl=impl)
            fresh = init(jax.random.fold_in(run_key, step))
            rule = {"shrink": shrink, "noise_scale": noise_scale, "where": where, "labels": labels}
            new = arithmetic.shrink_perturb(optax.apply_updates(params, updates), fresh, **rule)
            changed = _changed(params, **rule)
            leading = jax.tree.map(_update_towards, changed, new, params, updates)
            new = optax.apply_updates(params, leading)  # the caller's parameters, rounding included
            return leading, _restarted_state(inner, inner_state, new, changed, optimizer_state, counts)

        due = is_due(step, every=every, last_step=last_step)
        updates, inner_state = _cond(due, restart, lambda: (updates, inner_state))
        return updates, PeriodicState(step, state.key, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_integer(name, value, least, advice):
    is_integer = type(value) is int or jnp.issubdtype(getattr(value, "dtype", bool), jnp.integer)
    is_on_host = isinstance(value, (int, np.integer, np.ndarray))
    most = np.iinfo(np.int32).max
    if not is_integer or jnp.ndim(value) or (is_on_host and not least <= value <= most):
        raise ValueError(f"{name} must be an integer scalar in [{least}, {most}], got {value!r}; {advice}")


def _cond(due, restarted, kept):
    """Call `jax.lax.cond` where `due` is traced, else the due branch: outside `jit`, `cond` compiles at every call."""
    if isinstance(due, jax.core.Tracer):
        return jax.lax.cond(due, restarted, kept)
    return restarted() if due else kept()


def _at(picked, leaves):
    return [leaf for p, leaf in zip(picked, leaves, strict=True) if p]


def _changed(params, shrink, noise_scale, where, labels):
    """Return a pytree like `params`: whether a leaf is picked and its (λ, σ) is not (1, 0); traced where λ or σ is."""
    picked = filters.pick(params, where)
    if labels is None:
        return jax.tree.map(lambda p: p and (shrink != 1) | (noise_scale != 0), picked)
    labelled = labels(params) if callable(labels) else labels
    return jax.tree.map(lambda p, label: p and (shrink[label] != 1) | (noise_scale[label] != 0), picked, labelled)


def _widened(update, param):
    """Return an update in the wider of its own dtype and the parameter's."""
    return jnp.asarray(update, jnp.promote_types(jnp.result_type(update), jnp.result_type(param)))


def _update_towards(changed, new, old, update):
    """Return the update from `old` to `new`, in the update's dtype; where nothing changes, the update as it is."""
    if changed is False:
        return update
    return jnp.where(changed, jnp.asarray(new, update.dtype) - jnp.asarray(old, update.dtype), update)


def _restarted_state(inner, state, params, changed, policy, counts):
    """Return the inner optimiser's state after a restart, in the dtypes of the state before it."""
    if policy == "keep":
        return state
    fresh = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), inner.init(params), state)
    return fresh if policy == "reset" else reset_changed(state, fresh, params, changed, counts=counts)
