"""Programs for devices that are not here: what is read of them, and, where a compiler is installed, budgets."""

import functools

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import benchmark
from experiments.benchmarks import compiling, hlo, plain, targets
from experiments.config import choices, sweep
from experiments.config.fields import UsageError
from sp_jax import restarts
from sp_jax.plasticity.methods import METHODS

CPU = targets.Target("cpu", jax.devices()[:1], 1e9, 1e9, 2**30, {"f32": 1e9, "tf32": 1e9, "bf16": 1e9})
SMALL = {"dataset": "mixture", "hidden": (8,)}
TEXT = """\
HloModule a_step

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %x = f32[8,4]{1,0} get-tuple-element((s32[], f32[8,4]) %p), index=1
  %y = f32[8,4]{1,0} fusion(f32[8,4]{1,0} %x), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"300"}
  %w = f32[8,8]{1,0} dot(f32[8,4]{1,0} %y, f32[8,4]{1,0} %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%fused (q: f32[8,4]) -> f32[8,4] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %z = f32[8,4]{1,0} negate(f32[8,4]{1,0} %q)
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %i = (s32[], f32[8,4]) tuple(f32[8,4]{1,0} %a)
  %l = (s32[], f32[8,4]) while((s32[], f32[8,4]) %i), condition=%c, body=%body
}
"""


def settings(**given):
    (found,) = sweep.resolve(SMALL | given, {}).variants
    return found


def test_a_step_is_read_from_the_programs_text():
    step = hlo.step(hlo.loops(TEXT, CPU))
    assert dict(step.kernels) == {"fusion:Loop": 1, "dot": 1}
    assert step.operations == 2 * 8 * 8 * 4
    assert step.bytes == 2 * 128 + (2 * 128 + 256)
    tpu = CPU._replace(peak=None)
    step = hlo.step(hlo.loops(TEXT, tpu))
    assert (step.cycles, tpu.seconds(step)) == (300, pytest.approx(300e-9))


def test_loops_that_turn_a_known_number_of_times_are_multiplied_out():
    known = TEXT.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert hlo.step(hlo.loops(known, CPU)).kernels["dot"] == 7


def test_an_engine_of_shapes_lowers_all_its_programs():
    programs = compiling.lowered(compiling.engine(settings(), 2, CPU))
    assert [*programs] == ["init", "restart", "train", "evaluate"]
    found = compiling.compiled(programs["train"], CPU)
    assert found.error == ""
    assert found.bytes > 0 < sum(found.step.kernels.values())


SLOW = [pytest.param({"model": name}, marks=pytest.mark.slow) for name in ("birnn", "resnet18", "vit")]


@pytest.mark.parametrize("given", [{"model": "logistic"}, {"model": "mlp"}, *SLOW])
def test_the_plain_step_has_the_engines_parameters_and_runs(given):
    sets = {"birnn": "imdb", "resnet18": "cifar10", "vit": "cifar10"}
    own = settings(dataset=sets.get(given["model"], "mixture"), width=8, heads=2, depth=2, batch_size=4, **given)
    data = compiling.dataset(own.dataset)
    step, (carry, x, y) = plain.step(own, data)
    count = sum(leaf.size for leaf in jax.tree.leaves(carry[0]))
    params, _ = jax.eval_shape(choices.trainer(own, data).model.init, jax.random.key(0))
    assert count == sum(leaf.size for leaf in jax.tree.leaves(params))
    carry, x, y = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), (carry, x, y))
    assert np.isfinite(step(carry, x, y)[1])


def test_a_compiler_that_is_not_installed_is_named(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("no such plugin\nat all")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", missing)
    for name, extra in targets.EXTRAS.items():
        with pytest.raises(UsageError, match=rf"does not start \(no such plugin\); pip install '.\[{extra}\]'"):
            targets.target(name)
    with flagsaver.as_parsed(compile_for="v7"), pytest.raises(UsageError, match="--compile_for=v7"):
        targets.asked()


# Where a compiler is installed.


@functools.cache
def installed(name):
    targets.prepare()
    try:
        return targets.target(name)
    except UsageError as error:
        return str(error)


def needed(name):
    found = installed(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


KINDS = [*choices.RESTARTS, *(f"method {name}" for name in METHODS), *(f"penalty {name}" for name in choices.PENALTIES)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e", "h100"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_restart_method_and_penalty_compiles(name, kind):
    target, (what, _, chosen) = needed(name), kind.partition(" ")
    images = chosen in choices.PENALTIES and choices.PENALTIES[chosen].moves_pixels
    given = {"dataset": "cifar10" if images else "mixture", **({what: chosen} if chosen else {})}
    made = compiling.engine(settings(**given), 2, target)
    restart = restarts.make_restart(restarts.shrink_perturb)
    if not chosen:
        policies = {"statistics": "reset", "optimizer_state": "reset", "shapes": "same"}
        restart = choices.RESTARTS[what].make(made.trainer.model, "fresh", (250, 500), **policies)
    for program in compiling.lowered(made, restart).values():
        assert compiling.compiled(program, target).error == ""


BUDGETS = {  # of a step of one lane: kernels or cycles as a share of the plain step's, MiB that the program needs
    ("h100", "mlp_cifar10", 1): (1.1, 40),
    ("h100", "mlp_cifar10", 5): (0.2, 60),
    ("h100", "resnet18_16", 1): (0.9, 340),
    ("h100", "birnn", 1): (0.1, 340),
    ("v5e", "mlp_cifar10", 1): (0.95, 20),
    ("v5e", "mlp_cifar10", 5): (0.65, 60),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case", "lanes"), BUDGETS)
def test_no_step_costs_more_than_its_budget(name, case, lanes):
    target, (most, mebibytes) = needed(name), BUDGETS[name, case, lanes]
    (own,) = sweep.resolve(benchmark.CASES[case].preset, {}).variants
    found = compiling.compiled(compiling.lowered(compiling.engine(own, lanes, target))["train"], target)
    assert found.amount(target) <= most * lanes * compiling.plain_step(own, target).amount(target)
    assert found.temporary <= mebibytes * 2**20
