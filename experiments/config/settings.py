"""The settings of one experiment: what the flags mean, which values are sensible, which cells a grid has."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config import choices, own_methods, streams
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
from sp_jax.augmentation import AUGMENTATIONS
from sp_jax.diagnostics import MEASURES
from sp_jax.plasticity.methods import METHODS
from sp_jax.restarts import OPTIMIZER_STATES, STATISTICS
from sp_jax.training import SHUFFLES

TUNING = 1_000_000  # the first of the seeds that tune
_STRONG = {name: method.symbol for name, method in METHODS.items() if method.symbol}


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
        known = choices.RESTARTS.get(self.restart)
        return "".join(v for n, v in values.items() if n not in without and (known is None or n in known.uses))


@dataclasses.dataclass(frozen=True)
class Settings(choices.NetworkSettings):
    """Every setting of one experiment; each field is a flag of the same name, and says what it means."""

    # fmt: off
    optimizer: str = setting("adam", TRAINING, help="One of {choices}.", choices=choices.OPTIMIZERS)
    learning_rate: float = setting(0.001, TRAINING, TRACED, unit="per step", symbol="η", positive=True,
        help="The optimiser's.")
    decay_every: int | None = setting(None, TRAINING, TRACED, unit="epochs", unset="never", positive=True,
        help="Divide η by ten after so many epochs of a round, twice at most.")
    batch_size: int = setting(128, TRAINING, unit="samples", positive=True, help="Of a step.")
    weight_decay: float = setting(0.0, TRAINING, TRACED, unit="times θ", help="Coupled L2: added to the gradient.")
    augment: str = setting("none", TRAINING, choices=AUGMENTATIONS,
        help="Of each batch of images in training: one of {choices}.")
    shuffle: str = setting("epoch", TRAINING, choices=SHUFFLES,
        help="When samples are put into another order: in each epoch, once a round, or never after they arrive.")
    penalty: str = setting("none", TRAINING, choices=choices.PENALTIES,
        help="Added to the loss: one of {choices}; for L2 see --weight_decay.")
    penalty_strength: float = setting(0.0, TRAINING, TRACED, unit="times nats, or pixels", symbol="β, ε",
        help="β of confidence (times the entropy), ε of adversarial (pixels are ±1).")
    method: str = setting("none", TRAINING,
        help=f"What acts while a round trains: one of {', '.join(METHODS)}, or your own, package.module:name.")
    method_strength: float | None = setting(None, TRAINING, TRACED, unit="the method's own",
        symbol=", ".join(dict.fromkeys(_STRONG.values())), unset="as published",
        help=f"Of --method: {', '.join(f'{symbol} of {name}' for name, symbol in _STRONG.items())}.")
    precision: str = setting("float32", SPEED, choices=choices.PRECISIONS,
        help="Of matrix products and convolutions: one of {choices}.")
    restart: tuple[str, ...] = setting(("warm_start", "random_init", "shrink_perturb"), RESTART, ON_HOST,
        choices=choices.RESTARTS, help="Any of {choices}, with commas.")
    pairs: tuple[str, ...] = setting(("0.8:0.01", "0.6:0.01", "0.4:0.1"), RESTART, TRACED, unit="fraction:factor",
        symbol="λ:σ", help="Of shrink-perturb, with commas.")
    shrink: tuple[str, ...] | None = setting(None, RESTART, TRACED, unit="fraction", symbol="λ",
        unset="that of --pairs", help="In [0, 1], with commas; the grid is the product with --noise_scale (alone: "
        "σ = 0.01), in place of --pairs.")
    noise_scale: tuple[str, ...] | None = setting(None, RESTART, TRACED, unit="factor", symbol="σ",
        unset="that of --pairs", help="At least 0, with commas; alone: λ = 0.6.")
    noise: str = setting("gaussian", RESTART, OF_RESTART, choices=("gaussian", "fresh"),
        help="Of noise_only: gaussian (N(0, σ²)) or fresh (σ times a fresh network).")
    statistics: str = setting("reset", RESTART, OF_RESTART, choices=STATISTICS,
        help="What becomes of BatchNorm's at a restart: one of {choices}.")
    optimizer_state: str = setting("reset", RESTART, OF_RESTART, choices=OPTIMIZER_STATES,
        help="What becomes of it at a restart: one of {choices}.")
    trained: str = setting("all", TRAINING, choices=("all", "head", "head_then_all"),
        help="Two phases, what the second trains: one of {choices}.")
    restart_first: bool = setting(False, RESTART, ON_HOST,
        help="Restart before the first round too, as the authors' program does.")
    seeds: int = setting(5, EXPERIMENT, unit="lanes of each cell", positive=True, one=True,
        help="How many; each has its own validation third, order of arrival and networks.")
    contenders: tuple[str, ...] | None = setting(None, EXPERIMENT, ON_HOST, one=True, unset="all of them",
        help="plasticity: which are compared, with commas; your own methods too, as package.module:name.")
    tuning_seeds: int = setting(2, EXPERIMENT, unit="lanes of each cell", positive=True, one=True,
        help="How many where --samples=tuning; none of them is among --seeds.")
    samples_per_round: int | None = setting(None, DATA, ON_HOST, unit="samples", symbol="k", positive=True, one=True,
        unset="1000, or 1/16 of a small data set", help="How many arrive in a round.")
    first_fraction: float = setting(0.5, DATA, ON_HOST, unit="fraction",
        help="Two phases: of the training samples, what the first phase has, in (0, 1].")
    first_learning_rate: float | None = setting(None, TRAINING, ON_HOST, unit="per step", symbol="η", positive=True,
        unset="as the second's", help="Two phases: of the first.")
    first_batch_size: int | None = setting(None, TRAINING, ON_HOST, unit="samples", positive=True,
        unset="as the second's", help="Two phases: of the first.")
    first_epochs: int | None = setting(None, ROUND_END, ON_HOST, unit="epochs", unset="to convergence", positive=True,
        help="Two phases: the first has exactly so many epochs.")
    rounds: int | None = setting(None, EXPERIMENT, ON_HOST, unit="rounds", unset="all", positive=True, one=True,
        help="Only the first so many.")
    train_accuracy: float = setting(0.99, ROUND_END, TRACED, unit="fraction",
        help="A round has converged at this training accuracy.")
    patience: int = setting(100, ROUND_END, TRACED, unit="epochs", positive=True,
        help="A round ends after so many epochs without 0.1 points of training accuracy.")
    max_epochs: int = setting(1000, ROUND_END, TRACED, unit="epochs", positive=True,
        help="A round ends after so many epochs.")
    epochs: int | None = setting(None, ROUND_END, TRACED, unit="epochs", unset="to convergence", positive=True,
        help="Train exactly so many epochs a round instead of to convergence.")
    steps: int | None = setting(None, ROUND_END, unit="steps", unset="to convergence", positive=True,
        help="Take exactly so many steps a round instead; the last epoch may be a part.")
    measures: tuple[str, ...] | None = setting(None, RUN, ON_HOST, one=True, choices=MEASURES, unset="none",
        help="More columns of results.csv, of the network after each round: any of {choices}, with commas.")
    curves: bool = setting(False, RUN, ON_HOST, one=True,
        help="Write the accuracies and losses of each epoch into curves.csv; slower.")
    keep_networks: str = setting("auto", RUN, ON_HOST, one=True, choices=("auto", "all", "last", "none"),
        help="The networks of which rounds stay in networks/: one of {choices}; auto is all up to 1 GiB.")
    # fmt: on

    def __post_init__(self):
        """Raise a `UsageError` for a value that makes no sense."""
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        self._check_ranges()
        self._check_combinations()
        self._check_rounds(choices.NETWORKS[self.model])
        self._check_amounts()

    def _check_ranges(self):
        if not 0 < self.train_accuracy <= 1:
            raise UsageError(f"--train_accuracy is a fraction: it must lie in (0, 1], got {self.train_accuracy}")
        if self.seeds > TUNING and self.samples != "all":
            raise UsageError(f"--seeds={self.seeds} are too many; expected at most {TUNING:,}")
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
        network, method = choices.NETWORKS[self.model], own_methods.find(self.method)
        if self.penalty_strength and self.penalty == "none":
            raise UsageError(f"--penalty_strength={self.penalty_strength} needs --penalty=confidence or adversarial")
        if self.method_strength is not None and self.method == "none":
            names = ", ".join(name for name in own_methods.names() if name != "none")
            raise UsageError(
                f"--method_strength={self.method_strength} needs a --method other than none: {names}, or your own, "
                "package.module:name"
            )
        self._check_network(network)
        if method.needs_links:
            self._check_units(network)
        if method.needs_hidden and not self._has_hidden(network):
            raise UsageError(f"--method={self.method} acts on hidden layers, and --model={self.model} has none")
        if self.augment != "none" and network.inputs != choices.IMAGES:
            raise UsageError(f"--augment={self.augment} moves pixels, but the inputs of --model={self.model} are words")
        if choices.PENALTIES[self.penalty].moves_pixels and network.inputs != choices.IMAGES:
            raise UsageError(f"--penalty={self.penalty} moves pixels, but the inputs of --model={self.model} are words")

    def _check_rounds(self, network):
        """Check what a round has, and how long it is."""
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs both say how long a round is; give one of them")
        stream = f"--task_stream={self.task_stream}"
        if self.with_streams and self.task_stream not in self.with_streams:
            raise UsageError(f"{stream} is not among --with_streams={','.join(self.with_streams)}")
        if streams.STREAMS[self.task_stream].moves_inputs and network.inputs != choices.IMAGES:
            raise UsageError(f"{stream} mixes features; the inputs of --model={self.model} are words")
        if self.samples != "all" and self.task_stream == "class_incremental":
            raise UsageError(f"--samples={self.samples} does not fit {stream}, which counts classes")

    def _check_network(self, network):
        if network.has_stages and not self.stage_sizes:
            raise UsageError("--stage_sizes is an empty list; expected the blocks of each stage, as 2,2,2,2")
        if network.patch and self.width % self.heads:
            raise UsageError(
                f"--width={self.width} must be a multiple of --heads={self.heads}, which --model={self.model} divides "
                "it among; ViT-Tiny has --width=192 --heads=3"
            )
        if self.norm == "layer" and not (network.has_norms and self._has_hidden(network)):
            raise UsageError(f"--norm=layer normalises hidden units, and --model={self.model} has none: leave it out")

    def _check_units(self, network):
        """Check that the hidden units that a method re-draws have one reader each."""
        if not (network.has_units and self._has_hidden(network)):
            *others, last = (name for name, row in choices.NETWORKS.items() if row.has_units)
            fitting = f"{', '.join(others)} or {last}"
            raise UsageError(f"--method={self.method} re-draws hidden units: it needs --model={fitting}")
        if network.size == "hidden" and self.activation == "crelu":
            raise UsageError(
                f"--method={self.method} re-draws hidden units that are read once, and with --activation=crelu each is "
                "read twice: choose another"
            )

    def _has_hidden(self, network):
        """Return whether a network has hidden layers: a list of them may be empty."""
        return network.size != "hidden" or (network.has_units and bool(self.hidden))

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

    @property
    def lane_seeds(self) -> range:
        """The seed of each lane of a cell; those that tune are others than those that count."""
        return range(TUNING, TUNING + self.tuning_seeds) if self.samples == "tuning" else range(self.seeds)

    def cells(self) -> tuple[RestartSetting, ...]:
        """Return the grid's cells, in the order of `--restart`; no baseline is run again as shrink-perturb."""
        made = []
        rows = {name: choices.RESTARTS[name] for name in self.restart}
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
