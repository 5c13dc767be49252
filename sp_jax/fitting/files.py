"""A fit in a file, until the next samples arrive."""

import pathlib
from collections.abc import Mapping
from typing import Any

import chex
import jax
import numpy as np

from sp_jax import models, tasks
from sp_jax.divergence import check_finite
from sp_jax.fitting.evaluation_weights import evaluation_state
from sp_jax.fitting.fit import Fit, check_since
from sp_jax.storage import networks
from sp_jax.types import RoundResult, TrainState


def save_fit(path: str | pathlib.Path, fit: Fit) -> None:
    """Save a fit, until the next samples arrive, in one safetensors file, atomically.

    The optimiser's state is left out, since each round draws it anew (Section 2.2).

    Args:
      path: of the file; its folder is made, an older file is replaced.
      fit: what `fit_rounds` returned.

    Raises:
      ValueError: it cannot be written, or it has diverged, and then the older file stays; one line.
    """
    check_since(fit)
    check_finite("the fit", fit.state, f"it is not saved, and {path} stays as it was")
    state = evaluation_state(fit.state)
    history = [result._asdict() for result in fit.history]
    networks.save(path, state.params, state.batch_stats, note={"history": history, **tasks.note(fit.task)})


def load_fit(
    path: str | pathlib.Path,
    inputs: chex.Array,
    *,
    network: Any,
    switch: Mapping[str, bool] | None = None,
    mask: str | None = None,
) -> Fit:
    """Read the fit that `save_fit` wrote, for the next `fit_rounds` to take as `since` (Section 2.2).

    Args:
      path: of the file.
      inputs: [B, ...] as those of `fit_rounds`, for shape and dtype alone.
      network: the network of the fit, as it was; `fit_rounds` may then be given a larger one.
      switch: as in `fit_rounds`.
      mask: as in `fit_rounds`.

    Returns:
      The `Fit`, its optimiser's state empty.

    Raises:
      ValueError: no such file, or it is damaged, or holds another network; one line.

    >>> import tempfile
    >>> from flax import linen as nn
    >>> from sp_jax.fitting import fit_rounds
    >>> x, y = np.eye(4, dtype="float32"), np.arange(4) % 2
    >>> monday = fit_rounds(0, x, y, network=nn.Dense(2))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "fit.safetensors"
    >>> save_fit(path, monday)
    >>> len(load_fit(path, x, network=nn.Dense(2)).history)
    1
    """
    example = jax.tree.map(lambda x: np.asarray(x)[:1], inputs)
    model = models.as_model(network, example, switch=switch, mask=mask)
    saved = networks.load(path, like=jax.eval_shape(model.init, jax.random.key(0)))
    if "history" not in saved.note:
        raise ValueError(f"{path} holds a network but no fit: it was not written by save_fit")
    history = tuple(RoundResult(**result) for result in saved.note["history"])
    return Fit(model, TrainState(saved.params, saved.batch_stats, ()), history, {}, tasks.noted(saved.note))
