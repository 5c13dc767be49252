"""What a function's results depend on, read from its trace; nothing is run.

Arguments are pytrees of arrays or `jax.ShapeDtypeStruct`; leaves are in the order of `jax.tree.leaves`.
"""

from collections.abc import Callable

import jax
from jax.interpreters import partial_eval


def used(function: Callable, *args) -> list[bool]:
    """Return for each leaf of the arguments whether the result depends on it.

    >>> import jax.numpy as jnp
    >>> used(lambda x, y, z: (2 * x, y, jnp.shape(z + 1)), 1.0, 2.0, 3.0)
    [True, True, False]
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    _, found = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return found


def dependent(function: Callable, *args) -> list[bool]:
    """Return for each leaf of the result whether it depends on any argument.

    >>> import jax.numpy as jnp
    >>> dependent(lambda x: (2 * x, jnp.zeros(3) + 1), 1.0)
    [True, False]
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    known = {id(var) for var in jaxpr.invars}
    for equation in jaxpr.eqns:
        if any(id(var) in known for var in equation.invars):
            known.update(id(var) for var in equation.outvars)
    return [id(var) in known for var in jaxpr.outvars]


def changed(function: Callable, tree, *args) -> list[bool]:
    """Return for each leaf of the first argument, which the result is like, whether it is computed anew rather than
    passed through.

    >>> changed(lambda pair, z: (pair[0], pair[1] * z), (1.0, 2.0), 3.0)
    [False, True]
    """
    jaxpr = jax.make_jaxpr(function)(tree, *args).jaxpr
    return [out is not into for out, into in zip(jaxpr.outvars, jaxpr.invars, strict=False)]
