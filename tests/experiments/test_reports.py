"""Reports to look at: the page of HTML, the figures in both forms, the Pareto front, the paper's grid beside ours."""

import base64
import csv
import json
import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from experiments import report
from experiments.records import results
from experiments.reporting import comparison, html, paper_numbers, plotting, summary
from experiments.reporting.plotting import fronts, grids, style

MIXTURE = pathlib.Path(__file__).parents[2] / "experiments" / "results" / "online_mixture"
HOSTILE = "<script>alert(1)</script>![x](http://h/x.png) [y](javascript:z) a|b \"' & $\\frac <img src=//h onerror=z>"
VOID = ("meta", "img", "br", "hr")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose data set, and a flag, have a hostile name; one lane did not converge, and two ended by NaN."""
    folder = tmp_path_factory.mktemp("reports") / "run"
    folder.mkdir()
    config = json.loads((MIXTURE / "config.json").read_text())
    config["settings"]["dataset"], config["device"] = HOSTILE, HOSTILE
    config["command"].append(HOSTILE)
    config.pop("checksum", None)
    (folder / "config.json").write_text(json.dumps(config))
    rows = results.read(MIXTURE / "results.csv")
    for row in rows:
        row["dataset"] = HOSTILE
        cell, when = (row["restart"], row["shrink"]), (row["seed"], row["round"])
        reason = {(("warm_start", "1"), (0, 3)): "plateau", (("shrink_perturb", "0.8"), (1, 15)): "nan",
                  (("shrink_perturb", "0.8"), (1, 16)): "nan"}.get((cell, when))  # fmt: skip
        row["converged"] = "false" if reason else "true"
        row["stop_reason"] = reason or "threshold"
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    report.write(folder)
    return folder


class Page(HTMLParser):
    """Elements and text of a page; fails where tags do not close as they opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, *tags):
        return [attrs for tag, attrs in self.elements if tag in tags]


def test_the_page_holds_what_the_markdown_holds(run):
    text, found = (run / "report.md").read_text(), Page((run / "report.html").read_text())
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(found.all("tr")) == len(lines) > 15
    assert len(found.all("table")) == sum(line.startswith("|--") for line in text.splitlines()) == 3
    for words in re.findall(r"[\w.]+", re.sub(r"!\[.*", "", text)):
        assert words in found.text
    captions = re.findall(r"^!\[(.*)\]\(figures/(.*)\)$", text, re.MULTILINE)
    assert [name for _, name in captions] == ["accuracy_and_cost.png", "pareto.png", "heat_maps.png"]
    for picture, (caption, name) in zip(found.all("img"), captions, strict=True):
        kind, data = picture["src"].split(",")
        assert kind == "data:image/svg+xml;base64"
        assert base64.b64decode(data) == (run / "figures" / name).with_suffix(".svg").read_bytes()
        assert picture["alt"] == caption
        assert len(caption) > 30


def test_the_page_asks_for_nothing_and_runs_nothing(run):
    text = (run / "report.html").read_text()
    found = Page(text)
    assert {tag for tag, _ in found.elements} <= {
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "code", "div", "table", "thead",
        "tbody", "tr", "th", "td", "figure", "img", "figcaption", "em", "strong",
    }  # fmt: skip
    for tag, attrs in found.elements:
        assert not {*attrs} & {"href", "srcset", "onerror", "onload", "background", "poster"}
        assert attrs.get("src", "data:").startswith("data:"), tag
    assert "url(" not in text
    assert "@import" not in text
    assert found.all("meta")[1]["content"].startswith("default-src 'none'")


def test_names_from_files_are_words(run):
    found = Page((run / "report.html").read_text())
    assert found.text.count("<script>alert(1)</script>") >= 3  # the command, the settings, the machine
    assert f"dataset = {HOSTILE.replace('![x](http://h/x.png)', 'x')}" in found.text
    assert Page(html.render(summary.markdown([("a", "b"), (HOSTILE, "x\n\n# y")]), HOSTILE)).text.count("<img") == 2
    assert len(Page(html.render(summary.markdown([("a", "b"), ("x|y", "z\nw")]), "t")).all("td")) == 2


def test_the_report_says_which_lanes_did_not_converge(run):
    sentence = (
        "3 of 400 lane-rounds ended below --train_accuracy (1 by plateau, 2 by NaN): warm start (1 in round 3); "
        "shrink-perturb λ=0.8 σ=0.01 (2 in rounds 15 to 16)."
    )
    for name in ("report.md", "report.html"):
        assert sentence in (run / name).read_text()
    assert "ended below" not in summary.table(results.read(MIXTURE / "results.csv"))


def test_figures_are_the_same_bytes_again(run, tmp_path):
    rows = results.read(run / "results.csv")
    for name in ("rounds", "heat_maps"):
        (path,) = getattr(plotting, name)(rows, [], tmp_path)
        for suffix in (".png", ".svg"):
            found = path.with_suffix(suffix).read_bytes()
            assert found == (run / "figures" / path.name).with_suffix(suffix).read_bytes()
            assert len(found) < 300_000
        xml.etree.ElementTree.parse(path.with_suffix(".svg"))


def test_a_name_cannot_leave_the_folder(tmp_path):
    assert (
        style.save(style.panels("x", 1)[0], tmp_path / "figures", "../../a b/c")
        == tmp_path / "figures" / ".._.._a_b_c.png"
    )


def test_the_pareto_front():
    points = [(3, 70.0), (1, 50.0), (2, 60.0), (2, 55.0), (4, 70.0), (1, 50.0), (5, 40.0)]
    assert fronts.front(points) == [1, 5, 2, 0]  # equal points are both on it
    assert fronts.front([]) == []


def made_up(restart, shrink, sigma, accuracy, converged=True, **more):
    reason = "threshold" if converged else "plateau"
    return [
        {
            "experiment": "online", "dataset": "cifar10", "model": "resnet18", "optimizer": "adam", "batch_size": 128,
            "learning_rate": 0.001, "weight_decay": 0.0, "restart": restart, "shrink": shrink, "noise_scale": sigma,
            "seed": 0, "round": n, "num_train": 1000 * n, "epochs": 1, "samples_seen": 1000, "converged": converged,
            "stop_reason": reason, "validation_accuracy": accuracy, "seconds": 1.0, "lanes": 1,
        } | more
        for n in (1, 2, 3)
    ]  # fmt: skip


def drawn(monkeypatch):
    """The figures that are saved from here on."""
    figures = []
    monkeypatch.setattr(style, "save", lambda figure, folder, name: figures.append(figure) or folder / name)
    return figures


def test_what_was_too_small_to_train_is_hatched_and_off_the_front(tmp_path, monkeypatch):
    rows = made_up("random_init", "0", "1", 0.7) + made_up("shrink_perturb", "0.6", "0.1", 0.75)
    rows += made_up("shrink_perturb", "0.2", "0", 0.1, converged=False)
    rows += made_up("shrink_perturb", "0.6", "0", np.nan, converged=False, stop_reason="nan")
    figures = drawn(monkeypatch)
    plotting.heat_maps(rows, [], tmp_path)
    plotting.pareto(rows, [], tmp_path)
    for ax in figures[0].axes:
        assert [patch.get_hatch() for patch in ax.patches] == [grids.SHORT, grids.LOST]
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["70.0", "75.0", "10.0", "NaN"]
    assert [text.get_text() for text in figures[0].legends[0].texts] == [
        grids.MEANINGS[h] for h in (grids.SHORT, grids.LOST)
    ]
    assert [text.get_text() for text in figures[1].axes[0].texts if text.get_text()] == ["random init", "λ=0.6 σ=0.1"]


def test_the_papers_grid_beside_ours(tmp_path, monkeypatch):
    rows = made_up("random_init", "0", "1", 0.7) + made_up("warm_start", "1", "0", 0.6, samples_seen=500)
    rows += made_up("shrink_perturb", "0.2", "0", 0.1, converged=False)
    compared, same = comparison.compare("online", rows)
    assert same
    figures = drawn(monkeypatch)
    assert plotting.beside_the_paper(rows, compared, tmp_path)
    texts = [[text.get_text() for text in ax.texts] for ax in figures[0].axes]
    printed = [number for number in paper_numbers.numbers("online") if not number.cost]
    assert sorted(texts[0]) == sorted(f"{number.value:.1f}" for number in printed)
    assert len(texts[0]) == 28
    assert [patch.get_hatch() for patch in figures[0].axes[0].patches] == [grids.UNPRINTED] * 8
    assert texts[1] == ["70.0", "60.0", "10.0"]
    assert [patch.get_hatch() for patch in figures[0].axes[1].patches] == [grids.SHORT]
    assert texts[3] == ["1.00", "0.50", "1.00"]
    assert plotting.beside_the_paper(rows, comparison.compare("table1", rows)[0], tmp_path) == []


def test_a_browser_shows_the_page(run, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={tmp_path / 'page.png'}", "--window-size=1000,2000", (run / "report.html").as_uri(),
        ],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    pixels = np.round(255 * matplotlib.image.imread(tmp_path / "page.png")[..., :3])
    for colour in style.COLOURS[:2]:  # of the lines in the first figure
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.sum(np.abs(pixels - wanted).max(-1) < 3) > 100


@pytest.mark.parametrize("which", ["x", "y"])
def test_an_axis_of_costs_begins_at_zero_and_cuts_no_marker(which):
    for costs, end in (((900, 1033), 1.03 * 1033), ((0, 1000), 1050)):  # alike: the usual margin would be 7 samples
        axes = style.panels("", height=2)[1][0]
        axes.plot(*((costs, (1, 2)) if which == "x" else ((1, 2), costs)), "o")
        style.costs_from_zero(axes, which)
        assert getattr(axes, f"get_{which}lim")() == pytest.approx((0, end))
