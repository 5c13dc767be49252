"""The settings of one experiment: what the flags mean, which values are sensible, which cells a grid has."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config.choices import (
    IMAGES,
    NETWORKS,
    OPTIMIZERS,
    PENALTIES,
    PRECISIONS,
    RESTARTS,
    NetworkSettings,
)
from experiments.config.fields import (
    DATA,
    EXPERIMENT,
    INFINITE,
    LARGEST,
    OF_RESTART,
    ON_HOST,
    RESTART,
    ROUND_END,
    RUN,
    SPEED,
    TRACED,
    TRAINING,
    UsageError,
    check_field,
    check_numbers,
    setting,
)
from sp_jax.plasticity.methods import METHODS
from sp_jax.restarts import OPTIMIZER_STATES, STATISTICS

NOISES = ("gaussian", "fresh")
TRAINED = ("all", "head", "head_then_all")
KEPT = ("auto", "all", "last", "none")
_STRONG = {name: method.symbol for name, method in METHODS.items() if method.symbol}
_STRENGTHS = ", ".join(f"{symbol} of {name}" for name, symbol in _STRONG.items())
_SYMBOLS = ", ".join(_STRONG.values())


class RestartSetting(NamedTuple):
    """One cell of a grid: a restart with its λ and σ, as they were typed."""

    restart: str
    shrink: str
    noise_scale: str

    @property
    def name(self) -> str:
        """The cell in file names."""
        return f"{self.restart}_{self.shrink}_{self.noise_scale}"

    def amounts(self, without: Sequence[str] = ()) -> str:
        """Return what the restart uses, " λ=0.6 σ=0.01", for people; both where the restart is not known here."""
        values = {"shrink": f" λ={self.shrink}", "noise_scale": f" σ={self.noise_scale}"}
        known = RESTARTS.get(self.restart)
        return "".join(v for n, v in values.items() if n not in without and (known is None or n in known.uses))


@dataclasses.dataclass(frozen=True)
class Settings(NetworkSettings):
    """Every setting of one experiment; each field is a flag of the same name, and says what it means."""

    optimizer: str = setting("adam", f"One of {', '.join(OPTIMIZERS)}.", TRAINING, choices=tuple(OPTIMIZERS))
    learning_rate: float = setting(
        0.001, "The optimiser's.", TRAINING, unit="per step", symbol="η", positive=True, at_work=TRACED
    )
    decay_every: int | None = setting(
        None,
        "Divide η by ten after so many epochs of a round, twice at most.",
        TRAINING,
        unit="epochs",
        unset="never",
        positive=True,
        at_work=TRACED,
    )
    batch_size: int = setting(128, "Of a step.", TRAINING, unit="samples", positive=True)
    weight_decay: float = setting(0.0, "Coupled L2: added to the gradient.", TRAINING, unit="times θ", at_work=TRACED)
    penalty: str = setting(
        "none",
        f"Added to the loss: one of {', '.join(PENALTIES)}; for L2 see --weight_decay.",
        TRAINING,
        choices=tuple(PENALTIES),
    )
    penalty_strength: float = setting(
        0.0,
        "β of confidence (times the entropy), ε of adversarial (pixels are ±1).",
        TRAINING,
        unit="times nats, or pixels",
        symbol="β, ε",
        at_work=TRACED,
    )
    method: str = setting(
        "none", f"What acts while a round trains: one of {', '.join(METHODS)}.", TRAINING, choices=tuple(METHODS)
    )
    method_strength: float | None = setting(
        None,
        f"Of --method: {_STRENGTHS}.",
        TRAINING,
        unit="the method's own",
        symbol=_SYMBOLS,
        unset="as published",
        at_work=TRACED,
    )
    precision: str = setting(
        "float32",
        f"Of matrix products and convolutions: one of {', '.join(PRECISIONS)}.",
        SPEED,
        choices=tuple(PRECISIONS),
    )
    restart: tuple[str, ...] = setting(
        ("warm_start", "random_init", "shrink_perturb"),
        f"Any of {', '.join(RESTARTS)}, with commas.",
        RESTART,
        choices=tuple(RESTARTS),
        at_work=ON_HOST,
    )
    pairs: tuple[str, ...] = setting(
        ("0.8:0.01", "0.6:0.01", "0.4:0.1"),
        "Of shrink-perturb, with commas.",
        RESTART,
        unit="fraction:factor",
        symbol="λ:σ",
        at_work=TRACED,
    )
    shrink: tuple[str, ...] | None = setting(
        None,
        "In [0, 1], with commas; the grid is the product with --noise_scale (alone: σ = 0.01), in place of --pairs.",
        RESTART,
        unit="fraction",
        symbol="λ",
        unset="that of --pairs",
        at_work=TRACED,
    )
    noise_scale: tuple[str, ...] | None = setting(
        None,
        "At least 0, with commas; alone: λ = 0.6.",
        RESTART,
        unit="factor",
        symbol="σ",
        unset="that of --pairs",
        at_work=TRACED,
    )
    noise: str = setting(
        "gaussian",
        "Of noise_only: gaussian (N(0, σ²)) or fresh (σ times a fresh network).",
        RESTART,
        choices=NOISES,
        at_work=OF_RESTART,
    )
    statistics: str = setting(
        "reset",
        f"What becomes of BatchNorm's at a restart: one of {', '.join(STATISTICS)}.",
        RESTART,
        choices=STATISTICS,
        at_work=OF_RESTART,
    )
    optimizer_state: str = setting(
        "reset",
        f"What becomes of it at a restart: one of {', '.join(OPTIMIZER_STATES)}.",
        RESTART,
        choices=OPTIMIZER_STATES,
        at_work=OF_RESTART,
    )
    trained: str = setting(
        "all", f"Two phases, what the second trains: one of {', '.join(TRAINED)}.", TRAINING, choices=TRAINED
    )
    restart_first: bool = setting(
        False, "Restart before the first round too, as the authors' program does.", RESTART, at_work=ON_HOST
    )
    seeds: int = setting(
        5,
        "How many; each has its own validation third, order of arrival and networks.",
        EXPERIMENT,
        unit="lanes of each cell",
        positive=True,
        one=True,
    )
    samples_per_round: int | None = setting(
        None,
        "How many arrive in a round.",
        DATA,
        unit="samples",
        symbol="k",
        unset="1000, or 1/16 of a small data set",
        positive=True,
        one=True,
        at_work=ON_HOST,
    )
    first_fraction: float = setting(
        0.5,
        "Two phases: of the training samples, what the first phase has, in (0, 1].",
        DATA,
        unit="fraction",
        at_work=ON_HOST,
    )
    first_learning_rate: float | None = setting(
        None,
        "Two phases: of the first.",
        TRAINING,
        unit="per step",
        symbol="η",
        unset="as the second's",
        positive=True,
        at_work=ON_HOST,
    )
    first_batch_size: int | None = setting(
        None,
        "Two phases: of the first.",
        TRAINING,
        unit="samples",
        unset="as the second's",
        positive=True,
        at_work=ON_HOST,
    )
    first_epochs: int | None = setting(
        None,
        "Two phases: the first has exactly so many epochs.",
        ROUND_END,
        unit="epochs",
        unset="to convergence",
        positive=True,
        at_work=ON_HOST,
    )
    rounds: int | None = setting(
        None,
        "Only the first so many.",
        EXPERIMENT,
        unit="rounds",
        unset="all",
        positive=True,
        one=True,
        at_work=ON_HOST,
    )
    train_accuracy: float = setting(
        0.99, "A round has converged at this training accuracy.", ROUND_END, unit="fraction", at_work=TRACED
    )
    patience: int = setting(
        100,
        "A round ends after so many epochs without 0.1 points of training accuracy.",
        ROUND_END,
        unit="epochs",
        positive=True,
        at_work=TRACED,
    )
    max_epochs: int = setting(
        1000, "A round ends after so many epochs.", ROUND_END, unit="epochs", positive=True, at_work=TRACED
    )
    epochs: int | None = setting(
        None,
        "Train exactly so many epochs a round instead of to convergence.",
        ROUND_END,
        unit="epochs",
        unset="to convergence",
        positive=True,
        at_work=TRACED,
    )
    curves: bool = setting(
        False, "Write the accuracies and losses of each epoch into curves.csv; slower.", RUN, one=True, at_work=ON_HOST
    )
    keep_networks: str = setting(
        "auto",
        f"The networks of which rounds stay in networks/: one of {', '.join(KEPT)}; auto is all up to 1 GiB.",
        RUN,
        choices=KEPT,
        one=True,
        at_work=ON_HOST,
    )

    def __post_init__(self):
        """Raise a `UsageError` for a value that makes no sense."""
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        self._check_ranges()
        self._check_combinations()
        self._check_amounts()

    def _check_ranges(self):
        if not 0 < self.train_accuracy <= 1:
            raise UsageError(f"--train_accuracy is a fraction: it must lie in (0, 1], got {self.train_accuracy}")
        for field in ("fraction", "first_fraction"):
            if not 0 < getattr(self, field) <= 1:
                raise UsageError(f"--{field} must lie in (0, 1], got {getattr(self, field)}")
        for field in ("weight_decay", "penalty_strength", "method_strength"):
            value = getattr(self, field)
            if value is not None and not 0 <= value < INFINITE:
                raise UsageError(f"--{field} must be at least 0 and finite, got {value}")
        for field in ("hidden", "stage_sizes"):
            sizes = getattr(self, field)
            if not all(isinstance(size, int) and 0 < size < LARGEST for size in sizes):
                raise UsageError(f"--{field} must be positive layer sizes, got {','.join(map(str, sizes))}")

    def _check_combinations(self):
        network, method = NETWORKS[self.model], METHODS[self.method]
        if self.penalty_strength and self.penalty == "none":
            raise UsageError(f"--penalty_strength={self.penalty_strength} needs --penalty=confidence or adversarial")
        if self.method_strength is not None and self.method == "none":
            raise UsageError(f"--method_strength={self.method_strength} needs --method: one of {', '.join(METHODS)}")
        if method.needs_links and not (network.has_units and self.hidden):
            fitting = " or ".join(name for name, row in NETWORKS.items() if row.has_units)
            raise UsageError(f"--method={self.method} re-draws hidden units: it needs --model={fitting}")
        if PENALTIES[self.penalty].moves_pixels and network.inputs != IMAGES:
            raise UsageError(f"--penalty={self.penalty} moves pixels, but the inputs of --model={self.model} are words")
        if network.has_stages and not self.stage_sizes:
            raise UsageError("--stage_sizes is an empty list; expected the blocks of each stage, as 2,2,2,2")

    def _check_amounts(self):
        if not self.restart or not self.pairs:
            flag = "pairs" if self.restart else "restart"
            raise UsageError(f"--{flag} is an empty list; expected at least one value")
        for pair in self.pairs:
            if pair.count(":") != 1:
                raise UsageError(f"--pairs={pair} is no λ:σ; expected pairs like 0.6:0.01, with commas between them")
        shrinks, noise_scales = zip(*(pair.split(":") for pair in self.pairs), strict=True)
        for flag, values in (("--shrink", self.shrink), ("--pairs", shrinks)):
            check_numbers(flag, values, "λ must lie in [0, 1]", lambda x: 0 <= x <= 1)
        for flag, values in (("--noise_scale", self.noise_scale), ("--pairs", noise_scales)):
            check_numbers(flag, values, "σ must be finite and >= 0", lambda x: 0 <= x < INFINITE)

    def cells(self) -> tuple[RestartSetting, ...]:
        """Return the grid's cells, in the order of `--restart`; no baseline is run again as shrink-perturb."""
        made = []
        rows = {name: RESTARTS[name] for name in self.restart}
        taken = [(float(row.shrink), float(row.noise_scale)) for row in rows.values() if row.is_baseline]
        for restart, row in rows.items():
            repeated = taken if restart == "shrink_perturb" else []
            pairs = self._pairs(row)
            made += [RestartSetting(restart, *pair) for pair in pairs if tuple(map(float, pair)) not in repeated]
        return tuple(made)

    def _pairs(self, row):
        """Return the (λ, σ) of a restart: of what it uses a flag's values or the default, of both --pairs."""
        given = {name: getattr(self, name) for name in row.uses}
        if len(given) == 2 and not any(given.values()):
            return tuple(tuple(pair.split(":")) for pair in self.pairs)
        return tuple(itertools.product(*(given.get(n) or (getattr(row, n),) for n in ("shrink", "noise_scale"))))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """Undo `to_json`; unknown names are left out."""
        return cls(**{name: as_value(value) for name, value in values.items() if name in FIELDS})


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def as_value(value: Any) -> Any:
    """Return a setting's value from JSON, where tuples became lists."""
    return tuple(map(as_value, value)) if isinstance(value, list) else value
