"""One row for each restart, network, optimiser and penalty: its name, what it makes, which settings it uses.

Flags, help, tables and checks read the rows. A new restart is a rule of `sp_jax.restarts` and a row here; a new network
is a module of `sp_jax.models`, a row here and, where it has settings of its own, their fields in `NetworkSettings`.
Methods have their rows in `sp_jax.plasticity.methods`, embedded data sets in `sp_jax.data`, streams of tasks theirs in
`experiments.config.streams`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from experiments.config import fields, own_methods
from experiments.config.fields import setting
from experiments.config.streams import DataSettings, stream
from sp_jax import models, penalties, restarts, training
from sp_jax.augmentation import AUGMENTATIONS
from sp_jax.data import text
from sp_jax.layers import INITS, NORMS, crelu
from sp_jax.plasticity.methods import METHODS
from sp_jax.transforms import filters
from sp_jax.types import Dataset, Model

LAST_LAYER = "head"  # in all our models
WORDS, IMAGES = "words", "images"  # the inputs of a network: int32 tokens, or pixels
ACTIVATIONS = {"tanh": nn.tanh, "relu": nn.relu, "leaky_relu": nn.leaky_relu, "elu": nn.elu, "crelu": crelu}
PRECISIONS = {  # of matrix products and convolutions; parameters and statistics are float32 throughout
    "float32": {"precision": "highest"},
    "tf32": {"precision": "tensorfloat32"},
    "bfloat16": {"dtype": jnp.bfloat16},
}


class RestartChoice(NamedTuple):
    """A restart, and the λ and σ that it has by default and uses; what it does not use never varies."""

    make: Callable[..., restarts.Restart]  # make(model, noise, arrivals, **policies), policies as of `make_restart`
    label: str  # in tables and legends
    shrink: str = "1"  # by default, or, where it is not used, what stands in its column
    noise_scale: str = "0"
    uses: tuple[str, ...] = ()  # of "shrink" and "noise_scale"; of both, the default is the list of --pairs
    is_baseline: bool = False  # of the paper: runs beside shrink-perturb
    reads_data: bool = False  # it passes over all that has arrived, so all rounds must have one data set


def _by_rule(rule):
    """Return what makes a rule a restart, whatever the noise and the arrivals."""
    return lambda model, noise, arrivals, **policies: restarts.make_restart(rule, model=model, **policies)


def _noise_only(model, noise, arrivals, **policies):
    del arrivals
    rule = {"gaussian": restarts.gaussian_noise, "fresh": restarts.fresh_noise}[noise]
    return restarts.make_restart(rule, model=model, **policies)


def _dash(model, noise, arrivals, **policies):
    del noise
    return restarts.make_dash(model, arrivals=arrivals, **policies)


_BOTH = ("shrink", "noise_scale")
RESTARTS = {
    "warm_start": RestartChoice(_by_rule(restarts.warm_start), "warm start", is_baseline=True),
    "random_init": RestartChoice(_by_rule(restarts.random_init), "random init", "0", "1", is_baseline=True),
    "shrink_perturb": RestartChoice(_by_rule(restarts.shrink_perturb), "shrink-perturb", "0.6", "0.01", _BOTH),
    "noise_only": RestartChoice(_noise_only, "noise only", "1", "0.01", ("noise_scale",)),
    "last_layer": RestartChoice(_by_rule(restarts.only_layers(LAST_LAYER)), "last layer", "0.6", "0.01", _BOTH),
    "dash": RestartChoice(_dash, "DASH", "0.3", "0", ("shrink",), reads_data=True),
    "fire": RestartChoice(_by_rule(restarts.fire), "FIRE"),
}
BASELINES = tuple(name for name, row in RESTARTS.items() if row.is_baseline)


class NetworkChoice(NamedTuple):
    """A network of `sp_jax.models`."""

    module: Callable[["NetworkSettings", int], Callable[..., nn.Module]]  # settings, classes -> takes what is common
    size: str  # the setting that says how large it is
    inputs: str = IMAGES
    has_units: bool = False  # hidden units that a method may draw anew
    has_statistics: bool = False  # BatchNorm's
    has_stages: bool = False  # those of stage_sizes, each but the first halves the image
    has_norms: bool = True  # --norm may put LayerNorm into it
    patch: int = 0  # pixels: what it divides images into; its --width is divided among --heads


def _mlp(settings, num_classes):
    activation = ACTIVATIONS[settings.activation]
    made_of = {"activation": activation, "use_bias": settings.bias, "norm": settings.norm}
    return partial(models.MLP, num_classes, hidden=settings.hidden, **made_of)


def _resnet(settings, num_classes):
    sizes = {"width": settings.width, "stage_sizes": settings.stage_sizes}
    return partial(models.ResNet, num_classes, norm=settings.norm, **sizes)


def _vit(settings, num_classes):
    sizes = {"width": settings.width, "depth": settings.depth, "heads": settings.heads}
    return partial(models.ViT, num_classes, **sizes)


def _birnn(settings, num_classes):
    sizes = {"vocabulary": text.VOCABULARY, "width": settings.width}
    return partial(models.BiRNN, num_classes, norm=settings.norm, **sizes)


NETWORKS = {
    "logistic": NetworkChoice(
        lambda settings, classes: partial(_mlp(settings, classes), hidden=()), "hidden", has_norms=False
    ),
    "mlp": NetworkChoice(_mlp, "hidden", has_units=True),
    "resnet18": NetworkChoice(_resnet, "width", has_units=True, has_statistics=True, has_stages=True),
    "vit": NetworkChoice(_vit, "width", has_units=True, patch=4),
    "birnn": NetworkChoice(_birnn, "width", inputs=WORDS),
}


class OptimizerChoice(NamedTuple):
    """An optimiser."""

    make: training.Optimizer
    per_entry: training.Optimizer | None = None  # for methods that count each entry's steps


OPTIMIZERS = {
    "adam": OptimizerChoice(training.adam, training.adam_per_entry),
    "sgd": OptimizerChoice(training.sgd),
}


class PenaltyChoice(NamedTuple):
    """What is added to the loss."""

    penalty: penalties.Penalty
    moves_pixels: bool = False


PENALTIES = {
    "none": PenaltyChoice(penalties.none),
    "confidence": PenaltyChoice(penalties.confidence),
    "adversarial": PenaltyChoice(penalties.adversarial, moves_pixels=True),
}
LABELS = {name: row.label for name, row in (RESTARTS | METHODS).items()}  # for tables and legends


@dataclasses.dataclass(frozen=True)
class NetworkSettings(DataSettings):
    """The network: its kind, and the settings that the kinds have."""

    # fmt: off
    model: str = setting("mlp", fields.NETWORK, help="One of {choices}.", choices=NETWORKS)
    width: int = setting(16, fields.NETWORK, unit="channels or units", positive=True,
        help="ResNet: channels of the first stage; 64 is the standard, 16 the authors' own. RNN: units. ViT: of a "
        "token, 192 in ViT-Tiny; a multiple of --heads.")
    stage_sizes: tuple[int, ...] = setting((2, 2, 2, 2), fields.NETWORK, unit="blocks",
        help="ResNet: blocks in each stage, with commas; 2,2,2,2 is ResNet-18.")
    depth: int = setting(12, fields.NETWORK, unit="blocks", positive=True, help="ViT: how many; 12 is ViT-Tiny.")
    heads: int = setting(3, fields.NETWORK, unit="heads", positive=True,
        help="ViT: of attention in each block; 3 is ViT-Tiny.")
    hidden: tuple[int, ...] = setting((100, 100), fields.NETWORK, unit="units",
        help="MLP: sizes of the hidden layers, with commas.")
    activation: str = setting("tanh", fields.NETWORK, choices=ACTIVATIONS,
        help="MLP: one of {choices}; after crelu, relu(x) beside relu(-x), a layer reads twice as much.")
    bias: bool = setting(True, fields.NETWORK, help="MLP: whether its layers have bias terms.")
    norm: str = setting("own", fields.NETWORK, choices=NORMS,
        help="own: BatchNorm in the ResNet, LayerNorm in the ViT, none in the others; layer: LayerNorm, in the MLP "
        "before each activation, in the ResNet in place of BatchNorm, in the RNN before the last layer.")
    init: str = setting("torch", fields.NETWORK, choices=INITS,
        help="Initialisation, and so the noise: torch (the paper's), torch_tanh (with tanh's gain) or flax.")
    # fmt: on


def keeps_statistics(settings: Any) -> bool:
    """Return whether the network of some `Settings` has BatchNorm's running statistics."""
    return NETWORKS[settings.model].has_statistics and settings.norm == "own"


def model(settings: Any, data: Dataset) -> Model:
    """Make the network of some `Settings`, for a data set's inputs and classes."""
    module = NETWORKS[settings.model].module(settings, data.num_classes)
    return models.from_module(module(initialization=settings.init, **PRECISIONS[settings.precision]), data.inputs)


def trainer(settings: Any, data: Dataset) -> training.Trainer:
    """Make the static side of training from some `Settings`."""
    method, penalty = own_methods.find(settings.method), PENALTIES[settings.penalty]
    optimizer = OPTIMIZERS[settings.optimizer]
    optimizer = (method.steps_per_entry and optimizer.per_entry) or optimizer.make
    if settings.trained == "head":
        optimizer = training.only(optimizer, filters.layer(LAST_LAYER))
    made = training.Trainer(model(settings, data), optimizer, settings.batch_size, penalty.penalty, method)
    if settings.augment != "none" and data.inputs.ndim != 4:
        shape = "x".join(map(str, data.inputs.shape[1:]))
        raise fields.UsageError(f"--augment={settings.augment} is for images, but samples of {data.name} are {shape}")
    augment = AUGMENTATIONS[settings.augment]
    return made._replace(augment=augment, stream=stream(settings, data), shuffle=settings.shuffle)
