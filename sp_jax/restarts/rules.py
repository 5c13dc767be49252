"""What becomes of the parameters between two rounds (Sections 2.2 and 4): rules of one signature.

rule(key, params, fresh_params, *, shrink, noise_scale) -> params
"""

from collections.abc import Callable

import chex

from sp_jax import plasticity, transforms
from sp_jax.plasticity.kinds import Kinds
from sp_jax.transforms import filters

Rule = Callable[..., chex.ArrayTree]


def random_init(key, params, fresh_params, *, shrink=0.0, noise_scale=1.0):
    """Return the freshly drawn network: training from scratch. `shrink` and `noise_scale` are not used."""
    del key, shrink, noise_scale
    transforms.check_same(params, fresh_params)
    return fresh_params


def warm_start(key, params, fresh_params, *, shrink=1.0, noise_scale=0.0):
    """Return the parameters of the last round. `shrink` and `noise_scale` are not used."""
    del key, fresh_params, shrink, noise_scale
    return params


def shrink_perturb(key, params, fresh_params, *, shrink, noise_scale):
    """Return λ·θ + σ·fresh of every learned parameter, biases, BatchNorm's scale and offset included (Section 4)."""
    del key
    return transforms.shrink_perturb(params, fresh_params, shrink=shrink, noise_scale=noise_scale)


def fresh_noise(key, params, fresh_params, *, shrink=1.0, noise_scale):
    """Return θ + σ·fresh: noise only, each parameter at its own initialiser's scale (the row λ = 1 of Figure 8)."""
    del key, shrink
    return transforms.perturb(params, fresh_params, noise_scale=noise_scale)


def gaussian_noise(key, params, fresh_params, *, shrink=1.0, noise_scale):
    """Return θ + N(0, σ²): noise only, of one scale for all parameters (Table 4)."""
    del fresh_params, shrink
    return transforms.perturb(params, transforms.gaussian_like(key, params), noise_scale=noise_scale)


def fire(key, params, fresh_params, *, shrink=1.0, noise_scale=0.0):
    """Make each kernel orthogonal (FIRE, `sp_jax.plasticity`). `shrink` and `noise_scale` are not used; see `make_fire`
    for attention's kernels and stacked layers."""
    del key, fresh_params, shrink, noise_scale
    return plasticity.orthogonalize(params)


def make_fire(*, where: Callable | None = None, kinds: Kinds | None = None) -> Rule:
    """Make the rule `fire` for chosen kernels, or for networks with kernels whose axes must be declared (`kinds`): both
    as for `sp_jax.plasticity.orthogonalize`, which raises a ValueError where they do not fit."""

    def rule(key, params, fresh_params, *, shrink=1.0, noise_scale=0.0):
        del key, fresh_params, shrink, noise_scale
        return plasticity.orthogonalize(params, where=where, kinds=kinds)

    return rule


def only_layers(*names: str) -> Rule:
    """Make the rule λ·θ + σ·fresh on the named layers alone; the others are warm-started (Figure 14: the last layer).

    The names are parts of parameter paths. The caller names the last layer: pytrees sort names alphabetically. The rule
    raises a ValueError where no layer has one of these names.
    """

    def rule(key, params, fresh_params, *, shrink, noise_scale):
        del key
        where = filters.layer(*names)
        return transforms.shrink_perturb(params, fresh_params, shrink=shrink, noise_scale=noise_scale, where=where)

    return rule
