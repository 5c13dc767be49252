"""Warm-started training in JAX: shrink-perturb (Ash and Adams, NeurIPS 2020) and the tools to measure it.

Shrink-perturb on any parameter pytree:

>>> import jax.numpy as jnp
>>> import sp_jax
>>> trained, fresh = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.full((2, 2), 0.5)}
>>> sp_jax.shrink_perturb(trained, fresh, shrink=0.6, noise_scale=0.01)["kernel"][0]
Array([0.605, 0.605], dtype=float32)
"""

from sp_jax import (
    augmentation,
    data,
    diagnostics,
    fitting,
    models,
    penalties,
    plasticity,
    restarts,
    sweeps,
    tasks,
    training,
    transforms,
)
from sp_jax.engine import streamed as streaming
from sp_jax.fitting import fit_rounds, load_fit, save_fit, tune_restart
from sp_jax.restarts import make_restart, recalibrate
from sp_jax.storage import networks
from sp_jax.transforms import filters, gaussian_like, growth, periodic, perturb, shrink, shrink_perturb
from sp_jax.transforms.filters import biases, embeddings, kernels, labels, layer, norms, path_matches
from sp_jax.transforms.growth import grow, grown
from sp_jax.transforms.optimizer_state import adam_per_entry, reset_changed, scale_by_adam_per_entry
from sp_jax.transforms.periodic import is_due, periodic_restart, restart_at
from sp_jax.types import Dataset, Evaluation, HParams, Model, Progress, RoundResult, StopReason, TrainState

__version__ = "0.1.0"

__all__ = [
    "Dataset", "Evaluation", "HParams", "Model", "Progress", "RoundResult", "StopReason", "TrainState",
    "adam_per_entry", "augmentation", "biases", "data", "diagnostics", "embeddings", "filters", "fit_rounds", "fitting",
    "gaussian_like", "grow", "grown", "growth", "is_due", "kernels", "labels", "layer", "load_fit", "make_restart",
    "models", "networks", "norms", "path_matches", "penalties", "periodic", "periodic_restart", "perturb", "plasticity",
    "recalibrate", "reset_changed", "restart_at", "restarts", "save_fit", "scale_by_adam_per_entry", "shrink",
    "shrink_perturb", "streaming", "sweeps", "tasks", "training", "transforms", "tune_restart",
]  # fmt: skip
