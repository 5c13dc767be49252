"""Checks of a user's network before it trains, by its behaviour rather than by names."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax import tracing
from sp_jax.errors import first_line
from sp_jax.models import padding
from sp_jax.tasks import Task
from sp_jax.transforms.filters import path_name
from sp_jax.types import Model

APART = 1e-2  # of the largest logit: rounding (bfloat16) may make a sample's logits alone and in a batch differ so much


class NetworkError(ValueError):
    """A network that cannot be trained as it is; the message is one line with advice on what to write instead."""


def check_logits(model: Model, inputs: chex.ArrayTree, num_classes: int) -> int:
    """Return the number of classes of a network.

    Args:
      model: its two functions.
      inputs: [N, ...], or a pytree of such, for shape and dtype alone.
      num_classes: of the labels.

    Returns:
      C, of logits [B, C].

    Raises:
      ValueError: the logits are not such an array, or have too few classes.
    """
    shape = _shape_of_outputs(model, inputs)
    if len(shape) != 2 or shape[0] != 1 or shape[1] < num_classes:
        expected = f"[B, {num_classes} or more] for labels 0 to {num_classes - 1}"
        raise ValueError(f"the network must give logits {expected}, got {shape}")
    return shape[1]


def check_outputs(model: Model, inputs: chex.ArrayTree, task: Task, targets: np.ndarray) -> tuple[int, ...]:
    """Return the shape of a network's outputs of one sample, once they fit the task.

    Args:
      model: its two functions.
      inputs: [N, ...], or a pytree of such, for shape and dtype alone.
      task: what is to be predicted.
      targets: [N, ...], as `task.check` returned them.

    Returns:
      [1, ...].

    Raises:
      ValueError: they are no array, or not what the task wants; one line.
    """
    shape = _shape_of_outputs(model, inputs)
    is_array = isinstance(shape, tuple)
    if wanted := task.outputs(shape if is_array else (), targets) or ("" if is_array else "one array of outputs"):
        raise ValueError(f"the network must give {wanted}, got {shape}")
    _check_task(task, jax.ShapeDtypeStruct((2, *shape[1:]), jnp.float32), targets)
    return shape


def _check_task(task, outputs, targets):
    """Raise a ValueError where a task's functions do not give one number for each sample of a batch of two."""
    batch = jax.ShapeDtypeStruct((2, *targets.shape[1:]), targets.dtype)
    for name, function in (("losses", task.losses), ("metric", task.metric)):
        try:
            found = getattr(jax.eval_shape(function, outputs, batch), "shape", None)
        except Exception as error:  # a user's function can raise anything
            reason = first_line(error)
            raise ValueError(f"the task's {name} do not run on outputs {outputs.shape}: {reason}") from error
        if found != (2,):
            raise ValueError(f"the task's {name} must be [B], one number for each sample, got {found} of two samples")


def _shape_of_outputs(model, inputs):
    """Return [1, ...], or the type's name of what is no array."""

    def outputs(x):
        return model.apply(*model.init(jax.random.key(0)), x, None, False)[0]

    found = jax.eval_shape(outputs, padding.shapes(inputs, 1))
    return getattr(found, "shape", type(found).__name__)


def check_independent(model: Model, inputs: chex.ArrayTree) -> None:
    """Check that samples are independent: in evaluation mode the logits of one do not depend on the others.

    Runs one small program: a freshly drawn network with a little noise added (a head may begin at zero), on three
    samples together, and on each alone.

    Args:
      model: its two functions.
      inputs: [N, ...] samples, or a pytree of such; three of them are used.

    Raises:
      ValueError: the logits of a sample alone and in a batch differ.
    """
    size = padding.count(inputs)
    places = np.linspace(0, size - 1, min(size, 3)).astype(int)
    few = jax.tree.map(lambda x: x[places], inputs)

    @jax.jit
    def logits(key, few):
        params, batch_stats = model.init(key)
        leaves, structure = jax.tree.flatten(params)
        moved = [
            x + 0.1 * jnp.sin(i + jnp.arange(jnp.size(x))).reshape(jnp.shape(x)).astype(x.dtype)
            if jnp.issubdtype(jnp.result_type(x), jnp.floating)
            else x
            for i, x in enumerate(leaves)
        ]

        def of(x):
            return model.apply(structure.unflatten(moved), batch_stats, x, None, False)[0]

        return of(few), jax.lax.map(lambda x: of(jax.tree.map(lambda x: x[None], x))[0], few)

    together, alone = (np.asarray(x, float) for x in logits(jax.random.key(0), few))
    size, apart = np.abs(together).max(), np.abs(together - alone).max()
    if np.isfinite(size) and not apart <= APART * size:
        raise ValueError(_dependence(apart, size, inputs))


def _dependence(apart, size, inputs):
    if jax.tree_util.all_leaves([inputs]):
        looked_at = (
            f"samples of shape {inputs.shape[1:]} may lack an axis that the network expects: images are "
            "[N, height, width, channels], so write inputs[..., None]"
        )
    else:
        shapes = jax.tree.map(lambda x: x.shape[1:], inputs)
        looked_at = f"samples of shapes {shapes} may lack an axis that the network expects"
    return (
        f"the logits of a sample depend on the others in its batch: alone they differ by up to {apart:.2g} of "
        f"{size:.2g}; {looked_at}; or it normalises by the batch in evaluation, too"
    )


def changed_leaves(function: Callable, tree: chex.ArrayTree, *args) -> dict[str, bool]:
    """Return which leaves of a tree a function computes anew rather than passes through; the function is only traced.

    Args:
      function: `function(tree, *args)` returns a tree of the same structure.
      tree: pytree of arrays or `jax.ShapeDtypeStruct`.
      *args: likewise.

    Returns:
      From each leaf's path to whether it differs from the input leaf.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return dict(zip(map(path_name, paths), tracing.changed(function, tree, *args), strict=False))


class UnknownSwitchError(ValueError):
    """A network's switch between training and evaluation was not found; the message says how to name it."""

    def __init__(self, what: str):
        """Make the message from what was found, with advice on `switch=`."""
        super().__init__(
            f"{what}: name its switch between training and evaluation, with the value that it has in training, as "
            "switch={'test': False}: an argument of its call, or an attribute"
        )


def check_switch(name: str, init: Callable, call: Callable, example: chex.ArrayTree) -> None:
    """Check that a network's statistics are updated in training, and unchanged in evaluation.

    Args:
      name: of the network, for the message.
      init: as of a `Model`.
      call: as `apply` of a `Model`, but it returns the statistics that the network computes in evaluation, too.
      example: [B, ...] inputs, or a pytree of such, for shape and dtype.

    Raises:
      UnknownSwitchError: they are never updated, or updated in evaluation.
    """
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(init, jax.random.key(0))[1])
    running = {path_name(path) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)}

    def moved(train):
        found = _changed_statistics(init, call, example, train)
        return sorted(path for path in running if found[path])

    if running and not moved(True):
        raise UnknownSwitchError(f"{name} has statistics, as of BatchNorm, that stand still while it trains")
    if running and (found := moved(False)):
        raise UnknownSwitchError(f"{name} updates {found[0]!r} in evaluation, too")


def fixed_statistics(model: Model, inputs: chex.ArrayTree) -> set[str]:
    """Return the paths of the statistics that a network does not update while it trains: those of a frozen part.

    Args:
      model: its two functions.
      inputs: [N, ...], or a pytree of such, for shape and dtype alone.

    Returns:
      Paths as `sp_jax.filters` names them; the key of a stream of random numbers whose count moves is not among them.
    """
    changed = _changed_statistics(model.init, model.apply, padding.shapes(inputs, 2), True)
    keys = {path.removesuffix("count") + "key" for path, is_new in changed.items() if is_new and _ends(path, "count")}
    return {path for path, is_new in changed.items() if not is_new and path not in keys}


def _ends(path, name):
    return path.rpartition("/")[2] == name


def _changed_statistics(init, call, example, train):
    """Return for each statistic's path whether a call computes it anew; the call is only traced."""
    params, batch_stats = jax.eval_shape(init, jax.random.key(0))
    mask = jax.ShapeDtypeStruct((padding.count(example),), bool)
    return changed_leaves(
        lambda stats, params, x, mask: call(params, stats, x, mask, train)[1], batch_stats, params, example, mask
    )
