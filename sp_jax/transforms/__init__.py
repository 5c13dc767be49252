"""Shrink-perturb on one pytree: θ ← λ·θ + σ·(a freshly drawn network) (Ash and Adams 2020, Section 4).

`filters` chooses leaves, `growth` restarts onto a grown network, `periodic` restarts inside one long run, and
`optimizer_state` resets an optax state.
"""

from sp_jax.transforms.arithmetic import (
    Amount,
    Labels,
    check_choice,
    check_fraction,
    check_noise_scale,
    check_same,
    check_shrink,
    gaussian_like,
    like,
    perturb,
    shrink,
    shrink_perturb,
)

__all__ = [
    "Amount", "Labels", "check_choice", "check_fraction", "check_noise_scale", "check_same", "check_shrink",
    "gaussian_like", "like", "perturb", "shrink", "shrink_perturb",
]  # fmt: skip
