"""What happens to the whole training state between two rounds: parameters, BatchNorm statistics, optimiser state
(Sections 2.2 and 4).

A rule says what becomes of the parameters; `make_restart` makes it a restart of the whole state. All rules and all
restarts have one signature each, so that they can be swapped:

    rule(key, params, fresh_params, *, shrink, noise_scale) -> params
    restart(key, state, fresh, *, shrink, noise_scale, batches=None) -> state

`fresh` is a freshly drawn training state: new parameters, statistics of mean 0 and variance 1, an optimiser that has
seen nothing. The key is consumed; only `gaussian_noise` draws from it.

>>> old, fresh = (TrainState({"w": jnp.full(2, w)}, {}, (jnp.full((), w),)) for w in (1.0, 0.5))  # moments: 1.0, 0.5
>>> restart = make_restart(shrink_perturb)
>>> state = restart(jax.random.key(0), old, fresh, shrink=0.6, noise_scale=0.1)
>>> [round(float(w), 2) for w in state.params["w"]], float(state.opt_state[0])
([0.65, 0.65], 0.5)

Where data are streamed (`sp_jax.streaming`) a restart says what it looks at, or gets no batches: with an attribute
`batches`, the first so many, and with `sweep`, all of them in parts (`Sweep`).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sp_jax import filters, growth, plasticity, transforms
from sp_jax.layouts import Layouts, merged
from sp_jax.optimizer_state import COUNTS, reset_changed
from sp_jax.penalties import cross_entropy
from sp_jax.plasticity.kinds import Kinds
from sp_jax.recalibration import recalibrate
from sp_jax.types import Model, TrainState

Rule = Callable[..., chex.ArrayTree]
Restart = Callable[..., TrainState]

STATISTICS = ("reset", "keep", "recalibrate")
OPTIMIZER_STATES = ("reset", "keep", "reset_changed")
SHAPES = ("same", "redraw", "grow")
ADVICE = "draw both from one initialiser, or choose shapes='grow' or 'redraw'"
RECALIBRATION_BATCHES = 20  # a restart recalibrates on the first so many batches at most


class Sweep(NamedTuple):
    """A restart that looks at all batches, in parts: `finish(update(state, start(state), batches))` is a restart."""

    start: Callable  # start(state) -> carry
    update: Callable  # update(state, carry, batches) -> carry, with a `Batches` of labels
    finish: Callable  # finish(carry) -> restart


def random_init(key, params, fresh_params, *, shrink=0.0, noise_scale=1.0):
    """The freshly drawn network: training from scratch. `shrink` and `noise_scale` are not used."""
    del key, shrink, noise_scale
    transforms.check_same(params, fresh_params)
    return fresh_params


def warm_start(key, params, fresh_params, *, shrink=1.0, noise_scale=0.0):
    """The parameters of the last round. `shrink` and `noise_scale` are not used."""
    del key, fresh_params, shrink, noise_scale
    return params


def shrink_perturb(key, params, fresh_params, *, shrink, noise_scale):
    """λ·θ + σ·fresh on every learned parameter, biases and BatchNorm's scale and offset included (Section 4)."""
    del key
    return transforms.shrink_perturb(params, fresh_params, shrink=shrink, noise_scale=noise_scale)


def fresh_noise(key, params, fresh_params, *, shrink=1.0, noise_scale):
    """θ + σ·fresh: noise only, each parameter at the scale of its own initialiser (the row λ = 1 of Figure 8)."""
    del key, shrink
    return transforms.perturb(params, fresh_params, noise_scale=noise_scale)


def gaussian_noise(key, params, fresh_params, *, shrink=1.0, noise_scale):
    """θ + N(0, σ²): noise only, of one scale for all parameters (Table 4)."""
    del fresh_params, shrink
    return transforms.perturb(params, transforms.gaussian_like(key, params), noise_scale=noise_scale)


def fire(key, params, fresh_params, *, shrink=1.0, noise_scale=0.0):
    """Each kernel made orthogonal (FIRE, `sp_jax.plasticity`). `shrink` and `noise_scale` are not used; see `make_fire`
    for attention's kernels and stacked layers."""
    del key, fresh_params, shrink, noise_scale
    return plasticity.orthogonalize(params)


def make_fire(*, where: Callable | None = None, kinds: Kinds | None = None) -> Rule:
    """Makes the rule `fire` with a choice of kernels, or for networks whose kernels do not tell what they are.

    Args:
      where: which kernels change, as for `sp_jax.plasticity.orthogonalize`; by default all.
      kinds: what the axes of a kernel are, as for `orthogonalize`: `{"query": ("in", "out", "out")}`.

    Returns:
      A rule; it raises a ValueError as `orthogonalize`.
    """

    def rule(key, params, fresh_params, *, shrink=1.0, noise_scale=0.0):
        del key, fresh_params, shrink, noise_scale
        return plasticity.orthogonalize(params, where=where, kinds=kinds)

    return rule


def only_layers(*names: str) -> Rule:
    """The rule λ·θ + σ·fresh on the named layers alone; the others are warm-started (Figure 14: the last layer).

    Args:
      *names: parts of parameter paths. Which layer is last is the caller's to say: pytrees sort names by the alphabet.

    Returns:
      A rule; it raises a ValueError where no layer has one of these names.
    """

    def rule(key, params, fresh_params, *, shrink, noise_scale):
        del key
        where = filters.layer(*names)
        return transforms.shrink_perturb(params, fresh_params, shrink=shrink, noise_scale=noise_scale, where=where)

    return rule


def make_restart(
    rule: Rule,
    *,
    statistics: str = "reset",
    optimizer_state: str = "reset",
    counts: str = "keep",
    shapes: str = "same",
    model: Model | None = None,
    optimizer: optax.GradientTransformation | None = None,
    where: Callable | None = None,
    layouts: Layouts | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Restart:
    """Makes a rule for parameters a restart of the whole training state.

    `random_init` gives `fresh` as a whole, whatever the policies but `where`: a new network has no past to keep.

    Args:
      rule: one of this module's rules, or any function of their signature.
      statistics: what becomes of BatchNorm's running means and variances. `"reset"`: 0 and 1, as in the authors'
        program; `"keep"`: those of the last round; `"recalibrate"`: those of the new parameters on the given `batches`.
      optimizer_state: `"reset"` ("reinitializing Adam's parameters at each step of learning", Section 2.2), `"keep"`,
        or `"reset_changed"`: only what belongs to parameters that the rule changed (a leaf that it returns as the same
        array is unchanged).
      counts: of `"reset_changed"`, what becomes of step counts: see `sp_jax.optimizer_state`.
      shapes: where a leaf's shape is not that of the fresh network: `"same"`, an error; `"redraw"`, it is the fresh
        one, as the head of a pre-trained network for a task with other classes (Section 4.2); `"grow"`, the old
        leaf restarted where it lies in the grown one, fresh elsewhere (`sp_jax.growth`).
      model: needed to recalibrate; its `layouts` are known.
      optimizer: with it, what is reset of the optimiser's state is drawn from the restarted parameters. Without, it is
        the fresh network's: as good for moments, but wrong where the state holds copies of parameters, as of optax's
        schedule-free and of `sp_jax.plasticity`'s `l2_init` and `hare_tortoise`.
      where: a filter (`sp_jax.filters`), or a function of a path, of the parameters and statistics that may change: all
        but a frozen part, say; the others stay those of the last round. By default all.
      layouts: of `"grow"`, how axes are made up that pack two meanings, as `sp_jax.grown` has it.
      renamed: of `"grow"`, from old layers to new ones, as `sp_jax.grown` has it.

    Returns:
      `restart(key, state, fresh, *, shrink, noise_scale, batches=None)`; `batches` is `(inputs, masks)` as in
      `recalibrate`, or `Batches`.

    Raises:
      ValueError: an unknown policy, a rule that is no function, or `"recalibrate"` without a model (here) or without
        batches; parameters of other shapes than `fresh` that are to stay the same, or of which it is not certain how
        they grow (in the restart; names the path).
    """
    for name, value, known in (
        ("statistics", statistics, STATISTICS),
        ("optimizer_state", optimizer_state, OPTIMIZER_STATES),
        ("counts", counts, COUNTS),
        ("shapes", shapes, SHAPES),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if not callable(rule):
        raise ValueError(f"rule must be a function, as sp_jax.restarts.shrink_perturb, got {rule!r}")
    if statistics == "recalibrate" and model is None:
        raise ValueError("statistics='recalibrate' needs the model, to run it on the batches")

    how = {"layouts": merged(model.layouts if model else None, layouts), "renamed": renamed}

    def restart(key, state, fresh, *, shrink, noise_scale, batches=None):
        if rule is random_init and where is None:
            if shapes == "same":
                transforms.check_same(state.params, fresh.params)
            return fresh
        if shapes == "same":
            transforms.check_same(state.params, fresh.params, advice=ADVICE)
        fit = functools.partial(_fit, shapes=shapes, how=how | {"params": state.params})
        old = _fit(state.params, fresh.params, shapes, how)
        params = rule(key, old, fresh.params, shrink=shrink, noise_scale=noise_scale)
        if where is not None:
            params = _chosen(filters.pick(params, where), params, old)
        changed = jax.tree.map(lambda new, old: new is not old, params, old)
        params = _undo_where_new(state.params, params, fresh.params, shapes, how)
        batch_stats = fit(state.batch_stats, fresh.batch_stats) if statistics == "keep" else fresh.batch_stats
        if statistics == "recalibrate":
            if batches is None:
                raise ValueError("statistics='recalibrate' needs batches=(inputs, masks)")
            first = (x[:RECALIBRATION_BATCHES] for x in batches[:2])
            batch_stats = recalibrate(model, params, batch_stats, *first)
        if where is not None:
            batch_stats = _chosen(_matched(batch_stats, where), batch_stats, fit(state.batch_stats, fresh.batch_stats))
        opt_state = begun = fresh.opt_state if optimizer is None else optimizer.init(params)
        if optimizer_state != "reset":
            opt_state = fit(state.opt_state, begun)
        if optimizer_state == "reset_changed":
            opt_state = reset_changed(opt_state, begun, params, changed, counts=counts)
        return TrainState(params, batch_stats, opt_state, fit(state.memory, fresh.memory))

    restart.batches = RECALIBRATION_BATCHES if statistics == "recalibrate" and rule is not random_init else 0
    return restart


def _matched(tree, where):
    """Which leaves a filter matches; it may be none."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: filters.matches(where, filters.path_name(path), leaf), tree
    )


def _chosen(picked, new, old):
    return jax.tree.map(lambda p, new, old: new if p else old, picked, new, old)


def _fit(tree, fresh, shapes, how):
    """A part of the training state in the fresh one's shapes."""
    if shapes == "same":
        return tree
    if shapes == "grow":
        return growth.expand(tree, fresh, **how)
    return jax.tree.map(lambda x, new: x if x.shape == new.shape else new, tree, fresh)


def _undo_where_new(before, params, fresh_params, shapes, how):
    """The parameters after a rule, freshly drawn where the fitted ones were."""
    if shapes == "grow":
        return growth.keep_new(before, params, fresh_params, **how)
    if shapes == "redraw":
        return jax.tree.map(lambda was, x, new: x if was.shape == new.shape else new, before, params, fresh_params)
    return params


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
    """Makes direction-aware shrinking of the whole training state (DASH, Shin et al., NeurIPS 2024).

    Sweeps the samples in the order of arrival, in chunks, for the running direction of descent G of the old parameters
    (`sp_jax.plasticity.average_gradient`), then shrinks each weight the more, the less it agrees with G
    (`sp_jax.plasticity.dash`; λ is `shrink`, the paper's 0.3). As in the authors' program the gradients are taken in
    evaluation mode, with the old network's statistics, and a chunk is what has arrived in one round. They keep the
    momentum of SGD; here that is `optimizer_state="keep"`.

    Args:
      model: its loss is the cross-entropy.
      arrivals: how many samples had arrived in each round, increasing: a chunk is what one round brought; what came
        after the last of them is one more. None: chunks are of `batches_per_chunk` batches, the newest may have fewer.
      batches_per_chunk: where there are no `arrivals`.
      decay: α, a scalar in [0, 1]; the weight of the newest chunk.
      norms: as of `sp_jax.plasticity.dash`.
      kinds: as of `sp_jax.plasticity.dash`.
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

    restart.sweep = Sweep(_start_descent, update, finish)
    restart.batches = make_restart(warm_start, model=model, **policies).batches  # policies are checked here already
    if policies.get("shapes", "same") != "same":
        raise ValueError(
            f"DASH sweeps data through the old network, so shapes must be 'same', got {policies['shapes']!r}"
        )
    return restart


class _Chunks(NamedTuple):
    """How samples in the order of arrival are divided, whatever the batches."""

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
    """G over the chunks of real samples so far, what the open chunk adds up to, its samples, and the batches; padding
    comes last. A batch that chunks share is gone through once for each, the others' samples masked."""
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


def no_restart(key, state, fresh, *, shrink, noise_scale, batches=None):
    """Goes on with the training state as it is, statistics and optimiser included."""
    del key, fresh, shrink, noise_scale, batches
    return state
