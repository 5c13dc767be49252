"""The structure of the code, read from its imports: rooms know one another one way, without cycles."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# From the ground up: a room imports from itself and from those before it.
ROOMS = [
    "sp_jax.types", "sp_jax.errors", "sp_jax.random", "sp_jax.tracing", "sp_jax.tasks", "sp_jax.augmentation",
    "sp_jax.transforms", "sp_jax.plasticity", "sp_jax.data", "sp_jax.layers", "sp_jax.models", "sp_jax.penalties",
    "sp_jax.restarts", "sp_jax.divergence", "sp_jax.training", "sp_jax.diagnostics", "sp_jax.storage", "sp_jax.engine",
    "sp_jax.sweeps", "sp_jax.fitting", "sp_jax", "experiments.config", "experiments.specs", "experiments.records",
    "experiments.reporting", "experiments.running", "experiments.benchmarks", "experiments.nightly", "experiments",
]  # fmt: skip
MOST_FILES = 13  # of a folder, its __init__ aside
LISTS = {"experiments/specs", "sp_jax/plasticity"}  # a file for each experiment, and for each method
FILES = sorted(path for top in ("sp_jax", "experiments") for path in (ROOT / top).rglob("*.py"))


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def room(name):
    """Return the room of a module: the longest that its name begins with."""
    return max((each for each in ROOMS if name == each or name.startswith(f"{each}.")), key=len)


def imported(path):
    """Return the project's modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name in MODULES else node.module for name in inside]
        else:
            continue
        yield from (name for name in found if name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    """A lower room imports no higher one, and the library no experiment."""
    for other in imported(MODULES[name]):
        assert ROOMS.index(room(other)) <= ROOMS.index(room(name)), f"{name} imports {other}"


def test_modules_import_one_another_in_no_circle():
    """Faces of packages, which hand on the names of their own files, are left out."""
    edges = {name: set(imported(path)) for name, path in MODULES.items() if path.name != "__init__.py"}
    done = set()

    def visit(name, way):
        assert name not in way, " -> ".join([*way, name])
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, [*way, name])
            done.add(name)

    for name in edges:
        visit(name, [])


def test_folders_are_small_and_the_binaries_lie_on_top():
    for folder in sorted({path.parent for path in FILES}):
        own = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(own) <= MOST_FILES or folder.relative_to(ROOT).as_posix() in LISTS, folder
    on_top = {path.name for path in (ROOT / "experiments").glob("*.py")}
    assert on_top == {"__init__.py", "run.py", "report.py", "benchmark.py", "trained.py", "retrain.py"}


def test_local_names_do_not_hide_imports():
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        imported = {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Lambda))]
        for node in {each for function in functions for each in ast.walk(function) if each is not function}:
            match node:
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                    found += [f"{path.relative_to(ROOT)}:{node.lineno} {name}"] if name in imported else []
    assert not found
