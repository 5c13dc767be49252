"""One night: the new files, the memory of all earlier ones, a fit after the promoted network, and a verdict."""

import datetime
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.config.fields import UsageError
from experiments.nightly import columns, fitting, history, page, scaling, tables
from experiments.nightly.columns import Asked, Preparation, Rows
from experiments.nightly.fitting import Score, Training
from experiments.nightly.history import Folder
from experiments.nightly.tables import DayError

DEFAULT_PAIR = (0.6, 0.01)  # λ and σ where none has been chosen


class Choices(NamedTuple):
    """What may change from night to night."""

    holdout: float = 0.2  # fraction of a night's rows
    holdout_by: str = "time"
    tune_every: int = 7  # nights
    margin: float = 0.02  # fraction of the promoted network's metric
    window: tuple[int, str] | None = None  # (N, "days" or "rows")


class Day(NamedTuple):
    """A new file that can be used."""

    path: pathlib.Path
    sha256: str
    rows: Rows
    latest: float | None  # of its clock


class Skipped(NamedTuple):
    """A file that cannot be used, and why."""

    path: pathlib.Path
    sha256: str
    why: str


class Visible(NamedTuple):
    """What a night trains on and is measured by."""

    training: Rows
    tuning: Rows  # held-out rows since the last choice of λ and σ
    tonight: Rows  # tonight's held-out rows


def run(path: pathlib.Path, files: Sequence[pathlib.Path], asked: Asked, choices: Choices, training: Training) -> int:
    """Do tonight's work in a folder.

    Args:
      path: of the folder, which this process has locked.
      files: all files so far, in the order of arrival; those that the folder knows are left alone.
      asked: the preparation, where the folder does not hold one yet.
      choices: of this night.
      training: of this night.

    Returns:
      The exit code: 1 where a file was skipped, else 0.

    Raises:
      UsageError: nothing can be done; nothing was written.
    """
    folder = Folder(path)
    if folder.repair():
        print(f"{path}: files that an interrupted call had not written are made again", flush=True)
    preparation = folder.preparation() if folder.trained else None
    if preparation:
        columns.check_same(preparation, asked)
    fresh, skipped = sort_out(folder, files)
    preparation, days, refused = read_days(folder, fresh, preparation, asked)
    skipped += refused
    for each in skipped:
        print(f"skipped: {each.path} {each.why}", file=sys.stderr, flush=True)
    enough = sum(len(day.rows.numbers) for day in days) > 1
    if not (enough or folder.trained):
        why = f"{skipped[0].path} {skipped[0].why}" if skipped else "a night needs two rows, one to hold out"
        raise UsageError(f"no file can be used, so there is nothing to begin with: {why}")
    if enough:
        _say(train(folder, preparation, days, _newly(folder, skipped), choices, training))
    else:
        _nothing(folder, days, _newly(folder, skipped))
    if not page.is_newest(path):
        page.write(folder, folder.preparation())
    return int(bool(skipped))


def _newly(folder, skipped):
    """Leave out what an earlier night has recorded."""
    known = {(file["name"], file["sha256"]) for record in folder.records for file in record["skipped"]}
    return [each for each in skipped if (str(each.path), each.sha256) not in known]


def _nothing(folder, days, skipped):
    """End a night without new rows; what was skipped for the first time is recorded."""
    if days:
        print(f"{days[0].path} brings one row, and a night needs two, one to hold out: it waits for more", flush=True)
    else:
        print("no new rows tonight", flush=True)
    if skipped:
        folder.commit(_record(folder, [], skipped) | {"promoted": False, "reason": "no new rows"})


def sort_out(folder: Folder, files: Sequence[pathlib.Path]) -> tuple[list[tuple[pathlib.Path, str]], list[Skipped]]:
    """Return the files that are new, with their hashes, and those that repeat or change an earlier one."""
    known = {file["sha256"]: file["name"] for record in folder.records for file in record["files"]}
    names = {name: sha for sha, name in known.items()}
    listed, fresh, skipped, tonight = {str(path.resolve()) for path in files}, [], [], {}
    for path in files:
        name = str(path.resolve())
        try:
            sha = tables.digest(path)
        except DayError as error:
            skipped.append(Skipped(path, "", str(error)))
            continue
        old = known.get(sha) or tonight.get(sha)
        moved = old and old not in listed and pathlib.Path(old).name == path.name
        if old and not moved and old != name:
            skipped.append(Skipped(path, sha, f"repeats the content of {pathlib.Path(old).name}; remove one"))
        elif not old and name in names:
            why = "has changed since it was trained on, whose rows stay as they were; give new rows in a new file"
            skipped.append(Skipped(path, sha, why))
        elif not old:
            tonight[sha] = name
            fresh.append((path, sha))
    return fresh, skipped


def read_days(
    folder: Folder, fresh: Sequence[tuple[pathlib.Path, str]], preparation: Preparation | None, asked: Asked
) -> tuple[Preparation | None, list[Day], list[Skipped]]:
    """Read the new files; the first good one of a first night decides on the preparation."""
    began, days, skipped = preparation is not None, [], []
    clock = [file["latest"] for record in folder.records for file in record["files"] if file["latest"] is not None]
    for path, sha in fresh:
        try:
            made = preparation or columns.infer(tables.read(path), asked)
            rows = columns.extract(made, tables.read(path, made.text))
            latest = None if rows.times is None else float(rows.times.max())
            if clock and latest is not None and latest < max(clock):
                raise DayError(f"goes back in time: its latest {made.time!r} is {_when(latest)}, an earlier file's "
                               f"{_when(max(clock))}")  # fmt: skip
            if began:
                rows = rows._replace(numbers=scaling.standardised(made, rows))
        except DayError as error:
            skipped.append(Skipped(path, sha, str(error)))
            continue
        preparation = made
        clock += [] if latest is None else [latest]
        days.append(Day(path, sha, rows, latest))
    return preparation, days, skipped


def _when(value):
    """Return a clock's value for people: a date where it is of this century in seconds."""
    if 9.4e8 < value < 4.2e9:
        return datetime.datetime.fromtimestamp(value, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{value:.10g}"


def joined(parts: Sequence[Rows]) -> Rows:
    """Return rows one after the other."""
    return Rows(*(None if columns_[0] is None else np.concatenate(columns_) for columns_ in zip(*parts, strict=True)))


def picked(rows: Rows, which: np.ndarray) -> Rows:
    """Return some of the rows."""
    return Rows(*(None if column is None else column[which] for column in rows))


def hold_out(rows: Rows, choices: Choices, key: str) -> np.ndarray:
    """Return which rows are held out for ever, [N] booleans: at least one, and not all.

    By time these are the newest, by the clock or else by their order; at random, those whose index has the smallest
    hashes together with `key`, the content of their files.
    """
    count = len(rows.numbers)
    order = np.arange(count) if rows.times is None else np.argsort(rows.times, kind="stable")
    if choices.holdout_by == "random":
        order = np.argsort(_mixed(np.arange(count, dtype=np.uint64) + np.uint64(int(key[:15], 16))), kind="stable")
    held_out = np.zeros(count, bool)
    held_out[order[-min(max(round(choices.holdout * count), 1), count - 1) :]] = True
    return held_out


def _mixed(values):
    """Return a hash of each 64-bit number (splitmix64)."""
    values = values * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values ^ (values >> np.uint64(31))


def train(
    folder: Folder, preparation: Preparation, days: Sequence[Day], skipped: Sequence[Skipped], choices: Choices,
    training: Training,
) -> history.Record:  # fmt: skip
    """Train and judge tonight's network, and add the night to the folder; return its record."""
    rows, night = joined([day.rows for day in days]), len(folder.records) + 1
    held_out = hold_out(rows, choices, days[0].sha256)
    if not folder.trained:
        preparation = scaling.measure(preparation, rows, ~held_out)
        rows = rows._replace(numbers=scaling.standardised(preparation, rows))
    known = preparation.classes
    preparation = scaling.with_classes(preparation, rows.labels)
    if known and preparation.classes != known:
        print(f"new classes: {', '.join(preparation.classes[len(known) :])}", flush=True)
    rows = rows._replace(labels=scaling.targets(preparation, rows.labels))
    day = np.repeat(np.arange(len(days)) + _days_before(folder), [len(each.rows.numbers) for each in days])
    seen = _visible(folder, (rows, held_out, day), choices)
    record = _record(folder, days, skipped) | {"held_out": held_out.sum(), "visible_rows": len(seen.training.numbers)}
    fitted, facts = _fit(folder, preparation, seen, choices, training)
    folder.write_rows(night, rows, held_out, day)
    folder.write_preparation(preparation)
    if not fitted.diverged:
        fitting.save(folder.file("nights", night), fitted)
        facts["network"] = history.checksum_of(folder.file("nights", night))
    folder.commit(record | facts)
    return folder.records[-1]


def _record(folder, days, skipped):
    """Return what a night is, before it is trained."""
    files = [
        {"name": str(d.path.resolve()), "sha256": d.sha256, "rows": len(d.rows.numbers), "latest": d.latest}
        for d in days
    ]
    return {
        "night": len(folder.records) + 1,
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "files": files,
        "rows": sum(file["rows"] for file in files),
        "skipped": [{"name": str(each.path), "sha256": each.sha256, "why": each.why} for each in skipped],
    }


def _days_before(folder):
    return sum(len(record["files"]) for record in folder.records)


def _visible(folder, tonight, choices):
    """Return the rows within the window: those that train, those held out since the last choice, and tonight's."""
    nights, newest = [tonight], tonight[2][-1]
    for record in reversed(folder.trained):
        if _is_full(nights, newest, choices.window):
            break
        nights.insert(0, folder.read_rows(record["night"]))
    rows, held_out, day = (
        joined([each[0] for each in nights]),
        *map(np.concatenate, list(zip(*nights, strict=True))[1:]),
    )
    inside = np.ones(len(day), bool)
    if choices.window:
        count, unit = choices.window
        train = np.flatnonzero(~held_out)
        inside = day > newest - count if unit == "days" else np.arange(len(day)) >= train[-count:][0]
    lengths = [len(each[1]) for each in nights]
    since = sum(lengths[: -min(len(lengths), choices.tune_every)])
    recent = held_out & (np.arange(len(day)) >= since) & inside
    tonights = np.arange(len(day)) >= sum(lengths[:-1])
    return Visible(picked(rows, ~held_out & inside), picked(rows, recent), picked(rows, held_out & tonights))


def _is_full(nights, newest, window):
    if window is None:
        return False
    count, unit = window
    return nights[0][2][0] <= newest - count if unit == "days" else sum((~n[1]).sum() for n in nights) >= count


def _fit(folder, preparation, seen, choices, training) -> tuple[Any, dict]:
    """Choose λ and σ where it is due, train, and compare with the promoted network."""
    since, before, facts, pair = None, None, {}, None
    if folder.promoted:
        since = fitting.load(folder.network, preparation, seen.tonight, folder.outputs())
        before = fitting.score(since, preparation, seen.tonight, seen.training.labels)
        pair, facts = _pair(folder, preparation, seen, choices, training, since)
    began = time.perf_counter()
    fitted = fitting.fit(training, preparation, seen.training, seen.tonight, since, pair or DEFAULT_PAIR)
    facts |= {"seconds": time.perf_counter() - began}
    if pair:
        facts |= {"shrink": pair[0], "noise_scale": pair[1]}
    result = fitted.history[-1]
    facts |= {"epochs": result.epochs, "samples_seen": result.samples_seen, "stop_reason": result.stop_reason}
    facts |= _saved(folder, facts, result)
    after = None if fitted.diverged else fitting.score(fitted, preparation, seen.tonight, seen.training.labels)
    promoted, reason = verdict(after, before, choices.margin, fitted.diverged)
    scores = {"metric": after and after.metric, "loss": after and after.loss}
    return fitted, facts | scores | {
        "metric_of_promoted": before and before.metric, "promoted": promoted, "reason": reason,
    }  # fmt: skip


def _pair(folder, preparation, seen, choices, training, since):
    """Return λ and σ, chosen anew where that is due, and what the choice found."""
    chosen = [record for record in folder.trained if record.get("tuned")]
    pair = (chosen[-1]["tuned"]["shrink"], chosen[-1]["tuned"]["noise_scale"]) if chosen else DEFAULT_PAIR
    nights = len(folder.trained) - folder.trained.index(chosen[-1]) if chosen else choices.tune_every
    if nights < choices.tune_every:
        return pair, {}
    began = time.perf_counter()
    tuned = fitting.tune(training, preparation, seen.training, seen.tuning, since)
    if tuned is None:
        return pair, {}
    best, count = tuned.best, len(seen.training.numbers)
    fresh = [c for c in tuned.table if (c.shrink, c.noise_scale) == (0.0, 1.0) and not c.diverged]
    found = {"shrink": best.shrink, "noise_scale": best.noise_scale, "held_out": len(seen.tuning.numbers)}
    found |= {"random_init_epochs": fresh[0].samples_seen / count if fresh else None}
    spent = {"tuning_samples": tuned.samples_seen, "tuning_seconds": time.perf_counter() - began}
    return (best.shrink, best.noise_scale), {"tuned": found, **spent}


def _saved(folder, facts, result):
    """Estimate what random init would have cost more: its epochs when λ and σ were last chosen, on tonight's rows."""
    chosen = [record["tuned"] for record in (*folder.trained, facts) if record.get("tuned")]
    if "shrink" not in facts or not chosen or chosen[-1]["random_init_epochs"] is None:
        return {}
    more = chosen[-1]["random_init_epochs"] * result.num_train - result.samples_seen
    return {"samples_saved": more, "seconds_saved": result.seconds * more / max(result.samples_seen, 1)}


def verdict(after: Score | None, before: Score | None, margin: float, diverged: str = "") -> tuple[bool, str]:
    """Return whether tonight's network is promoted, and why.

    Args:
      after: tonight's, on tonight's held-out rows; None where it diverged.
      before: the promoted one's, on the same rows; None where there is none.
      margin: fraction of the metric that it may be worse by.
      diverged: when it did.
    """
    if after is None:
        return False, f"it diverged {diverged}"
    if before is None:
        return True, "the first network"
    worse = before.metric - after.metric
    if worse > margin * abs(before.metric):
        return (
            False,
            f"{after.metric:.4g} is worse than {before.metric:.4g} of the promoted one by more than {margin:g}",
        )
    return True, f"{after.metric:.4g} against {before.metric:.4g} of the promoted one"


def _say(record):
    """Print what a night has given."""
    pair = "" if record.get("shrink") is None else f", λ={record['shrink']:g} σ={record['noise_scale']:g}"
    print(
        f"night {record['night']}: {record['rows']:,} new rows, {record['visible_rows']:,} visible{pair}; "
        f"{'promoted' if record['promoted'] else 'NOT promoted'}: {record['reason']}",
        flush=True,
    )
