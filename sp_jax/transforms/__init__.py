"""The trick, on one pytree: θ ← λ·θ + σ·(a freshly drawn network) (Ash and Adams 2020, Section 4).

`filters` says on which leaves, `growth` how a network grows, `periodic` restarts one long run, `optimizer_state` what
becomes of an optax state.
"""

from sp_jax.transforms.arithmetic import (
    Amount,
    Labels,
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
    "Amount", "Labels", "check_fraction", "check_noise_scale", "check_same", "check_shrink", "gaussian_like", "like",
    "perturb", "shrink", "shrink_perturb",
]  # fmt: skip
