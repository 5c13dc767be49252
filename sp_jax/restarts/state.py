"""Restarts of the whole training state, made from rules for parameters: parameters, statistics, optimiser state."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import optax

from sp_jax import transforms
from sp_jax.restarts.recalibration import recalibrate
from sp_jax.restarts.rules import Rule, random_init
from sp_jax.transforms import filters, growth
from sp_jax.transforms.layouts import Layouts, merged
from sp_jax.transforms.optimizer_state import COUNTS, reset_changed
from sp_jax.types import Model, TrainState

STATISTICS = ("reset", "keep", "recalibrate")
OPTIMIZER_STATES = ("reset", "keep", "reset_changed")
SHAPES = ("same", "redraw", "grow")
ADVICE = "draw both from one initialiser, or choose shapes='grow' or 'redraw'"
RECALIBRATION_BATCHES = 20  # a restart recalibrates on the first so many batches at most


class DataPass(NamedTuple):
    """A pass over all batches that have arrived, in parts: `finish(update(state, start(state), batches))` restarts."""

    start: Callable  # start(state) -> carry
    update: Callable  # update(state, carry, batches) -> carry, with a `Batches` of labels
    finish: Callable  # finish(carry) -> restart


@dataclasses.dataclass(frozen=True)  # not a tuple: jax.jit holds a weak reference to the function that it compiles
class Restart:
    """A restart of the whole training state, and the data that it reads; called as `apply` is."""

    apply: Callable[..., TrainState]  # (key, state, fresh, *, shrink, noise_scale, batches=None) -> state
    num_batches: int = 0  # it reads the first so many batches that have arrived
    data_pass: DataPass | None = None  # it reads all of them, in parts where data are streamed

    def __call__(self, key, state, fresh, *, shrink, noise_scale, batches=None) -> TrainState:
        """Restart a training state; see the module."""
        return self.apply(key, state, fresh, shrink=shrink, noise_scale=noise_scale, batches=batches)


def as_restart(function: Callable[..., TrainState]) -> Restart:
    """Return a `Restart` as it is; a plain function of its signature becomes one that gets no streamed data."""
    return function if isinstance(function, Restart) else Restart(function)


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
    """Make a restart of the whole training state from a rule for parameters.

    `random_init` gives `fresh` as a whole, whatever the policies but `where`: a new network has no past to keep.

    Args:
      rule: one of this module's rules, or any function of their signature.
      statistics: what becomes of BatchNorm's running means and variances. `"reset"`: 0 and 1, as in the authors'
        program; `"keep"`: those of the last round; `"recalibrate"`: those of the new parameters on the given `batches`.
      optimizer_state: `"reset"` ("reinitializing Adam's parameters at each step of learning", Section 2.2), `"keep"`,
        or `"reset_changed"`: only what belongs to parameters that the rule changed (a leaf that it returns as the same
        array is unchanged).
      counts: of `"reset_changed"`, what becomes of step counts: see `sp_jax.transforms.optimizer_state`.
      shapes: where a leaf's shape is not that of the fresh network: `"same"`, an error; `"redraw"`, it is the fresh
        one, as the head of a pre-trained network for a task with other classes (Section 4.2); `"grow"`, the old
        leaf restarted where it lies in the grown one, fresh elsewhere (`sp_jax.transforms.growth`).
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
    transforms.check_choice("statistics", statistics, STATISTICS)
    transforms.check_choice("optimizer_state", optimizer_state, OPTIMIZER_STATES)
    transforms.check_choice("counts", counts, COUNTS)
    transforms.check_choice("shapes", shapes, SHAPES)
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

    return Restart(restart, RECALIBRATION_BATCHES if statistics == "recalibrate" and rule is not random_init else 0)


def _matched(tree, where):
    """Return which leaves a filter matches; there may be none."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: filters.matches(where, filters.path_name(path), leaf), tree
    )


def _chosen(picked, new, old):
    return jax.tree.map(lambda p, new, old: new if p else old, picked, new, old)


def _fit(tree, fresh, shapes, how):
    """Return a part of the training state in the fresh one's shapes."""
    if shapes == "same":
        return tree
    if shapes == "grow":
        return growth.expand(tree, fresh, **how)
    return jax.tree.map(lambda x, new: x if x.shape == new.shape else new, tree, fresh)


def _undo_where_new(before, params, fresh_params, shapes, how):
    """Return the parameters after a rule, with the freshly drawn values wherever `_fit` had put such values."""
    if shapes == "grow":
        return growth.keep_new(before, params, fresh_params, **how)
    if shapes == "redraw":
        return jax.tree.map(lambda was, x, new: x if was.shape == new.shape else new, before, params, fresh_params)
    return params


def _go_on(key, state, fresh, *, shrink, noise_scale, batches=None):
    del key, fresh, shrink, noise_scale, batches
    return state


no_restart = Restart(_go_on)  # continues with the training state as it is, statistics and optimiser included
