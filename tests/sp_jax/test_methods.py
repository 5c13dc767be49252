"""The later methods within the engine: what they do to a lane, and to whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference
import optax
import pytest
from flax import linen as nn

from experiments.config import choices
from experiments.config.settings import Settings
from sp_jax import data, models, plasticity, restarts, sweeps, training
from sp_jax.penalties import cross_entropy
from sp_jax.plasticity import methods
from sp_jax.random import Purpose, key_for
from sp_jax.training import Convergence, Trainer
from sp_jax.types import Batches, Dataset, HParams, TrainState

FULL = data.mixture()
SMALL = Dataset(FULL.inputs[:300], FULL.labels[:300], 10, "small")
MODEL = models.from_module(models.MLP(10, (16, 16), nn.relu), FULL.inputs)


class Normed(nn.Module):
    """A unit's link, and BatchNorm."""

    @nn.compact
    def __call__(self, x, mask=None, train=False):
        mask = None if mask is None else mask[:, None]
        x = nn.Dense(16, name="hidden_0")(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm_0")(x, mask=mask))
        self.sow("intermediates", "hidden_0_units", x)
        return nn.Dense(10, name="head")(x)

    def links(self):
        return (("hidden_0", "head", "norm_0"),)


NORMED = models.from_module(Normed(), FULL.inputs)


def train(method, *, strength=None, epochs=1, model=MODEL, seed=0):
    """The state of one lane after a round: four steps an epoch, the last one of 4 samples."""
    return train_with(Trainer(model, training.adam, 32, method=method), lane_of(method, strength, epochs, seed))


def train_with(trainer, lane):
    @jax.jit
    def program(lane, data):
        start = lane.convergence.start(training.init_state(trainer, lane, 0))
        return training.train_round(trainer, lane, data, start, 1, 100, 10**6).state

    return program(lane, SMALL)


def lane_of(method, strength=None, epochs=1, seed=0):
    strength = method.default_strength if strength is None else strength
    lanes = sweeps.make_lanes(
        [seed], HParams(0.01, method_strength=strength, shrink=0.5), Convergence.exactly(epochs), 300
    )
    return jax.tree.map(lambda x: jnp.asarray(x[0]), lanes)


def rounds(method, restart=restarts.warm_start, epochs=1):
    """The state, and what was measured, after two rounds of one lane in the engine."""
    engine = sweeps.Engine(Trainer(MODEL, training.adam, 32, method=method), SMALL, 1)
    lanes = jax.tree.map(lambda x: np.asarray(x)[None], lane_of(method, epochs=epochs))
    placed, state = engine.place(lanes), None
    for round_, before in ((1, restarts.no_restart), (2, restarts.make_restart(restart))):
        state, results, _ = sweeps.train_round(sweeps.RoundPlan(engine, lanes, 100, before), round_, placed, state)
    return jax.tree.map(lambda x: x[0], state), results[0]


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"rtol": 1e-5, "atol": 1e-6, **tolerance}), a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "strength"),
    [
        (methods.l2_init, 0.0),
        (methods.redo, -1.0),
        (methods.continual_backprop, 0.0),
        (methods.spectral, 0.0),
        (methods.parseval, 0.0),
        (methods.soft_rescaling, 0.0),
        (methods.weight_clipping, 1e9),
    ],
    ids=["l2_init", "redo", "continual_backprop", "spectral", "parseval", "soft_rescaling", "weight_clipping"],
)
def test_methods_of_no_strength_change_nothing(method, strength):
    close(train(method, strength=strength).params, train(methods.none).params, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_l2_init_is_the_gradient_of_its_penalty_and_remembers_the_first_initialisation():
    state, lane = train(methods.l2_init, strength=0.01), lane_of(methods.l2_init, 0.01)
    trainer = Trainer(MODEL, training.adam, 32, method=methods.l2_init)
    first = jax.jit(lambda lane: training.init_state(trainer, lane, 0).params)(lane)
    close(state.memory["initial"], first, rtol=0, atol=0)
    batch = SMALL.inputs[:25], SMALL.labels[:25], jnp.ones(25, bool)

    def loss(params):
        logits, _ = MODEL.apply(params, {}, batch[0], batch[2], True)
        far = optax.tree.norm(optax.tree.sub(params, first), squared=True)
        return jnp.mean(cross_entropy(logits, batch[1])) + 0.01 * far

    new, _, _ = jax.jit(lambda s: training.train_step(trainer, lane.hparams, s, *batch))(state)

    @jax.jit
    def by_hand(state):
        updates, _ = training.adam(lane.hparams).update(jax.grad(loss)(state.params), state.opt_state, state.params)
        return optax.apply_updates(state.params, updates)

    close(new.params, by_hand(state), rtol=1e-4)


def hare_state(fast, slow):
    stats, zero = {"mean": jnp.full(2, slow)}, jnp.int32(0)
    memory = {
        "slow": ({"w": jnp.full(2, slow)}, stats),
        "first_stats": {"mean": jnp.zeros(2)},
        "epoch": zero,
        "step": zero,
    }
    return TrainState({"w": jnp.full(2, fast)}, {"mean": jnp.full(2, fast)}, (), memory)


def test_the_hare_jumps_after_the_first_epoch_and_every_ten_batch_statistics_too():
    state, jumps = hare_state(1.0, 0.0), []
    for epoch in range(1, 31):
        state = methods.hare_tortoise.after_epoch(state)
        assert state.params["w"][0] == state.batch_stats["mean"][0]
        if state.params["w"][0] == 0:
            jumps.append(epoch)
            state = state.replace(params={"w": jnp.ones(2)}, batch_stats={"mean": jnp.ones(2)})
    assert jumps == [1, 11, 21]  # after the epochs 0, 10, 20 of a round, counted from 0
    tortoise = methods.hare_tortoise.evaluated(state)
    assert (tortoise.params["w"][0], tortoise.batch_stats["mean"][0]) == (0, 0)


def test_a_restart_is_of_the_hare_and_of_the_tortoise():
    def restart(state):
        params = jax.tree.map(lambda p: 0.5 * p, state.params)
        return TrainState(params, {"mean": jnp.zeros(2)}, (), state.memory)

    state = methods.hare_tortoise.restarted(restart, hare_state(4.0, 2.0))
    assert (state.params["w"][0], state.batch_stats["mean"][0]) == (2, 0)
    params, batch_stats = state.memory["slow"]
    assert (params["w"][0], batch_stats["mean"][0]) == (1, 0)


@pytest.mark.slow
def test_a_restart_in_the_engine_is_of_the_tortoise_too():
    shrunk, _ = rounds(methods.hare_tortoise, restarts.shrink_perturb, epochs=0)
    first, _ = rounds(methods.hare_tortoise, restarts.warm_start, epochs=0)
    close(shrunk.memory["slow"][0], jax.tree.map(lambda p: 0.5 * p, first.memory["slow"][0]))


@pytest.mark.slow
def test_the_tortoise_is_evaluated():
    state, result = rounds(methods.hare_tortoise, epochs=8)
    lane = lane_of(methods.hare_tortoise)
    hare, tortoise = (
        training.evaluate(MODEL, s, SMALL, lane.validation) for s in (state, methods.hare_tortoise.evaluated(state))
    )
    assert result.validation_loss == pytest.approx(float(tortoise.loss), rel=1e-5)
    assert result.validation_loss != pytest.approx(float(hare.loss), rel=1e-3)


@pytest.mark.slow
def test_the_tortoise_follows_every_step():
    """Of one epoch of four steps: the average of the hare's four positions, by a loop over `train_step`."""
    found, lane = train(methods.hare_tortoise, strength=0.5), lane_of(methods.hare_tortoise)
    plain = Trainer(MODEL, training.adam, 32)
    state = training.init_state(plain, lane, 0)
    slow, step = state.params, jax.jit(lambda s, *batch: training.train_step(plain, lane.hparams, s, *batch)[0])
    order = training.epoch_order(key_for(lane.seed, Purpose.SHUFFLE, 1, 0), lane.order, 100, 224)
    for start in range(0, 100, 32):
        batch = order[start : start + 32]
        state = step(state, SMALL.inputs[batch], SMALL.labels[batch], start + jnp.arange(32) < 100)
        slow = jax.tree.map(lambda s, f: 0.5 * s + 0.5 * f, slow, state.params)
    close(found.memory["slow"][0], slow, rtol=1e-4, atol=1e-5)


def stats_state(fast, slow, step):
    """The hare and the tortoise of a network that is its statistics alone."""
    state = hare_state(0.0, 0.0)
    memory = state.memory | {"slow": ({"w": jnp.zeros(2)}, {"mean": jnp.full(2, slow)}), "step": jnp.int32(step)}
    return state.replace(batch_stats={"mean": jnp.full(2, fast)}, memory=memory)


def test_the_tortoises_statistics_do_not_remember_where_they_began():
    """After t steps they are the mean of the hare's, the newest of weight (1 - μ), in the first round too."""
    state, fast = stats_state(0.0, 0.0, 0), (1.0, 3.0, -2.0, 5.0)
    for value in fast:
        state = state.replace(batch_stats={"mean": jnp.full(2, value)})
        state = methods.hare_tortoise.after_step(None, None, state, None, None, 0.75)
    weights = 0.75 ** np.arange(4)[::-1]
    np.testing.assert_allclose(state.memory["slow"][1]["mean"], np.dot(weights, fast) / weights.sum(), rtol=1e-6)
    still = methods.hare_tortoise.after_step(None, None, stats_state(7.0, 2.0, 0), None, None, 1.0)
    np.testing.assert_array_equal(still.memory["slow"][1]["mean"], 2)


@pytest.mark.parametrize(("policy", "step"), [("reset", 0), ("keep", 9), ("recalibrate", 9)])
def test_the_tortoises_steps_are_counted_anew_where_its_statistics_are(policy, step):
    def restart(state):
        mean = {"reset": jnp.zeros(2), "keep": state.batch_stats["mean"], "recalibrate": jnp.full(2, 0.5)}[policy]
        return state.replace(batch_stats={"mean": mean})

    state = stats_state(1.0, 2.0, 9)
    state = state.replace(memory=state.memory | {"epoch": jnp.int32(4)})
    restarted = methods.hare_tortoise.restarted(restart, state)
    assert (restarted.memory["step"], restarted.memory["epoch"]) == (step, 0)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", restarts.STATISTICS)
def test_the_tortoise_is_as_good_with_statistics_that_are_reset(statistics):
    """BatchNorm, two rounds: with statistics that began at 0 and 1 it would guess (11 %)."""
    trainer = Trainer(NORMED, training.adam, 32, method=methods.hare_tortoise)
    engine, lanes = (
        sweeps.Engine(trainer, SMALL, 1),
        sweeps.make_lanes([0], HParams(0.01, method_strength=0.99), Convergence.exactly(60), 300),
    )
    restart = restarts.make_restart(restarts.warm_start, statistics=statistics, model=NORMED)
    placed, state = engine.place(lanes), None
    for round_, num_visible, before in ((1, 100, restarts.no_restart), (2, 200, restart)):
        state, _, _ = sweeps.train_round(sweeps.RoundPlan(engine, lanes, num_visible, before), round_, placed, state)
        tortoise = methods.hare_tortoise.evaluated(jax.tree.map(lambda x: x[0], state))
        fitted = training.evaluate(NORMED, tortoise, SMALL, lanes.order[0, :num_visible])
        assert fitted.accuracy > 0.8


def test_redo_keeps_the_moments_of_biases_and_adams_count(monkeypatch):
    """As its authors' program; all other moments of a unit begin anew."""
    monkeypatch.setattr(methods, "REDO_STEPS", 4)
    adam = train(methods.redo, strength=1e9).opt_state[1][0]
    assert (adam.mu["hidden_0"]["bias"] != 0).all()
    np.testing.assert_array_equal(adam.mu["hidden_0"]["kernel"], 0)
    assert adam.count == 4


def test_continual_backprop_counts_the_steps_of_each_entry():
    """What Adam's count is for the weights of units that were replaced is their age; others, biases that absorb too,
    have seen all steps. It is what the command line trains with."""
    settings = Settings(model="mlp", hidden=(16, 16), method="continual_backprop", activation="relu", batch_size=32)
    made = choices.trainer(settings, SMALL)
    lane = lane_of(methods.continual_backprop, 1 / 64, 40)
    state = train_with(made, lane)
    count, ages = state.opt_state[1][0].count, state.memory["utility"].age
    np.testing.assert_array_equal(count["hidden_0"]["kernel"], np.broadcast_to(ages["hidden_0"], (64, 16)))
    np.testing.assert_array_equal(count["hidden_0"]["bias"], ages["hidden_0"])
    np.testing.assert_array_equal(count["head"]["kernel"], np.broadcast_to(ages["hidden_1"][:, None], (16, 10)))
    np.testing.assert_array_equal(count["head"]["bias"], 160)
    for other in ("none", "redo"):
        made = choices.trainer(dataclasses.replace(settings, method=other), SMALL)
        assert made.optimizer is training.adam


def test_redo_searches_every_so_many_steps(monkeypatch):
    """A threshold above all scores re-draws every hidden unit, so its outgoing weights are zero just after it."""
    monkeypatch.setattr(methods, "REDO_STEPS", 4)
    one, other = (train(methods.redo, strength=1e9, seed=seed) for seed in (0, 1))  # 4 steps
    np.testing.assert_array_equal(one.params["head"]["kernel"], 0)
    np.testing.assert_array_equal(one.params["hidden_0"]["bias"], 0)
    adam = one.opt_state[1][0]
    np.testing.assert_array_equal(adam.mu["head"]["kernel"], 0)
    assert (adam.mu["head"]["bias"] != 0).any()
    assert adam.count == 4
    assert (one.params["hidden_0"]["kernel"] != other.params["hidden_0"]["kernel"]).all()  # each draws its own
    monkeypatch.setattr(methods, "REDO_STEPS", 5)
    assert (train(methods.redo, strength=1e9).params["head"]["kernel"] != 0).all()


def test_continual_backprop_replaces_mature_units_at_its_rate():
    """160 steps; units are mature after 100, so of 16 units at ρ = 1/64 every fourth step replaces one."""
    state = train(methods.continual_backprop, strength=1 / 64, epochs=40)
    assert state.memory["step"] == 160
    expected, eligible, pending = [], 16, 0.0
    for step in range(101, 161):
        pending += eligible / 64
        if pending >= 1:
            pending, eligible = pending - 1, eligible - 1
            expected.append(160 - step)
    for layer in ("hidden_0", "hidden_1"):
        ages = np.sort(state.memory["utility"].age[layer])
        np.testing.assert_array_equal(ages, sorted(expected + [160] * eligible))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.slow
@pytest.mark.parametrize(("restart", "steps"), [(restarts.warm_start, 8), (restarts.random_init, 4)])
def test_what_a_method_remembers_survives_a_warm_start_and_not_random_init(restart, steps):
    assert rounds(methods.continual_backprop, restart)[0].memory["step"] == steps


@pytest.mark.slow
def test_methods_on_the_channels_of_a_resnet(monkeypatch):
    monkeypatch.setattr(methods, "REDO_STEPS", 1)
    model = models.from_module(models.ResNet(10, width=4, stage_sizes=(1, 1)), FULL.inputs)
    assert model.links[1] == ("stage_1_block_0/conv_0", "stage_1_block_0/conv_1", "stage_1_block_0/norm_0")
    params, batch_stats = model.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 1, params)
    optimizer = optax.adam(1e-3)
    memory = methods.redo.init(jax.random.key(1), model, params, batch_stats)
    state = TrainState(params, batch_stats, optimizer.init(params), memory)
    step = jax.jit(lambda state, x: methods.redo.after_step(model, optimizer, state, x, None, 1e9))
    new = step(state, FULL.inputs[:8]).params
    np.testing.assert_array_equal(new["stage_1_block_0"]["conv_1"]["kernel"], 0)
    np.testing.assert_array_equal(new["stage_1_block_0"]["norm_0"]["scale"], 1)
    np.testing.assert_array_equal(new["stem"]["kernel"], params["stem"]["kernel"])


def unit_state(method):
    params, _ = MODEL.init(jax.random.key(0))
    optimizer = optax.adam(1e-3)
    memory = method.init(jax.random.key(1), MODEL, params, {})
    if isinstance(memory.get("utility"), plasticity.Utility):
        old = {name: age + 200 for name, age in memory["utility"].age.items()}
        memory["utility"] = memory["utility"]._replace(age=old)
    if "silence" in memory:  # six units are silent on pixels, not on larger numbers
        thresholds = jax.tree.map(lambda x: jnp.full_like(x, 12), memory["silence"].threshold)
        memory["silence"] = memory["silence"]._replace(threshold=thresholds)
        params["hidden_0"]["bias"] = params["hidden_0"]["bias"].at[:6].add(-9)
    return optimizer, TrainState(params, {}, optimizer.init(params), memory)


@pytest.mark.parametrize(
    ("name", "strength"), [("redo", 0.7), ("continual_backprop", 0.1), ("self_normalized_resets", 0.92)]
)
def test_padding_has_no_say_in_which_units_go(name, strength, monkeypatch):
    monkeypatch.setattr(methods, "REDO_STEPS", 1)
    method = methods.METHODS[name]
    optimizer, state = unit_state(method)
    mask, inputs = jnp.arange(20) < 12, np.array(SMALL.inputs[:20])
    step = jax.jit(lambda x: method.after_step(MODEL, optimizer, state, x, mask, strength).params)
    clean = step(inputs)
    inputs[12:] = 50 * np.random.default_rng(0).normal(size=inputs[12:].shape)
    close(step(inputs), clean, rtol=0, atol=0)
    assert (clean["hidden_0"]["kernel"] != state.params["hidden_0"]["kernel"]).any()


def test_every_draw_is_a_new_one(monkeypatch):
    """From step to step, and from round to round."""
    monkeypatch.setattr(methods, "REDO_STEPS", 1)
    optimizer, state = unit_state(methods.redo)
    step = jax.jit(lambda s: methods.redo.after_step(MODEL, optimizer, s, SMALL.inputs[:20], None, 1e9))
    one = step(state)
    other = step(one)
    assert (one.params["hidden_0"]["kernel"] != other.params["hidden_0"]["kernel"]).all()
    trainer, lane = Trainer(MODEL, training.adam, 32, method=methods.redo), lane_of(methods.redo)
    keys = [training.init_state(trainer, lane, round_).memory["key"] for round_ in (1, 2)]
    assert (keys[0] != keys[1]).any()


def test_a_model_without_links_is_refused():
    model = models.from_functions(lambda key: jnp.ones((64, 10)), lambda w, x: x.reshape(len(x), -1) @ w)
    methods.check_method(methods.l2_init, model)
    with pytest.raises(ValueError, match="the model has none with a single reader"):
        sweeps.Engine(Trainer(model, training.adam, 8, method=methods.redo), SMALL, 1)


def test_a_kernel_or_a_head_that_cannot_be_told_is_refused():
    def model(params):
        return models.from_functions(lambda key: params, lambda w, x: x)

    with pytest.raises(ValueError, match="none is named 'head'"):
        methods.check_method(methods.parseval, model({"output": {"kernel": jnp.ones((4, 2))}}))
    for method in (methods.spectral, methods.parseval, methods.weight_clipping):
        attention = {"query": {"kernel": jnp.ones((4, 2, 2))}, "head": {"kernel": jnp.ones((4, 2))}}
        with pytest.raises(ValueError, match=r"'query/kernel' of shape \(4, 2, 2\) may be a convolution"):
            methods.check_method(method, model(attention))
    methods.check_method(methods.soft_rescaling, model(attention))


NEW = ("self_normalized_resets", "upgd", "spectral", "parseval", "soft_rescaling", "weight_clipping")


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_lanes_together_are_those_of_one_at_a_time(name):
    """Two strengths and seeds, in one program; what is remembered keeps its shapes and dtypes. With SGD: the gradient
    of a bias before BatchNorm is rounding alone, which Adam makes large."""
    method = methods.METHODS[name]
    trainer = Trainer(NORMED, training.sgd, 32, method=method)
    lanes = [lane_of(method, factor * method.default_strength, 2, seed) for seed, factor in enumerate((1.0, 0.5))]

    def program(lane):
        start = lane.convergence.start(training.init_state(trainer, lane, 0))
        return training.train_round(trainer, lane, SMALL, start, 1, 100, 10**6).state

    together = jax.jit(jax.vmap(program))(jax.tree.map(lambda *x: jnp.stack(x), *lanes))
    alone = [jax.jit(program)(lane) for lane in lanes]
    for i, state in enumerate(alone):
        close(jax.tree.map(lambda x, i=i: x[i], together), state, rtol=1e-3, atol=1e-4)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.params))
        kinds = jax.tree.map(lambda x: (x.shape, x.dtype), state.memory)
        first = jax.eval_shape(lambda lane: training.init_state(trainer, lane, 0).memory, lanes[0])
        assert kinds == jax.tree.map(lambda x: (x.shape, x.dtype), first)


def steps_by_hand(method, strength, changed):
    """Compare a second step of the engine, of SGD with weight decay and of a partial batch, with one by the gradient
    `changed(state before, state after, gradient of the loss)`."""
    trainer = Trainer(MODEL, training.sgd, 32, method=method)
    hparams = HParams(0.1, weight_decay=0.01, method_strength=strength)
    batch = SMALL.inputs[:32], SMALL.labels[:32], jnp.arange(32) < 20
    state = training.init_state(trainer, lane_of(method), 0)
    step = jax.jit(lambda s: training.train_step(trainer, hparams, s, *batch)[0])
    before = step(state)
    after = step(before)

    def loss(params):
        logits, _ = MODEL.apply(params, {}, batch[0][:20], None, True)
        return jnp.mean(cross_entropy(logits, batch[1][:20]))

    gradient = jax.jit(jax.grad(loss))(before.params)
    gradient = changed(before, after, gradient)
    new = jax.tree.map(lambda p, g: p - 0.1 * (g + 0.01 * p), before.params, gradient)
    close(after.params, new, rtol=1e-4)


@pytest.mark.slow
def test_penalties_are_added_to_the_gradient():
    def spectral(before, after, gradient):
        vectors = plasticity.power_iteration(before.params, before.memory["vectors"])
        close(after.memory["vectors"], vectors)
        pull = jax.grad(lambda p: plasticity.spectral_penalty(p, vectors))(before.params)
        return jax.tree.map(lambda g, p: g + 0.5 * p, gradient, pull)

    def parseval(before, after, gradient):
        pull = jax.grad(plasticity.parseval_penalty)(before.params)
        assert not pull["head"]["kernel"].any()
        return jax.tree.map(lambda g, p: g + 1e-3 * p, gradient, pull)

    steps_by_hand(methods.spectral, 0.5, spectral)
    steps_by_hand(methods.parseval, 1e-3, parseval)


@pytest.mark.slow
def test_upgd_protects_by_the_utility_of_the_losss_gradient():
    def upgd(before, after, gradient):
        utility = plasticity.weight_utility(before.memory["utility"], before.params, gradient)
        close(after.memory["utility"], utility, atol=1e-9)
        return plasticity.upgd(gradient, utility, jax.tree.map(jnp.zeros_like, gradient))

    steps_by_hand(methods.upgd, 0.0, upgd)
    state, gradient = unit_state(methods.upgd)[1], jax.tree.map(jnp.zeros_like, MODEL.init(jax.random.key(0))[0])
    draws = []
    for _ in range(2):
        state = methods.upgd.observe(state, gradient, 0.5)
        draws.append(methods.upgd.gradient(state, gradient, 0.5)["hidden_0"]["kernel"])
    np.testing.assert_allclose(np.std(draws, axis=(1, 2)), 0.25, rtol=0.1)  # half of each step
    assert (draws[0] != draws[1]).all()


@pytest.mark.slow
def test_silent_units_are_reset_and_thresholds_adapt_after_sixteen_rounds():
    method = methods.self_normalized_resets
    optimizer, state = unit_state(method)
    once = jax.tree.map(lambda p: 0.1 * jnp.ones_like(p), state.params)
    state = state.replace(opt_state=optimizer.update(once, state.opt_state)[1])
    step = jax.jit(lambda s: method.after_step(MODEL, optimizer, s, SMALL.inputs[:20], jnp.arange(20) < 12, 0.92))
    new = step(state)
    gone = np.array((new.params["hidden_0"]["kernel"] != state.params["hidden_0"]["kernel"]).all(axis=0))
    assert gone[:6].all()
    assert not new.params["hidden_0"]["bias"][gone].any()
    assert not new.params["hidden_1"]["kernel"][gone].any()
    adam = new.opt_state[0]
    assert not adam.mu["hidden_0"]["bias"][gone].any()
    assert not adam.nu["hidden_1"]["kernel"][gone].any()
    assert adam.mu["head"]["bias"].all()
    assert adam.count == 1
    np.testing.assert_array_equal(new.memory["silence"].histogram["hidden_0"][:, 0], gone)
    assert not (new.memory["silence"].threshold["hidden_0"] != 12).any()
    idle = method.restarted(lambda s: s, unit_state(method)[1])
    assert idle.memory["rounds"] == 0  # no step since the last
    for _ in range(16):
        assert new.memory["rounds"] < 16
        new = method.restarted(lambda s: s, new)
        new = new.replace(memory=new.memory | {"begun": jnp.bool_(True)})
    after = step(new)
    assert after.memory["rounds"] == 0
    assert (after.memory["silence"].threshold["hidden_0"] == 100).all()


@pytest.mark.slow
def test_resets_count_rounds_in_the_engine():
    state, _ = rounds(methods.self_normalized_resets)
    assert (state.memory["rounds"], state.memory["begun"], state.memory["step"]) == (1, True, 8)


@pytest.mark.slow
def test_weights_are_rescaled_and_clipped_after_each_step():
    state = train(methods.soft_rescaling, strength=1.0)
    first = MODEL.init(key_for(0, Purpose.INIT, 0))[0]
    close(plasticity.weight_norms(state.params), plasticity.weight_norms(first), rtol=1e-5)
    close(state.memory["norms"], plasticity.weight_norms(first))
    clipped = train(methods.weight_clipping, strength=0.5).params["hidden_1"]
    assert all(np.abs(x).max() == 0.125 for x in jax.tree.leaves(clipped)[1:])  # 0.5 / sqrt(16)


def batches(count, size, real):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, size, 8, 8, 1)).astype(np.float32)
    masks = np.arange(count * size).reshape(count, size) < real
    return Batches(inputs, masks, rng.integers(0, 10, (count, size)))


@pytest.mark.parametrize("real", [33, *(pytest.param(real, marks=pytest.mark.slow) for real in (40, 16, 3))])
def test_dash_sweeps_the_samples_in_chunks_of_batches(real):
    """Five batches of 8, chunks of two: an average over whole chunks and the rest, by a loop over real samples."""
    params, _ = MODEL.init(jax.random.key(0))
    fresh, _ = MODEL.init(jax.random.key(1))
    state, fresh = (TrainState(p, {}, optax.adam(1e-3).init(p)) for p in (params, fresh))
    samples = batches(5, 8, real)
    restart = restarts.make_dash(MODEL, batches_per_chunk=2, decay=0.3)
    new = jax.jit(restart)(jax.random.key(2), state, fresh, shrink=0.3, noise_scale=0.0, batches=samples)

    inputs, labels = samples.inputs.reshape(-1, 8, 8, 1)[:real], samples.labels.reshape(-1)[:real]
    average = jax.tree.map(np.zeros_like, params)
    gradient = jax.jit(jax.grad(lambda p, x, y: jnp.mean(cross_entropy(MODEL.apply(p, {}, x, None, True)[0], y))))
    for start in range(0, real, 16):
        chunk = slice(start, start + 16)
        average = plasticity.average_gradient(average, gradient(params, inputs[chunk], labels[chunk]), decay=0.3)
    close(new.params, plasticity.dash(params, average, shrink=0.3), rtol=1e-3, atol=1e-5)
    close(new.opt_state, fresh.opt_state)


@pytest.mark.parametrize(
    ("arrivals", "real"),
    [
        ((5, 12, 20, 33), 25),
        ((8, 16), 3),
        pytest.param((5, 12, 20, 33), 33, marks=pytest.mark.slow),
        pytest.param((33,), 33, marks=pytest.mark.slow),
        pytest.param((1, 2, 3, 4, 40), 33, marks=pytest.mark.slow),
        pytest.param((16, 24), 33, marks=pytest.mark.slow),
    ],
)
def test_dash_takes_one_gradient_for_each_arrival_against_numpy(arrivals, real):
    """Batches of 8 that arrivals do not divide; what came after the last arrival is one more."""
    params, _ = MODEL.init(jax.random.key(0))
    state, samples = TrainState(params, {}, ()), batches(5, 8, real)
    restart = jax.jit(restarts.make_dash(MODEL, arrivals=arrivals, decay=0.4))
    new = restart(jax.random.key(2), state, state, shrink=0.3, noise_scale=0.0, batches=samples).params

    layers = [("flat", None), ("dense", "hidden_0"), ("relu", None), ("dense", "hidden_1"), ("relu", None)]
    weights = jax.tree.map(np.float64, params)
    net = numpy_reference.Net([*layers, ("dense", "head")], weights)
    inputs, labels = samples.inputs.reshape(-1, 8, 8, 1), samples.labels.reshape(-1)
    average = jax.tree.map(np.zeros_like, weights)
    ends = [*(end for end in arrivals if end < real), real]
    for start, end in zip([0, *ends], ends, strict=False):
        _, _, gradient = net.loss_and_gradient(np.float64(inputs[start:end]), labels[start:end])
        average = jax.tree.map(lambda a, g: 0.6 * a - 0.4 * g, average, {name: gradient[name] for name in average})
    for name, leaves in weights.items():
        for leaf, w in leaves.items():
            g = average[name][leaf]
            lengths = np.sqrt((w * w).sum(0) * (g * g).sum(0))
            cosine = (w * g).sum(0) / np.where(lengths == 0, 1, lengths)
            np.testing.assert_allclose(new[name][leaf], w * np.clip(cosine, 0.3, 1), rtol=1e-3, atol=1e-5)


def test_dash_takes_its_gradients_in_evaluation_mode():
    """With the running statistics of the old network, one for each arrival; batches of padding alone count nothing."""
    params, _ = NORMED.init(jax.random.key(0))
    stats = {"norm_0": {"mean": jnp.linspace(-1, 1, 16), "var": jnp.linspace(0.5, 2, 16)}}
    state, samples = TrainState(params, stats, ()), batches(7, 8, 13)
    restart = jax.jit(restarts.make_dash(NORMED, arrivals=(4, 13)))
    new = restart(jax.random.key(2), state, state, shrink=0.3, noise_scale=0.0, batches=samples).params
    inputs, labels = samples.inputs.reshape(-1, 8, 8, 1), samples.labels.reshape(-1)
    average = jax.tree.map(np.zeros_like, params)
    gradient = jax.jit(jax.grad(lambda p, x, y: jnp.mean(cross_entropy(NORMED.apply(p, stats, x, None, False)[0], y))))
    for chunk in (slice(0, 4), slice(4, 13)):
        average = plasticity.average_gradient(average, gradient(params, inputs[chunk], labels[chunk]))
    close(new, plasticity.dash(params, average, shrink=0.3), rtol=1e-3, atol=1e-5)


def test_dash_needs_labels_and_sound_policies():
    state = TrainState({}, {}, ())
    with pytest.raises(ValueError, match="DASH needs batches=Batches"):
        restarts.make_dash(MODEL)(None, state, state, shrink=0.3, noise_scale=0.0)
    with pytest.raises(ValueError, match="statistics must be one of"):
        restarts.make_dash(MODEL, statistics="none")
    with pytest.raises(ValueError, match="shapes must be 'same', got 'grow'"):
        restarts.make_dash(MODEL, shapes="grow")
    for arrivals in ((), (3, 3), (0, 2), (1.5,), 4):
        with pytest.raises(ValueError, match="arrivals must be increasing counts"):
            restarts.make_dash(MODEL, arrivals=arrivals)
    with pytest.raises(ValueError, match="batches_per_chunk must be at least 1"):
        restarts.make_dash(MODEL, batches_per_chunk=0)


@pytest.mark.slow
def test_dash_in_the_engine_never_sees_what_has_not_arrived():
    def final(spoil):
        inputs = np.array(SMALL.inputs)
        trainer = Trainer(MODEL, training.sgd, 25)
        lanes = sweeps.make_lanes([0], HParams(0.0, shrink=0.3), Convergence.exactly(1), 300)
        inputs[lanes.order[0, 60:]] += spoil
        engine = sweeps.Engine(trainer, Dataset(inputs, SMALL.labels, 10), 1)
        placed = engine.place(lanes)
        phase = sweeps.RoundPlan(engine, lanes, 60, restarts.make_dash(MODEL))
        return engine.fetch(sweeps.train_round(phase, 2, placed, engine.init(placed))[0]).params

    close(final(0.0), final(100.0), rtol=0, atol=0)


def test_fire_makes_kernels_orthogonal_and_keeps_the_rest():
    params, _ = MODEL.init(jax.random.key(0))
    new = restarts.fire(None, params, None)
    close(new["hidden_0"]["bias"], params["hidden_0"]["bias"], rtol=0, atol=0)
    kernel = np.asarray(new["hidden_0"]["kernel"])
    np.testing.assert_allclose(64 / 16 * kernel.T @ kernel, np.eye(16), atol=0.01)
