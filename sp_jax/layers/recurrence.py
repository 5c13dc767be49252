"""Gated recurrent units (Cho et al. 2014) in both directions at once, with few kernels a token.

A recurrence runs token by token, so an accelerator spends its time on launching kernels. Here the inputs' products are
computed for all tokens before the loop, both directions are one product in it, and the kernels' gradients are one
product after it. The numbers are those of Flax's `GRUCell` and `Bidirectional`, to rounding.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

UNROLL = 4  # tokens of a turn of the loop


def both_ways(
    cells: Sequence[Mapping], x: chex.Array, lengths: chex.Array, dtype: Any = None
) -> tuple[chex.Array, chex.Array]:
    """Run a layer over sequences, from their beginning and from their own end.

    The platform is chosen when the program is lowered: a CPU launches nothing, and gets Flax's own form.

    Args:
      cells: the parameters of Flax's `GRUCell`, of W units, of both directions.
      x: [B, T, F].
      lengths: [B], of the sequences; what follows is padding.
      dtype: of the computation, by default that of the parameters.

    Returns:
      The states of both directions side by side, [B, T, 2 W], those of padding without meaning; and the last ones,
      [B, 2 W].
    """
    by_flax, joined = (partial(form, dtype) for form in (_by_flax, _joined))
    return jax.lax.platform_dependent(cells, x, lengths, cpu=by_flax, default=joined)


def _by_flax(dtype, cells, x, lengths):
    found = []
    for cell, options in zip(cells, ({}, {"reverse": True, "keep_order": True}), strict=True):
        layer = nn.RNN(nn.GRUCell(len(cell["hn"]["bias"]), dtype=dtype, parent=None), parent=None)
        options = {"seq_lengths": lengths, "return_carry": True, **options}
        found.append(layer.apply({"params": {"cell": cell}}, x, **options))
    last, states = zip(*found, strict=True)
    return jnp.concatenate(states, axis=-1), jnp.concatenate(last, axis=-1)


def _joined(dtype, cells, x, lengths):
    def side_by_side(leaf, *gates):
        return jnp.stack([jnp.concatenate([cell[gate][leaf] for gate in gates], axis=-1) for cell in cells])

    kernel, bias = (side_by_side(leaf, "ir", "iz", "in") for leaf in ("kernel", "bias"))
    recurrent, recurrent_bias = side_by_side("kernel", "hr", "hz", "hn"), side_by_side("bias", "hn")
    x, kernel, recurrent, bias, recurrent_bias = nn.dtypes.promote_dtype(
        x, kernel, recurrent, bias, recurrent_bias, dtype=dtype
    )
    inputs = jnp.einsum("dbtf,dfk->tdbk", jnp.stack([x, _flipped(x, lengths)]), kernel) + bias[None, :, None]
    real = jnp.broadcast_to(jnp.arange(x.shape[1])[:, None, None] < lengths[None, None], inputs.shape[:3])
    states = gru(inputs, real, recurrent, recurrent_bias)
    forward, backward = states.transpose(1, 2, 0, 3)
    return jnp.concatenate([forward, _flipped(backward, lengths)], axis=-1), jnp.concatenate([*states[-1]], axis=-1)


def _flipped(x, lengths):
    """Reverse the first `lengths` [B] of each sequence [B, T, F]; padding stays behind."""
    count = x.shape[1]
    places = (jnp.arange(count - 1, -1, -1)[None] + lengths[:, None]) % count
    return jnp.take_along_axis(x, places[..., None], axis=1)


@jax.custom_vjp
def gru(inputs: chex.Array, real: chex.Array, kernel: chex.Array, bias: chex.Array) -> chex.Array:
    """Run gated recurrent units from zero.

    Args:
      inputs: [T, D, B, 3 W], the inputs' part of the gates r, z and n, for D directions.
      real: [T, D, B] booleans; after a sequence's end the state stays.
      kernel: [D, W, 3 W], the recurrent part.
      bias: [D, W], of the recurrent part of n.

    Returns:
      [T, D, B, W], the state after each token.
    """
    return _forward(inputs, real, kernel, bias)[0]


def _forward(inputs, real, kernel, bias):
    width = kernel.shape[1]

    def token(h, at):
        x, there = at
        g = jnp.matmul(h.astype(kernel.dtype), kernel)
        r, z = (jax.nn.sigmoid(x[..., i : i + width] + g[..., i : i + width]) for i in (0, width))
        recurrent = g[..., 2 * width :] + bias[:, None]
        n = jnp.tanh(x[..., 2 * width :] + r * recurrent)
        h = jnp.where(there[..., None], (1 - z) * n + z * h, h)
        return h, (h, jnp.concatenate([r, z, n, recurrent], axis=-1))

    start = jnp.zeros((*inputs.shape[1:3], width), jnp.promote_types(inputs.dtype, jnp.float32))  # as Flax's
    _, (states, gates) = jax.lax.scan(token, start, (inputs, real), unroll=UNROLL)
    before = jnp.concatenate([start[None], states[:-1]])
    return states, (before, gates, real, kernel)


def _backward(residuals, dstates):
    before, gates, real, kernel = residuals
    transposed = kernel.swapaxes(1, 2)

    def token(dh, at):
        h, gate, there, dstate = at
        r, z, n, recurrent = jnp.split(gate, 4, axis=-1)
        dh = dh + dstate
        dnew = jnp.where(there[..., None], dh, 0)
        dn = dnew * (1 - z) * (1 - jnp.square(n))
        dr, dz = dn * recurrent * r * (1 - r), dnew * (h - n) * z * (1 - z)
        dg = jnp.concatenate([dr, dz, dn * r], axis=-1).astype(kernel.dtype)
        dh = dh - dnew + dnew * z + jnp.matmul(dg, transposed)
        return dh, (dg, dn.astype(kernel.dtype))

    start = jnp.zeros(before.shape[1:], before.dtype)
    _, (dgates, dn) = jax.lax.scan(token, start, (before, gates, real, dstates), reverse=True, unroll=UNROLL)
    width = kernel.shape[1]
    dinputs = jnp.concatenate([dgates[..., : 2 * width], dn], axis=-1)
    dkernel = jnp.einsum("tdbw,tdbk->dwk", before.astype(dgates.dtype), dgates)
    return dinputs, None, dkernel, jnp.sum(dgates[..., 2 * width :], axis=(0, 2))


gru.defvjp(_forward, _backward)
