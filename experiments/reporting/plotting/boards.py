"""The pictures of a leaderboard: the scores of all contenders, and how they learn from task to task."""

import itertools
import pathlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.records.results import Row
from experiments.reporting import leaderboard as boards
from experiments.reporting.plotting import style

MOST = 6  # lines of a panel


def leaderboard(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path, *, board: boards.Board):
    """Scores on each stream: the final seeds, and the 95 % interval of their mean; hollow: not as good as the best."""
    del curves
    ranked, streams = boards.ranks(board), boards.streams_of(board)
    names = boards.in_order(board, ranked)
    if not names:
        return []
    title = _title(rows, "tuned on others; mean rank in brackets")
    figure, axes = style.panels(title, len(streams), height=1.4 + 0.3 * len(names))
    for ax, stream in zip(axes, streams, strict=True):
        best = boards.as_good_as_best(board, stream)
        for i, name in enumerate(names):
            values = list(board[stream, name].scores.values()) if (stream, name) in board else []
            if not values:
                continue
            colour, fill = style.COLOURS[0], "full" if name in best else "none"
            ax.plot(values, [i] * len(values), "o", color=colour, markersize=3, alpha=0.4)
            width = np.nan_to_num(boards.interval(values))
            ax.errorbar(np.mean(values), i, xerr=width, fmt="o", color=colour, fillstyle=fill, markersize=7, capsize=3)
        ax.set_yticks(range(len(names)), [_with_rank(name, ranked) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(labelleft=ax is axes[0])
        ax.set_title(stream.replace("_", " "), fontsize=10)
        ax.set_xlabel(_axis(stream))
    return [style.save(figure, folder, "leaderboard")]


def tasks(rows: Sequence[Row], curves: Sequence[Row], folder: pathlib.Path, *, board: boards.Board):
    """Accuracy in each task: the plain network, the best contenders and the last; mean and sample deviation."""
    del curves
    streams = boards.streams_of(board)
    if not streams:
        return []
    figure, axes = style.panels(_title(rows, "mean ± sample deviation"), len(streams))
    handles = {}
    for ax, stream in zip(axes, streams, strict=True):
        scores = {name: np.mean(list(e.scores.values())) for (s, name), e in board.items() if s == stream and e.scores}
        order = sorted(scores, key=scores.get, reverse=True)
        shown = dict.fromkeys((boards.PLAIN, *order[: MOST - 2], *order[-1:]))
        for name in (name for name in shown if name in scores):
            handles.setdefault(name, style.line_style(len(handles)))
            style.mean_line(ax, _by_task(board[stream, name], stream), **handles[name], label=name)
        ax.set_title(stream.replace("_", " "), fontsize=10)
        ax.set_xlabel("task")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_ylabel(_axis(stream))
    found = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    style.legend(figure, list(found.values()), list(found))
    return [style.save(figure, folder, "tasks")]


def _by_task(entry, stream):
    """Return the accuracies of an entry's lanes by round, per cent."""
    column, found = ("online_accuracy" if stream in boards.ONLINE else "validation_accuracy"), defaultdict(list)
    for row in itertools.chain(*entry.lanes.values()):
        found[row["round"]].append(100 * row[column])
    return found


def _with_rank(name, ranked):
    return f"{name} ({ranked[name][0]:.1f})" if name in ranked else name


def _axis(stream):
    return "online accuracy (%)" if stream in boards.ONLINE else "validation accuracy (%)"


def _title(rows, words):
    final = [row for row in rows if row["samples"] == "final"]
    return style.title(final or rows).replace("mean ± sample deviation", words)
