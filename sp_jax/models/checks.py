"""Checks of a user's network before it trains, by its behaviour rather than by names."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sp_jax.transforms.filters import path_name
from sp_jax.types import Model

APART = 1e-2  # of the largest logit: rounding (bfloat16) may make a sample's logits alone and in a batch differ so much


def check_logits(model: Model, inputs: chex.Array, num_classes: int) -> int:
    """Return the number C of classes of a network, of its logits [B, C]; inputs [N, ...] are for shape and dtype.

    Raises:
      ValueError: the logits are not such an array, or have too few classes for the labels' `num_classes`.
    """
    example = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))
    logits = jax.eval_shape(lambda x: model.apply(*model.init(jax.random.key(0)), x, None, False)[0], example)
    shape = getattr(logits, "shape", type(logits).__name__)
    if len(shape) != 2 or shape[0] != 1 or shape[1] < num_classes:
        expected = f"[B, {num_classes} or more] for labels 0 to {num_classes - 1}"
        raise ValueError(f"the network must give logits {expected}, got {shape}")
    return shape[1]


def check_independent(model: Model, inputs: chex.Array) -> None:
    """Check that samples are independent: in evaluation mode the logits of one do not depend on the others.

    Runs one small program: a freshly drawn network with a little noise added (a head may begin at zero), on three of
    the inputs [N, ...] together, and on each alone.

    Raises:
      ValueError: the logits of a sample alone and in a batch differ.
    """
    few = inputs[np.linspace(0, len(inputs) - 1, min(len(inputs), 3)).astype(int)]

    @jax.jit
    def logits(key, few):
        params, batch_stats = model.init(key)
        leaves, structure = jax.tree.flatten(params)
        moved = [
            x + 0.1 * jax.random.normal(jax.random.fold_in(key, i), jnp.shape(x)).astype(x.dtype)
            if jnp.issubdtype(jnp.result_type(x), jnp.floating)
            else x
            for i, x in enumerate(leaves)
        ]

        def of(x):
            return model.apply(structure.unflatten(moved), batch_stats, x, None, False)[0]

        return of(few), jax.lax.map(lambda x: of(x[None])[0], few)

    together, alone = (np.asarray(x, float) for x in logits(jax.random.key(0), few))
    size, apart = np.abs(together).max(), np.abs(together - alone).max()
    if np.isfinite(size) and not apart <= APART * size:
        raise ValueError(
            f"the logits of a sample depend on the others in its batch: alone they differ by up to {apart:.2g} of "
            f"{size:.2g}; samples of shape {inputs.shape[1:]} may lack an axis that the network expects: images are "
            "[N, height, width, channels], so write inputs[..., None]; or it normalises by the batch in evaluation, too"
        )


def changed_leaves(function: Callable, tree: chex.ArrayTree, *args) -> dict[str, bool]:
    """Return by path which leaves of a tree `function(tree, *args)` computes anew rather than passes through.

    The function returns a tree of the same structure. It is only traced, so the leaves may be `jax.ShapeDtypeStruct`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)

    def flat(leaves, *args):
        return jax.tree.leaves(function(jax.tree.unflatten(structure, leaves), *args))

    jaxpr = jax.make_jaxpr(flat)([leaf for _, leaf in leaves], *args).jaxpr
    return {
        path_name(path): out is not into
        for (path, _), out, into in zip(leaves, jaxpr.outvars, jaxpr.invars, strict=False)
    }


class UnknownSwitchError(ValueError):
    """A network's switch between training and evaluation was not found; the message says how to name it."""

    def __init__(self, what: str):
        """Make the message from what was found, with advice on `switch=`."""
        super().__init__(
            f"{what}: name its switch between training and evaluation, with the value that it has in training, as "
            "switch={'test': False}: an argument of its call, or an attribute"
        )


def check_switch(name: str, init: Callable, call: Callable, example: jax.ShapeDtypeStruct) -> None:
    """Check that a network's statistics are updated in training, and unchanged in evaluation.

    `call` is like `apply` of a `Model`, but it returns the statistics that the network computes in evaluation, too;
    `example` is [B, ...], for shape and dtype alone.

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


def fixed_statistics(model: Model, inputs: chex.Array) -> set[str]:
    """Return the paths, as `sp_jax.filters` has them, of the statistics that a network does not update while it trains:
    those of a frozen part. The inputs [N, ...] are for shape and dtype alone."""
    example = jax.ShapeDtypeStruct((2, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))
    changed = _changed_statistics(model.init, model.apply, example, True)
    return {path for path, is_new in changed.items() if not is_new}


def _changed_statistics(init, call, example, train):
    """Return for each statistic's path whether a call computes it anew; the call is only traced."""
    params, batch_stats = jax.eval_shape(init, jax.random.key(0))
    mask = jax.ShapeDtypeStruct(example.shape[:1], bool)
    return changed_leaves(
        lambda stats, params, x, mask: call(params, stats, x, mask, train)[1], batch_stats, params, example, mask
    )
