"""The report of a run: `report.md`, the same for a browser, and its figures."""

import inspect
import pathlib
import re

from experiments.config.settings import FIELDS
from experiments.config.streams import of_others
from experiments.config.sweep import several
from experiments.records import results
from experiments.reporting import claims, comparison, html, leaderboard, loaded_run, plotting, summary, verdicts
from experiments.reporting.loaded_run import LoadedRun
from sp_jax.data import EMBEDDED
from sp_jax.storage.atomic import write_whole


def write(folder: pathlib.Path) -> str:
    """Write `report.md`, the same as `report.html`, and `figures/` from the files of one experiment; return the table.

    Raises:
      UsageError: the folder holds no run, or a damaged one.
    """
    return write_loaded(loaded_run.load(folder))


def write_loaded(run: LoadedRun) -> str:
    """Write the report of a run that has been read; see `write`."""
    folder, figures = run.folder, _figures(run)
    text = _text(run, figures)
    pictures = {f"figures/{path.name}": path for path, _ in figures}
    write_whole(folder / "report.html", html.render(text, run.experiment.name, pictures))
    write_whole(folder / "report.md", text)  # the last: it says that all is written
    return leaderboard.table(run.board) if run.experiment.tuned else summary.table(run.rows, run.planned)


def paths(folder: pathlib.Path) -> str:
    """Return where a report lies, for people: the Markdown, and the page for a browser."""
    return f"{folder / 'report.md'}\n{folder / 'report.html'} (the same with its figures inside, for a browser)"


def is_newest(folder: pathlib.Path) -> bool:
    """Return whether a report stands beside the results and is not older."""
    made, rows = folder / "report.md", folder / "results.csv"
    return made.is_file() and rows.is_file() and made.stat().st_mtime_ns >= rows.stat().st_mtime_ns


def _figures(run):
    """Draw an experiment's figures: the PNG of each and its caption."""
    made, folder = [], run.folder / "figures"
    for name, options in run.experiment.figures:
        draw = getattr(plotting, name)
        options = {**options, "board": run.board} if run.experiment.tuned else options
        made += [(path, draw) for path in draw(run.rows, run.curves, folder, **options)]
    compared, same = comparison.compare(run.experiment.name, run.rows, run.planned)
    if same and run.is_comparable:
        draw = plotting.beside_the_paper
        made += [(path, draw) for path in draw(run.rows, compared, folder)]
    draws = [draw for _, draw in made]
    lost = "; lanes that ended by NaN are left out" if any(map(results.is_lost, run.rows)) else ""
    return [(path, _caption(draw, path if draws.count(draw) > 1 else None) + lost) for path, draw in made]


def _caption(draw, path):
    """Return what a plot shows, and which file of several it is."""
    words = inspect.getdoc(draw).splitlines()[0].rstrip(".")
    words = re.sub(r"^(Figures? [^:]+:)", r"As the paper's \1", words)
    return words + (f" ({path.stem.replace('_', ' ')})" if path else "")


def _text(run, figures):
    config, grid, experiment = run.config, run.grid, run.experiment
    typed = [word for word in config["command"][1:] if not word.startswith("--workdir")]
    synthetic = " The data are synthetic." if {*grid.values("dataset")} & {*EMBEDDED} else ""
    others = of_others(grid.streams)
    values = {name: grid.values(name) for name in FIELDS if name not in others}
    lines = [
        f"# {experiment.name} ({experiment.paper.strip('()')})",
        f"{experiment.summary[0].upper()}{experiment.summary[1:]}.{synthetic}",
        f"`{' '.join(['python -m experiments.run', *typed])}`",
        *_table(run),
        "## Figures" if figures else "",
        *(f"![{caption}](figures/{path.name})" for path, caption in figures),
        _claims(run),
        comparison.table(experiment.name, run.rows, run.planned) if run.is_comparable else "",
        comparison.nearest(experiment.nearest_to, run.rows) if experiment.nearest_to and run.is_comparable else "",
        "## Settings",
        run.missing(),
        "Settings: " + ", ".join(f"{k} = {several(v)}" for k, v in values.items() if v != (None,)) + ".",
        f"Machine: {config['device']}, {config['machine']}; "
        + ", ".join(f"{k} {v}" for k, v in config["versions"].items() if v)
        + ".",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _table(run):
    """Return the parts of a report that say how well what was run does."""
    if run.experiment.tuned:
        return [leaderboard.section(run.board)]
    return [
        summary.table(run.rows, run.planned),
        "Accuracies are means over the seeds; samples visited are the cost that depends on no machine, in brackets as "
        "a ratio to random init.",
    ]


def _claims(run):
    """Return the claims that the experiment tests, as a checklist."""
    found = check_claims(run)
    lines = [("claim", "of the paper", "ours", "test")]
    lines += [(str(n), claims.CLAIMS[n].text, finding.verdict, finding.text) for n, finding in found]
    return f"## Claims\n\n{verdicts.RULES}\n\n{summary.markdown(lines)}" if found else ""


def check_claims(run: LoadedRun) -> list[tuple[int, verdicts.Finding]]:
    """Test the claims of a run's experiment; see `claims.check`. There are none for other streams than the paper's."""
    if not run.is_of_the_paper:
        return []
    return claims.check(run.experiment.claims, run.rows, run.curves, run.planned, whole=run.has_all_rounds)
