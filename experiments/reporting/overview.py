"""All runs of a folder at once: every claim, and every number of the paper beside ours."""

from collections.abc import Sequence

from experiments.config.settings import FIELDS
from experiments.config.sweep import resolve, several
from experiments.reporting import claims, comparison, summary, verdicts
from experiments.reporting.loaded_run import LoadedRun
from experiments.reporting.run_report import check_claims

# What a run may have otherwise than the paper's preset without its being said.
FREE = (
    "dataset", "model", "optimizer", "seeds", "restart", "pairs", "shrink", "noise_scale", "curves", "keep_networks",
)  # fmt: skip
OWN = "the paper's"


def text(runs: Sequence[LoadedRun]) -> str:
    """Return all claims and all of the paper's numbers over several runs, as Markdown: a checklist of the claims, the
    paper's numbers beside ours, every test of every claim."""
    tested, compared, numbers = [], [], [("run", *comparison.HEADER, "setting")]
    for run in runs:
        tested += [(number, run.folder.name, finding) for number, finding in check_claims(run)]
        found, same = comparison.compare(run.experiment.name, run.rows, run.planned)
        if same and run.is_comparable:
            ran = [each for each in found if each.ours is not None]
            setting = _setting(run)
            compared += [(each, setting) for each in ran]
            numbers += [(run.folder.name, *comparison.cells(each, same=True), setting) for each in ran]
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
        f"{comparison.count([each for each, _ in compared])} {_explained(compared)}",
        "Where data set, model and optimiser are the paper's; accuracies are on a random third, times are ratios to "
        f"random init. {comparison.ERRORS}",
        summary.markdown(numbers),
        "## Every test of every claim",
        summary.markdown(every),
    ]
    return "\n\n".join(parts) + "\n"


def _explained(compared):
    """Say how many of the numbers that are not near are of other settings than the paper's, and how many are not."""
    far = [setting for each, setting in compared if abs(each.errors) > 2]
    return (
        f"Of the {len(far)} that do not, {sum(setting != OWN for setting in far)} are of runs with other settings than "
        f"the paper's, which the last column names; {far.count(OWN)} have the paper's and are not explained by them."
    )


def _checklist(tested):
    """Return each claim with the runs that bear it out, contradict it or cannot say."""
    lines = [("claim", "of the paper", "holds", "contradicted", "undecided")]
    for number, claim in claims.CLAIMS.items():
        cells = []
        for verdict in (verdicts.HOLDS, verdicts.CONTRADICTED, verdicts.UNDECIDED):
            runs = [run for n, run, finding in tested if n == number and finding.verdict == verdict]
            counts = {run: runs.count(run) for run in runs}
            cells.append(", ".join(run + (f" ({count})" if count > 1 else "") for run, count in counts.items()))
        lines.append((f"{number} ({claim.section})", claim.text, *cells))
    return lines


def _setting(run):
    """Return where the settings of a run are not the paper preset's."""
    grid, paper = run.grid, resolve(run.experiment.presets["paper"], {})
    resnet = "resnet18" in grid.values("model")
    names = [name for name in FIELDS if name not in FREE and (resnet or name not in ("width", "stage_sizes"))]
    words = [
        f"{name}={several(grid.values(name))}" for name in names if not {*grid.values(name)} <= {*paper.values(name)}
    ]
    return ", ".join(words) or OWN
