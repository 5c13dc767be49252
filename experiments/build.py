"""From names to objects: settings become a model, an optimiser, restarts, groups of lanes."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from experiments.settings import Cell, Settings
from sp_jax import models, penalties, restarts, sweeps, training
from sp_jax.types import Dataset, HParams, Model

LAST_LAYER = "head"  # in all our models

_ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu}
_OPTIMIZERS = {"adam": training.adam, "sgd": training.sgd}
_PRECISIONS = {  # of matrix products and convolutions; parameters and statistics are float32 throughout
    "float32": {"precision": "highest"},
    "tf32": {"precision": "tensorfloat32"},
    "bfloat16": {"dtype": jnp.bfloat16},
}


def model(settings: Settings, data: Dataset) -> Model:
    """The network, for these inputs and classes."""
    common = {"initialization": settings.init, **_PRECISIONS[settings.precision]}
    mlp = partial(models.MLP, data.num_classes, activation=_ACTIVATIONS[settings.activation])
    modules = {
        "logistic": partial(mlp, hidden=()),
        "mlp": partial(mlp, hidden=settings.hidden),
        "resnet18": partial(models.ResNet, data.num_classes, width=settings.width),
    }
    return models.from_module(modules[settings.model](**common), data.inputs)


def trainer(settings: Settings, data: Dataset) -> training.Trainer:
    """The static side of training."""
    optimizer, penalty = _OPTIMIZERS[settings.optimizer], getattr(penalties, settings.penalty)
    return training.Trainer(model(settings, data), optimizer, settings.batch_size, penalty)


def groups(settings: Settings, network: Model, num_samples: int) -> dict[Cell, sweeps.Group]:
    """A group of lanes for each cell of the grid."""
    rules = {
        "warm_start": restarts.warm_start,
        "random_init": restarts.random_init,
        "shrink_perturb": restarts.shrink_perturb,
        "noise_only": restarts.gaussian_noise if settings.noise == "gaussian" else restarts.fresh_noise,
        "last_layer": restarts.only_layers(LAST_LAYER),
    }
    made = {  # once for each name: cells that share a restart share its program
        name: restarts.make_restart(
            rules[name], statistics=settings.statistics, optimizer_state=settings.optimizer_state, model=network
        )
        for name in settings.restart
    }
    if settings.epochs is not None:
        convergence = training.Convergence.exactly(settings.epochs)
    else:
        convergence = training.Convergence(settings.train_accuracy, settings.patience, max_epochs=settings.max_epochs)

    def group(cell):
        hparams = HParams(
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            shrink=float(cell.shrink),
            noise_scale=float(cell.noise_scale),
            penalty_strength=settings.penalty_strength,
        )
        lanes = sweeps.make_lanes(range(settings.seeds), hparams, convergence, num_samples)
        return sweeps.Group(cell.name, made[cell.restart], lanes)

    return {cell: group(cell) for cell in settings.cells()}
