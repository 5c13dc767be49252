"""The switch between training and evaluation: usual names are known, others are given by the user (`switch=`)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_KNOWN = {  # names of arguments, and their value in training
    "train": True, "training": True, "is_training": True, "is_train": True,
    "deterministic": False, "use_running_average": False,
}  # fmt: skip


class Modes(NamedTuple):
    """The switches of a network, each with the value that it has in training."""

    of_call: Mapping[str, bool]
    of_module: Mapping[str, bool]  # attributes

    def arguments(self, train: bool) -> dict[str, bool]:
        """Return the arguments of a call."""
        return {name: value is train for name, value in self.of_call.items()}

    def attributes(self, train: bool) -> dict[str, bool]:
        """Return the attributes of the module."""
        return {name: value is train for name, value in self.of_module.items()}

    def others(self, parameters: Mapping[str, Any], module: Any) -> list[str]:
        """Return the other names that might be switches of a Linen module: of boolean arguments of its call
        (`parameters`, by name) with a default, and of boolean attributes."""
        flags = [name for name, parameter in parameters.items() if isinstance(parameter.default, bool)]
        flags += [name for name in type(module).__dataclass_fields__ if isinstance(getattr(module, name, None), bool)]
        return [name for name in dict.fromkeys(flags) if name not in (*self.of_call, *self.of_module)]


def find_modes(what: str, parameters: Mapping[str, Any], module: Any, switch: Mapping[str, bool] | None) -> Modes:
    """Return the switches of a network: the usual ones that its call has, and those that the user names (`switch`).

    `parameters` are those of its call, by name; of the module, which may be None, attributes may be switches.

    Raises:
      ValueError: a switch that is neither an argument nor an attribute, or whose value is no boolean.
    """
    usual = {n: value for n, value in _KNOWN.items() if n in parameters and getattr(module, n, None) is None}
    switch = dict(switch or {})
    for name, value in switch.items():
        if not isinstance(value, bool):
            raise ValueError(f"switch={switch} must say True or False, the value in training, got {value!r}")
        if name not in parameters and not hasattr(module, name):
            found = ", ".join(name for name in parameters if name != "self") or "none"
            raise ValueError(f"{what} has neither an argument nor an attribute {name!r}; its arguments are: {found}")
    of_call = {name: value for name, value in switch.items() if name in parameters}
    return Modes(usual | of_call, {name: value for name, value in switch.items() if name not in parameters})
