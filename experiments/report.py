"""Figures and tables from results; never trains.

python -m experiments.report --workdir=runs/online-20260101-120000
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import cli, plotting, registry, results, summary, workdir
from experiments.settings import Settings, UsageError

flags.adopt_module_key_flags(cli)


def write(folder: pathlib.Path) -> str:
    """Writes `report.md` and `figures/*.png` from a run's `config.json` and `results.csv`.

    Args:
      folder: of one experiment.

    Returns:
      The table, as Markdown.

    Raises:
      UsageError: the folder holds no run, or a damaged one.
    """
    config = workdir.read_config(folder)
    experiment = registry.get(config["experiment"])
    rows = results.read(folder / "results.csv")
    if not rows:
        raise UsageError(f"{folder / 'results.csv'} holds no finished round yet")
    figures = getattr(plotting, experiment.figure)(rows, folder / "figures")
    table = summary.table(rows)
    (folder / "report.md").write_text(_report(config, experiment, rows, table, figures), encoding="utf-8")
    return table


def _report(config, experiment, rows, table, figures):
    settings = Settings.from_json(config["settings"])
    typed = [word for word in config["command"][1:] if not word.startswith("--workdir")]
    wanted, done = len(settings.cells()) * settings.seeds * len(config["arrivals"]), len(rows)
    synthetic = " The data are synthetic." if settings.dataset == "mixture" else ""
    lines = [
        f"# {experiment.name} ({experiment.paper})",
        f"{experiment.summary[0].upper()}{experiment.summary[1:]}.{synthetic}",
        f"`{' '.join(['python -m experiments.run', *typed])}`",
        table,
        "Mean ± sample deviation over the seeds; samples visited are the cost that depends on no machine, in brackets "
        "as a ratio to random init.",
        *(f"![{path.stem.replace('_', ' ')}](figures/{path.name})" for path in figures),
        f"{done:,} of {wanted:,} lane-rounds are finished." if done < wanted else "",
        "Settings: " + ", ".join(f"{k} = {v}" for k, v in config["settings"].items() if v is not None) + ".",
        f"Machine: {config['device']}, {config['machine']}; "
        + ", ".join(f"{k} {v}" for k, v in config["versions"].items() if v)
        + ".",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def main(argv: Sequence[str]) -> None:
    """Reports on a run, or on each experiment below a folder."""
    with cli.one_line_errors(argv):
        if not cli.WORKDIR.value:
            raise UsageError("--workdir is missing: name a folder that experiments.run has written to")
        base = workdir.expand(cli.WORKDIR.value)
        for folder in workdir.subfolders(base) or [base]:
            print(f"{write(folder)}\n\n{folder / 'report.md'}")


if __name__ == "__main__":
    cli.start(main)
