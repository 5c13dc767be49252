"""The grid of an experiment: variants of its settings, and in each the cells of its restarts."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.config.fields import UsageError
from experiments.config.settings import FIELDS, RestartSetting, Settings, as_value
from experiments.config.streams import check_own

Product = Mapping[str, tuple]  # setting -> the values that it takes


class Trial(NamedTuple):
    """One cell of one variant: what a group of lanes trains."""

    settings: Settings
    cell: RestartSetting
    variant: str  # what is special about the settings: "batch_size=16,"; empty where there is one variant

    @property
    def name(self) -> str:
        """Unique in a grid; names the checkpoint."""
        return self.variant.replace("/", "-") + self.cell.name

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.variant}{self.cell.restart} λ={self.cell.shrink} σ={self.cell.noise_scale}"


class Grid(NamedTuple):
    """The variants of an experiment: a base, and a union of products of settings that vary."""

    base: Settings
    vary: tuple[Product, ...] = ({},)

    @property
    def variants(self) -> tuple[Settings, ...]:
        """Each once."""
        made = (
            dataclasses.replace(self.base, **dict(zip(product, values, strict=True)))
            for product in self.vary
            for values in itertools.product(*product.values())
        )
        return tuple(dict.fromkeys(made))

    @property
    def varied(self) -> tuple[str, ...]:
        """The settings that are not the same in all variants, and a method that is at work in all of them; which
        restarts a variant has is no such setting."""
        variants = self.variants
        grids = ("restart", "pairs", "shrink", "noise_scale")
        values = {f: {getattr(v, f) for v in variants} for f in FIELDS if f not in grids}
        always = {"method": {"none"}, "method_strength": {None}}
        return tuple(f for f, found in values.items() if len(found) > 1 or found != always.get(f, found))

    @property
    def streams(self) -> set[str]:
        """The streams of tasks of all variants, and those that they share programs with."""
        return {name for each in self.variants for name in (each.task_stream, *(each.with_streams or ()))}

    def members(self) -> tuple[Trial, ...]:
        """Every cell of every variant, each once."""
        found, varied = {}, self.varied
        for settings in self.variants:
            variant = "".join(f"{field}={several([getattr(settings, field)])}," for field in varied)
            members = (Trial(settings, cell, variant) for cell in settings.cells())
            found |= {member.name: member for member in members}
        return tuple(found.values())

    def values(self, field: str) -> tuple:
        """Return the values that a setting takes, each once."""
        return tuple(dict.fromkeys(getattr(settings, field) for settings in self.variants))

    def asked(self, field: str) -> tuple:
        """Return the values that a flag of this setting would have given: those that vary, else the base's."""
        varied = dict.fromkeys(value for product in self.vary for value in product.get(field, ()))
        return tuple(varied) or (getattr(self.base, field),)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        vary = [{name: list(values) for name, values in product.items()} for product in self.vary]
        return {"settings": self.base.to_json(), "vary": vary}

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "Grid":
        """Undo `to_json`."""
        vary = tuple(
            {name: as_value(values) for name, values in product.items()} for product in config.get("vary", [{}])
        )
        return cls(Settings.from_json(config["settings"]), vary)


def resolve(preset: Mapping[str, Any], explicit: Product) -> Grid:
    """Make the grid of a preset and of the flags that were given.

    Args:
      preset: settings; under `vary` a tuple of products, or a function that makes them of the flags that were given and
        returns them and the names of the flags that it has used. No `vary` is one product of nothing.
      explicit: each flag's value, or its values where several were given. A setting that the preset varies takes these
        values instead, in the products that vary it; others that have several vary in all products. Of restarts, models
        and optimisers a product keeps its own: `--model=mlp` leaves out the product of a ResNet.

    Returns:
      The `Grid`.

    Raises:
      UsageError: a value that makes no sense.
    """
    base = {name: value for name, value in preset.items() if name != "vary"}
    products = preset.get("vary", ({},))
    if "contenders" in explicit and not callable(products):
        raise UsageError("--contenders goes with --experiment=plasticity; see --method")
    if callable(products):
        products, used = products(explicit)
        explicit = {name: values for name, values in explicit.items() if name not in used}
    others = {name: values for name, values in explicit.items() if not any(name in product for product in products)}
    base |= {name: values[0] for name, values in others.items()}
    several = {name: values for name, values in others.items() if len(values) > 1}
    overridden = (_override(product, explicit, products) for product in products)
    vary = tuple(product | several for product in overridden if product is not None)
    if not vary:
        own = [name for product in products for names in product["restart"] for name in names]
        raise UsageError(f"--restart leaves nothing of this experiment, which has {', '.join(dict.fromkeys(own))}")
    grid = Grid(Settings(**base), vary)
    check_own(explicit, grid.streams)  # each variant is checked as it is made
    return grid


def several(values: Sequence[Any]) -> str:
    """Return values as they are typed, with commas; where one value has commas, with `and` between the values."""
    typed = [",".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values]
    return (" and " if any("," in one for one in typed) else ",").join(typed)


def _override(product, explicit, products):
    """Return a product with the flags' values in place of its own; None where nothing that it trains is asked for."""
    made = {name: explicit.get(name, values) for name, values in product.items()}
    if "restart" in product and "restart" in explicit:  # restarts of other products stay there
        (own,), (asked,) = product["restart"], explicit["restart"]
        made["restart"] = (tuple(name for name in asked if name in own),)
    for name in {"model", "optimizer"} & product.keys() & explicit.keys():  # and so do models; what none has is new
        elsewhere = {value for other in products for value in other.get(name, ())} - {*product[name]}
        made[name] = tuple(value for value in explicit[name] if value not in elsewhere)
    empty = made.get("restart") == ((),) or () in made.values()
    return None if empty else made
