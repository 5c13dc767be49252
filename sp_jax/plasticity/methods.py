"""The methods that act while a lane trains, with one interface, so that the engine can run any of them.

A `Method` is a few pure functions on the training state; its own state is `TrainState.memory` and persists from round
to round. Its `strength` is its one setting, traced; `default_strength` is the published one.

    method.init(key, model, params, batch_stats) -> memory
    method.observe(state, gradient, strength) -> state: of the loss's gradient, before the next; only memory changes
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
from sp_jax.plasticity.regularizers import init_singular_vectors, parseval_penalty, power_iteration, spectral_penalty
from sp_jax.plasticity.rescaling import clip_weights, weight_norms
from sp_jax.plasticity.rescaling import soft_rescaling as rescale
from sp_jax.plasticity.snr import init_silence, is_any_silent, observe_silence, replace_silent, update_thresholds
from sp_jax.plasticity.units import without_biases
from sp_jax.plasticity.upgd import init_weight_utility, weight_utility
from sp_jax.plasticity.upgd import upgd as protect_useful
from sp_jax.transforms import gaussian_like
from sp_jax.transforms.filters import is_changeable
from sp_jax.transforms.optimizer_state import reset_changed
from sp_jax.types import Model

HARE_EPOCHS = 10  # Hare and Tortoise: epochs between two jumps
REDO_STEPS = 1000  # ReDo: steps between two searches, as in its paper
SNR_ROUNDS = 16  # SNR: rounds between two updates of the thresholds, as its authors' tasks


class Method(NamedTuple):
    """The functions of a method that acts while a lane trains; by default they do nothing."""

    init: Callable = lambda key, model, params, batch_stats: ()
    observe: Callable = lambda state, gradient, strength: state
    gradient: Callable = lambda state, gradient, strength: gradient
    after_step: Callable = lambda model, optimizer, state, inputs, mask, strength: state
    after_epoch: Callable = lambda state: state
    restarted: Callable = lambda restart, state: restart(state)
    evaluated: Callable = lambda state: state
    default_strength: float = 0.0
    strengths: tuple[float, ...] = ()  # one or two that it is tuned over; by default the default one and ten times it
    symbol: str = ""  # of the strength, in the method's paper
    label: str = "none"  # in tables and legends
    needs_links: bool = False  # whether the model must have `links`
    needs_hidden: bool = False  # whether the network must have kernels besides those of a layer named `head`
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
            params, changed = replace_dormant(state.params, fresh, seen, model.links, threshold=strength, mask=mask)
            return params, without_biases(changed, model.links)

        return _redraw(model, optimizer, state, replace, jnp.bool_(True))

    return rarely(state.memory["step"] % REDO_STEPS == 0, search, state)


def _counter_and_utility(key, model, params, batch_stats):
    return _step_counter(key, model, params, batch_stats) | {"utility": init_utility(params, model.links)}


def _continual_backprop(model, optimizer, state, inputs, mask, strength):
    memory = state.memory | {"step": state.memory["step"] + 1}
    seen, links = model.activations(state.params, state.batch_stats, inputs, mask, True), model.links
    utility = None

    def replace(fresh):
        nonlocal utility
        params, utility, changed = replace_least_useful(
            state.memory["utility"], state.params, fresh, seen, links, rate=strength, mask=mask
        )
        return params, changed

    state = _redraw(model, optimizer, state, replace, is_any_due(state.memory["utility"], rate=strength))
    return state.replace(memory=memory | {"utility": utility})


def _counter_and_silence(key, model, params, batch_stats):
    silence = {"silence": init_silence(params, model.links)}
    return (
        _step_counter(key, model, params, batch_stats) | silence | {"rounds": jnp.int32(0), "begun": jnp.bool_(False)}
    )


def _round_ended(restart, state):
    """Count the rounds that had a step, since the thresholds were updated; before the first there is a restart too."""
    state = restart(state)
    rounds = state.memory["rounds"] + state.memory["begun"]
    return state.replace(memory=state.memory | {"rounds": rounds, "begun": jnp.zeros_like(state.memory["begun"])})


def _reset_silent(model, optimizer, state, inputs, mask, strength):
    """Update the thresholds where they are due, at the first step of the next round, then count the batch, and reset.
    The strength is not known between rounds."""
    memory, links = state.memory, model.links
    due = memory["rounds"] >= SNR_ROUNDS
    silence = rarely(due, lambda silence: update_thresholds(silence, percentile=strength), memory["silence"])
    seen = model.activations(state.params, state.batch_stats, inputs, mask, True)
    silence = observe_silence(silence, seen, mask=mask)
    memory = memory | {"step": memory["step"] + 1, "rounds": jnp.where(due, 0, memory["rounds"])}

    def replace(fresh):
        nonlocal memory
        params, left, changed = replace_silent(silence, state.params, fresh, links)
        memory = memory | {"silence": left, "begun": jnp.ones_like(memory["begun"])}
        return params, changed

    state = _redraw(model, optimizer, state, replace, is_any_silent(silence))
    return state.replace(memory=memory)


def _counter_and_weight_utility(key, model, params, batch_stats):
    return _step_counter(key, model, params, batch_stats) | {"utility": init_weight_utility(params)}


def _observe_utility(state, gradient, strength):
    utility = weight_utility(state.memory["utility"], state.params, gradient)
    return state.replace(memory=state.memory | {"utility": utility, "step": state.memory["step"] + 1})


def _upgd_gradient(state, gradient, strength):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.memory["key"]), state.memory["step"])
    return protect_useful(gradient, state.memory["utility"], gaussian_like(key, gradient), noise_scale=strength)


def _iterate(state, gradient, strength):
    vectors = power_iteration(state.params, state.memory["vectors"])
    return state.replace(memory=state.memory | {"vectors": vectors})


def _add_gradient(gradient, penalty, params, strength):
    """Return the gradient plus that of a penalty, times its strength."""
    return jax.tree.map(lambda g, p: (g + strength * p).astype(g.dtype), gradient, jax.grad(penalty)(params))


def _spectral_gradient(state, gradient, strength):
    vectors = state.memory["vectors"]
    return _add_gradient(gradient, lambda params: spectral_penalty(params, vectors), state.params, strength)


def _check_hidden(key, model, params, batch_stats):
    """Raise a ValueError where the hidden layers cannot be told; there is nothing to remember."""
    parseval_penalty(params)
    return ()


def _parseval_gradient(state, gradient, strength):
    return _add_gradient(gradient, parseval_penalty, state.params, strength)


def _rescale(model, optimizer, state, inputs, mask, strength):
    norms = state.memory["norms"]
    return state.replace(params=rescale(state.params, norms, strength=strength, links=model.links))


def _check_kernels(key, model, params, batch_stats):
    """Raise a ValueError where a kernel's fan-in cannot be told; there is nothing to remember."""
    clip_weights(params)
    return ()


def _clip(model, optimizer, state, inputs, mask, strength):
    return state.replace(params=clip_weights(state.params, bound=strength))


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
self_normalized_resets = Method(
    init=_counter_and_silence, after_step=_reset_silent, restarted=_round_ended,
    default_strength=0.92, symbol="q", label="SNR", needs_links=True,
)  # fmt: skip
upgd = Method(
    init=_counter_and_weight_utility, observe=_observe_utility, gradient=_upgd_gradient,
    default_strength=1e-3, symbol="s", label="UPGD",
)  # fmt: skip
spectral = Method(
    init=lambda key, model, params, batch_stats: {"vectors": init_singular_vectors(key, params)},
    observe=_iterate, gradient=_spectral_gradient, default_strength=1e-4, symbol="λ", label="spectral",
)  # fmt: skip
parseval = Method(
    init=_check_hidden, gradient=_parseval_gradient,
    default_strength=1e-3, symbol="λ", label="Parseval", needs_hidden=True,
)  # fmt: skip
soft_rescaling = Method(
    init=lambda key, model, params, batch_stats: {"norms": weight_norms(params)}, after_step=_rescale,
    default_strength=1e-3, symbol="λ", label="soft rescaling",
)  # fmt: skip
weight_clipping = Method(
    init=_check_kernels, after_step=_clip, default_strength=1.0, symbol="κ", label="weight clipping",
)  # fmt: skip
METHODS = {
    "none": none, "l2_init": l2_init, "hare_tortoise": hare_tortoise, "redo": redo,
    "continual_backprop": continual_backprop, "self_normalized_resets": self_normalized_resets, "upgd": upgd,
    "spectral": spectral, "parseval": parseval, "soft_rescaling": soft_rescaling, "weight_clipping": weight_clipping,
}  # fmt: skip


def check_method(method: Method, model: Model) -> None:
    """Raise a ValueError where a method on units gets a model without `links`, or another one a kernel of which it
    cannot tell what its axes are, or no layer named `head` where it leaves that out."""
    if method.needs_links and not model.links:
        raise ValueError("this method re-draws hidden units, and the model has none with a single reader (no links)")
    if method.init is not none.init:
        key = jax.random.key(0)
        jax.eval_shape(lambda key: method.init(key, model, *model.init(key)), key)
