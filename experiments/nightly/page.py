"""The page of a nightly training: the curve over the nights, what the warm start saved, what was skipped."""

import pathlib
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from experiments.nightly import history
from experiments.nightly.columns import Preparation
from experiments.nightly.history import Folder, Record
from experiments.reporting import html
from experiments.reporting.plotting import style
from experiments.reporting.summary import markdown
from sp_jax.storage.atomic import write_whole

METRICS = {
    "classification": "fraction right", "binary": "fraction right", "multilabel": "fraction of labels right",
    "regression": "1 - squared error / variance",
}  # fmt: skip
NEWEST = 30  # nights in the table
CAPTION = "Each night's network, and the promoted one of the nights before, on the night's held-out rows; and its cost"


def is_newest(path: pathlib.Path) -> bool:
    """Return whether a report stands beside the history and is not older."""
    made, rows = path / "report.md", path / "history.csv"
    return made.is_file() and (not rows.is_file() or made.stat().st_mtime_ns >= rows.stat().st_mtime_ns)


def write(folder: Folder, preparation: Preparation) -> None:
    """Write `report.md`, the same as `report.html`, and the figure."""
    trained = folder.trained
    figure = draw(trained, folder.path / "figures", preparation) if len(trained) > 1 else None
    name = "figures/nights.png"
    text = _text(folder, preparation, f"![{CAPTION}]({name})" if figure else "")
    title = f"Every night: {', '.join(preparation.labels)}"
    write_whole(folder.path / "report.html", html.render(text, title, {name: figure} if figure else {}))
    write_whole(folder.path / "report.md", text)


def draw(trained: Sequence[Record], folder: pathlib.Path, preparation: Preparation) -> pathlib.Path:
    """Draw the metric and the cost of each night; return the PNG."""
    figure, (left, right) = style.panels(f"{', '.join(preparation.labels)} ({preparation.task}), {len(trained)} nights")
    nights = [record["night"] for record in trained]
    ours, before = ([_number(record.get(name)) for record in trained] for name in ("metric", "metric_of_promoted"))
    looks = {"markersize": 4, "linewidth": 1.5, "markevery": max(1, len(nights) // 16)}
    left.plot(
        nights,
        before,
        **style.line_style(1) | {"marker": ""},
        linewidth=1,
        label="promoted network, before tonight's rows",
    )
    left.plot(nights, ours, **style.line_style(0) | looks, label="tonight's network")
    kept = [(n, y) for n, y, record in zip(nights, ours, trained, strict=True) if not record["promoted"]]
    if kept:
        left.plot(*zip(*kept, strict=True), "X", color=style.COLOURS[6], markersize=8, label="not promoted")
    left.set_ylabel(f"{METRICS[preparation.task]}, held-out rows")
    cost = [record["samples_seen"] for record in trained]
    fresh = [_number(record.get("samples_saved")) + n for record, n in zip(trained, cost, strict=True)]
    right.plot(nights, cost, **style.line_style(0) | looks)
    right.plot(nights, fresh, **style.line_style(2) | {"marker": ""}, linewidth=1.5, label="random init, estimated")
    tuned = [
        (n, record["tuning_samples"]) for n, record in zip(nights, trained, strict=True) if record.get("tuning_samples")
    ]
    if tuned:
        right.plot(*zip(*tuned, strict=True), "^", color=style.COLOURS[3], label="choosing λ and σ")
    right.set_ylabel("samples visited")
    right.set_ylim(bottom=0)
    style.thousands(right.yaxis)
    for axes in (left, right):
        axes.set_xlabel("night")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [each for axes in (left, right) for each in zip(*axes.get_legend_handles_labels(), strict=True)]
    style.legend(figure, *map(list, zip(*handles, strict=True)))
    return style.save(figure, folder, "nights")


def _number(value):
    return float("nan") if value is None else float(value)


def _text(folder, preparation, figure):
    """Return the page as Markdown."""
    last = folder.records[-1]
    promoted = folder.promoted
    now = (
        f"The promoted network is of night {promoted['night']} ({promoted['date']})."
        if promoted
        else "None is promoted."
    )
    lines = [
        f"# Every night: {', '.join(preparation.labels)}",
        f"Night {last['night']} ({last['date']}): {last['rows']:,} new rows; "
        f"{'promoted' if last['promoted'] else 'not promoted'}: {last['reason']}. {now} The metric is the "
        f"{METRICS[preparation.task]}, on rows that no night trains on.",
        figure,
        "## What the warm start saved",
        _savings(folder.trained),
        f"## The newest {min(NEWEST, len(folder.records))} nights",
        _table(folder.records[-NEWEST:]),
        "All nights, with all columns: `history.csv`.",
        _skipped(folder.records),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _savings(trained):
    known = [record for record in trained if record.get("samples_saved") is not None]
    tuned = [record for record in trained if record.get("tuned")]
    if not known:
        return "Nothing is known yet: λ and σ are chosen for the first time on the second night."
    spent = sum(record["samples_seen"] for record in known)
    saved = sum(record["samples_saved"] for record in known)
    choosing = sum(record["tuning_samples"] for record in tuned)
    time_ = sum(record["seconds_saved"] for record in known)
    newest = tuned[-1]["tuned"]
    return (
        f"In {len(known)} nights after the first {spent:,.0f} samples were visited. Random init would have visited "
        f"about {spent + saved:,.0f}, with as many epochs a night as it took when λ and σ were last chosen: "
        f"{saved:,.0f} saved, {time_:,.1f} s of training without compiling. Choosing λ and σ visited {choosing:,.0f} "
        f"itself, on {len(tuned)} nights, so that {saved - choosing:,.0f} are saved in all. The newest choice, by "
        f"{newest['held_out']:,} held-out rows, is λ={newest['shrink']:g} and σ={newest['noise_scale']:g}."
    )


def _table(records):
    lines = [("night", "date", "files", "rows", "visible", "λ", "σ", "metric", "promoted one's", "samples visited", "s",
              "promoted", "reason")]  # fmt: skip
    names = ("night", "date", "files", "rows", "visible_rows", "shrink", "noise_scale", "metric", "metric_of_promoted",
             "samples_seen", "seconds", "promoted", "reason")  # fmt: skip
    for record in reversed(records):
        found = history.row(record)
        for name in ("metric", "metric_of_promoted", "seconds"):
            found[name] = f"{float(found[name]):.4g}" if found[name] else ""
        found["promoted"] = "yes" if record["promoted"] else "no"
        lines.append(tuple(_cell(found[name]) for name in names))
    return markdown(lines)


def _cell(text):
    return text.replace("|", "\\|").replace("`", "'") or "-"


def _skipped(records):
    found = [(record["night"], file) for record in records for file in record["skipped"]]
    if not found:
        return ""
    lines = [f"- night {night}: `{pathlib.Path(file['name']).name.replace('`', chr(39))}` {file['why']}"
             for night, file in found]  # fmt: skip
    return "## Skipped files\n\n" + "\n".join(lines)
