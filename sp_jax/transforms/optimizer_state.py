"""Partial resets of an optax state, however nested, where some of the parameters are restarted.

Adam's moments belong to parameters and can be reset with them, leaf by leaf or element by element; a step count belongs
to all parameters of its transformation at once. No choice of it is exact once only some moments are reset:

- `counts="keep"`: schedules go on where they were. Adam no longer corrects the bias of the moments that begin at zero:
  after t steps those of a reset parameter are up to (1 - β1^t) / sqrt(1 - β2^t) times as long as they should be. With β
  0.9 and 0.999 that is 3.2 learning rates at the first step, 6.6 at the twelfth, above 2 until the 287th; the first
  100 steps together go as far as 466 should.
- `counts="reset"`: schedules and warm-ups begin anew. Adam corrects moments that need none: the first step of a
  parameter that was not reset is sqrt(1 - β2) / (1 - β1) = 0.3 times as long.

Exact: `adam_per_entry`, which counts the steps of each entry of each parameter; so do the authors of continual backprop
(Dohare et al. 2024), while ReDo's (Sokar et al. 2023) keep the one count. Where whole layers are restarted, an
optimiser for each group will do (`optax.partition` with the same labels), each with its own count.
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import DictKey, GetAttrKey

from sp_jax.transforms import arithmetic
from sp_jax.transforms.filters import is_changeable, path_name

COUNTS = ("keep", "reset")
_VALUE = GetAttrKey("value")  # within an NNX variable
_COPIES = (GetAttrKey("initial_params"), GetAttrKey("slow"))  # of L2InitState and HareTortoiseState


class AdamPerEntryState(NamedTuple):
    """Adam's moments, and the number of steps of each entry: three pytrees like the parameters."""

    count: chex.ArrayTree  # int32
    mu: chex.ArrayTree
    nu: chex.ArrayTree


def scale_by_adam_per_entry(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Make `optax.scale_by_adam` with a step count for each entry, so that entries can be reset one by one.

    The count is a part of the state that belongs to its parameter: `reset_changed` resets it with the moments, whatever
    `counts` says, and the bias of moments that begin again at zero is corrected as at the first step. It costs an
    integer for each entry.

    Args:
      b1: β1, the decay of the mean gradient.
      b2: β2, the decay of the mean squared gradient.
      eps: added to the root of the corrected second moment.

    Returns:
      An `optax.GradientTransformation` with an `AdamPerEntryState`; the same numbers as optax's until a reset.

    Source: Kingma and Ba 2015, Algorithm 1; the count for each entry, Dohare et al. 2024.

    >>> params = {"w": jnp.zeros(2)}
    >>> optimizer = scale_by_adam_per_entry()
    >>> _, state = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params))
    >>> reset_changed(state, optimizer.init(params), params, {"w": jnp.array([True, False])}).count["w"]
    Array([0, 1], dtype=int32)
    """

    def init(params):
        count = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.int32), params)
        return AdamPerEntryState(count, optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None):
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = jax.tree.map(optax.safe_increment, state.count)

        def step(m, v, n):
            m, v = (x / (1 - decay**n).astype(x.dtype) for x, decay in ((m, b1), (v, b2)))
            return m / (jnp.sqrt(v) + eps)

        return jax.tree.map(step, mu, nu, count), AdamPerEntryState(count, mu, optax.tree.cast_like(nu, state.nu))

    return optax.GradientTransformation(init, update)


def adam_per_entry(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Make `optax.adam` with a step count for each entry; see `scale_by_adam_per_entry`.

    Args:
      learning_rate: η, a scalar or an optax schedule, whose own count is one for all.
      b1, b2, eps: as of `scale_by_adam_per_entry`.

    Returns:
      An `optax.GradientTransformation`.
    """
    return optax.chain(scale_by_adam_per_entry(b1, b2, eps), optax.scale_by_learning_rate(learning_rate))


def reset_changed(
    opt_state: chex.ArrayTree,
    fresh_opt_state: chex.ArrayTree,
    params: chex.ArrayTree,
    changed: chex.ArrayTree,
    *,
    counts: str = "keep",
) -> chex.ArrayTree:
    """Reset an optax state where parameters changed, and only there.

    A leaf of the state belongs to a parameter if its path ends with the parameter's: so through `chain`, `masked`,
    `partition`, `MultiSteps` (gradients that are being accumulated are reset too) and `inject_hyperparams`.
    Hyperparameters and other floats that belong to no parameter stay, as do copies of parameters that are no moments:
    those of `sp_jax.plasticity`'s `l2_init` and `hare_tortoise`. What has another shape than its parameter (Adafactor's
    rows and columns) is reset with whole leaves only.

    Args:
      opt_state: any optax state.
      fresh_opt_state: `optimizer.init(params)` of the new parameters.
      params: pytree of arrays.
      changed: pytree like `params` of booleans, or of boolean arrays of the parameters' shapes.
      counts: `"keep"` or `"reset"`: integers that belong to no parameter; see the module.

    Returns:
      A pytree like `opt_state`.

    Raises:
      ValueError: an unknown `counts`, states of different structure or shapes, or `changed` that does not fit.

    >>> import optax
    >>> params = {"body": jnp.ones(1), "head": jnp.ones(1)}
    >>> optimizer = optax.sgd(0.1, momentum=0.9)
    >>> _, state = optimizer.update(params, optimizer.init(params), params)
    >>> changed = {"body": False, "head": True}
    >>> reset_changed(state, optimizer.init(params), params, changed)[0].trace
    {'body': Array([1.], dtype=float32), 'head': Array([0.], dtype=float32)}
    """
    arithmetic.check_choice("counts", counts, COUNTS)
    if jax.tree.structure(opt_state) != jax.tree.structure(fresh_opt_state):
        raise ValueError("opt_state and fresh_opt_state are of different structure: draw both from one optimizer.init")
    arithmetic.check_same(
        opt_state, fresh_opt_state, names=("opt_state", "fresh_opt_state"), advice="draw both from one optimizer.init"
    )
    _check_changed(params, changed)
    owner = _owners(opt_state, params, changed)

    def leaf(path, old, fresh):
        found = owner(path, old)
        if found is None:
            is_count = jnp.issubdtype(jnp.result_type(old), jnp.integer)
            return fresh if is_count and counts == "reset" else old
        param, change = found
        if isinstance(change, bool):
            return fresh if change else old
        return jnp.where(change, fresh, old) if jnp.shape(old) == jnp.shape(param) else old

    return jax.tree_util.tree_map_with_path(leaf, opt_state, fresh_opt_state)


def _check_changed(params, changed):
    advice = "say of each leaf, or of each of its entries, whether it changed"
    if jax.tree.structure(params) != jax.tree.structure(changed):
        arithmetic.check_same(params, changed, names=("params", "changed"), advice=advice)
    for (path, x), c in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(changed), strict=True):
        if jnp.shape(c) not in ((), jnp.shape(x)):
            shapes = f"{jnp.shape(x)} in params and {jnp.shape(c)} in changed"
            raise ValueError(f"leaf {path_name(path)!r} has shape {shapes}: {advice}")


def _owners(opt_state, params, changed):
    """Make a function from a leaf of the state to its parameter and that one's `changed`; None where it has none."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_masked)
    leaves = [(path, leaf) for path, leaf in leaves if _is_masked(leaf) or is_changeable(leaf)]
    for tree, change in ((params, changed), _unwrapped(params, changed)):
        pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(change), strict=True)
        known = {path_name(path): (x, c) for (path, x), c in pairs}
        owned = {name for path, leaf in leaves for name in _names(path, leaf, known)}
        if owned:
            break
    if owned or any(not _is_masked(leaf) and jnp.ndim(leaf) and not _is_copy(path) for path, leaf in leaves):
        _check_owned(known, owned, leaves)
        _check_whole(known, leaves)
    return lambda path, leaf: next((known[name] for name in _names(path, leaf, known)), None)


def _unwrapped(params, changed):
    """Return the parameters that an optimiser is given: `params` of Flax's variables, the fast ones of lookahead's."""
    if isinstance(params, optax.LookaheadParams):
        return params.fast, changed.fast
    if isinstance(params, Mapping) and "params" in params:
        return params["params"], changed["params"]
    return params, changed


def _names(path, leaf, known):
    """Yield the names of the parameters that a leaf of a state belongs to, the longest suffix of its path first; a
    masked node may stand for many."""
    path = path[:-1] if len(path) > 1 and path[-1] == _VALUE else path
    for start in range(len(path)):
        name = path_name(path[start:])
        if _is_copy(path[:start]):
            return
        if _is_masked(leaf):
            yield from (each for each in known if f"{each}/".startswith(f"{name}/"))
        elif name in known:
            yield name
    # Parameters that are one array have no path; a count of all of them has no axes.
    is_moment = is_changeable(leaf) or (not _is_masked(leaf) and jnp.ndim(leaf) > 0)
    if is_moment and "" in known and jnp.shape(leaf) == jnp.shape(known[""][0]) and not _is_copy(path):
        yield ""


def _check_owned(known, owned, leaves):
    for name, (param, change) in known.items():
        may_change = isinstance(change, jax.core.Tracer) or bool(np.any(change))
        if name not in owned and is_changeable(param) and may_change:
            some = ", ".join(path_name(path) for path, _ in leaves[:2])
            raise ValueError(
                f"{name!r} changed, but no leaf of the optimiser's state belongs to it: pass params, and changed, as "
                f"optimizer.init was given them (of the state: {some}, …)"
            )


def _check_whole(known, leaves):
    """Raise a ValueError for a part of the parameters, whose "kernel" would match every layer's in the state."""
    for path, leaf in leaves:
        name = None if _is_masked(leaf) else next(_names(path, leaf, known), None)
        start = next((i for i in range(1, len(path)) if path_name(path[i:]) == name), 0)
        if start and isinstance(path[start - 1], DictKey) and jnp.size(leaf) > 1:
            ours, theirs = jnp.shape(known[name][0]), jnp.shape(leaf)
            if ours != theirs and len(ours) == len(theirs):
                raise ValueError(
                    f"{name!r} has shape {ours}, but {path_name(path)!r} of the optimiser's state {theirs}: pass all "
                    "params, and changed, as optimizer.init was given them"
                )


def _is_masked(leaf):
    return isinstance(leaf, optax.MaskedNode)


def _is_copy(path):
    return any(key in path for key in _COPIES)
