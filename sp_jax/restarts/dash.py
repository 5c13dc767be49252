"""Direction-aware shrinking (DASH, Shin et al., NeurIPS 2024) as a restart, with one pass over the arrived data."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sp_jax import plasticity
from sp_jax.penalties import cross_entropy
from sp_jax.plasticity.kinds import Kinds
from sp_jax.restarts.rules import warm_start
from sp_jax.restarts.state import DataPass, Restart, make_restart
from sp_jax.types import Model


def make_dash(
    model: Model,
    *,
    arrivals: Sequence[int] | None = None,
    batches_per_chunk: int = 8,
    decay: float = 0.3,
    norms: Callable | None = None,
    kinds: Kinds | None = None,
    **policies,
) -> Restart:
    """Make direction-aware shrinking of the whole training state (DASH, Shin et al., NeurIPS 2024).

    Goes through the samples in the order of arrival, in chunks, for the running direction of descent G of the old
    parameters (`sp_jax.plasticity.average_gradient`), then shrinks each weight the more, the less it agrees with G
    (`sp_jax.plasticity.dash`; λ is `shrink`, the paper's 0.3). As in the authors' program the gradients are taken in
    evaluation mode, with the old network's statistics, and a chunk is what has arrived in one round. They keep the
    momentum of SGD; here that is `optimizer_state="keep"`.

    Args:
      model: its loss is the cross-entropy.
      arrivals: how many samples had arrived in each round, increasing: a chunk is what one round brought; what came
        after the last of them is one more. None: chunks are of `batches_per_chunk` batches, the newest may have fewer.
      batches_per_chunk: where there are no `arrivals`.
      decay: α, a scalar in [0, 1]; the weight of the newest chunk.
      norms, kinds: as of `sp_jax.plasticity.dash`.
      **policies: of `make_restart`.

    Returns:
      A restart as of `make_restart`; it needs `batches`, a `Batches` with labels.

    Raises:
      ValueError: as `make_restart`, arrivals that do not increase, shapes that are not to stay; no labels, or as
        `sp_jax.plasticity.dash` (in the restart).
    """
    chunks = _chunks(arrivals, batches_per_chunk)

    def restart(key, state, fresh, *, shrink, noise_scale, batches=None):
        if batches is None or batches.labels is None:
            raise ValueError("DASH needs batches=Batches(inputs, masks, labels)")
        whole = finish(update(state, _start_descent(state), batches))
        return whole(key, state, fresh, shrink=shrink, noise_scale=noise_scale, batches=batches)

    def finish(carry):
        average = _end_descent(carry, decay)

        def rule(key, params, fresh_params, *, shrink, noise_scale):
            del key, fresh_params, noise_scale
            return plasticity.dash(params, average, shrink=shrink, norms=norms, kinds=kinds)

        return make_restart(rule, model=model, **policies)

    def update(state, carry, batches):
        return _descend(model, state, carry, batches, chunks, decay)

    plain = make_restart(warm_start, model=model, **policies)  # checks the policies
    if policies.get("shapes", "same") != "same":
        raise ValueError(
            f"DASH sweeps data through the old network, so shapes must be 'same', got {policies['shapes']!r}"
        )
    return Restart(restart, plain.num_batches, DataPass(_start_descent, update, finish))


class _Chunks(NamedTuple):
    """The division of the samples in the order of arrival into chunks, independent of the batches."""

    of: Callable  # of(places, batch_size) -> the chunk of each place
    end: Callable  # end(chunk, batch_size) -> the place after its last sample


def _chunks(arrivals, batches_per_chunk):
    if arrivals is None:
        if batches_per_chunk < 1:
            raise ValueError(f"batches_per_chunk must be at least 1, got {batches_per_chunk}")
        return _Chunks(
            lambda places, size: places // (batches_per_chunk * size),
            lambda chunk, size: (chunk + 1) * (batches_per_chunk * size),
        )
    ends = np.asarray(arrivals)
    if ends.ndim != 1 or not len(ends) or ends.dtype.kind not in "iu" or (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError(f"arrivals must be increasing counts, as (250, 500, 750), got {arrivals}")
    ends = np.append(ends, np.iinfo(np.int32).max).astype(np.int32)
    return _Chunks(
        lambda places, size: jnp.searchsorted(ends, places, side="right").astype(jnp.int32),
        lambda chunk, size: jnp.asarray(ends)[chunk],
    )


def _start_descent(state):
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    return zeros, zeros, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)


def _descend(model, state, carry, batches, chunks, decay):
    """Return G over the complete chunks of real samples so far, the gradient sum of the unfinished chunk, its number of
    samples, and the number of batches; padding comes last. A batch that several chunks share is processed once for
    each of them, with the other chunks' samples masked."""
    size = batches.masks.shape[1]

    def loss(params, inputs, mask, labels):
        logits, _ = model.apply(params, state.batch_stats, inputs, mask, False)
        return jnp.sum(jnp.where(mask, cross_entropy(logits, labels), 0))

    def one_batch(carry, batch):
        inputs, mask, labels = batch
        *sums, i = carry
        of_chunk = chunks.of(i * size + jnp.arange(size, dtype=jnp.int32), size)
        real = jnp.sum(mask, dtype=jnp.int32)
        last = of_chunk[jnp.maximum(real, 1) - 1]

        def one_chunk(chunk, sums):
            average, total, count = sums
            own = mask & (of_chunk == chunk)
            gradient = jax.grad(loss)(state.params, inputs, own, labels)
            total, count = jax.tree.map(jnp.add, total, gradient), count + jnp.sum(own, dtype=jnp.int32)
            ends = chunks.end(chunk, size) <= (i + 1) * size
            average = _where(ends, _advance(average, total, count, decay), average)
            return average, jax.tree.map(lambda t: jnp.where(ends, 0, t), total), jnp.where(ends, 0, count)

        sums = jax.lax.fori_loop(of_chunk[0], jnp.where(real > 0, last + 1, of_chunk[0]), one_chunk, tuple(sums))
        return (*sums, i + 1), None

    return jax.lax.scan(one_batch, carry, tuple(batches))[0]


def _end_descent(carry, decay):
    average, total, count, _ = carry
    return _where(count > 0, _advance(average, total, count, decay), average)


def _advance(average, total, count, decay):
    mean = jax.tree.map(lambda t: t / jnp.maximum(count, 1), total)
    return plasticity.average_gradient(average, mean, decay=decay)


def _where(condition, one, other):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
