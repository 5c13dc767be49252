"""Figures and tables from results; never trains. A folder of several runs also gets a summary of all.

python -m experiments.report --workdir=runs/online-20260101-120000
python -m experiments.report --workdir=experiments/results
"""

import inspect
import pathlib
import re
from collections.abc import Sequence

from absl import flags

from experiments.config import app
from experiments.config.settings import FIELDS, UsageError
from experiments.config.sweep import Grid, resolve, several
from experiments.records import results, run_folder
from experiments.reporting import claims, comparison, html, plotting, summary, verdicts
from experiments.reporting.plotting import style
from experiments.specs import registry
from sp_jax.storage.atomic import write_whole

flags.adopt_module_key_flags(app)

NO_SETTING = (*results.MEASURED, *summary.LANE)  # columns that may be named as a setting is


def write(folder: pathlib.Path) -> str:
    """Writes `report.md`, the same as `report.html`, and `figures/` from a run's `config.json` and `results.csv`.

    Args:
      folder: of one experiment.

    Returns:
      The table, as Markdown.

    Raises:
      UsageError: the folder holds no run, or a damaged one.
    """
    config = run_folder.read_config(folder)
    experiment, grid = registry.get(config["experiment"]), Grid.from_json(config)
    rows = results.read(folder / "results.csv")
    if not rows:
        raise UsageError(f"{folder / 'results.csv'} holds no finished round yet")
    curves = results.read_curves(folder / "curves.csv")
    figures = _figures(experiment, grid, rows, curves, _planned(config, grid, rows), folder / "figures")
    text = _report(config, grid, rows, curves, figures)
    pictures = {f"figures/{path.name}": path for path, _ in figures}
    write_whole(folder / "report.html", html.render(text, experiment.name, pictures))
    write_whole(folder / "report.md", text)  # the last: it says that all is written
    return summary.table(rows, _planned(config, grid, rows))


def paths(folder: pathlib.Path) -> str:
    """Where a report lies, for people: the Markdown, and the page for a browser."""
    return f"{folder / 'report.md'}\n{folder / 'report.html'} (the same with its figures inside, for a browser)"


def is_newest(folder: pathlib.Path) -> bool:
    """Whether a report stands beside the results and is not older."""
    made, rows = folder / "report.md", folder / "results.csv"
    return made.is_file() and rows.is_file() and made.stat().st_mtime_ns >= rows.stat().st_mtime_ns


def _figures(experiment, grid, rows, curves, planned, folder):
    """Draws an experiment's figures: the PNG of each and its caption."""
    made = []
    for name, options in experiment.figures:
        draw = getattr(plotting, name)
        made += [(path, draw) for path in draw(rows, curves, folder, **options)]
    compared, same = comparison.compare(experiment.name, rows, planned)
    if same and _is_whole(experiment, grid):
        draw = plotting.beside_the_paper
        made += [(path, draw) for path in draw(rows, compared, folder)]
    plots = [draw for _, draw in made]
    lost = "; lanes that ended by NaN are left out" if any(map(summary.is_lost, rows)) else ""
    return [(path, _caption(draw, path if plots.count(draw) > 1 else None) + lost) for path, draw in made]


def _caption(draw, path):
    """What a plot shows, and which file of several it is."""
    words = inspect.getdoc(draw).splitlines()[0].rstrip(".")
    words = re.sub(r"^(Figures? [^:]+:)", r"As the paper's \1", words)
    return words + (f" ({path.stem.replace('_', ' ')})" if path else "")


def _report(config, grid, rows, curves, figures):
    experiment = registry.get(config["experiment"])
    typed = [word for word in config["command"][1:] if not word.startswith("--workdir")]
    planned = _planned(config, grid, rows)
    synthetic = " The data are synthetic." if {*grid.values("dataset")} & {*style.SYNTHETIC} else ""
    values = {name: grid.values(name) for name in FIELDS}
    lines = [
        f"# {experiment.name} ({experiment.paper.strip('()')})",
        f"{experiment.summary[0].upper()}{experiment.summary[1:]}.{synthetic}",
        f"`{' '.join(['python -m experiments.run', *typed])}`",
        summary.table(rows, planned),
        "Accuracies are means over the seeds; samples visited are the cost that depends on no machine, in brackets as "
        "a ratio to random init.",
        "## Figures" if figures else "",
        *(f"![{caption}](figures/{path.name})" for path, caption in figures),
        _claims(experiment, rows, curves, planned, whole=_is_whole(experiment, grid)),
        comparison.table(experiment.name, rows, planned) if _is_whole(experiment, grid) else "",
        "## Settings",
        _missing(config, grid, rows),
        "Settings: " + ", ".join(f"{k} = {several(v)}" for k, v in values.items() if v != (None,)) + ".",
        f"Machine: {config['device']}, {config['machine']}; "
        + ", ".join(f"{k} {v}" for k, v in config["versions"].items() if v)
        + ".",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def overview(folders: Sequence[pathlib.Path]) -> str:
    """All claims and all of the paper's numbers over several runs, as Markdown.

    Args:
      folders: of one experiment each.

    Returns:
      The text: a checklist of the claims, the paper's numbers beside ours, every test of every claim.
    """
    tested, compared, numbers = [], [], [("run", *comparison.HEADER, "setting")]
    for folder in folders:
        config = run_folder.read_config(folder)
        experiment, grid = registry.get(config["experiment"]), Grid.from_json(config)
        rows, curves = results.read(folder / "results.csv"), results.read_curves(folder / "curves.csv")
        planned, whole = _planned(config, grid, rows), _is_whole(experiment, grid)
        checked = claims.check(experiment.claims, rows, curves, planned, whole=whole)
        tested += [(number, folder.name, finding) for number, finding in checked]
        found, same = comparison.compare(experiment.name, rows, planned)
        if whole and same:
            ran = [each for each in found if each.ours is not None]
            compared += ran
            setting = _setting(experiment, grid)
            numbers += [(folder.name, *comparison.cells(each, same=True), setting) for each in ran]
    tested.sort(key=lambda item: item[0])
    every = [("claim", "run", "verdict", "test")]
    every += [(str(n), run, finding.verdict, finding.text) for n, run, finding in tested]
    parts = [
        "# Claims and numbers of all runs",
        "Written by `python -m experiments.report` from the runs in this folder; each has a report of its own.",
        "## The paper's claims",
        verdicts.RULES,
        "Runs are named; a number in brackets counts the tests in a run.",
        summary.markdown(_checklist(tested)),
        "## The paper's numbers beside ours",
        comparison.count(compared),
        "Where data set, model and optimiser are the paper's; accuracies are on a random third, times are ratios to "
        f"random init. {comparison.ERRORS}",
        summary.markdown(numbers),
        "## Every test of every claim",
        summary.markdown(every),
    ]
    return "\n\n".join(parts) + "\n"


def _checklist(tested):
    """Each claim with the runs that bear it out, contradict it or cannot say."""
    lines = [("claim", "of the paper", "holds", "contradicted", "undecided")]
    for number, claim in claims.CLAIMS.items():
        cells = []
        for verdict in (verdicts.HOLDS, verdicts.CONTRADICTED, verdicts.UNDECIDED):
            runs = [run for n, run, finding in tested if n == number and finding.verdict == verdict]
            counts = {run: runs.count(run) for run in runs}
            cells.append(", ".join(run + (f" ({count})" if count > 1 else "") for run, count in counts.items()))
        lines.append((f"{number} ({claim.section})", claim.text, *cells))
    return lines


def _setting(experiment, grid):
    """Where the settings of a run are not the paper preset's."""
    paper = resolve(experiment.presets["paper"], {})
    free = (
        "dataset",
        "model",
        "optimizer",
        "seeds",
        "restart",
        "pairs",
        "shrink",
        "noise_scale",
        "curves",
        "keep_networks",
    )
    resnet = "resnet18" in grid.values("model")
    names = [name for name in FIELDS if name not in free and (resnet or name not in ("width", "stage_sizes"))]
    words = [
        f"{name}={several(grid.values(name))}" for name in names if not {*grid.values(name)} <= {*paper.values(name)}
    ]
    return ", ".join(words) or "the paper's"


def _is_whole(experiment, grid):
    """Whether a run has all of the experiment's rounds, so that its last ones are the paper's."""
    return grid.base.rounds in (None, *(preset.get("rounds") for preset in experiment.presets.values()))


def _claims(experiment, rows, curves, planned, *, whole):
    """The claims that this experiment tests, as a checklist."""
    found = claims.check(experiment.claims, rows, curves, planned, whole=whole)
    lines = [("claim", "of the paper", "ours", "test")]
    lines += [(str(n), claims.CLAIMS[n].text, finding.verdict, finding.text) for n, finding in found]
    return f"## Claims\n\n{verdicts.RULES}\n\n{summary.markdown(lines)}" if found else ""


def _planned(config, grid, rows):
    """Returns how far each line goes in the end; lines without a row are named by what sets them apart, too."""
    names, rounds, made = summary.varied(rows), config.get("rounds", {}), {}
    same = {n: results.text(value) for n, value in rows[0].items() if n in FIELDS and n not in (*names, *NO_SETTING)}
    for member in grid.members():
        other = [n for n in same if results.text(getattr(member.settings, n)) != same[n]]
        variant = tuple((name, results.text(getattr(member.settings, name))) for name in (*names, *other))
        plan = summary.Plan(rounds.get(member.name, len(config["arrivals"])), member.settings.seeds)
        made[summary.Line(variant, member.cell)] = plan
    return made


def _missing(config, grid, rows):
    """What a partial run lacks: how many rounds, and which members of the grid have no row."""
    members, rounds = grid.members(), config.get("rounds", {})
    wanted = sum(m.settings.seeds * rounds.get(m.name, len(config["arrivals"])) for m in members)
    if len(rows) >= wanted:
        return ""
    names = [name for name in grid.varied if name in rows[0]]
    have = {(row["restart"], row["shrink"], row["noise_scale"], *(results.text(row[n]) for n in names)) for row in rows}
    absent = [m.label for m in members if (*m.cell, *(results.text(getattr(m.settings, n)) for n in names)) not in have]
    text = f"Partial: {len(rows):,} of {wanted:,} lane-rounds are finished."
    return text + (f" Not run: {'; '.join(absent)}." if absent else "")


def main(argv: Sequence[str]) -> None:
    """Reports on a run, or on each experiment below a folder."""
    with app.one_line_errors(argv):
        if not app.WORKDIR.value:
            raise UsageError("--workdir is missing: name a folder that experiments.run has written to")
        base = run_folder.expand(app.WORKDIR.value)
        runs = run_folder.subfolders(base)
        for folder in runs or [base]:
            print(f"{write(folder)}\n\n{paths(folder)}")
        if len(runs) > 1:
            text = overview(runs)
            print(next(line for line in text.splitlines() if "numbers that the paper prints" in line))
            write_whole(base / "summary.html", html.render(text, "All runs"))
            write_whole(base / "summary.md", text)
            print(base / "summary.md")


if __name__ == "__main__":
    app.start(main)
