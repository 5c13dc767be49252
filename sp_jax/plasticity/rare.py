"""Work that is seldom due in a loop of several lanes."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun


def rarely(due: chex.Array, work: Callable, tree: chex.ArrayTree) -> chex.ArrayTree:
    """Return `work(tree)` where it is due, else the tree.

    Under `vmap` the work is done, for all lanes at once, in the steps in which it is due in any of them; `jax.lax.cond`
    would do it in every step, and choose.

    Args:
      due: boolean scalar.
      work: `work(tree)`, to a tree of the same structure, shapes and dtypes; it may use values from around it.
      tree: pytree of arrays.
    """
    closed = jax.make_jaxpr(work)(tree)
    leaves, structure = jax.tree.flatten(tree)

    def apply(around, leaves):
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, around))(*leaves)

    @jax.custom_batching.custom_vmap
    def one(due, around, leaves):
        return jax.lax.cond(due, apply, lambda around, leaves: leaves, around, leaves)

    @one.def_vmap
    def several(count, batched, due, around, leaves):
        whole = [x if b else jnp.broadcast_to(x, (count, *x.shape)) for x, b in zip(leaves, batched[2], strict=True)]
        dues = due if batched[0] else jnp.broadcast_to(due, (count,))
        axes = jax.tree.map(lambda b: 0 if b else None, batched[1:])

        def done(around, leaves, whole):
            found = jax.vmap(apply, (*axes,), axis_size=count)(around, leaves)
            pairs = zip(found, whole, strict=True)
            return [jnp.where(dues.reshape(-1, *[1] * (old.ndim - 1)), new, old) for new, old in pairs]

        found = jax.lax.cond(jnp.any(due), done, lambda around, leaves, whole: whole, around, leaves, whole)
        return found, [True] * len(found)

    return structure.unflatten(one(due, closed.consts, leaves))
