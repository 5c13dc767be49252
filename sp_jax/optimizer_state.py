"""What becomes of an optax state, however nested, where some of the parameters are restarted.

Adam's moments belong to parameters and can be reset with them, leaf by leaf or element by element; a step count belongs
to all parameters of its transformation at once. No choice of it is exact once only some moments are reset:

- `counts="keep"`: schedules go on where they were. Adam no longer corrects the bias of the moments that begin at zero,
  so the first step of a reset parameter is (1 - β1) / sqrt(1 - β2) = 3.2 times the learning rate (β 0.9, 0.999).
- `counts="reset"`: schedules and warm-ups begin anew. Adam corrects moments that need none: the first step of a
  parameter that was not reset is sqrt(1 - β2) / (1 - β1) = 0.3 times as long.

Exact: an optimiser for each group (`optax.partition` with the same labels), each with its own count.
"""

import chex
import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey

from sp_jax import transforms
from sp_jax.filters import is_changeable, path_name

COUNTS = ("keep", "reset")
_COPIES = (GetAttrKey("initial_params"), GetAttrKey("slow"))  # of L2InitState and HareTortoiseState


def reset_changed(
    opt_state: chex.ArrayTree,
    fresh_opt_state: chex.ArrayTree,
    params: chex.ArrayTree,
    changed: chex.ArrayTree,
    *,
    counts: str = "keep",
) -> chex.ArrayTree:
    """Resets an optax state where parameters changed, and only there.

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
    if counts not in COUNTS:
        raise ValueError(f"counts must be one of {', '.join(COUNTS)}, got {counts!r}")
    if jax.tree.structure(opt_state) != jax.tree.structure(fresh_opt_state):
        raise ValueError("opt_state and fresh_opt_state are of different structure: draw both from one optimizer.init")
    transforms.check_same(
        opt_state, fresh_opt_state, names=("opt_state", "fresh_opt_state"), advice="draw both from one optimizer.init"
    )
    _check_changed(params, changed)
    by_path = {
        path: (jnp.shape(x), c)
        for (path, x), c in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(changed), strict=True)
    }

    def leaf(path, old, fresh):
        found = _owner(path, old, by_path)
        if found is None:
            is_count = jnp.issubdtype(jnp.result_type(old), jnp.integer)
            return fresh if is_count and counts == "reset" else old
        shape, change = found
        if isinstance(change, bool):
            return fresh if change else old
        return jnp.where(change, fresh, old) if jnp.shape(old) == shape else old

    return jax.tree_util.tree_map_with_path(leaf, opt_state, fresh_opt_state)


def _check_changed(params, changed):
    advice = "say of each leaf, or of each of its entries, whether it changed"
    if jax.tree.structure(params) != jax.tree.structure(changed):
        transforms.check_same(params, changed, names=("params", "changed"), advice=advice)
    for (path, x), c in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(changed), strict=True):
        if jnp.shape(c) not in ((), jnp.shape(x)):
            shapes = f"{jnp.shape(x)} in params and {jnp.shape(c)} in changed"
            raise ValueError(f"leaf {path_name(path)!r} has shape {shapes}: {advice}")


def _owner(path, leaf, by_path):
    """What is known of the parameter that a leaf of an optimiser's state belongs to; None if it belongs to none."""
    for start in range(len(path)):  # the longest end first
        if path[start:] in by_path:
            return None if any(key in path[:start] for key in _COPIES) else by_path[path[start:]]
    bare = (
        None if any(key in path for key in _COPIES) else by_path.get(())
    )  # parameters that are one array have no path
    return bare if bare is not None and is_changeable(leaf) and jnp.shape(leaf) == bare[0] else None
