"""Random numbers that a network draws while it trains (dropout): a stream in the second tree of a `Model`.

A stream is a key and a count of the calls so far, both plain integers, so that they are saved, resumed and batched as
all other arrays are. A call in training takes the next key; evaluation leaves the stream.

>>> import jax
>>> stream = start(jax.random.key(0))
>>> (first, stream), before = take(stream), stream
>>> int(before["count"]), int(stream["count"]), bool((take(stream)[0] == first).all())
(0, 1, False)
"""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from sp_jax import tracing
from sp_jax.models.checks import UnknownSwitchError

NAME = "rngs"  # of the stream in the tree
_FOLD = 0x5EED  # parts the stream from the draws of the initialiser, which has the key itself


def start(key: chex.PRNGKey) -> dict[str, chex.Array]:
    """Make a new stream.

    Args:
      key: of the initialisation; may be used for that, too.

    Returns:
      `key`, [2] uint32, and `count`, uint32 [].
    """
    bits = jax.random.bits(jax.random.fold_in(key, _FOLD), (2,), jnp.uint32)
    return {"key": bits, "count": jnp.zeros((), jnp.uint32)}


def take(stream: Mapping[str, chex.Array]) -> tuple[chex.PRNGKey, dict[str, chex.Array]]:
    """Return the next key, and the stream after it; the same bits alone and under `vmap`."""
    key = jax.random.wrap_key_data(jnp.asarray(stream["key"]), impl="threefry2x32")
    return jax.random.fold_in(key, stream["count"]), {**stream, "count": stream["count"] + jnp.uint32(1)}


def constant() -> chex.PRNGKey:
    """Return the key for a call that asks for one, and whose result does not depend on it."""
    return jax.random.key(0, impl="threefry2x32")


def depends(function: Callable, *args) -> bool:
    """Return whether `function(key, *args)` depends on the key; it is only traced."""
    return tracing.used(function, constant(), *args)[0]


def find_use(name: str, call: Callable, *args) -> tuple[bool, bool]:
    """Find out, by tracing, where a network needs a key.

    Args:
      name: of the network, for the message.
      call: `call(key, train, *args)` returns all results; the key may be None.
      *args: arrays or `jax.ShapeDtypeStruct`.

    Returns:
      Whether training needs a key, of a stream; and whether evaluation has to be given one, which changes nothing.

    Raises:
      UnknownSwitchError: evaluation depends on the key.
    """
    in_training = depends(lambda key, *args: call(key, True, *args), *args) or not _runs(call, True, args)
    in_evaluation = not _runs(call, False, args)
    if in_evaluation and depends(lambda key, *args: call(key, False, *args), *args):
        raise UnknownSwitchError(f"{name} draws random numbers in evaluation, too")
    return in_training, in_evaluation


def _runs(call, train, args):
    try:
        jax.eval_shape(lambda *args: call(None, train, *args), *args)
    except Exception:  # whatever a network raises that gets no key
        return False
    return True
