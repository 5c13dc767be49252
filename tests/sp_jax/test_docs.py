"""What is written is true: docstring examples run, the README's code runs, every public name is documented."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import pydoc
import re
import sys

import pytest
from absl import flags

import sp_jax
from experiments import benchmark, retrain, run  # noqa: F401  (they define the flags)
from experiments.specs import registry

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "experiments" / "docs"
MODULES = ["sp_jax", *(m.name for m in pkgutil.walk_packages(sp_jax.__path__, "sp_jax."))]


@pytest.mark.parametrize("name", [*MODULES, __name__])
def test_docstring_examples_run(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 5


@pytest.mark.slow
def test_the_readmes_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1_500


def test_the_readme_leads_to_every_page():
    links = set(re.findall(r"\]\((?!http)([^)]+)\)", (ROOT / "README.md").read_text()))
    for path in links:
        assert (ROOT / path).exists(), path
    assert {page.relative_to(ROOT).as_posix() for page in DOCS.glob("*.md")} <= links


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_the_flags_of_a_page_exist(page):
    text = page.read_text()
    known = {*flags.FLAGS, *(f"no{name}" for name in flags.FLAGS)}
    known |= {"evaluate", "help"}  # of experiments.trained, and absl
    known |= {"docformat", "logdir", "kills", "xla_gpu_deterministic_ops"}  # of pdoc, TensorBoard, tests/soak.py, XLA
    assert set(re.findall(r"--([a-z]\w+)", text)) <= known


PUBLIC = [f"{room.__name__}.{name}" for room in (sp_jax, sp_jax.plasticity) for name in room.__all__]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(pydoc.locate(name))]
SOURCE = r"Section|Figure|Table|Proposition|et al\.|paper|optax|Flax|Keras"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    assert inspect.getdoc(pydoc.locate(name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_follow_the_rules_of_the_house(name):
    """Key first, options by keyword alone, and a docstring of each argument, result, error and source."""
    function = pydoc.locate(name)
    words, signature = inspect.getdoc(function), inspect.signature(function).parameters
    assert "Args:" in words
    assert "Returns:" in words or inspect.signature(function).return_annotation is None
    for i, parameter in enumerate(signature.values()):
        assert re.search(rf"\b{parameter.name}\b", words), parameter
        positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert not (positional and parameter.name == "key" and i > 0)
        assert not (positional and parameter.default is not inspect.Parameter.empty) or name in POSITIONAL_DEFAULTS
    if re.search(r"\braise\b|check_|shrink_perturb\(", inspect.getsource(function).split('"""')[-1]):
        assert "Raises:" in words
    module = inspect.getdoc(inspect.getmodule(function))
    assert re.search(SOURCE, words + module)


POSITIONAL_DEFAULTS = (  # a mask, arrivals, what optax's have
    *("sp_jax.plasticity.dormancy", "sp_jax.fit_rounds"),
    *("sp_jax.adam_per_entry", "sp_jax.scale_by_adam_per_entry"),
)


INDEX = (DOCS / "paper.md").read_text()
_NUMBER = r"\d+(?:\.\d+)*"
_ITEM = re.compile(rf"(Section|Figure|Table|Proposition)(s?)\s+({_NUMBER}(?:(?:,? and |, ?| to |-){_NUMBER})*)")


def references(text):
    """The paper's items that a text names.

    >>> sorted(references("Sections 2.2 and 4.1; Figures 2, 27-29 (Table 5's LL)"))
    ['Figure 2', 'Figure 27', 'Figure 28', 'Figure 29', 'Section 2.2', 'Section 4.1', 'Table 5']
    """
    found = set()
    for kind, plural, numbers in _ITEM.findall(text):
        for name in re.split(r",? and |, ?", numbers) if plural else [re.match(_NUMBER, numbers)[0]]:
            first, *last = re.split(r" to |-", name)
            through = range(int(first), int(last[0]) + 1) if last else [first]
            found |= {f"{kind} {number}" for number in through}
    return found


def places(value):
    """The paper's items that a docstring or a field's comment names."""
    return references(inspect.getsource(value) if inspect.isclass(value) else inspect.getdoc(value) or "")


def shown(name):
    """The paper's items that an experiment shows."""
    title = importlib.import_module(f"experiments.specs.{name}").__doc__.split("\n\n")[0]
    return references(f"{registry.EXPERIMENTS[name].paper}; {title}")


def rows(heading):
    """The cells of the index's table below a heading, by the first."""
    table = INDEX.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in lines[2:]}


@pytest.mark.parametrize(("item", "cells"), rows("From the paper").items())
def test_the_index_leads_from_the_paper_to_experiments_and_code(item, cells):
    experiments, code = cells
    item = item.split(":")[0]
    assert re.findall(r"`(\w+)`", experiments) == [name for name in registry.NAMES if item in shown(name)]
    assert experiments or (code and item.startswith(("Section", "Proposition")))
    for name, path in re.findall(r"\[`(.*?)`\]\((.*?)\)", code):
        value = pydoc.locate(name)
        assert (DOCS / path).resolve() == pathlib.Path(inspect.getsourcefile(value)), name
        assert item in places(value) | places(inspect.getmodule(value)), name
    for value in {pydoc.locate(name) for name in FUNCTIONS}:
        assert item not in places(value) or f".{value.__name__}`" in code, value


def test_the_index_has_all_tables_figures_and_experiments():
    items = [item for item in rows("From the paper") if item.startswith(("Table", "Figure"))]
    assert items == [*(f"Table {n}" for n in range(1, 6)), *(f"Figure {n}" for n in range(1, 34))]
    found = {re.search(r"`(\w+)`", name)[1]: cells for name, cells in rows("From the experiments").items()}
    assert list(found) == list(registry.NAMES)
    for name, (paper, summary) in found.items():
        assert (references(paper), summary) == (shown(name), registry.EXPERIMENTS[name].summary)


SUBJECT = tuple(f"sp_jax.{m}" for m in ("transforms.arithmetic", "restarts", "penalties", "diagnostics", "training"))


def test_what_the_paper_is_about_names_its_place_there():
    checked = 0
    for module in map(importlib.import_module, [m for m in MODULES if m.startswith(SUBJECT)]):
        for name, value in vars(module).items():
            own = inspect.isfunction(value) or inspect.isclass(value)
            if own and not name.startswith("_") and value.__module__ == module.__name__:
                assert places(value) | places(module) | places(sys.modules[module.__package__]), name
                checked += 1
    assert checked > 30


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {h.lower().replace(".", "") for h in headings}, f"{page.name}: {link}"


GROUP = "sp_jax.methods"  # of entry points, no module


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_the_names_on_a_page_exist(page):
    for name in {*re.findall(r"`((?:sp_jax|experiments)(?:\.\w+)+)", page.read_text())} - {GROUP}:
        assert pydoc.locate(name) is not None, f"{page.name}: {name}"
