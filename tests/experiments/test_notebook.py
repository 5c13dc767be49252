"""The notebook for Colab: every cell runs on a CPU, and what is committed reads well without running.

`python tests/test_notebook.py` runs it at full size, some minutes, and keeps the outputs in it. Remove
`runs/colab` first, or it finds everything done.
"""

import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[2] / "experiments" / "colab.ipynb"


def executed(**settings):
    """The notebook after a run in its own folder, as Jupyter starts it; settings replace those of its first cell."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in settings.items():
        first.source, found = re.subn(rf'^{name} = "[^"]*"', f'{name} = "{value}"', first.source, flags=re.MULTILINE)
        assert found == 1, name
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=3600, coalesce_streams=True, record_timing=False, resources=resources).execute()
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook):
    """All that is printed or shown, but pictures."""
    parts = [{"text": output.get("text", "")} | output.get("data", {}) for output in outputs(notebook)]
    return "".join(str(text) for part in parts for kind, text in part.items() if not kind.startswith("image/"))


def figures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


# Jupyter's own libraries warn.
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_every_cell_runs_on_a_cpu(tmp_path, monkeypatch):
    dataset = "cifar10" if os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "cifar10")) else "mixture"
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    for name, value in {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",  # as many as a TPU of eight cores has
        "JAX_COMPILATION_CACHE_DIR": os.environ["SP_JAX_TESTS_CACHE"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }.items():
        monkeypatch.setenv(name, value)
    notebook = executed(SIZE="tiny", RUNS=tmp_path, DATASET=dataset)
    said = texts(notebook)
    assert "8 x cpu" in said
    assert not re.search(r"^error|Traceback", said, re.MULTILINE)
    assert figures(notebook) == 4
    for run, rows in (("online", 5 * 1 * 1), ("cifar10", 4 * 2 * 2)):  # settings, seeds, rounds
        assert len((tmp_path / run / "results.csv").read_text().splitlines()) == 1 + rows
        assert "8 x cpu" in (tmp_path / run / "config.json").read_text()


def test_the_committed_notebook_reads_well_without_running():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 500_000
    assert figures(notebook) == 4
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert {output.output_type for output in outputs(notebook)} == {"stream", "display_data"}
    said = texts(notebook)
    assert not re.search(r"^error|Traceback|Warning|/home/|/root/|/tmp/|\x1b", said, re.MULTILINE)


def test_the_notebooks_code_is_formatted_and_linted():
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, NOTEBOOK], check=True)


if __name__ == "__main__":
    new = executed()
    for output in outputs(new):
        if "text" in output:
            output["text"] = output["text"].replace("\x1b[K", "")  # what clears a line on a terminal
    nbformat.write(new, NOTEBOOK)
