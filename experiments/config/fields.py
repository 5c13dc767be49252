"""What a setting says of itself, and the checks of what a user typed."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

LARGEST = 2**31  # what a device counts to
INFINITE = 3.4e38  # to a device, in single precision

EXPERIMENT, DATA, NETWORK = "the experiment", "the data", "the network"
TRAINING, ROUND_END = "training", "the end of a round"
RESTART = "the restart between rounds, θ ← λ·θ + σ·(a freshly drawn network)"
RUN, SPEED = "the run and its files", "speed and devices"

# Where a setting is at work. A setting is compiled into an engine's programs unless it says otherwise: one that is
# forgotten costs a compile, one that wrongly says otherwise would share the programs, and so the results, of another.
COMPILED = "compiled"
TRACED = "traced"  # an argument of the programs: a field of `HParams` or `Convergence`
OF_RESTART = "of a restart"  # compiled into a restart's own program
ON_HOST = "on the host"  # which rounds there are, on what data and with which other settings; what is written down


class UsageError(ValueError):
    """A user's mistake; the message is one line: what was wrong, what was expected, what to do."""


def setting(
    default: Any,
    group: str,
    at_work: str = COMPILED,
    *,
    help: str,
    unit: str = "",
    symbol: str = "",
    unset: str = "",
    choices: Iterable[str] = (),
    positive: bool = False,
    one: bool = False,
) -> Any:
    """Declare a field of `Settings`, which is a flag of the same name, with all of this as its metadata.

    Args:
      default: its value where the flag is not given.
      group: the heading under which `--help` shows it.
      at_work: `COMPILED`, `TRACED`, `OF_RESTART` or `ON_HOST`.
      help: the flag's text in `--help`; `{choices}` stands for the names that it may have.
      unit: of a number.
      symbol: the paper's, or this project's where the paper has none.
      unset: in words, what None stands for.
      choices: the names that it may have; none, where any will do.
      positive: whether it must be above 0.
      one: whether an experiment has one value of it: it cannot vary in a grid.
    """
    choices = tuple(choices)
    facts = {"unit": unit, "symbol": symbol, "unset": unset, "choices": choices, "positive": positive, "one": one}
    metadata = {"help": help.replace("{choices}", ", ".join(choices)), "group": group, "at_work": at_work, **facts}
    return dataclasses.field(default=default, metadata=metadata)


def check_choice(what: str, value: str, known: Sequence[str]) -> None:
    """Raise a `UsageError` with the nearest name where `value` is not a known one."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown {what}={value}{hint} (one of {', '.join(known)})")


def parse_list(what: str, text: str) -> tuple[str, ...]:
    """Split a comma-separated flag, each item once, as it was typed.

    Raises:
      UsageError: nothing but commas and spaces.
    """
    items = tuple(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))
    if not items:
        raise UsageError(f"{what} is an empty list; expected values with commas between them")
    return items


def parse_sizes(what: str, text: str) -> tuple[int, ...]:
    """Parse layer sizes.

    Raises:
      UsageError: not whole numbers.
    """
    try:
        return tuple(int(item) for item in text.split(",") if item.strip())
    except ValueError:
        raise UsageError(f"{what} must be whole numbers with commas between them, got {text!r}") from None


def check_field(field: dataclasses.Field, value: Any) -> None:
    """Raise a `UsageError` where a value is not as the field's declaration says."""
    flag, facts = f"--{field.name}", field.metadata
    if facts.get("choices") and value is not None:
        for each in value if isinstance(value, tuple) else (value,):
            check_choice(flag, each, facts["choices"])
    if facts.get("positive") and value is not None:
        if field.type in (int, int | None) and not isinstance(value, int):
            raise UsageError(f"{flag} must be a whole number, got {value}")
        if not 0 < value < LARGEST:
            raise UsageError(f"{flag} must be positive{' and below 2**31' * (value > 0)}, got {value}")


def check_numbers(flag: str, items: Sequence[str] | None, rule: str, valid) -> None:
    """Raise a `UsageError` where an item is no number, or `valid(number)` is false."""
    for item in items or ():
        try:
            number = float(item)
        except ValueError:
            raise UsageError(f"{flag}={item} is no number; {rule}") from None
        if not valid(number):
            raise UsageError(f"{flag}={item} is out of range: {rule}")
