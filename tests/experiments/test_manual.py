"""What --help shows, and what absl's complaints about flags become."""

import pathlib

import grain  # noqa: F401  (defines flags when first imported, which flagsaver would forget again)
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import benchmark, report, retrain, run
from experiments.config import app, help_page
from experiments.config.settings import FIELDS
from experiments.reporting import listing
from experiments.specs import registry

ROOT = pathlib.Path(__file__).parents[2]
BINARIES = (run, benchmark, report, retrain)
ELSEWHERE = {"millions"}  # of transform_benchmark, whose other flag is the benchmark's too


def defined(binary):
    return flags.FLAGS.get_key_flags_for_module(binary)


@pytest.mark.parametrize("binary", [run, benchmark, retrain], ids=lambda binary: binary.__name__)
def test_every_flag_has_one_theme_a_default_and_numbers_a_unit(binary):
    for flag in defined(binary):
        (entry,) = (group[flag.name] for group in help_page.GROUPS.values() if flag.name in group)
        assert help_page.default(flag), flag.name
        of = str(FIELDS[flag.name].type) if flag.name in FIELDS else flag.flag_type()
        assert entry.unit or not any(kind in of for kind in ("int", "float")), flag.name
    assert len(defined(binary)) == len({flag.name for flag in defined(binary)})


def test_every_entry_is_a_flag():
    everywhere = {flag.name for binary in BINARIES for flag in defined(binary)}
    assert {flag for group in help_page.GROUPS.values() for flag in group} <= everywhere | ELSEWHERE
    assert set(help_page.SYNONYMS.values()) <= everywhere


@pytest.mark.parametrize("binary", BINARIES, ids=lambda binary: binary.__name__)
def test_help_shows_every_flag_once_below_the_examples(binary, capsys):
    with pytest.raises(SystemExit) as stop:
        app.parse(binary, ["binary", "--workdir=x", "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(binary.__doc__.strip())
    shown = [
        line.split()[0].removeprefix("--").removeprefix("[no]") for line in page.splitlines() if line[:4] == "  --"
    ]
    assert sorted(shown) == sorted(flag.name for flag in defined(binary))
    assert max(map(len, page.removeprefix(binary.__doc__.strip()).splitlines())) <= help_page.WIDTH


def test_help_gives_symbol_unit_and_default(capsys):
    with pytest.raises(SystemExit):
        app.parse(run, ["run", "-h"])
    page = " ".join(capsys.readouterr().out.split())
    for words in (
        "--shrink λ [fraction] In [0, 1]", "--noise_scale σ [factor]", "--samples_per_round k [samples]",
        "--learning_rate η [per step]", "--batch_size [samples] Of a step. Default 128.", "--[no]resume",
    ):  # fmt: skip
        assert words in page


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--seed=3", "unknown flag --seed; did you mean --seeds?"),
        ("--dry-run", "unknown flag --dry-run; did you mean --dry_run?"),
        ("--batchsize=64", "unknown flag --batchsize; did you mean --batch_size?"),
        ("--lr=0.1", "unknown flag --lr; did you mean --learning_rate?"),
        ("--lambda=0.6", "unknown flag --lambda; did you mean --shrink?"),
        ("--qqq", "unknown flag --qqq"),
        ("--workdir", "Missing value for flag --workdir"),
        ("--resume=maybe", "--resume=maybe must be true or false"),
        ("--nolist=3", "--nolist=3 does not take an argument"),
        ("--join_seconds=abc", "--join_seconds=abc must be an integer"),
        ("--checkpoint_seconds=-5", "--checkpoint_seconds=-5 must be a non-negative number"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line(typed, message, capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        app.parse(run, ["run", typed])
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {message} (--help lists all flags)\n"


def test_the_list_says_what_the_kept_quick_runs_cost():
    assert listing.table().count("devices") >= len(registry.NAMES) - 3
