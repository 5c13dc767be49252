"""One round of the lanes of a phase: restart, training until converged, evaluation, and what is told of it."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sp_jax import divergence
from sp_jax.engine.lanes import part_of
from sp_jax.sweeps.plan import RoundPlan
from sp_jax.sweeps.standing import PartialRound
from sp_jax.training import Lane
from sp_jax.types import Progress, RoundResult, StopReason, TrainState


def train_round(
    phase: RoundPlan,
    round_: int,
    lanes: Lane,
    state: TrainState | None,
    *,
    midway: PartialRound | None = None,
    on_chunk: Callable[[Progress, Callable[[], PartialRound]], None] | None = None,
    on_epoch: Callable | None = None,
    measure: Callable | None = None,
) -> tuple[TrainState, list[RoundResult], dict[str, np.ndarray]]:
    """Restart and train all lanes of a phase until converged, then evaluate them.

    Args:
      phase: the plan of the round.
      round_: counted from 1.
      lanes: the phase's, as placed by its engine.
      state: on the devices, after the last round; None draws the first initialisation.
      midway: the progress of an interrupted round; None begins it.
      on_chunk: see `Engine.train`; the function that it gets fetches the round's progress so far.
      on_epoch: see `Engine.train`.
      measure: see `Callbacks`.

    Returns:
      The state after the round, on the devices; the results, [L]; the measures, [L] each.
    """
    engine, _, num_visible, restart = phase
    count = len(phase.lanes.seed)
    start, compiled = time.monotonic() - (midway.seconds if midway else 0.0), engine.compile_seconds

    def seconds():
        return time.monotonic() - start - (engine.compile_seconds - compiled)

    def on_lanes(progress, whole):
        on_chunk(part_of(progress, 0, count), lambda: PartialRound(part_of(whole(), 0, count), seconds()))

    def begin():
        return engine.begin(lanes, engine.init(lanes) if state is None else state, restart, round_, num_visible)

    progress = begin() if midway is None or measure else None
    before = jax.tree.map(jnp.copy, progress.state) if measure else None
    progress = progress if midway is None else engine.place(midway.progress)
    progress = engine.train(lanes, progress, round_, num_visible, on_chunk and on_lanes, on_epoch)
    evaluation = engine.fetch(engine.evaluate(lanes, progress.state, round_), count)
    measures = measure(phase, round_, lanes, before, progress.state) if measure else {}
    summary = engine.fetch(progress.replace(state=None), count)
    results = _results(phase.lanes, engine, round_, num_visible, summary, evaluation, seconds())
    if any(result.stop_reason == "nan" for result in results):
        results = _explained(results, engine, lanes, begin, progress.state)
    return progress.state, results, engine.fetch(measures, count)


def _explained(results, engine, lanes, begin, after):
    """Fill in what was not finite first in lanes that diverged, and set their accuracy and loss to NaN."""
    counts = samples = np.zeros(len(results), int)
    if any(result.stop_reason == "nan" and result.epochs for result in results):  # the others diverged before the round
        look = engine.measure(
            engine.first_lost_sample, lanes, begin().state, np.int32(results[0].num_train), round_=results[0].round
        )
        counts, samples = engine.fetch(look, len(results))
    states, explained = engine.fetch(after, len(results)), []
    for i, result in enumerate(results):
        if result.stop_reason == "nan":
            state = jax.tree.map(lambda x, i=i: x[i], states)
            why = divergence.explain(result, int(counts[i]), int(samples[i]), state)
            result = result._replace(diverged=why, validation_accuracy=math.nan, validation_loss=math.nan)
        explained.append(result)
    return explained


def _results(lanes, engine, round_, num_visible, progress, evaluation, seconds):
    seeds, budget = lanes.seed, _budget(lanes.convergence, num_visible, engine.trainer.batch_size)
    return [
        RoundResult(
            seed=int(seeds[i]),
            round=round_,
            num_train=num_visible,
            epochs=int(progress.epoch[i]),
            samples_seen=min(int(progress.epoch[i]) * num_visible, budget[i]),
            stop_reason=StopReason(int(progress.stop_reason[i])).name.lower(),
            train_accuracy=float(progress.train_accuracy[i]),
            train_loss=float(progress.train_loss[i]),
            validation_accuracy=float(evaluation.accuracy[i]),
            validation_loss=float(evaluation.loss[i]),
            seconds=seconds,
            lanes=len(seeds),
            online_accuracy=float(progress.accuracy_sum[i]) / max(int(progress.epoch[i]), 1),
        )
        for i in range(len(seeds))
    ]


def _budget(rule, num_visible, batch_size):
    """Return the most samples that a round may visit, of each lane."""
    found = np.full(len(rule.max_epochs), np.iinfo(np.int64).max)
    if rule.max_samples is not None:
        found = np.minimum(found, rule.max_samples)
    if rule.max_steps is not None:
        whole, rest = np.divmod(np.asarray(rule.max_steps, np.int64), -(-num_visible // batch_size))
        found = np.minimum(found, whole * num_visible + np.minimum(rest * batch_size, num_visible))
    return found.tolist()
