"""The guides of experiments/docs are true: their code runs, prints what stands there, and every command exists."""

import ast
import contextlib
import importlib
import io
import itertools
import pathlib
import re
import shlex

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import run
from experiments.config import setting_flags, sweep
from experiments.specs import registry

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "experiments" / "docs"
TINY = {  # what is made smaller here, so that a page takes seconds
    "retrain_every_day.md": {
        "(1000, 1500, 2000, 2500)": "(100, 150)",
        '("random_init", "warm_start", "shrink_perturb")': '("shrink_perturb",)',
        "x[:3000], y[:3000]": "x[:300], y[:300]",
    },
    "one_long_run.md": {"200": "4", "400": "8", "range(600)": "range(12)", "i % 100 == 99": "i % 2 == 1"},
    "compare_a_method.md": {"max_epochs=200": "max_epochs=2", "(250, 500, 750, 1000)": "(100, 200)"},
    "reproduce_the_paper.md": {},
    "in_your_own_code.md": {},
    "losing_plasticity.md": {"optax.adam(1e-3), 30, 24": "optax.adam(1e-3), 1, 4"},
    "nightly.md": {"np.array_split(order, 10)": "np.array_split(order, 10)[:2]"},
}


def blocks(text):
    """(language, content) of the fenced blocks."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def test_every_page_with_code_is_run():
    assert {page.name for page in DOCS.glob("*.md") if "```python" in page.read_text()} == {*TINY}


def masked(text):
    """Its lines without the numbers, which are a machine's own."""
    return {" ".join(re.sub(r"[-+]?[\d,.]*\d", "#", line).split()) for line in text.splitlines()}


@pytest.mark.slow
@pytest.mark.parametrize("page", TINY)
def test_the_code_of_a_guide_runs_and_prints_what_stands_there(page, tmp_path, monkeypatch):
    text = (DOCS / page).read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if page == "reproduce_the_paper.md":
        command(
            [
                "--workdir=runs/figure7",
                "--hidden=8,8",
                "--seeds=1",
                "--epochs=1",
                "--rounds=1",
                "--restart=shrink_perturb",
            ]
        )
    for large, small in TINY[page].items():
        assert large in text
        text = text.replace(large, small)
    names, found = {}, blocks(text)
    for (language, content), (following, shown) in zip(found, [*found[1:], ("", "")], strict=True):
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(content, page, "exec"), names)
            if out.getvalue():
                assert following == ""
                assert masked(out.getvalue()) <= masked(shown)


def command(arguments):
    with flagsaver.as_parsed(**dict(parse(each) for each in arguments)):
        run.main(["tests"])


def parse(argument, where="here"):
    name, _, value = argument.removeprefix("--").partition("=")
    if name not in flags.FLAGS and name.startswith("no"):
        return name[2:], "false"
    assert name in flags.FLAGS or name == "help", f"{where}: there is no flag --{name}"
    return name, value or "true"


def commands():
    """Every command line of the README, the guides and the modules' docstrings: (where, module, arguments)."""
    texts = {path: path.read_text() for path in (ROOT / "README.md", *DOCS.glob("*.md"))}
    sources = {path: ast.parse(path.read_text()) for path in (ROOT / "experiments").rglob("*.py")}
    for where, text in (texts | {path: ast.get_docstring(tree) or "" for path, tree in sources.items()}).items():
        for line in re.findall(r"python -m (experiments\.\w+[^`\n#]*)", text):
            module, *words = shlex.split(line)
            arguments = list(itertools.takewhile(lambda word: word.startswith("--"), words))  # then words for people
            if not re.search("<|=…", " ".join(arguments)):  # a form, not a command
                yield f"{where.name}: {line}", module, arguments


def test_every_command_that_is_written_down_can_be_given():
    """Of a run, the settings are worked out too; nothing is trained."""
    found = list(commands())
    assert len(found) > 60
    for where, module, arguments in found:
        if module == "experiments.benchmarks.transform_speed":  # has a flag of the other benchmark's name
            continue
        importlib.import_module(module)
        given = dict(parse(each, where) for each in arguments)
        if module == "experiments.run" and not {"resume", "help"} & {*given}:
            with flagsaver.as_parsed(**given):
                for name in given.get("experiment", "online").split(","):
                    preset = registry.get(name).presets[given.get("preset", "quick")]
                    assert sweep.resolve(preset, setting_flags.settings()).members(), where
