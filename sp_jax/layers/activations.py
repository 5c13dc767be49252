"""Activations that Flax does not have."""

import chex
import jax
import jax.numpy as jnp


def crelu(x: chex.Array) -> chex.Array:
    """Return the concatenated ReLU (Shang et al. 2016), `[..., C]` to `[..., 2 C]`: relu(x), then relu(-x).

    Abbas et al. 2023 ("Loss of Plasticity in Continual Deep Reinforcement Learning") found that networks keep learning
    with it: of each unit, one half has a gradient.
    """
    return jax.nn.relu(jnp.concatenate([x, -x], axis=-1))
