"""The numbers that the paper prints; figures without printed numbers are not here."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple


class Number(NamedTuple):
    """One number of the paper."""

    where: Mapping[str, str | float]  # columns of results.csv
    value: float  # per cent of accuracy, or time as a ratio to random init's
    deviation: float | None = None  # standard deviation over the paper's five seeds, where it is printed
    cost: bool = False  # a time: ours is samples visited
    first: bool = False  # after the first round; else after the last


SEEDS = 5  # "all experiments were run five times to report means and standard deviations" (Section 3)
DATASETS = ("cifar10", "svhn_cropped", "cifar100")
_COLUMNS = [(model, optimizer) for model in ("resnet18", "mlp", "logistic") for optimizer in ("sgd", "adam")]

_TABLE_1 = {
    ("cifar10", "random_init"): "56.2 (1.0) 78.0 (0.6) 39.0 (0.2) 39.4 (0.1) 40.5 (0.6) 33.8 (0.6)",
    ("cifar10", "warm_start"): "51.7 (0.9) 74.4 (0.9) 37.4 (0.2) 36.1 (0.3) 39.6 (0.2) 33.3 (0.2)",
    ("svhn_cropped", "random_init"): "89.4 (0.1) 93.6 (0.2) 76.5 (0.3) 76.7 (0.4) 28.0 (0.2) 22.4 (1.3)",
    ("svhn_cropped", "warm_start"): "87.5 (0.7) 93.5 (0.4) 75.4 (0.1) 69.4 (0.6) 28.0 (0.3) 22.2 (0.9)",
    ("cifar100", "random_init"): "18.2 (0.3) 41.4 (0.2) 10.3 (0.2) 11.6 (0.2) 16.9 (0.18) 10.2 (0.4)",
    ("cifar100", "warm_start"): "15.5 (0.3) 35.0 (1.2) 9.4 (0.0) 9.9 (0.1) 16.3 (0.28) 9.9 (0.3)",
}
_TABLE_2 = {  # the first round of warm-started training
    ("cifar10", "warm_start"): "41.7 (7.9) 70.5 (1.6) 37.2 (0.2) 36.0 (0.2) 37.9 (0.2) 31.8 (0.7)",
    ("svhn_cropped", "warm_start"): "85.9 (0.3) 92.3 (0.2) 72.5 (0.4) 67.5 (0.3) 27.1 (0.3) 22.2 (0.7)",
    ("cifar100", "warm_start"): "10.6 (1.6) 31.5 (0.7) 10.3 (0.2) 10.5 (0.3) 15.4 (0.21) 9.3 (0.3)",
}
_TABLE_3 = {  # strengths 1e-1, 1e-2, 1e-3, 1e-4
    ("L2", "random_init"): "72.7 (4.2) 55.4 (2.7) 54.6 (2.4) 55.1 (3.4)",
    ("L2", "warm_start"): "63.9 (6.4) 51.2 (2.7) 50.5 (1.8) 50.4 (1.3)",
    ("adversarial", "random_init"): "54.8 (1.3) 55.1 (1.5) 55.3 (1.4) 55.6 (0.9)",
    ("adversarial", "warm_start"): "52.4 (1.0) 52.6 (1.5) 52.7 (1.2) 50.4 (1.4)",
    ("confidence", "random_init"): "53.1 (1.9) 55.8 (1.3) 55.4 (1.2) 55.9 (1.4)",
    ("confidence", "warm_start"): "50.3 (0.7) 50.0 (3.8) 51.2 (1.2) 49.3 (1.2)",
}
_TABLE_4 = "54.4 (0.9) 53.5 (1.0) 52.9 (1.0) 49.9 (1.6) 50.8 (1.8)"  # σ = 1e-2, 1e-3, 1e-4, 1e-5, 0
_TABLE_4_MINUTES, _TABLE_4_RANDOM_INIT = (165.3, 38.0, 16.5, 14.6, 13.6), (55.2, 34.0)
_TABLE_5 = {  # LL, LL+WS, WS, RI
    "cifar10": "48.8 (1.8) 50.9 (1.5) 52.5 (0.3) 56.0 (1.2)",
    "svhn_cropped": "86.0 (0.6) 88.2 (0.2) 87.5 (0.7) 89.4 (0.1)",
    "cifar100": "16.4 (0.5) 16.5 (0.6) 15.5 (0.3) 18.2 (0.3)",
}
_SIGMAS = (1.0, 0.1, 0.01, 0.001, 0.0001, 0.0)
_FIGURE_15 = {  # λ: accuracies, minutes
    1.0: ("65.3 65.1 64.3 64.7 64.1 63.7", "35.8 17.4 15.8 17.1 16.4 16.3"),
    0.8: ("73.1 73.9 74.8 74.5 74.5 74.7", "41.0 38.8 43.1 43.0 43.8 43.8"),
    0.6: ("75.7 76.7 77.0 77.2 76.9 76.8", "53.3 52.7 57.7 60.2 59.8 59.8"),
    0.4: ("76.8 77.9 78.0 77.9 77.9 77.9", "68.8 72.1 83.1 84.7 83.9 86.1"),
    0.2: ("75.7 80.2", "90.8 78.8"),
    0.0: ("76.0 76.6", "94.4 130"),
}
_FIGURE_21 = {
    1.0: ("78.8 79.1 78.9 78.9 79.0 79.0", "61.2 37.3 37.6 35.8 36.1 37.6"),
    0.8: ("81.5 80.9 80.9 81.1 81.2 81.0", "93.8 84.8 82.0 82.2 79.2 81.8"),
    0.6: ("82.4 81.4 81.3 81.6 81.7 81.7", "133 115 127 119 125 127"),
    0.4: ("82.7 82.5 81.9 82.4 82.2 82.0", "188 159 160 157 166 173"),
    0.2: ("82.8 82.9", "264 211"),
    0.0: ("81.3 81.5", "361 398"),
}


def numbers(experiment: str) -> list[Number]:
    """Return the paper's numbers for an experiment, in the order in which it prints them; none where it prints none."""
    made = {
        "table1": _table_1,
        "two_phase": _table_1,
        "regularization": _table_3,
        "noise_only": _table_4,
        "last_layer": _table_5,
        "online": lambda: _grid(_FIGURE_15, {"dataset": "cifar10", "model": "resnet18", "weight_decay": 0.0}),
        "online_mlp_svhn": lambda: _grid(_FIGURE_21, {"dataset": "svhn_cropped", "model": "mlp", "weight_decay": 0.0}),
    }
    return list(made[experiment]()) if experiment in made else []


def minutes(experiment: str) -> tuple[float, ...]:
    """Return the times that the paper prints for an experiment, in minutes, in the order in which it prints them."""
    grids = {"online": _FIGURE_15, "online_mlp_svhn": _FIGURE_21}
    if experiment in grids:
        return tuple(float(time) for _, times in grids[experiment].values() for time in times.split())
    return (*_TABLE_4_MINUTES, _TABLE_4_RANDOM_INIT[1]) if experiment == "noise_only" else ()


def _table_1() -> Iterator[Number]:
    for table, first in ((_TABLE_1, False), (_TABLE_2, True)):
        for (dataset, restart), text in table.items():
            for (model, optimizer), pair in zip(_COLUMNS, _pairs(text), strict=True):
                where = {"dataset": dataset, "model": model, "optimizer": optimizer, "restart": restart}
                yield Number(where, *pair, first=first)


def _table_3() -> Iterator[Number]:
    for (penalty, restart), text in _TABLE_3.items():
        for strength, pair in zip((1e-1, 1e-2, 1e-3, 1e-4), _pairs(text), strict=True):
            of = {"penalty": penalty, "penalty_strength": strength} if penalty != "L2" else {"weight_decay": strength}
            yield Number({**_sgd("cifar10"), "restart": restart, **of}, *pair)


def _table_4() -> Iterator[Number]:
    accuracy, minutes = _TABLE_4_RANDOM_INIT
    yield Number({**_sgd("cifar10"), "restart": "random_init"}, accuracy)
    sigmas = (1e-2, 1e-3, 1e-4, 1e-5, 0.0)
    for sigma, pair, time in zip(sigmas, _pairs(_TABLE_4), _TABLE_4_MINUTES, strict=True):
        where = {**_sgd("cifar10"), "restart": "noise_only", "noise_scale": sigma}
        yield Number(where, *pair)
        yield Number(where, time / minutes, cost=True)


def _table_5() -> Iterator[Number]:
    for dataset, text in _TABLE_5.items():
        kinds = (("warm_start", "head"), ("warm_start", "head_then_all"), ("warm_start", "all"), ("random_init", "all"))
        for (restart, trained), pair in zip(kinds, _pairs(text), strict=True):
            yield Number({**_sgd(dataset), "restart": restart, "trained": trained}, *pair)


def _grid(figure, where) -> Iterator[Number]:
    reference = float(figure[0.0][1].split()[0])
    for shrink, (accuracies, minutes) in figure.items():
        for sigma, accuracy, time in zip(_SIGMAS, accuracies.split(), minutes.split(), strict=False):
            restart = {(1.0, 0.0): "warm_start", (0.0, 1.0): "random_init"}.get((shrink, sigma), "shrink_perturb")
            cell = {**where, "restart": restart, "shrink": shrink, "noise_scale": sigma}
            yield Number(cell, float(accuracy))
            yield Number(cell, float(time) / reference, cost=True)


def _sgd(dataset):
    return {"dataset": dataset, "model": "resnet18", "optimizer": "sgd"}


def _pairs(text):
    """Parse numbers and their deviations: `56.2 (1.0) 78.0 (0.6)`."""
    words = [float(word.strip("()")) for word in text.split()]
    return zip(words[::2], words[1::2], strict=True)
