"""What happens to the whole training state between two rounds: parameters, BatchNorm statistics, optimiser state
(Sections 2.2 and 4).

A rule says what becomes of the parameters; `make_restart` makes it a restart of the whole state. All rules and all
restarts have one signature each, so that they can be swapped:

    rule(key, params, fresh_params, *, shrink, noise_scale) -> params
    restart(key, state, fresh, *, shrink, noise_scale, batches=None) -> state

`fresh` is a freshly drawn training state: new parameters, statistics of mean 0 and variance 1, an optimiser that has
seen nothing. The key is consumed; only `gaussian_noise` draws from it.

>>> import jax
>>> import jax.numpy as jnp
>>> from sp_jax.types import TrainState
>>> old, fresh = (TrainState({"w": jnp.full(2, w)}, {}, (jnp.full((), w),)) for w in (1.0, 0.5))  # moments: 1.0, 0.5
>>> restart = make_restart(shrink_perturb)
>>> state = restart(jax.random.key(0), old, fresh, shrink=0.6, noise_scale=0.1)
>>> [round(float(w), 2) for w in state.params["w"]], float(state.opt_state[0])
([0.65, 0.65], 0.5)

Where data are streamed (`sp_jax.streaming`), a `Restart` declares which batches it reads; otherwise it gets none.
"""

from sp_jax.restarts.dash import make_dash
from sp_jax.restarts.recalibration import recalibrate
from sp_jax.restarts.rules import (
    Rule,
    fire,
    fresh_noise,
    gaussian_noise,
    make_fire,
    only_layers,
    random_init,
    shrink_perturb,
    warm_start,
)
from sp_jax.restarts.state import OPTIMIZER_STATES, STATISTICS, DataPass, Restart, as_restart, make_restart, no_restart

__all__ = [
    "OPTIMIZER_STATES", "STATISTICS", "DataPass", "Restart", "Rule", "as_restart", "fire", "fresh_noise",
    "gaussian_noise", "make_dash", "make_fire", "make_restart", "no_restart", "only_layers", "random_init",
    "recalibrate", "shrink_perturb", "warm_start",
]  # fmt: skip
