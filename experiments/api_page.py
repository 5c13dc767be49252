"""Two pages from the docstrings and the registry: the API, and the paper's index. Tests check that they are current.

python -m experiments.api_page     writes experiments/docs/api.md and experiments/docs/paper.md
"""

import ast
import importlib
import inspect
import pathlib
import re
import textwrap
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import sp_jax
from experiments.config import app
from experiments.specs import registry
from sp_jax.storage.atomic import write_whole

DOCS = pathlib.Path(__file__).parent / "docs"
MORE = (
    "types",
    "optimizer_state",
    "recalibration",
    "divergence",
    "evaluation_weights",
    "plasticity.methods",
    "plasticity.kinds",
    "data.arrival",
    "engine",
    "checkpoint",
)  # rooms that `sp_jax` does not name
SECTIONS = {
    "2.1": "Basic Batch Updating",
    "2.2": "Online Learning",
    "3": "Conventional Approaches",
    "3.1": "Is this an effect of batch size or learning rate?",
    "3.2": "How quickly is generalization damaged?",
    "3.3": "Is regularization helpful?",
    "4": "Shrink, Perturb, Repeat",
    "4.1": "The shrink and perturb trick and regularization",
    "4.2": "The shrink and perturb trick and pre-training",
    "8.2.1": "ResNet-18 on CIFAR-10",
    "8.2.2": "ResNet-18 on SVHN",
    "8.2.3": "MLP on CIFAR-10 (no batch normalization)",
    "8.2.4": "MLP on SVHN (no batch normalization)",
    "8.2.5": "ResNet-18 on CIFAR-10 with weight decay",
    "8.2.6": "ResNet-18 on SVHN with weight decay",
    "8.2.7": "Shrink and Perturb for Pre-Training",
}
ITEMS = (
    *(f"Section {number}" for number in SECTIONS),
    "Proposition 1",
    *(f"Table {number}" for number in range(1, 6)),
    *(f"Figure {number}" for number in range(1, 34)),
)
_NUMBER = r"\d+(?:\.\d+)*"
_ITEM = re.compile(rf"(Section|Figure|Table|Proposition)(s?)\s+({_NUMBER}(?:(?:,? and |, ?| to |-){_NUMBER})*)")


def references(text: str) -> list[str]:
    """The paper's items that a text names, in the paper's order.

    >>> references("Sections 2.2 and 4.1; Figures 2, 27-29 (Table 5's LL)")
    ['Section 2.2', 'Section 4.1', 'Table 5', 'Figure 2', 'Figure 27', 'Figure 28', 'Figure 29']
    """
    found = set()
    for kind, plural, numbers in _ITEM.findall(text):
        named = re.split(r",? and |, ?", numbers) if plural else [re.match(_NUMBER, numbers)[0]]
        for name in named:
            first, *last = re.split(r" to |-", name)
            through = range(int(first), int(last[0]) + 1) if last else [first]
            found |= {f"{kind} {number}" for number in through}
    return [item for item in ITEMS if item in found]


class Name(NamedTuple):
    """A public function, class or constant."""

    room: str  # the module that lists it
    name: str  # as it is imported: `sp_jax.shrink_perturb`
    value: Any

    @property
    def home(self) -> ModuleType:
        """The module that defines it."""
        there = inspect.getmodule(self.value) if self.is_documented else None
        return there or importlib.import_module(self.room)

    @property
    def is_documented(self) -> bool:
        """Whether it has a docstring of its own; constants have a comment."""
        return inspect.isclass(self.value) or inspect.isfunction(self.value)

    @property
    def paper(self) -> list[str]:
        """The paper's items that its docstring or a field's comment names, else those of its module."""
        own = inspect.getsource(self.value) if inspect.isclass(self.value) else inspect.getdoc(self.value) or ""
        return (references(own) if self.is_documented else []) or references(self.home.__doc__)


def rooms() -> list[ModuleType]:
    """The modules whose names are public: those that `sp_jax` names, a few more, and `experiments.trained`."""
    own = [name for name in sp_jax.__all__ if inspect.ismodule(getattr(sp_jax, name))]
    return [importlib.import_module(name) for name in (*(f"sp_jax.{n}" for n in (*own, *MORE)), "experiments.trained")]


def names() -> list[Name]:
    """All public functions and classes, and the constants of `sp_jax.__all__`, each once, by room."""
    found = {}
    for room in rooms():
        listed = getattr(room, "__all__", None)
        for name in listed or vars(room):
            value = getattr(room, name)
            short = name in sp_jax.__all__ and getattr(sp_jax, name) is value
            made = Name(room.__name__, f"{'sp_jax' if short else room.__name__}.{name}", value)
            public = made.is_documented or (short and not inspect.ismodule(value))
            here = listed or made.home is room
            if public and here and not name.startswith("_") and name != "main" and id(value) not in found:
                found[id(value)] = made
    return list(found.values())


def api() -> str:
    """The page of all public names, as Markdown."""
    by_room = {room.__name__: [] for room in rooms()}
    for each in names():
        by_room[each.room].append(each)
    parts = [
        "# API",
        "Written by `python -m experiments.api_page` from the docstrings. [paper.md](paper.md) leads from each "
        "section, table and figure of the paper to the code.",
        "\n".join(
            f"- [`{room}`](#{_anchor(room)}): {', '.join(_link(each) for each in found)}"
            for room, found in by_room.items()
        ),
    ]
    for room, found in by_room.items():
        parts += [f"## {room}", *_markdown(inspect.getdoc(importlib.import_module(room)))]
        for each in found:
            parts += [f"### {each.name}", *_entry(each)]
    return "\n\n".join(parts) + "\n"


def paper() -> str:
    """The index of the paper, and of the code's place in it, as Markdown."""
    public, rows = [(each, each.paper) for each in names()], [("paper", "experiments", "code")]
    for item in ITEMS:
        title = f": {SECTIONS[item.split()[1]]}" if item.startswith("Section") else ""
        runs = [f"`{name}`" for name in registry.NAMES if item in _items_of(name)]
        code = [_link(each, "api.md") for each, places in public if item in places]
        rows.append((f"{item}{title}", ", ".join(runs), ", ".join(code)))
    experiments = [("experiment", "paper", "what it shows")]
    for name, made in registry.EXPERIMENTS.items():
        experiments.append((f"[`{name}`](../specs/{name}.py)", ", ".join(_items_of(name)), made.summary))
    code = [("code", "paper")]
    code += [(_link(each, "api.md", each.name), ", ".join(places)) for each, places in public if places]
    parts = [
        "# From the paper to the code, and back",
        "Written by `python -m experiments.api_page` from the docstrings and the registry: *On Warm-Starting Neural "
        "Network Training* (Ash and Adams, NeurIPS 2020). An experiment runs as `python -m experiments.run "
        "--experiment=<name>`; [API](api.md) has the functions.",
        "## From the paper",
        _rows(rows),
        "## From the experiments",
        _rows(experiments),
        "## From the code",
        "What is not here is machinery, or a later method, whose own paper the [API](api.md) names.",
        _rows(code),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(lines):
    """A Markdown table, not aligned: links are long."""
    header, *others = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([header, "|---" * len(lines[0]) + "|", *others])


def _items_of(experiment):
    made = registry.EXPERIMENTS[experiment]
    title = importlib.import_module(f"experiments.specs.{experiment}").__doc__.split("\n\n")[0]
    return references(f"{made.paper}; {title}")


def _anchor(name):
    """That GitHub gives a heading."""
    return name.replace(".", "").lower()


def _link(each, page="", text=None):
    return f"[`{text or each.name.split('.')[-1]}`]({page}#{_anchor(each.name)})"


def _entry(each):
    """What stands below a name's heading."""
    places = ", ".join(each.paper)
    source = pathlib.Path(inspect.getsourcefile(each.home)).relative_to(DOCS.parents[1])
    where = f"Paper: {places}. " if places else ""
    yield f"{where}Source: [{source}](../../{source})"
    yield f"```python\n{_signature(each)}\n```"
    if each.is_documented:
        yield from _markdown(inspect.getdoc(each.value))
    for name, method in vars(each.value).items() if inspect.isclass(each.value) else ():
        method = getattr(method, "__func__", method)
        if (
            inspect.isfunction(method)
            and not name.startswith("_")
            and method.__doc__
            and method.__module__.startswith(each.home.__name__)
        ):
            yield f"```python\n{_header(method)}\n```"
            yield from _markdown(inspect.getdoc(method))


def _signature(each):
    """As it stands in the source: the header of a function, the fields of a class, a constant's line."""
    if inspect.isfunction(each.value):
        return _header(each.value)
    if not inspect.isclass(each.value):
        return re.search(rf"^{each.name.split('.')[-1]} = .*", inspect.getsource(each.home), re.MULTILINE)[0]
    source = textwrap.dedent(inspect.getsource(each.value))
    node = ast.parse(source).body[0]
    head = f"class {node.name}({', '.join(map(ast.unparse, node.bases))}):" if node.bases else f"class {node.name}:"
    lines = source.splitlines()
    fields = [
        line
        for n in node.body
        if isinstance(n, ast.AnnAssign | ast.Assign)
        for line in lines[n.lineno - 1 : n.end_lineno]
    ]
    return "\n".join([head, *fields])


def _header(function):
    """A function's name, arguments and result."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    node.body, node.decorator_list = [ast.Expr(ast.Constant(...))], []
    return ast.unparse(node).removesuffix(":\n    ...")


def _markdown(text: str) -> Iterator[str]:
    """A docstring's blocks: prose, examples and tables, `Args:` as a list."""
    for block in re.split(r"\n\s*\n", text):
        lines = block.splitlines()
        if lines[0].startswith(">>>"):
            yield f"```python\n{block}\n```"
        elif lines[0] in ("Args:", "Returns:", "Raises:", "Yields:"):
            yield f"**{lines[0].removesuffix(':')}**"
            yield _items(textwrap.dedent("\n".join(lines[1:])), named=lines[0] in ("Args:", "Raises:"))
        elif any(re.search(r"\S {2,}\S|^ {4}|^python -m", line) for line in lines):
            yield f"```text\n{textwrap.dedent(block)}\n```"
        else:
            yield block


def _items(text, *, named):
    """The entries of a section, each of which begins at the margin, as a list."""
    entries = re.split(r"\n(?=\S)", text) if named else [text]
    made = []
    for entry in entries:
        words = " ".join(entry.split())
        made.append(re.sub(r"^([*\w]+):", r"- `\1`:", words) if named else words)
    return "\n".join(made)


def main(argv: Sequence[str]) -> None:
    """Writes both pages."""
    with app.one_line_errors(argv):
        DOCS.mkdir(exist_ok=True)
        for name, text in (("api.md", api()), ("paper.md", paper())):
            write_whole(DOCS / name, text)
            print(DOCS / name)


if __name__ == "__main__":
    app.start(main)
