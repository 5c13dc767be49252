"""The plots for all figures, as PNG and SVG, in one style.

All have one signature, (rows, curves, folder, **options) -> the PNGs written, except that `beside_the_paper` takes the
paper's numbers in place of curves; those of a leaderboard get it as `board`. The first line of each docstring is the
figure's caption in a report.
"""

from experiments.reporting.plotting.boards import leaderboard, tasks
from experiments.reporting.plotting.epochs import gradient_norms, learning_curves
from experiments.reporting.plotting.fronts import pareto
from experiments.reporting.plotting.grids import beside_the_paper, heat_maps
from experiments.reporting.plotting.lines import against, early_switch, regularization, rounds
from experiments.reporting.plotting.points import final, scatter

__all__ = [
    "against", "beside_the_paper", "early_switch", "final", "gradient_norms", "heat_maps", "leaderboard",
    "learning_curves", "pareto", "regularization", "rounds", "scatter", "tasks",
]  # fmt: skip
