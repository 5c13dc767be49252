"""Batch online learning on text (Figure 13).

The paper: IMDB reviews in rounds of 1,000, a two-layer bidirectional RNN, λ in {1, 0, and between}. Units (GRU),
width 32, 128 hashed tokens a review and σ = 0.01 are our choice; five seeds.

Quick: synthetic `reviews` in four rounds of 500, width 16, 3 seeds; four minutes with other work beside it. Expect:
warm start 66.2 %, random init 71.9 %, (0.6, 0.01) 78.2 %, with sample deviations of 2 to 5 points.

On IMDB, with `--preset=paper --seeds=3 --rounds=6 --pairs=0.6:0.01,0.3:0.01`, half an hour on two cores: warm start
71.1 %, random init 73.2 %, (0.3, 0.01) 76.7 % at 0.35 of random init's samples.
"""

from experiments.specs import presets, schedules
from experiments.specs.base import Experiment

REVIEWS = {"dataset": "reviews", "model": "birnn", "width": 16, "seeds": 3, "samples_per_round": 500}
IMDB = {"dataset": "imdb_reviews", "model": "birnn", "width": 32}

EXPERIMENT = Experiment(
    name="online_imdb",
    paper="Figure 13",
    summary="film reviews in rounds of 1,000, a bidirectional RNN",
    schedule=schedules.online,
    presets={"quick": {**REVIEWS, "pairs": ("0.6:0.01", "0.3:0.01")}, "paper": {**IMDB, "pairs": presets.PAIRS}},
    figures=(("rounds", {}), ("pareto", {})),
    claims=(2, 9),
)
