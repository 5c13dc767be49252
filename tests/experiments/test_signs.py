"""Signs of lost plasticity: what foretells it is found, with its threshold, and what doesn't is not."""

import numpy as np
import pytest
from sklearn import metrics

from experiments.reporting import signs


def made_up(seed=0):
    """Rows of four settings: norms grow before accuracy falls, dormant units are noise."""
    rng, rows = np.random.default_rng(seed), []
    for activation in ("relu", "tanh"):
        for rate in (0.001, 0.003):
            for lane in range(3):
                norm = 1.0
                for round_ in range(1, 13):
                    lost = norm > 3
                    rows.append({
                        "activation": activation, "learning_rate": rate, "dataset": "mixture", "restart": "warm_start",
                        "shrink": "1", "noise_scale": "0", "seed": lane, "round": round_,
                        "online_accuracy": 0.5 if lost else 0.9, "weight_norm": 10 * norm, "dormant": rng.random(),
                    })  # fmt: skip
                    norm += rng.uniform(0.1, 0.6)
    return rows


def test_what_foretells_is_first_with_its_threshold():
    best, other = signs.signs(made_up())
    assert (best.name, best.rises) == ("weight_norm", True)
    assert best.area > 0.95
    assert best.balanced > 0.85
    assert 2 < best.threshold < 3.2
    assert other.name == "dormant"
    assert other.balanced < 0.65


def test_the_area_is_that_of_the_library():
    rng = np.random.default_rng(1)
    values, lost = rng.integers(0, 8, 50).astype(float), rng.random(50) < 0.4
    assert signs._area(values, lost) == pytest.approx(metrics.roc_auc_score(lost, values))
    assert np.isnan(signs._area(values, np.ones(50, bool)))


def test_a_task_is_judged_by_what_was_measured_before_it():
    rows = made_up()
    for setting, found in signs.examples(rows).items():
        its = [row for row in rows if (row["activation"], f"{row['learning_rate']:g}") == (setting[0], setting[1])]
        first, second, third = its[:3]
        before, lost = found[0]
        assert before["weight_norm"] == pytest.approx(second["weight_norm"] / first["weight_norm"])
        assert lost == (third["online_accuracy"] < 0.9 * first["online_accuracy"])
        assert len(found) == 3 * 10


def test_the_table_says_when_to_restart():
    lines = signs.table(signs.signs(made_up())).splitlines()
    assert lines[2].startswith("| weight norm")
    assert "times its first value" in lines[2]
