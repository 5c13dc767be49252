"""The settings of one experiment: what the flags mean, which values are sensible, which cells a grid has."""

import dataclasses
import difflib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sp_jax.models.layers import INITS
from sp_jax.plasticity.methods import METHODS
from sp_jax.restarts import OPTIMIZER_STATES, STATISTICS

MODELS = ("logistic", "mlp", "resnet18", "birnn")
ACTIVATIONS = ("tanh", "relu")
OPTIMIZERS = ("adam", "sgd")
PENALTIES = ("none", "confidence", "adversarial")
PRECISIONS = ("float32", "tf32", "bfloat16")
NOISES = ("gaussian", "fresh")
TRAINED = ("all", "head", "head_then_all")
KEPT = ("auto", "all", "last", "none")

LARGEST = 2**31  # what a device counts to
INFINITE = 3.4e38  # to a device, in single precision


class Amounts(NamedTuple):
    """The λ and σ of a restart, and which of the two it uses: the other one is no setting of it, and never varies."""

    shrink: str  # by default, or where it is not used, what stands in its column
    noise_scale: str
    uses: tuple[str, ...]  # of "shrink" and "noise_scale"; of both, the default is the list of --pairs


RESTARTS = {
    "warm_start": Amounts("1", "0", ()),
    "random_init": Amounts("0", "1", ()),
    "shrink_perturb": Amounts("0.6", "0.01", ("shrink", "noise_scale")),
    "noise_only": Amounts("1", "0.01", ("noise_scale",)),
    "last_layer": Amounts("0.6", "0.01", ("shrink", "noise_scale")),
    "dash": Amounts("0.3", "0", ("shrink",)),
    "fire": Amounts("1", "0", ()),
}
BASELINES = ("warm_start", "random_init")


class UsageError(ValueError):
    """A user's mistake; the message is one line: what was wrong, what was expected, what to do."""


class RestartSetting(NamedTuple):
    """One cell of a grid: a restart with its λ and σ, as they were typed."""

    restart: str
    shrink: str
    noise_scale: str

    @property
    def name(self) -> str:
        """Names the cell in file names."""
        return f"{self.restart}_{self.shrink}_{self.noise_scale}"

    def amounts(self, without: Sequence[str] = ()) -> str:
        """Names for people what the restart uses, " λ=0.6 σ=0.01"; all where the restart is not known here."""
        values = {"shrink": f" λ={self.shrink}", "noise_scale": f" σ={self.noise_scale}"}
        known = RESTARTS.get(self.restart)
        return "".join(v for n, v in values.items() if n not in without and (known is None or n in known.uses))


def _flag(default, meaning):
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of one experiment; each field is a flag of the same name, and says what it means."""

    dataset: str = _flag(
        "mixture", "mixture, textures, reviews (synthetic, embedded), or TFDS's: cifar10, imdb_reviews, …."
    )
    source: str = _flag("mixture_source", "What pretraining begins with: a data set of inputs like those of --dataset.")
    fraction: float = _flag(1.0, "pretraining: of the target's samples, in (0, 1].")
    model: str = _flag("mlp", f"One of {', '.join(MODELS)}.")
    width: int = _flag(16, "ResNet: channels of the first stage; 64 is the standard, 16 the authors' own. RNN: units.")
    stage_sizes: tuple[int, ...] = _flag(
        (2, 2, 2, 2), "ResNet: blocks in each stage, with commas; 2,2,2,2 is ResNet-18."
    )
    hidden: tuple[int, ...] = _flag((100, 100), "MLP: sizes of the hidden layers, with commas.")
    activation: str = _flag("tanh", f"MLP: one of {', '.join(ACTIVATIONS)}.")
    bias: bool = _flag(True, "MLP: whether its layers have bias terms.")
    init: str = _flag("torch", "Initialisation, and so the noise: torch (the paper's) or flax.")
    optimizer: str = _flag("adam", f"One of {', '.join(OPTIMIZERS)}.")
    learning_rate: float = _flag(0.001, "The optimiser's.")
    decay_every: int | None = _flag(None, "Divide η by ten after so many epochs of a round, twice at most.")
    batch_size: int = _flag(128, "Of a step.")
    weight_decay: float = _flag(0.0, "Coupled L2: added to the gradient.")
    penalty: str = _flag("none", f"Added to the loss: one of {', '.join(PENALTIES)}; for L2 see --weight_decay.")
    penalty_strength: float = _flag(0.0, "β of confidence (times the entropy), ε of adversarial (pixels are ±1).")
    method: str = _flag("none", f"What acts while a round trains: one of {', '.join(METHODS)}.")
    method_strength: float | None = _flag(
        None,
        "Of --method: c of l2_init, μ of hare_tortoise, τ of redo, ρ of continual_backprop.",
    )
    precision: str = _flag("float32", f"Of matrix products and convolutions: one of {', '.join(PRECISIONS)}.")
    restart: tuple[str, ...] = _flag(
        ("warm_start", "random_init", "shrink_perturb"), f"Any of {', '.join(RESTARTS)}, with commas."
    )
    pairs: tuple[str, ...] = _flag(("0.8:0.01", "0.6:0.01", "0.4:0.1"), "Of shrink-perturb, with commas.")
    shrink: tuple[str, ...] | None = _flag(
        None,
        "In [0, 1], with commas; the grid is the product with --noise_scale (alone: σ = 0.01), in place of --pairs.",
    )
    noise_scale: tuple[str, ...] | None = _flag(None, "At least 0, with commas; alone: λ = 0.6.")
    noise: str = _flag("gaussian", "Of noise_only: gaussian (N(0, σ²)) or fresh (σ times a fresh network).")
    statistics: str = _flag("reset", f"What becomes of BatchNorm's at a restart: one of {', '.join(STATISTICS)}.")
    optimizer_state: str = _flag("reset", f"What becomes of it at a restart: one of {', '.join(OPTIMIZER_STATES)}.")
    trained: str = _flag("all", f"Two phases, what the second trains: one of {', '.join(TRAINED)}.")
    restart_first: bool = _flag(False, "Restart before the first round too, as the authors' program does.")
    seeds: int = _flag(5, "How many; each has its own validation third, order of arrival and networks.")
    samples_per_round: int | None = _flag(None, "How many arrive in a round.")
    first_fraction: float = _flag(0.5, "Two phases: of the training samples, what the first phase has, in (0, 1].")
    first_learning_rate: float | None = _flag(None, "Two phases: of the first.")
    first_batch_size: int | None = _flag(None, "Two phases: of the first.")
    first_epochs: int | None = _flag(None, "Two phases: the first has exactly so many epochs.")
    rounds: int | None = _flag(None, "Only the first so many.")
    train_accuracy: float = _flag(0.99, "A round has converged at this training accuracy.")
    patience: int = _flag(100, "A round ends after so many epochs without 0.1 points of training accuracy.")
    max_epochs: int = _flag(1000, "A round ends after so many epochs.")
    epochs: int | None = _flag(None, "Train exactly so many epochs a round instead of to convergence.")
    curves: bool = _flag(False, "Write the accuracies and losses of each epoch into curves.csv; slower.")
    keep_networks: str = _flag(
        "auto", f"The networks of which rounds stay in networks/: one of {', '.join(KEPT)}; auto is all up to 1 GiB."
    )

    def __post_init__(self):
        """Raises a `UsageError` for a value that makes no sense."""
        for field, known in _CHOICES.items():
            values = getattr(self, field)
            for value in values if isinstance(values, tuple) else (values,):
                check_choice(f"--{field}", value, known)
        for field in _POSITIVE:
            _check_positive(f"--{field}", getattr(self, field), FIELDS[field].type)
        if not 0 < self.train_accuracy <= 1:
            raise UsageError(f"--train_accuracy is a fraction: it must lie in (0, 1], got {self.train_accuracy}")
        for field in ("fraction", "first_fraction"):
            if not 0 < getattr(self, field) <= 1:
                raise UsageError(f"--{field} must lie in (0, 1], got {getattr(self, field)}")
        for field in ("weight_decay", "penalty_strength"):
            if not 0 <= getattr(self, field) < INFINITE:
                raise UsageError(f"--{field} must be at least 0 and finite, got {getattr(self, field)}")
        if self.penalty_strength and self.penalty == "none":
            raise UsageError(f"--penalty_strength={self.penalty_strength} needs --penalty=confidence or adversarial")
        if self.method_strength is not None and not 0 <= self.method_strength < INFINITE:
            raise UsageError(f"--method_strength must be at least 0 and finite, got {self.method_strength}")
        if self.method_strength is not None and self.method == "none":
            raise UsageError(f"--method_strength={self.method_strength} needs --method: one of {', '.join(METHODS)}")
        if METHODS[self.method].needs_links and (self.model in ("logistic", "birnn") or not self.hidden):
            raise UsageError(f"--method={self.method} re-draws hidden units: it needs --model=mlp or resnet18")
        if self.penalty == "adversarial" and self.model == "birnn":
            raise UsageError("--penalty=adversarial moves pixels, but the inputs of --model=birnn are words")
        for field in ("hidden", "stage_sizes"):
            sizes = getattr(self, field)
            if not all(isinstance(size, int) and 0 < size < LARGEST for size in sizes):
                raise UsageError(f"--{field} must be positive layer sizes, got {','.join(map(str, sizes))}")
        if self.model == "resnet18" and not self.stage_sizes:
            raise UsageError("--stage_sizes is an empty list; expected the blocks of each stage, as 2,2,2,2")
        if not self.restart or not self.pairs:
            raise UsageError(
                f"--{'pairs' if self.restart else 'restart'} is an empty list; expected at least one value"
            )
        for pair in self.pairs:
            if pair.count(":") != 1:
                raise UsageError(f"--pairs={pair} is no λ:σ; expected pairs like 0.6:0.01, with commas between them")
        shrinks, noise_scales = zip(*(pair.split(":") for pair in self.pairs), strict=True)
        for flag, values in (("--shrink", self.shrink), ("--pairs", shrinks)):
            _check_numbers(flag, values, "λ must lie in [0, 1]", lambda x: 0 <= x <= 1)
        for flag, values in (("--noise_scale", self.noise_scale), ("--pairs", noise_scales)):
            _check_numbers(flag, values, "σ must be finite and >= 0", lambda x: 0 <= x < INFINITE)

    def cells(self) -> tuple[RestartSetting, ...]:
        """The grid's cells, in the order of `--restart`; a baseline is not run a second time as shrink-perturb."""
        made = []
        taken = [tuple(map(float, RESTARTS[r][:2])) for r in self.restart if r in BASELINES]
        for restart in self.restart:
            repeated = taken if restart == "shrink_perturb" else []
            pairs = self._pairs(RESTARTS[restart])
            made += [RestartSetting(restart, *pair) for pair in pairs if tuple(map(float, pair)) not in repeated]
        return tuple(made)

    def _pairs(self, amounts):
        """The (λ, σ) of a restart: of what it uses the default or a flag's values, of both a short list by default."""
        given = {name: getattr(self, name) for name in amounts.uses}
        if len(given) == 2 and not any(given.values()):
            return tuple(tuple(pair.split(":")) for pair in self.pairs)
        return tuple(itertools.product(*(given.get(n) or (getattr(amounts, n),) for n in ("shrink", "noise_scale"))))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Settings":
        """The reverse of `to_json`; unknown names are left out."""
        return cls(**{name: as_value(value) for name, value in values.items() if name in FIELDS})


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}


def as_value(value: Any) -> Any:
    """A setting's value from JSON, where tuples became lists."""
    return tuple(map(as_value, value)) if isinstance(value, list) else value


_CHOICES = {
    "model": MODELS,
    "activation": ACTIVATIONS,
    "init": INITS,
    "optimizer": OPTIMIZERS,
    "penalty": PENALTIES,
    "method": tuple(METHODS),
    "precision": PRECISIONS,
    "restart": tuple(RESTARTS),
    "statistics": STATISTICS,
    "optimizer_state": OPTIMIZER_STATES,
    "noise": NOISES,
    "trained": TRAINED,
    "keep_networks": KEPT,
}
_POSITIVE = (
    "width", "learning_rate", "decay_every", "batch_size", "seeds", "samples_per_round", "first_learning_rate",
    "first_batch_size", "first_epochs", "rounds", "patience", "max_epochs", "epochs",
)  # fmt: skip


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raises a `UsageError` with the nearest name where `value` is not a known one."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"unknown {what}={value}; {hint}(one of {', '.join(known)})")


def parse_list(what: str, text: str) -> tuple[str, ...]:
    """Splits a comma-separated flag, each item once, as it was typed.

    Raises:
      UsageError: nothing but commas and spaces.
    """
    items = tuple(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
    if not items:
        raise UsageError(f"{what} is an empty list; expected values with commas between them")
    return items


def parse_sizes(what: str, text: str) -> tuple[int, ...]:
    """Parses layer sizes.

    Raises:
      UsageError: not whole numbers.
    """
    try:
        return tuple(int(item) for item in text.split(",") if item.strip())
    except ValueError:
        raise UsageError(f"{what} must be whole numbers with commas between them, got {text!r}") from None


def _check_positive(flag, value, type_):
    if value is None:
        return
    if type_ in (int, int | None) and not isinstance(value, int):
        raise UsageError(f"{flag} must be a whole number, got {value}")
    if not 0 < value < LARGEST:
        raise UsageError(f"{flag} must be positive{' and below 2**31' * (value > 0)}, got {value}")


def _check_numbers(flag, items, rule, valid):
    for item in items or ():
        try:
            number = float(item)
        except ValueError:
            raise UsageError(f"{flag}={item} is no number; {rule}") from None
        if not valid(number):
            raise UsageError(f"{flag}={item} is out of range: {rule}")
