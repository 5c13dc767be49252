"""What is kept in experiments/results, and what the page of results says of it, is what its rows give."""

import pathlib
import re

import pytest

from experiments.records import results, run_folder
from experiments.reporting import loaded_run, overview

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
FOLDERS = run_folder.subfolders(RESULTS)


def tables(text):
    """The lines of the tables in a Markdown text, spaces aside."""
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("| ")]


def test_the_summary_and_the_tables_of_the_page_of_results_are_what_the_rows_give():
    text = overview.text([loaded_run.load(folder) for folder in FOLDERS])
    assert (RESULTS / "summary.md").read_text() == text
    page = (ROOT / "experiments" / "docs" / "results.md").read_text()
    claims, numbers, _ = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert claims in page
    assert numbers in page
    (counted,) = re.findall(r"^\d+ of the \d+ numbers .*", text, re.MULTILINE)
    assert counted in page
    cells = [[cell.strip() for cell in line.split("|")] for line in numbers.splitlines()[2:]]
    far = [line[-2] for line in cells if line[6] and abs(float(line[6])) > 2]
    own = far.count("the paper's")
    assert f"Of the {len(far)} that do not, {len(far) - own} are" in counted
    assert f"; {own} have the paper's and" in counted


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_report_shows_the_figures_that_lie_beside_it(folder):
    text = (folder / "report.md").read_text()
    pictures = sorted(path.name for path in (folder / "figures").glob("*.png"))
    assert pictures
    assert all(f"figures/{name}" in text for name in pictures)
    assert results.read(folder / "results.csv")


def test_the_page_of_results_shows_the_summarys_tables():
    page = tables((ROOT / "experiments" / "docs" / "results.md").read_text())
    summary = tables((RESULTS / "summary.md").read_text())
    checklist = [line for line in summary if line.startswith(tuple(f"| {n} (" for n in range(1, 15)))]
    assert len(checklist) == 14
    numbers = [line for line in summary if line.startswith(("| table1_cifar10", "| two_phase_cifar10"))]
    shapes = (RESULTS / "mlp_shapes_cifar10" / "report.md").read_text().split("cifar10, mlp, adam:")[1]
    for line in (*checklist, *numbers, *tables(shapes)):
        assert line in page
