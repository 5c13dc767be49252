"""The leaderboard of a tuned experiment: what each contender chose, how well that does on seeds and samples of its own,
what cannot be told apart, and what published comparisons become here.

A contender is what a trial trains with, save what it was tuned over. It chooses by the mean score of its tuning lanes;
the final lanes have other seeds and other samples, and only the chosen setting has any.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.config import own_methods
from experiments.config.choices import RESTARTS
from experiments.config.fields import UsageError
from experiments.config.settings import RestartSetting, Settings
from experiments.config.sweep import Trial
from experiments.records.results import Row, is_lost, text
from experiments.reporting import summary, verdicts

ONLINE = ("permuted_inputs", "drifting_inputs", "random_labels")  # streams that are scored while they are learnt
LEVEL = 0.05
FEWEST = 3  # seeds
RESAMPLES = 2_000  # of the bootstrap over the seeds
PLAIN = "plain"


class Comparison(NamedTuple):
    """A published comparison: one contender above another on a stream."""

    stream: str
    better: str
    worse: str
    published: str  # their numbers, per cent
    source: str


KUMAR = "Kumar et al. 2023, Fig. 2 (random-label MNIST, Adam)"
SLOPES = "arXiv 2509.22625, Table 2 (MNIST, Adam)"
SHIN = "Shin et al. 2024 (CIFAR-10, ResNet-18, SGD)"
PUBLISHED = (  # numbers as the literature quotes them
    Comparison("random_labels", "L2 Init", PLAIN, "86 against 16", KUMAR),
    Comparison("random_labels", "L2", PLAIN, "71 against 16", KUMAR),
    Comparison("random_labels", "L2 Init", "L2", "86 against 71", KUMAR),
    Comparison("random_labels", "continual backprop", PLAIN, "92 against 16", KUMAR),
    Comparison("random_labels", "leaky ReLU", PLAIN, "91.5 against 20.0", SLOPES),
    Comparison("permuted_inputs", "leaky ReLU", PLAIN, "84.1 against 78.9", SLOPES),
    Comparison("permuted_inputs", "L2 Init", "L2", "1 point", "Kumar et al. 2023, Fig. 2 (permuted MNIST, Adam)"),
    Comparison("growing", "random init", PLAIN, "67.3 against 63.5", SHIN),
    Comparison("growing", "shrink-perturb", "random init", "81.3 against 67.3", SHIN),
    Comparison("growing", "DASH", "shrink-perturb", "84.1 against 81.3", SHIN),
)


class Entry(NamedTuple):
    """A contender on one stream."""

    chosen: Trial  # of its candidates, the best in tuning
    lanes: dict[int, list[Row]]  # by seed: the rows of the final lanes that have all rounds and did not diverge
    scores: dict[int, float]  # by seed, per cent, of those
    lost: int  # final lanes that ended by NaN

    @property
    def seconds(self) -> float:
        """The wall time of a lane, the mean over the lanes; NaN without any. Lanes that trained together share it."""
        each = [sum(row["seconds"] / row["lanes"] for row in its) for its in self.lanes.values()]
        return float(np.mean(each)) if each else float("nan")


Board = Mapping[tuple[str, str], Entry]  # by stream and contender


def contender(settings: Settings, cell: RestartSetting) -> str:
    """Return the name of what a trial trains with, whatever it was tuned to."""
    words = [own_methods.label(settings.method)] if settings.method != "none" else []
    words += [RESTARTS[cell.restart].label] if cell.restart != "warm_start" else []
    special = {"leaky_relu": "leaky ReLU", "crelu": "CReLU", "elu": "ELU", "tanh": "tanh"}
    words += [special[settings.activation]] if settings.activation in special else []
    words += ["LayerNorm"] if settings.norm == "layer" else []
    words += ["new optimiser"] if settings.optimizer_state == "reset" and cell.restart == "warm_start" else []
    words += ["L2"] if settings.weight_decay and settings.method == "none" else []
    return ", ".join(words) or PLAIN


def check_names(trials: Sequence[Trial]) -> None:
    """Raise a `UsageError` where two contenders have one name, as methods from outside may: one row for both."""
    found = {}
    for trial in trials:
        found.setdefault(contender(trial.settings, trial.cell), set()).add(trial.settings.method)
    for name, methods in found.items():
        if len(methods) > 1:
            both = " and ".join(sorted(methods))
            raise UsageError(
                f"--contenders: {both} are both called {name!r} on the board; give each its own Method.label"
            )


def score(stream: str, rows: Sequence[Row]) -> float:
    """Return the score of one lane's rounds, per cent: on streams of `ONLINE` the online accuracy over all of training,
    else the validation accuracy after the last round."""
    if stream in ONLINE:
        return 100 * float(np.mean([row["online_accuracy"] for row in rows]))
    return 100 * max(rows, key=lambda row: row["round"])["validation_accuracy"]


def by_trial(rows: Sequence[Row], trials: Sequence[Trial], varied: Sequence[str]) -> dict[Trial, dict[int, list[Row]]]:
    """Return the rows of each trial, by seed."""
    names = [name for name in varied if rows and name in rows[0]]
    known = {(*t.cell, *(text(getattr(t.settings, name)) for name in names)): t for t in trials}
    found = {}
    for row in rows:
        trial = known.get((row["restart"], row["shrink"], row["noise_scale"], *(text(row[name]) for name in names)))
        if trial:
            found.setdefault(trial, {}).setdefault(row["seed"], []).append(row)
    return found


def chosen(
    rows: Sequence[Row], trials: Sequence[Trial], varied: Sequence[str], rounds: Mapping[Trial, int]
) -> dict[tuple[str, str], Trial]:
    """Return the setting that each contender chooses on each stream, as its trial of the tuning part.

    Rows of the final part are not looked at. A setting with a lane that is not finished, or that diverged, is below all
    others; of equal ones the first is chosen.

    Args:
      rows: of `results.csv`.
      trials: of the grid.
      varied: its settings that vary.
      rounds: how many each trial has.
    """
    tuning = [row for row in rows if row["samples"] == "tuning"]
    found, best = by_trial(tuning, trials, varied), {}
    for trial in trials:
        if trial.settings.samples == "tuning":
            key = trial.settings.task_stream, contender(trial.settings, trial.cell)
            lanes = found.get(trial, {})
            whole = [its for its in lanes.values() if _whole(its, rounds[trial])]
            mean = np.mean([score(key[0], its) for its in whole]) if whole and len(whole) == len(lanes) else -np.inf
            if key not in best or mean > best[key][0]:
                best[key] = mean, trial
    return {key: trial for key, (_, trial) in best.items()}


def finals(found: Mapping[tuple[str, str], Trial], trials: Sequence[Trial]) -> dict[tuple[str, str], Trial]:
    """Return for the trials that were `chosen` those that are alike on the final part, where there are such."""
    known = {(trial.settings, trial.cell): trial for trial in trials}
    alike = {key: (dataclasses.replace(trial.settings, samples="final"), trial.cell) for key, trial in found.items()}
    return {key: known[each] for key, each in alike.items() if each in known}


def board(rows: Sequence[Row], trials: Sequence[Trial], varied: Sequence[str], rounds: Mapping[Trial, int]) -> Board:
    """Return the entry of each contender on each stream; of those that have finished."""
    found, made = by_trial(rows, trials, varied), {}
    for key, final in finals(chosen(rows, trials, varied, rounds), trials).items():
        lanes = found.get(final, {})
        whole = {seed: its for seed, its in lanes.items() if _whole(its, rounds[final])}
        scores = {seed: score(key[0], its) for seed, its in whole.items()}
        if lanes:
            made[key] = Entry(final, whole, scores, sum(any(map(is_lost, its)) for its in lanes.values()))
    return made


def _whole(rows, rounds):
    return len(rows) == rounds and not any(map(is_lost, rows))


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95 % interval of a mean over seeds (Student's t); NaN with one seed."""
    if len(values) < 2:
        return float("nan")
    return float(stats.sem(values) * stats.t.ppf(1 - LEVEL / 2, len(values) - 1))


def ranks(found: Board) -> dict[str, tuple[float, float, float]]:
    """Return each contender's mean rank over the streams, 1 is best, with its 95 % interval by a bootstrap over seeds.

    Only contenders that have all streams and all seeds have a rank; equal scores share the mean of their ranks.
    """
    streams, names, values = _complete(found)
    if not names:
        return {}
    rng, count = np.random.default_rng(0), values.shape[2]

    def mean_ranks(seeds):
        return np.mean([stats.rankdata(-values[s][:, seeds].mean(axis=1)) for s in range(len(streams))], axis=0)

    drawn = np.array([mean_ranks(rng.integers(count, size=count)) for _ in range(RESAMPLES)])
    low, high = np.quantile(drawn, (LEVEL / 2, 1 - LEVEL / 2), axis=0)
    return dict(zip(names, zip(mean_ranks(np.arange(count)), low, high, strict=True), strict=True))


def streams_of(found: Board) -> list[str]:
    """Return the streams of a board."""
    return list(dict.fromkeys(stream for stream, _ in found))


def in_order(found: Board, ranked: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Return the contenders, the best mean rank first, those without a rank last."""
    return sorted(dict.fromkeys(name for _, name in found), key=lambda name: ranked.get(name, (np.inf,))[0])


def _complete(found):
    """Return the streams, the contenders that have all of them with all seeds, and scores [stream, name, seed]."""
    streams, names = streams_of(found), list(dict.fromkeys(name for _, name in found))
    seeds = sorted({seed for entry in found.values() for seed in entry.scores})
    names = [n for n in names if all((s, n) in found and set(found[s, n].scores) == set(seeds) for s in streams)]
    names = names if seeds else []
    values = np.array([[[found[s, n].scores[seed] for seed in seeds] for n in names] for s in streams], float)
    return streams, names, values


def as_good_as_best(found: Board, stream: str) -> set[str]:
    """Return the contenders that cannot be told from the best of a stream: paired t-tests, Holm's correction, 5 %."""
    scores = {name: entry.scores for (s, name), entry in found.items() if s == stream and entry.scores}
    if not scores:
        return set()
    best = max(scores, key=lambda name: np.mean(list(scores[name].values())))
    others = [name for name in scores if name != best]
    p_values = [verdicts.exceeds(paired(scores[best], scores[name]), 0.0).support for name in others]
    return {best, *(name for name, p in zip(others, verdicts.holm(p_values), strict=True) if p >= LEVEL)}


def paired(one: Mapping[int, float], two: Mapping[int, float]) -> np.ndarray:
    """Return the differences over the seeds that both have."""
    return np.array([one[seed] - two[seed] for seed in one if seed in two])


def table(found: Board) -> str:
    """Format the board as Markdown, the best mean rank first; ties with the best of a stream are marked with *."""
    ranked, streams = ranks(found), streams_of(found)
    best = {stream: as_good_as_best(found, stream) for stream in streams}
    lines = [("contender", "mean rank", *(f"{s.replace('_', ' ')}, %" for s in streams), "time, plain = 1", "chosen")]
    for name in in_order(found, ranked):
        cells = [_cell(found.get((s, name)), name in best[s]) for s in streams]
        rank = "{:.1f} ({:.1f} to {:.1f})".format(*ranked[name]) if name in ranked else summary.MISSING
        lines.append((name, rank, *cells, _time(found, name, streams), _choices(found, name, streams)))
    return summary.markdown(lines)


def _cell(entry, is_best):
    if entry is None or not entry.scores:
        return summary.MISSING
    values = list(entry.scores.values())
    mean = f"{np.mean(values):.1f}{summary.spread(interval(values))}"
    return f"{mean}{' *' * is_best}" + (f", {entry.lost} lost" if entry.lost else "")


def _time(found, name, streams):
    """Return the wall time as a ratio to the plain network's, the geometric mean over the streams."""
    pairs = [
        (found[s, name].seconds, found[s, PLAIN].seconds) for s in streams if {(s, name), (s, PLAIN)} <= set(found)
    ]
    ratios = [one / two for one, two in pairs if two > 0 and np.isfinite(one)]
    return f"{stats.gmean(ratios):.2f}" if ratios else summary.MISSING


def _choices(found, name, streams):
    """Return what the contender was tuned to, of each stream, where its candidates differ."""
    entries = [found[s, name].chosen for s in streams if (s, name) in found]
    return "; ".join(tuned_to(trial) for trial in entries)


def tuned_to(trial: Trial) -> str:
    """Return the setting of a trial in a few letters: its strength, its amounts or its decay, and its rate."""
    settings, words = trial.settings, []
    if settings.method_strength is not None:
        words += [f"{own_methods.find(settings.method).symbol or 'strength'} {settings.method_strength:g}"]
    words += trial.cell.amounts().split()
    words += [f"decay {settings.weight_decay:g}"] if settings.weight_decay and settings.method == "none" else []
    return " ".join([*words, f"η {settings.learning_rate:g}"])


def words(trial: Trial) -> str:
    """Return a trial as the board calls it: its stream, its contender, its setting, and whether it tunes."""
    settings = trial.settings
    named = settings.task_stream.replace("_", " "), contender(settings, trial.cell), tuned_to(trial)
    return f"{', '.join(named)} ({settings.samples})"


def namer(tuned: bool) -> Callable[[Trial], str]:
    """Return what calls the trials of an experiment, tuned or not, for people."""
    return words if tuned else lambda trial: trial.label


def comparisons(found: Board) -> list[tuple[Comparison, str, str]]:
    """Test each published comparison of which the board has both sides, of a seed at least: the comparison, its
    verdict, our figures."""
    asked, tests = [], []
    for each in PUBLISHED:
        one, two = (found[key].scores if (key := (each.stream, n)) in found else {} for n in (each.better, each.worse))
        points = paired(one, two)
        if len(points):
            means = " against ".join(f"{np.mean(list(scores.values())):.1f}" for scores in (one, two))
            words = f"{means}, {np.mean(points):+.1f}{summary.spread(interval(points))}"
            asked.append(each)
            tests.append(verdicts.Tested(each.better, words, verdicts.exceeds(points, 0.0)))
    return [(c, v, t.figures) for c, v, t in zip(asked, verdicts.decide(tests), tests, strict=True)]


WORDS = {verdicts.HOLDS: "reproduced", verdicts.CONTRADICTED: "contradicted", verdicts.UNDECIDED: "undecided"}
RULES = (
    "Each contender chose one of its settings by its tuning lanes; the scores are of the final ones, which have other "
    "seeds and other samples. A score is the online accuracy over all of training on streams whose tasks replace one "
    "another, else the validation accuracy after the last round. ± is half a 95 % interval of the mean over the seeds "
    "(Student's t); the rank's interval is a bootstrap over the seeds. * cannot be told from the best of its stream "
    f"(paired t-tests over the seeds, Holm's correction, level {LEVEL}). Time is that of a lane in this run; lanes "
    "that share a program share its time, so ratios from 0.7 to 1.5 say little of the method."
)


def section(found: Board) -> str:
    """Return the leaderboard as a section of a report: rules, table, published comparisons."""
    tested = comparisons(found)
    lines = [("stream", "published", "source", "here", "verdict")]
    lines += [
        (c.stream.replace("_", " "), f"{c.better} above {c.worse}: {c.published}", c.source, figures, WORDS[verdict])
        for c, verdict, figures in tested
    ]
    parts = ["## Leaderboard", RULES, table(found)]
    if len({seed for entry in found.values() for seed in entry.scores}) < FEWEST:
        parts += [f"With fewer than {FEWEST} seeds neither intervals nor stars say much."]
    if tested:
        rule = f"One-sided t-tests, paired by seed, against no difference, Holm's correction over all, level {LEVEL}."
        parts += ["## Published comparisons", rule, summary.markdown(lines)]
    return "\n\n".join(parts)
