"""The weights that an optimiser keeps for evaluation, beside those that it trains: schedule-free's average (Defazio et
al. 2024), the slow weights of Hare and Tortoise (Lee et al. 2024)."""

import jax
from optax import contrib

from sp_jax.plasticity.hare_tortoise import HareTortoiseState
from sp_jax.transforms import like
from sp_jax.types import TrainState

_KINDS = (contrib.ScheduleFreeState, HareTortoiseState)


def evaluation_state(state: TrainState) -> TrainState:
    """Return a lane's state with the weights for evaluation, prediction and saving; itself where there are no others.

    The optimiser's state may be nested. BatchNorm's statistics stay those of the trained weights.

    Raises:
      ValueError: such an optimiser trains only a part of the parameters.
    """
    found = keepers(state.opt_state)
    if not found:
        return state
    kept, params = found[0], state.params  # the outermost sees the whole update
    own = kept.slow if isinstance(kept, HareTortoiseState) else kept.z
    if jax.tree.structure(own) != jax.tree.structure(params):
        name = type(kept).__name__.removesuffix("State")
        raise ValueError(f"{name} keeps weights for evaluation of a part of the parameters: let it train all of them")
    if isinstance(kept, HareTortoiseState):
        return state.replace(params=jax.tree.map(like, kept.slow, params))
    return state.replace(params=contrib.schedule_free_eval_params(kept, params))


def keepers(opt_state) -> list:
    """Return the parts of an optax state that keep weights for evaluation, the outermost first."""
    found = []
    for each in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, _KINDS)):
        if isinstance(each, _KINDS):
            inner = each.inner_state if isinstance(each, HareTortoiseState) else each.base_optimizer_state
            found += [each, *keepers(inner)]
    return found
