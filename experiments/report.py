"""Figures and tables from results; never trains. A folder of several runs also gets a summary of all.

python -m experiments.report --workdir=runs/online-20260101-120000
python -m experiments.report --workdir=experiments/results
"""

from collections.abc import Sequence

from absl import flags

from experiments.config import app
from experiments.config.fields import UsageError
from experiments.records import run_folder
from experiments.reporting import html, loaded_run, overview, run_report
from experiments.reporting.run_report import write
from sp_jax.storage.atomic import write_whole

__all__ = ["main", "write"]

flags.adopt_module_key_flags(app)


def main(argv: Sequence[str]) -> None:
    """Report on a run, or on each experiment below a folder."""
    with app.one_line_errors(argv):
        if not app.WORKDIR.value:
            raise UsageError("--workdir is missing: name a folder that experiments.run has written to")
        base = run_folder.expand(app.WORKDIR.value)
        folders = run_folder.subfolders(base)
        runs = []
        for folder in folders or [base]:
            runs.append(loaded_run.load(folder))
            print(f"{run_report.write_loaded(runs[-1])}\n\n{run_report.paths(folder)}")
        if len(runs) > 1:
            text = overview.text(runs)
            print(next(line for line in text.splitlines() if "numbers that the paper prints" in line))
            write_whole(base / "summary.html", html.render(text, "All runs"))
            write_whole(base / "summary.md", text)
            print(base / "summary.md")


if __name__ == "__main__":
    app.start(main)
