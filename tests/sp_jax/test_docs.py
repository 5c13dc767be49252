"""What is written is true: docstring examples run, the README's code runs, every public name is documented."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import pydoc
import re

import pytest

import sp_jax
from experiments import api_page

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "experiments" / "docs"
MODULES = ["sp_jax", *(m.name for m in pkgutil.walk_packages(sp_jax.__path__, "sp_jax."))]
ORDER = [
    "types",
    "random",
    "filters",
    "transforms",
    "layouts",
    "growth",
    "optimizer_state",
    "periodic",
    "plasticity",
    "data",
    "models",
    "penalties",
    "recalibration",
    "restarts",
    "training",
    "frozen",
    "divergence",
    "evaluation_weights",
    "diagnostics",
    "files",
    "checkpoint",
    "networks",
    "program",
    "engine",
    "side_by_side",
    "streaming",
    "sweeps",
    "preparing",
    "fitting",
]


@pytest.mark.parametrize("name", [*MODULES, "experiments.api_page"])
def test_docstring_examples_run(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


def test_there_are_docstring_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 5


def test_the_readmes_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_readmes_links_and_flags_exist():
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (ROOT / path).exists(), path
    from experiments.config.settings import Settings

    known = {"experiment", "preset", "workdir", "resume", "list", "help", "data_dir", "cache_dir", "stream", "nostream"}
    known |= {"dry_run", "tensorboard", "logdir"}  # the last is TensorBoard's
    known |= {"coordinator", "num_processes", "process_id", "devices_per_lane", "side_by_side"}
    known |= {"checkpoint_seconds", "kills", "xla_gpu_deterministic_ops"}
    known |= {"case", "against", "lanes", "cores", "repeats", "seconds"}
    known |= set(Settings.__dataclass_fields__)
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


def test_imports_run_one_way():
    for path in (ROOT / "sp_jax").rglob("*.py"):
        room = path.relative_to(ROOT / "sp_jax").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                parts = name.split(".")
                assert parts[0] != "experiments", path
                if parts[0] == "sp_jax":
                    assert ORDER.index(parts[1]) <= ORDER.index(room), f"{path} imports {name}"
    for leaf in ("models", "data"):
        text = "".join(p.read_text() for p in (ROOT / "sp_jax" / leaf).rglob("*.py"))
        used = set(re.findall(r"from sp_jax\.?(\w*) import|from sp_jax import (\w+)", text))
        assert {a or b for a, b in used} <= {leaf, "types", "random"}


@pytest.fixture(scope="module")
def pages():
    return {"api.md": api_page.api(), "paper.md": api_page.paper()}


@pytest.mark.parametrize("page", ["api.md", "paper.md"])
def test_the_pages_from_docstrings_are_current(pages, page):
    same = (DOCS / page).read_text() == pages[page]
    assert same, "run: python -m experiments.api_page"


def test_every_public_name_is_on_the_api_page(pages):
    headings = set(re.findall(r"^### (.*)$", pages["api.md"], re.MULTILINE))
    assert {name for name in PUBLIC if not inspect.ismodule(pydoc.locate(name))} <= headings
    assert {f"sp_jax.{name}" for name in sp_jax.__all__ if inspect.ismodule(getattr(sp_jax, name))} <= set(
        re.findall(r"^## (.*)$", pages["api.md"], re.MULTILINE)
    )


def test_the_index_leads_from_every_table_and_figure_to_an_experiment(pages):
    rows = re.findall(r"^\| ((?:Table|Figure) \d+) \| (.*?) \|", pages["paper.md"], re.MULTILINE)
    assert len(rows) == 5 + 33
    for item, experiments in rows:
        assert "`" in experiments, item
    for item in re.findall(r"^\| ((?:Section|Proposition) [^|]*) \|  \|  \|$", pages["paper.md"], re.MULTILINE):
        pytest.fail(f"{item} has neither an experiment nor code")


SUBJECT = (
    "transforms",
    "restarts",
    "penalties",
    "diagnostics",
    "training",
    "models.ResNet",
    "models.MLP",
    "models.BiRNN",
)


def test_what_the_paper_is_about_names_its_place_there():
    places = {name.name: name for name in api_page.names()}
    checked = [n for n in places.values() if f"{n.room}.{n.name}".startswith(tuple(f"sp_jax.{s}" for s in SUBJECT))]
    assert len(checked) > 30
    for name in checked:
        assert name.paper, name.name


def test_links_between_the_pages_lead_somewhere(pages):
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
                assert anchor in {h.lower().replace(".", "") for h in headings}, f"{page.name}: {link}"
