"""The methods that act while a lane trains, with one interface, so that the engine can run any of them.

A `Method` is a few pure functions on the training state; its own state is `TrainState.memory` and persists from round
to round. Its `strength` is its one setting, traced; `default_strength` is the published one.

    method.init(key, model, params, batch_stats) -> memory
    method.gradient(state, gradient, strength) -> gradient
    method.after_step(model, optimizer, state, inputs, mask, strength) -> state
    method.after_epoch(state) -> state
    method.restarted(restart, state) -> state: `restart(state) -> state`, between two rounds
    method.evaluated(state) -> state: the one that is evaluated and used
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sp_jax.plasticity.continual_backprop import continual_backprop as replace_least_useful
from sp_jax.plasticity.continual_backprop import init_utility, is_any_due
from sp_jax.plasticity.hare_tortoise import follow, jumps
from sp_jax.plasticity.rare import rarely
from sp_jax.plasticity.redo import redo as replace_dormant
from sp_jax.plasticity.units import Link, without_biases
from sp_jax.transforms.filters import is_changeable
from sp_jax.transforms.optimizer_state import reset_changed
from sp_jax.types import Model

HARE_EPOCHS = 10  # Hare and Tortoise: epochs between two jumps
REDO_STEPS = 1000  # ReDo: steps between two searches, as in its paper


class Method(NamedTuple):
    """The functions of a method that acts while a lane trains; by default they do nothing."""

    init: Callable = lambda key, model, params, batch_stats: ()
    gradient: Callable = lambda state, gradient, strength: gradient
    after_step: Callable = lambda model, optimizer, state, inputs, mask, strength: state
    after_epoch: Callable = lambda state: state
    restarted: Callable = lambda restart, state: restart(state)
    evaluated: Callable = lambda state: state
    default_strength: float = 0.0
    symbol: str = ""  # of the strength, in the method's paper
    label: str = "none"  # in tables and legends
    needs_links: bool = False  # whether the model must have `links`
    steps_per_entry: bool = False  # whether its optimiser counts the steps of each entry, as `training.adam_per_entry`


def _l2_init_gradient(state, gradient, strength):
    return jax.tree.map(
        lambda g, p, p0: (g + 2 * strength * (p - p0)).astype(g.dtype), gradient, state.params, state.memory["initial"]
    )


def _start_together(key, model, params, batch_stats):
    count = jnp.zeros((), jnp.int32)
    return {"slow": (params, batch_stats), "first_stats": batch_stats, "epoch": count, "step": count}


def _tortoise_follows(model, optimizer, state, inputs, mask, strength):
    """Update the slow weights. Parameters are a plain exponential average, as the authors'. The average of statistics
    is corrected for its initial 0 and 1, which would otherwise influence it for thousands of steps."""
    (params, batch_stats), step = state.memory["slow"], state.memory["step"] + 1
    params = follow(params, state.params, decay=strength)
    batch_stats = follow(batch_stats, state.batch_stats, decay=strength, step=step)
    return state.replace(memory=state.memory | {"slow": (params, batch_stats), "step": step})


def _hare_jumps(state):
    epoch = state.memory["epoch"] + 1
    due, fast = jumps(epoch, every=HARE_EPOCHS, first=1), (state.params, state.batch_stats)
    params, batch_stats = jax.tree.map(lambda s, f: jnp.where(due, s, f), state.memory["slow"], fast)
    return state.replace(params=params, batch_stats=batch_stats, memory=state.memory | {"epoch": epoch})


def _tortoise(state):
    params, batch_stats = state.memory["slow"]
    return state.replace(params=params, batch_stats=batch_stats)


def _both_restarted(restart, state):
    """Restart fast and slow weights separately. The epochs of a round are counted anew; so are the steps where the slow
    statistics after the restart equal those of a new network."""
    hare, tortoise = restart(state), restart(_tortoise(state))
    pairs = zip(*map(jax.tree.leaves, (tortoise.batch_stats, hare.memory["first_stats"])), strict=True)
    begun = jnp.all(jnp.array([jnp.all(a == b) for a, b in pairs if is_changeable(a)], bool))
    memory = {
        "slow": (tortoise.params, tortoise.batch_stats),
        "epoch": jnp.zeros_like(hare.memory["epoch"]),
        "step": jnp.where(begun, 0, hare.memory["step"]),
    }
    return hare.replace(memory=hare.memory | memory)


def _links(model):
    return tuple(Link(*link) for link in model.links)


def _redraw(model, optimizer, state, replace, due):
    """Redraw units by `replace(fresh_params) -> (params, changed)`, and reset the moments of the changed entries."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.memory["key"]), state.memory["step"])
    params, changed = replace(rarely(due, lambda params: model.init(key)[0], state.params))

    def reset(opt_state):
        return reset_changed(opt_state, optimizer.init(params), params, changed)

    return state.replace(params=params, opt_state=rarely(due, reset, state.opt_state))


def _step_counter(key, model, params, batch_stats):
    return {"key": jax.random.key_data(key), "step": jnp.zeros((), jnp.int32)}


def _redo(model, optimizer, state, inputs, mask, strength):
    state = state.replace(memory=state.memory | {"step": state.memory["step"] + 1})

    def search(state):
        seen = model.activations(state.params, state.batch_stats, inputs, mask, True)

        def replace(fresh):
            links = _links(model)
            params, changed = replace_dormant(state.params, fresh, seen, links, threshold=strength, mask=mask)
            return params, without_biases(changed, links)

        return _redraw(model, optimizer, state, replace, jnp.bool_(True))

    return rarely(state.memory["step"] % REDO_STEPS == 0, search, state)


def _counter_and_utility(key, model, params, batch_stats):
    return _step_counter(key, model, params, batch_stats) | {"utility": init_utility(params, _links(model))}


def _continual_backprop(model, optimizer, state, inputs, mask, strength):
    memory = state.memory | {"step": state.memory["step"] + 1}
    seen, links = model.activations(state.params, state.batch_stats, inputs, mask, True), _links(model)
    utility = None

    def replace(fresh):
        nonlocal utility
        params, utility, changed = replace_least_useful(
            state.memory["utility"], state.params, fresh, seen, links, rate=strength, mask=mask
        )
        return params, changed

    state = _redraw(model, optimizer, state, replace, is_any_due(state.memory["utility"], rate=strength))
    return state.replace(memory=memory | {"utility": utility})


none = Method()
l2_init = Method(
    init=lambda key, model, params, batch_stats: {"initial": params}, gradient=_l2_init_gradient,
    default_strength=1e-3, symbol="c", label="L2 Init",
)  # fmt: skip
hare_tortoise = Method(
    init=_start_together, after_step=_tortoise_follows, after_epoch=_hare_jumps, restarted=_both_restarted,
    evaluated=_tortoise, default_strength=0.999, symbol="μ", label="Hare and Tortoise",
)  # fmt: skip
redo = Method(init=_step_counter, after_step=_redo, default_strength=0.025, symbol="τ", label="ReDo", needs_links=True)
continual_backprop = Method(
    init=_counter_and_utility, after_step=_continual_backprop,
    default_strength=1e-4, symbol="ρ", label="continual backprop", needs_links=True, steps_per_entry=True,
)  # fmt: skip
METHODS = {
    "none": none, "l2_init": l2_init, "hare_tortoise": hare_tortoise, "redo": redo,
    "continual_backprop": continual_backprop,
}  # fmt: skip


def check_method(method: Method, model: Model) -> None:
    """Raise a ValueError where a method on units gets a model without `links`."""
    if method.needs_links and not model.links:
        raise ValueError("this method re-draws hidden units, and the model has none with a single reader (no links)")
