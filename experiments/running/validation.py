"""Whether data sets, models and settings fit, before any long work starts."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from experiments.config import choices
from experiments.config.fields import UsageError
from experiments.config.settings import Settings
from experiments.config.sweep import Trial, several
from experiments.running import builder
from experiments.specs.base import RoundSpec
from sp_jax import diagnostics
from sp_jax.plasticity.hooks import check_hooks
from sp_jax.plasticity.methods import METHODS, check_method
from sp_jax.types import Dataset, HParams

logger = logging.getLogger("sp_jax.experiments")  # whose words reach the terminal
SMALL = 8  # a last batch of less than this part of a whole one is small


def plans(
    found: Iterable[Mapping[Trial, tuple[RoundSpec, ...]]], dataset: Callable[[str], Dataset], devices_per_lane: int = 1
) -> None:
    """Check every round of every trial of every experiment; load the data sets that they need.

    Raises:
      UsageError: a model that does not take a data set's inputs, a source whose inputs are not the target's, devices
        or a batch that cannot be divided as is asked, or sizes that no memory holds.
    """
    sized, found = {}, list(found)
    for plan in found:
        for member, phases in plan.items():
            for phase in phases:
                _check_model(phase.settings, dataset(phase.settings.dataset))
                _check_devices(devices_per_lane, phase.settings.batch_size)
                sized.setdefault(builder.static(phase.settings), phase.settings)
            first, last = (dataset(phase.settings.dataset) for phase in (phases[0], phases[-1]))
            if _shape(first) != _shape(last):
                raise UsageError(
                    f"--source={first.name} has inputs of shape {_shape(first)}, --dataset={last.name} of "
                    f"{_shape(last)}; choose two of one shape"
                )
            if choices.RESTARTS[member.cell.restart].reads_data and first is not last:
                raise UsageError(
                    f"--restart={member.cell.restart} sweeps data through the old network, so its data set must not "
                    "change"
                )
    for settings in sized.values():
        _check_memory(settings, dataset(settings.dataset))
        _check_measures(settings, dataset(settings.dataset))
        _check_method(settings, dataset(settings.dataset))
    for plan in found:
        _tell_of_small_batches({phase for phases in plan.values() for phase in phases})
        _tell_of_thresholds({phase.settings for phases in plan.values() for phase in phases}, dataset)


def _tell_of_small_batches(phases):
    """Log a line where an epoch's last batch is so small that BatchNorm's running statistics are much its own."""
    found = {(p.num_visible, p.settings.batch_size) for p in phases if choices.keeps_statistics(p.settings)}
    small = sorted((n % size, n, size) for n, size in found if 0 < n % size < size / SMALL)
    if small:
        left, num_visible, size = small[0]
        logger.warning(
            "of %s samples in batches of %d the last batch has %d, and it counts as much as a whole one in BatchNorm's "
            "running statistics (as in the authors' program); choose another --batch_size to avoid that",
            f"{num_visible:,}", size, left,
        )  # fmt: skip


def _tell_of_thresholds(found, dataset):
    """Log a line where guessing the commonest class reaches the training accuracy that ends a round."""
    for name, threshold in sorted({(s.dataset, s.train_accuracy) for s in found if s.epochs is None}):
        labels = np.asarray(dataset(name).labels)
        share = np.bincount(labels).max() / len(labels)
        if threshold <= share < 1:
            logger.warning(
                "%.1f %% of %s are of one class: guessing it reaches --train_accuracy=%g, so rounds may end before the "
                "others are learnt; set a higher one, or --epochs", 100 * share, name, threshold,
            )  # fmt: skip


def _check_model(settings: Settings, data: Dataset):
    shape, model, network = _shape(data), settings.model, choices.NETWORKS[settings.model]
    kind = choices.WORDS if data.inputs.dtype == np.int32 else choices.IMAGES
    if kind != network.inputs:
        *others, last = (name for name, row in choices.NETWORKS.items() if row.inputs == kind)
        fitting = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(
            f"--model={model} does not take {settings.dataset}, which has {kind}; expected --model={fitting}"
        )
    stages = len(settings.stage_sizes)
    halvings = 2 ** (stages - 1)
    if network.has_stages and (len(shape) != 3 or min(shape[:2]) < halvings):
        raise UsageError(
            f"--model={model} with {stages} stages needs images of at least {halvings}x{halvings} "
            f"pixels, {settings.dataset} has inputs of shape {shape}; choose another --model, or fewer --stage_sizes"
        )
    patch = network.patch
    if patch and (len(shape) != 3 or shape[0] % patch or shape[1] % patch):
        raise UsageError(
            f"--model={model} divides images into patches of {patch}x{patch} pixels, so both sides must be multiples "
            f"of {patch}; {settings.dataset} has inputs of shape {shape}: choose another --model"
        )


def _check_memory(settings: Settings, data: Dataset):
    """Check that the least that each size needs is there: what is too large by far would be killed without a word."""
    network = choices.NETWORKS[settings.model].size
    value, there = several([getattr(settings, network)]), builder.memory()
    least = {
        f"--seeds={settings.seeds}": 4 * settings.seeds * len(data.labels),  # their orders of arrival
        f"--batch_size={settings.batch_size}": 4 * settings.batch_size * math.prod(_shape(data)),
        f"--{network}={value}": builder.lane_bytes(choices.trainer(settings, data)),
    }
    for flag, needed in least.items():
        if needed > there:
            raise UsageError(
                f"{flag} needs {needed / 2**30:,.1f} GiB at least, and there are {there / 2**30:,.1f}; choose less"
            )


def _check_measures(settings: Settings, data: Dataset):
    measures = settings.measures or ()
    try:
        diagnostics.plasticity(choices.trainer(settings, data), measures)
    except ValueError as error:
        raise UsageError(f"--measures={','.join(measures)}, --model={settings.model}: {error}") from None


def _check_method(settings: Settings, data: Dataset):
    """Check that each function of a method from outside runs, and returns what it must; ours are tested."""
    if settings.method in METHODS:
        return
    trainer = choices.trainer(settings, data)
    try:
        check_method(trainer.method, trainer.model)
        check_hooks(trainer.method, trainer.model, trainer.optimizer(HParams()), data.batch(2).inputs)
    except ValueError as error:
        raise UsageError(f"--method={settings.method}: {error}") from None


def _check_devices(per_lane, batch_size):
    devices = len(jax.devices())
    if per_lane < 1 or devices % per_lane:
        raise UsageError(f"--devices_per_lane={per_lane} must divide the {devices} devices")
    if batch_size % per_lane:
        raise UsageError(f"--devices_per_lane={per_lane} must divide --batch_size={batch_size}")


def _shape(data):
    return tuple(data.inputs.shape[1:])
