"""Between the columns of a file and the numbers of a network: units, classes and targets, fixed by the first night."""

import numpy as np

from experiments.nightly import cells
from experiments.nightly.columns import Preparation, Rows
from experiments.nightly.tables import Table


def measure(preparation: Preparation, rows: Rows, training: np.ndarray) -> Preparation:
    """Add the statistics of the first night's rows, over those where `training` [N] is true."""
    means, deviations = _statistics(rows.numbers[training])
    made = preparation._replace(means=means, deviations=deviations)
    if preparation.task != "regression":
        return made
    means, deviations = _statistics(rows.labels[training])
    return made._replace(target_means=means, target_deviations=deviations)


def _statistics(values):
    """Return the mean and the deviation of each column; a constant one is 0 as long as it stays so."""
    known = [column[~np.isnan(column)] for column in values.T]
    means = tuple(float(np.mean(column)) if len(column) else 0.0 for column in known)
    return means, tuple(float(np.std(column)) if len(column) and np.ptp(column) > 0 else 1.0 for column in known)


def with_classes(preparation: Preparation, labels: np.ndarray) -> Preparation:
    """Add the classes that these labels are the first to name; those of one night are sorted."""
    if preparation.task != "classification":
        return preparation
    new = {*labels} - {*preparation.classes}
    ordered = sorted(new, key=lambda text: (0, int(text), "") if text.lstrip("-").isdecimal() else (1, 0, text))
    return preparation._replace(classes=(*preparation.classes, *ordered))


def standardised(preparation: Preparation, rows: Rows) -> np.ndarray:
    """Return the numbers [N, F] as float32 in units of the first night's deviation.

    Raises:
      DayError: one is too far from those of the first night.
    """
    scaled = (rows.numbers - np.array(preparation.means)[None]) / np.array(preparation.deviations)[None]
    for i, name in enumerate(preparation.numbers):
        cells.refuse(name, scaled, np.abs(scaled[:, i]) > cells.LARGEST, "is too far from the first night's values")
    return np.nan_to_num(scaled, nan=0.0).astype(np.float32)


def targets(preparation: Preparation, labels: np.ndarray) -> np.ndarray:
    """Return labels, as `extract` gives them, as the network is trained on them: [N] or [N, K]."""
    if preparation.task == "classification":
        places = {text: i for i, text in enumerate(preparation.classes)}
        return np.array([places[text] for text in labels], np.int32)
    if preparation.task == "binary":
        return labels[:, 0].astype(np.float32)
    if preparation.task == "multilabel":
        return labels.astype(np.float32)
    scaled = (labels - np.array(preparation.target_means)[None]) / np.array(preparation.target_deviations)[None]
    return (scaled[:, 0] if scaled.shape[1] == 1 else scaled).astype(np.float32)


def readable(preparation: Preparation, outputs: np.ndarray) -> Table:
    """Return what a network's outputs [N, outputs] say, as columns."""
    if preparation.task == "regression":
        values = outputs * np.array(preparation.target_deviations)[None] + np.array(preparation.target_means)[None]
        return {name: values[:, i] for i, name in enumerate(preparation.labels)}
    if preparation.task == "classification":
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        chances = powers / powers.sum(axis=1, keepdims=True)
        names = np.array(preparation.classes[: outputs.shape[1]], object)
        shares = {f"probability of {name}": chances[:, i] for i, name in enumerate(names)}
        return {preparation.labels[0]: names[chances.argmax(axis=1)], **shares}
    chances = 0.5 * (1 + np.tanh(0.5 * outputs.astype(np.float64)))
    truths = {name: (chances[:, i] > 0.5).astype(np.int64) for i, name in enumerate(preparation.labels)}
    return truths | {f"probability of {name}": chances[:, i] for i, name in enumerate(preparation.labels)}
