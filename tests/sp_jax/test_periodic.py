"""Restarts at every k-th step of one long run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import serialization

from sp_jax.transforms import filters, periodic

KEY = jax.random.key(7)
RULE = {"shrink": 0.6, "noise_scale": 0.1}
HEAD = filters.layer("head")


def init(key):
    """Each leaf has a scale of its own; one draw for all, which compiles fast."""
    draw = jax.random.uniform(key, (18,), minval=-1.0)
    return {
        "body": {"kernel": draw[:12].reshape(4, 3), "bias": jnp.zeros(3)},
        "head": {"kernel": 0.3 * draw[12:].reshape(3, 2)},
    }


START = init(jax.random.key(0))


def gradient(params):
    return jax.tree.map(lambda p: p - 1.0, params)


def same_bits(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() and jnp.result_type(x) == jnp.result_type(y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def assert_close(a, b, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), a, b)


@functools.partial(jax.jit, static_argnums=0)
def one_update(optimizer, params, state):
    updates, state = optimizer.update(gradient(params), state, params)
    return optax.apply_updates(params, updates), state


def run(optimizer, steps, params=START, state=None):
    """The parameters after each step, and the last state."""
    state = optimizer.init(params) if state is None else state
    history = []
    for _ in range(steps):
        params, state = one_update(optimizer, params, state)
        history.append(params)
    return history, state


def reference(due, steps, shrink=0.6, noise_scale=0.1, rate=0.1):
    """Gradient descent in NumPy, restarted after the steps in `due`."""
    params, history = jax.tree.map(np.asarray, START), []
    for t in range(1, steps + 1):
        params = jax.tree.map(lambda p: p - rate * (p - 1.0), params)
        if t in due:
            fresh = init(jax.random.fold_in(KEY, t))
            params = jax.tree.map(lambda p, f: shrink * p + noise_scale * np.asarray(f), params, fresh)
        history.append(params)
    return history


SCHEDULES = [
    (1, None, {1, 2, 3, 4, 5, 6, 7, 8}),
    (2, None, {2, 4, 6, 8}),
    (3, None, {3, 6}),
    (7, None, {7}),
    (2, 6, {2, 4, 6}),
    (2, 5, {2, 4}),
    (3, 0, set()),
]


@pytest.mark.parametrize(("every", "last_step", "due"), SCHEDULES)
def test_is_due_at_the_multiples_and_not_at_zero(every, last_step, due):
    assert {t for t in range(9) if periodic.is_due(t, every=every, last_step=last_step)} == due
    traced = jax.vmap(lambda t: periodic.is_due(t, every=every, last_step=last_step))(jnp.arange(9))
    assert set(np.flatnonzero(traced).tolist()) == due
    assert traced.dtype == bool


def descend(params):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params))


def one_step(t, params, wrapped, state, every, last_step):
    """A step of both forms, each of its own parameters."""
    params = periodic.restart_at(KEY, t, descend(params), init, every=every, last_step=last_step, **RULE)
    optimizer = periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, every=every, last_step=last_step, **RULE)
    updates, state = optimizer.update(gradient(wrapped), state, wrapped)
    return params, optax.apply_updates(wrapped, updates), state


jitted_step = jax.jit(one_step)


@pytest.mark.parametrize(("every", "last_step", "due"), SCHEDULES)
@pytest.mark.parametrize("jit", [False, True])
def test_both_forms_fire_exactly_when_due(every, last_step, due, jit):
    step = jitted_step if jit else one_step  # under jit, every and last_step are traced
    last_step = 100 if jit and last_step is None else last_step
    params = wrapped = START
    state = periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, every=every, **RULE).init(START)
    for t, expected in enumerate(reference(due, 8), 1):
        params, wrapped, state = step(t, params, wrapped, state, every, last_step)
        assert_close(params, expected)
        assert_close(wrapped, expected)
        assert state.step == t


SPECIAL = np.array([1.5, -0.0, 0.0, np.inf, -np.inf, np.nan, 1e-40, -3.0], np.float32)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap])
def test_restart_at_is_exact_at_the_edges_and_between_restarts(wrap):
    params = {"w": jnp.asarray(SPECIAL), "h": jnp.asarray(SPECIAL).astype(jnp.bfloat16), "n": jnp.int32(3)}
    fresh = jax.tree.map(lambda x: x[::-1] if x.ndim else x, params)

    def at(step, shrink, noise_scale):
        call = wrap(
            lambda t: periodic.restart_at(
                KEY, t, params, lambda _: fresh, every=4, shrink=shrink, noise_scale=noise_scale
            )
        )
        return jax.tree.map(lambda x: x[0], call(jnp.array([step]))) if wrap is jax.vmap else call(jnp.int32(step))

    for step in (0, 1, 3, 5):
        assert same_bits(at(step, 0.5, 0.5), params)
    assert same_bits(at(4, 1.0, 0.0), params)
    assert same_bits(at(8, 0.0, 1.0), fresh)
    assert not same_bits(at(8, 0.5, 1.0), params)


@pytest.mark.parametrize("step", [3, 4])
def test_leaves_that_are_not_picked_are_the_same_objects(step):
    params = {"act": jnp.tanh, "n": 3, "body": jnp.ones(2), "head": jnp.ones(2), "scale": 0.5, "none": None}
    new = periodic.restart_at(KEY, step, params, lambda _: params, every=4, shrink=0.5, noise_scale=0.0, where=HEAD)
    assert all(new[name] is params[name] for name in params if name != "head")
    assert (new["head"] is params["head"]) == (step == 3)  # outside jit nothing is compiled between restarts
    np.testing.assert_array_equal(new["head"], [1.0, 1.0] if step == 3 else [0.5, 0.5])
    new = jax.jit(lambda t: periodic.restart_at(KEY, t, params, lambda _: params, every=4, **RULE)["scale"])(step)
    np.testing.assert_allclose(new, 0.5 if step == 3 else 0.35, rtol=1e-6)


def test_jit_scan_and_vmap_agree():
    shrinks, noise_scales = np.array([1.0, 0.5, 0.0], np.float32), np.array([0.0, 0.3, 1.0], np.float32)
    keys = jax.random.split(KEY, 3)

    def final(shrink, noise_scale, key):
        optimizer = periodic.periodic_restart(
            optax.sgd(0.1, momentum=0.9),
            init,
            key=key,
            every=3,
            shrink=shrink,
            noise_scale=noise_scale,
            optimizer_state="reset",
        )

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(gradient(params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (START, optimizer.init(START)), length=7)[1]

    many = jax.device_get(jax.jit(jax.vmap(final))(shrinks, noise_scales, keys))
    single = jax.jit(final)
    for i in range(3):
        one = single(shrinks[i], noise_scales[i], keys[i])
        assert_close(jax.tree.map(lambda x, i=i: x[i], many), one, rtol=1e-5)
    amounts = {"shrink": 0.5, "noise_scale": 0.3, "optimizer_state": "reset"}
    loop, _ = run(periodic.periodic_restart(optax.sgd(0.1, momentum=0.9), init, key=keys[1], every=3, **amounts), 7)
    assert_close(jax.tree.map(lambda *x: np.stack(x), *loop), jax.tree.map(lambda x: x[1], many), rtol=1e-5)


def test_restart_at_in_scan_and_vmapped_amounts_equal_single_calls():
    def final(shrink, noise_scale):
        def step(params, t):
            return periodic.restart_at(KEY, t, params, init, every=2, shrink=shrink, noise_scale=noise_scale), None

        return jax.lax.scan(step, START, jnp.arange(1, 6))[0]

    shrinks, noise_scales = np.array([1.0, 0.5], np.float32), np.array([0.0, 0.3], np.float32)
    many = jax.device_get(jax.vmap(final)(shrinks, noise_scales))
    for i in range(2):
        params = START
        for t in range(1, 6):
            amounts = {"shrink": float(shrinks[i]), "noise_scale": float(noise_scales[i])}
            params = periodic.restart_at(KEY, t, params, init, every=2, **amounts)
        assert_close(jax.tree.map(lambda x, i=i: x[i], many), params)


def test_inside_multi_steps_updates_count_and_around_it_mini_steps():
    wrapped = periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, every=2, **RULE)
    history, state = run(optax.MultiSteps(wrapped, 3), 12)
    assert state.inner_opt_state.step == 4
    for update, expected in enumerate(reference({2, 4}, 4), 1):
        assert_close(history[3 * update - 1], expected)

    around = periodic.periodic_restart(optax.MultiSteps(optax.sgd(0.0), 3), init, key=KEY, every=2, **RULE)
    history, state = run(around, 6)
    assert state.step == 6
    for mini_step, expected in enumerate(reference({2, 4, 6}, 6, rate=0.0), 1):
        assert_close(history[mini_step - 1], expected)


@pytest.mark.parametrize(
    ("param", "update"), [("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")]
)
def test_the_wrapper_is_restart_at_to_rounding(param, update):
    cast = optax.stateless(lambda updates, _: optax.tree.cast(updates, update))
    inner = optax.chain(optax.sgd(0.1), cast)
    params = optax.tree.cast(START, param)
    (plain,), _ = run(inner, 1, params)
    (new,), _ = run(periodic.periodic_restart(inner, init, key=KEY, every=1, **RULE), 1, params)
    exact = periodic.restart_at(KEY, 1, plain, init, every=1, **RULE)
    assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, params)
    rounding = 2 * jnp.finfo(param).eps
    jax.tree.map(lambda a, b: np.testing.assert_allclose(*map(np.float32, (a, b)), rtol=0, atol=rounding), new, exact)


def test_an_update_cannot_mend_nan_and_restart_at_can():
    params = jax.tree.map(lambda p: jnp.asarray(np.where(np.arange(len(p)) == 0, np.nan, p.T).T, p.dtype), START)
    edge = {"every": 1, "shrink": 0.0, "noise_scale": 1.0}
    (new,), _ = run(periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, **edge), 1, params)
    fresh = init(jax.random.fold_in(KEY, 1))
    assert same_bits(jax.tree.map(np.isnan, new), jax.tree.map(np.isnan, params))
    assert_close(jax.tree.map(lambda x: np.asarray(x)[1:], new), jax.tree.map(lambda x: np.asarray(x)[1:], fresh))
    assert same_bits(periodic.restart_at(KEY, 1, params, init, **edge), fresh)


def test_noise_is_fresh_each_time_and_of_each_leafs_own_initialiser():
    def wide(key):
        normal = jax.nn.initializers.normal
        keys = jax.random.split(key)
        return {"a": normal(0.5)(keys[0], (100, 100)), "b": normal(2.0)(keys[1], (100, 100)), "bias": jnp.zeros(100)}

    start = jax.tree.map(jnp.zeros_like, wide(KEY))
    optimizer = periodic.periodic_restart(optax.sgd(0.0), wide, key=KEY, every=2, shrink=1.0, noise_scale=0.1)
    history, _ = run(optimizer, 4, start)
    first = history[1]
    second = jax.tree.map(np.subtract, history[3], history[1])
    for noise in (first, second):
        np.testing.assert_allclose(np.var(noise["a"]), 0.05**2, rtol=0.1)
        np.testing.assert_allclose(np.var(noise["b"]), 0.2**2, rtol=0.1)
        np.testing.assert_array_equal(noise["bias"], np.zeros(100))
    correlation = np.corrcoef(np.ravel(first["a"]), np.ravel(second["a"]))[0, 1]
    assert abs(correlation) < 0.05


def test_two_keys_draw_two_networks_and_one_key_one():
    first, other, again = (
        periodic.restart_at(key, 2, START, init, every=2, **RULE) for key in (KEY, jax.random.key(8), KEY)
    )
    assert same_bits(first, again)
    assert not same_bits(first, other)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_may_be_typed_or_raw_and_of_any_generator(impl):
    typed = jax.random.key(7, impl=impl)
    expected = periodic.restart_at(typed, 2, START, init, every=2, **RULE)
    given = [typed] if impl == "rbg" else [typed, jax.random.PRNGKey(7)]
    for key in given:
        optimizer = periodic.periodic_restart(optax.sgd(0.0), init, key=key, every=2, **RULE)
        state = optimizer.init(START)
        assert state.key.dtype == jnp.uint32
        updates, _ = optimizer.update(START, state._replace(step=jnp.int32(1)), START)
        assert_close(optax.apply_updates(START, updates), expected)


def test_a_restart_at_every_step_of_sgd_is_decoupled_weight_decay_plus_noise():
    """Section 4.1, from optax's own pieces: w ← w - λ·η·g - (1 - λ)·w + σ·p."""
    rate, shrink, noise_scale = 0.1, 0.9, 0.05
    decay = optax.chain(optax.sgd(shrink * rate), optax.add_decayed_weights(-(1 - shrink)))
    optimizer = periodic.periodic_restart(
        optax.sgd(rate), init, key=KEY, every=1, shrink=shrink, noise_scale=noise_scale
    )
    history, _ = run(optimizer, 6)
    params, state = START, decay.init(START)
    for t in range(1, 7):
        updates, state = decay.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        params = jax.tree.map(lambda p, f: p + noise_scale * f, params, init(jax.random.fold_in(KEY, t)))
        assert_close(history[t - 1], params)


def groups(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: "a" if path[0].key == "body" else "b", params)


INNER = {
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "inject": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "partition": optax.partition({"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.9)}, groups),
    "masked": optax.masked(optax.adam(0.1), lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
}


def inner_states(inner, steps):
    """The inner optimiser's own run up to and with the first restart's update: parameters before it is applied."""
    params, state = START, inner.init(START)
    for _ in range(steps):
        before = params
        updates, state = inner.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return before, params, state


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("counts", ["keep", "reset"])
@pytest.mark.parametrize("by_labels", [False, True])
def test_the_optimiser_is_kept_reset_or_reset_where_parameters_changed(name, counts, by_labels):
    inner = INNER[name]
    before, _, kept = inner_states(inner, 2)
    choice = {**RULE, "where": HEAD}
    if by_labels:
        choice = {
            "shrink": {"head": 0.6, "rest": 1.0},
            "noise_scale": {"head": 0.1, "rest": 0.0},
            "labels": filters.labels({"head": HEAD}),
        }

    def state_after(policy):
        optimizer = periodic.periodic_restart(
            inner, init, key=KEY, every=2, **choice, optimizer_state=policy, counts=counts
        )
        state = optimizer.init(START)
        _, state = optimizer.update(gradient(START), state, START)
        updates, state = optimizer.update(gradient(before), state, before)
        return optax.apply_updates(before, updates), state.inner_state

    assert same_bits(state_after("keep")[1], kept)
    new, state = state_after("reset")
    assert same_bits(state, inner.init(new))
    _, state = state_after("reset_changed")
    assert jax.tree.structure(state) == jax.tree.structure(kept)
    seen = set()
    for (path, x), old in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(kept), strict=True):
        where = jax.tree_util.keystr(path)
        if "head" in where:
            np.testing.assert_array_equal(x, np.zeros_like(old))
            assert np.any(old)
            seen.add("head")
        elif "count" in where and counts == "reset":
            assert x == 0
            assert old == 2
        else:
            assert same_bits(x, old)
            seen.add("body" if "body" in where else "other")
    assert {"head", "body"} <= seen


@pytest.mark.parametrize(
    ("policy", "counts", "expected"),
    [("keep", "keep", 6), ("reset", "keep", 2), ("reset_changed", "keep", 6), ("reset_changed", "reset", 2)],
)
def test_schedules_go_on_unless_counts_are_reset(policy, counts, expected):
    inner = optax.sgd(optax.linear_schedule(0.5, 0.0, 100))
    optimizer = periodic.periodic_restart(inner, init, key=KEY, every=4, **RULE, optimizer_state=policy, counts=counts)
    history, state = run(optimizer, 7)
    assert optax.tree.get(state.inner_state, "count") == expected + 1
    rate = (history[5]["body"]["bias"] - history[6]["body"]["bias"]) / gradient(history[5])["body"]["bias"]
    np.testing.assert_allclose(rate, np.full(3, 0.5 * (1 - expected / 100)), rtol=1e-4)


def test_a_restart_of_lookahead_resets_the_moments_of_its_fast_parameters():
    inner = optax.lookahead(optax.adam(0.1), 5, 0.5)

    def both(key):
        return optax.LookaheadParams.init_synced(init(key))

    optimizer = periodic.periodic_restart(inner, both, key=KEY, every=2, **RULE, optimizer_state="reset_changed")
    params = both(jax.random.key(0))
    state = optimizer.init(params)
    for due in (False, True):
        updates, state = optimizer.update(gradient(params.fast), state, params)
        params = optax.apply_updates(params, updates)
        adam = state.inner_state.fast_state[0]
        assert all(bool(jnp.any(x)) is not due for x in jax.tree.leaves((adam.mu, adam.nu)))
    assert adam.count == 2


def test_resetting_where_nothing_changes_resets_nothing():
    inner = optax.adam(0.1)
    optimizer = periodic.periodic_restart(
        inner, init, key=KEY, every=1, shrink=jnp.float32(1.0), noise_scale=0.0, optimizer_state="reset_changed"
    )
    _, _, kept = inner_states(inner, 1)
    _, state = optimizer.update(gradient(START), optimizer.init(START), START)
    assert same_bits(state.inner_state, kept)


def test_a_reset_state_starts_from_the_parameters_that_the_caller_then_holds():
    averaging = optax.GradientTransformation(lambda params: params, lambda updates, state, params: (updates, state))
    optimizer = periodic.periodic_restart(averaging, init, key=KEY, every=1, **RULE, optimizer_state="reset")
    updates, state = optimizer.update(gradient(START), optimizer.init(START), START)
    assert same_bits(state.inner_state, optax.apply_updates(START, updates))


def test_a_state_whose_dtype_the_first_update_widens_can_be_reset():
    params = optax.tree.cast(START, jnp.bfloat16)
    inner = optax.sgd(0.1, momentum=0.9)  # its trace takes the gradients' dtype
    optimizer = periodic.periodic_restart(
        inner, lambda key: optax.tree.cast(init(key), jnp.bfloat16), key=KEY, every=2, **RULE, optimizer_state="reset"
    )
    update = jax.jit(optimizer.update)
    _, state = update(gradient(START), optimizer.init(params), params)
    _, state = update(gradient(START), state, params)
    traces = jax.tree.leaves(state.inner_state)
    assert all(x.dtype == jnp.float32 and not x.any() for x in traces)


def through_bytes(state, folder):
    del folder
    return serialization.from_bytes(jax.tree.map(jnp.zeros_like, state), serialization.to_bytes(state))


def through_orbax(state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", jax.tree.map(jnp.zeros_like, state))


@pytest.mark.parametrize("saved_and_loaded", [through_bytes, through_orbax])
def test_a_saved_run_goes_on_bit_for_bit(saved_and_loaded, tmp_path):
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    optimizer = periodic.periodic_restart(inner, init, key=KEY, every=3, **RULE, optimizer_state="reset")
    whole, last = run(optimizer, 8)
    half, state = run(optimizer, 4)
    loaded = saved_and_loaded(state, tmp_path)
    assert same_bits(loaded, state)
    assert {np.asarray(x).dtype.name for x in jax.tree.leaves(loaded)} == {"float32", "int32", "uint32"}
    rest, end = run(optimizer, 4, half[-1], loaded)
    assert same_bits(half + rest, whole)
    assert same_bits(end, last)


def test_the_key_is_the_states():
    optimizers = [
        periodic.periodic_restart(optax.sgd(0.1), init, key=jax.random.key(n), every=1, **RULE) for n in (1, 2)
    ]
    state = optimizers[0].init(START)
    first, second = (optimizer.update(START, state, START)[0] for optimizer in optimizers)
    assert same_bits(first, second)


def test_one_compilation_serves_all_steps_and_amounts():
    draws = []

    def counted(key):
        draws.append(key)
        return init(key)

    @jax.jit
    def step(params, state, every, shrink, noise_scale):
        optimizer = periodic.periodic_restart(
            optax.sgd(0.1), counted, key=KEY, every=every, shrink=shrink, noise_scale=noise_scale
        )
        updates, state = optimizer.update(gradient(params), state, params)
        return optax.apply_updates(params, updates), state

    state = periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, every=1, **RULE).init(START)
    params = START
    for t in range(6):
        params, state = step(params, state, 2 + t % 2, 0.1 * t, 0.2 * t)
    assert step._cache_size() == 1
    assert len(draws) == 1

    restart = jax.jit(
        lambda t, every, last_step, shrink, noise_scale: periodic.restart_at(
            KEY, t, START, counted, every=every, last_step=last_step, shrink=shrink, noise_scale=noise_scale
        )
    )
    for t in range(6):
        restart(t, 1 + t, 3 + t, 0.1 * t, 0.2 * t)
    assert restart._cache_size() == 1
    assert len(draws) == 2


def recorded(drawn):
    def draw(key):
        jax.debug.callback(lambda: drawn.append(1))
        return init(key)

    return draw


@pytest.mark.parametrize("jit", [False, True])
def test_nothing_is_drawn_between_restarts(jit):
    drawn = []
    optimizer = periodic.periodic_restart(optax.sgd(0.1), recorded(drawn), key=KEY, every=3, **RULE)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    state = optimizer.init(START)
    for t in range(1, 8):
        _, state = update(gradient(START), state, START)
        jax.effects_barrier()
        assert len(drawn) == t // 3


def test_a_vmap_over_amounts_draws_only_when_due_if_the_step_is_not_mapped():
    drawn = []

    def update(shrink, state):
        optimizer = periodic.periodic_restart(
            optax.sgd(0.1, momentum=0.9), recorded(drawn), key=KEY, every=3, shrink=shrink, noise_scale=0.1
        )
        return optimizer.update(gradient(START), state, START)

    state = periodic.periodic_restart(optax.sgd(0.1, momentum=0.9), init, key=KEY, every=3, **RULE).init(START)
    state = state._replace(inner_state=jax.tree.map(lambda x: jnp.stack([x, x]), state.inner_state))
    axes = periodic.PeriodicState(None, None, 0)
    many = jax.jit(jax.vmap(update, in_axes=(0, axes), out_axes=(0, axes)))
    for t in range(1, 6):
        updates, state = many(jnp.array([0.0, 0.5]), state)
        jax.effects_barrier()
        assert bool(drawn) == (t >= 3)
        if t == 3:
            assert not same_bits(*(jax.tree.map(lambda x, i=i: x[i], updates) for i in range(2)))
            at_the_restart = len(drawn)
    assert len(drawn) == at_the_restart


def test_groups_have_amounts_of_their_own_and_keep_their_moments():
    def draw(key):
        names = ("encoder", "transition_model", "head", "other")
        return {
            name: {"kernel": jax.random.normal(k, (3, 2))}
            for name, k in zip(names, jax.random.split(key, 4), strict=True)
        }

    torso = filters.layer("encoder", "transition_model")
    rule = {
        "every": 4,
        "last_step": 8,
        "shrink": {"torso": 0.5, "head": 0.0, "rest": 1.0},
        "noise_scale": {"torso": 0.5, "head": 1.0, "rest": 0.0},
        "labels": filters.labels({"torso": torso, "head": HEAD}),
    }
    start, inner = draw(jax.random.key(1)), optax.adam(0.1)
    optimizer = periodic.periodic_restart(inner, draw, key=KEY, **rule, optimizer_state="reset_changed")
    (*_, before, new), state = run(optimizer, 4, start)
    (*_, trained), plain = run(inner, 4, start)
    fresh = draw(jax.random.fold_in(KEY, 4))
    for name in ("encoder", "transition_model"):
        assert_close(new[name], jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, trained[name], fresh[name]))
    assert_close(new["head"], fresh["head"])
    assert same_bits(new["other"], trained["other"])
    assert not same_bits(before["other"], trained["other"])
    adam, plain = state.inner_state[0], plain[0]
    assert adam.count == 4
    for moments, without in ((adam.mu, plain.mu), (adam.nu, plain.nu)):
        assert same_bits(moments["other"], without["other"])
        for name in ("encoder", "transition_model", "head"):
            assert not np.any(moments[name]["kernel"])
            assert np.any(without[name]["kernel"])

    exact = periodic.restart_at(KEY, 8, start, draw, **rule)
    again = draw(jax.random.fold_in(KEY, 8))
    assert same_bits(exact["head"], again["head"])
    assert same_bits(exact["other"], start["other"])
    assert_close(exact["encoder"]["kernel"], 0.5 * start["encoder"]["kernel"] + 0.5 * again["encoder"]["kernel"])
    assert same_bits(periodic.restart_at(KEY, 12, start, draw, **rule), start)


def test_the_recipe_of_bbf():
    """Encoder and transition model half of the way, all else anew, the optimiser's state too; the target's own draw."""
    names = ("encoder", "transition_model", "projection", "predictor", "head")

    def draw(key):
        return {name: jax.random.normal(k, (3,)) for name, k in zip(names, jax.random.split(key, 5), strict=True)}

    amounts = {"shrink": {"torso": 0.5, "rest": 0.0}, "noise_scale": {"torso": 0.5, "rest": 1.0}}
    groups = filters.labels({"torso": filters.layer(*names[:2])})
    bbf = {"every": 4, "last_step": 8, "labels": groups, **amounts}
    start, inner = draw(jax.random.key(1)), optax.adam(0.1)
    (*_, new), state = run(periodic.periodic_restart(inner, draw, key=KEY, **bbf, optimizer_state="reset"), 4, start)
    (*_, trained), _ = run(inner, 4, start)
    fresh = draw(jax.random.fold_in(KEY, 4))
    for name in names:
        assert_close(new[name], 0.5 * trained[name] + 0.5 * fresh[name] if name in names[:2] else fresh[name])
    assert same_bits(state.inner_state, inner.init(new))
    target = periodic.restart_at(jax.random.key(3), 4, start, draw, **bbf)
    assert same_bits(target["head"], draw(jax.random.fold_in(jax.random.key(3), 4))["head"])
    assert same_bits(periodic.restart_at(KEY, 12, start, draw, **bbf), start)


@pytest.mark.parametrize("traced", [False, True])
def test_where_nothing_changes_it_is_the_inner_optimiser_bit_for_bit(traced):
    number = jnp.float32 if traced else float
    inner = optax.sgd(0.1, momentum=0.9)
    optimizer = periodic.periodic_restart(inner, init, key=KEY, every=1, shrink=number(1.0), noise_scale=number(0.0))
    plain_state, state = inner.init(START), optimizer.init(START)
    for t in range(1, 4):
        params = jax.tree.map(lambda p, t=t: p * t, START)
        expected, plain_state = inner.update(gradient(params), plain_state, params)
        updates, state = optimizer.update(gradient(params), state, params)
        assert same_bits(updates, expected)
        assert same_bits(state.inner_state, plain_state)
        assert state.step == t


def test_updates_between_restarts_and_of_other_leaves_are_the_inner_ones_bit_for_bit():
    inner = optax.sgd(0.1)
    optimizer = periodic.periodic_restart(inner, init, key=KEY, every=2, **RULE, where=HEAD)
    expected, _ = inner.update(gradient(START), inner.init(START), START)
    update = jax.jit(optimizer.update)
    first, state = update(gradient(START), optimizer.init(START), START)
    second, _ = update(gradient(START), state, START)
    assert same_bits(first, expected)
    assert same_bits(second["body"], expected["body"])
    assert not same_bits(second["head"], expected["head"])


def test_extra_arguments_are_passed_on():
    def scaled(updates, state, params=None, *, value, **extra):
        del params, extra
        return jax.tree.map(lambda u: value * u, updates), state

    inner = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), scaled)
    optimizer = periodic.periodic_restart(inner, init, key=KEY, every=5, **RULE)
    updates, _ = optimizer.update(START, optimizer.init(START), START, value=3.0)
    assert_close(updates, jax.tree.map(lambda x: 3.0 * x, START))
    optimizer = periodic.periodic_restart(optax.sgd(1.0), init, key=KEY, every=5, **RULE)
    updates, _ = optimizer.update(START, optimizer.init(START), START, value=3.0)
    assert_close(updates, jax.tree.map(lambda x: -x, START))


def test_optax_finds_the_parameters_in_its_state():
    optimizer = periodic.periodic_restart(optax.adam(0.1), init, key=KEY, every=5, **RULE)
    state = optax.tree.map_params(optimizer, lambda x: x + 1.0, optimizer.init(START))
    np.testing.assert_array_equal(state.inner_state[0].mu["body"]["bias"], np.ones(3))
    assert state.step == 0


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("every", 0),
        ("every", -3),
        ("every", 2.0),
        ("every", True),
        ("every", None),
        ("every", 2**31),
        ("every", np.int64(0)),
        ("every", np.array([2, 3])),
        ("every", jnp.float32(2)),
        ("every", jnp.array([2, 3])),
        ("last_step", -1),
        ("last_step", 1.5),
        ("last_step", "end"),
        ("step", -1),
        ("step", 1.0),
    ],
)
def test_values_that_are_no_counts_of_steps_raise(name, bad):
    values = {"step": 1, "every": 2, "last_step": 3, name: bad}
    with pytest.raises(ValueError, match=rf"^{name} must be an integer scalar in \[\d, \d+\], got .*; .+"):
        periodic.restart_at(KEY, values.pop("step"), START, init, **values, **RULE)
    if name != "step":
        with pytest.raises(ValueError, match=f"^{name} must be"):
            periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, **values, **RULE)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"optimizer_state": "forget"}, "^optimizer_state must be one of keep, reset, reset_changed, got 'forget'"),
        ({"counts": "both"}, "^counts must be one of keep, reset, got 'both'"),
    ],
)
def test_unknown_policies_raise(option, message):
    with pytest.raises(ValueError, match=message):
        periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, every=2, **RULE, **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"shrink": 1.5}, r"shrink \(λ\) must be"),
        ({"noise_scale": -1.0}, r"noise_scale \(σ\) must be"),
        ({"where": filters.layer("haed")}, "matches no floating leaf"),
        ({"labels": filters.labels({"head": HEAD})}, "with labels, shrink must be a mapping"),
        ({"init": lambda key: init(key)["body"]}, "lacks: draw both from one initialiser"),
    ],
)
def test_mistakes_of_the_rule_raise_when_traced_due_or_not(option, message):
    option = {"init": init, **RULE, **option}
    draw = option.pop("init")
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda t: periodic.restart_at(KEY, t, START, draw, every=2, **option))(1)
    optimizer = periodic.periodic_restart(optax.sgd(0.1), draw, key=KEY, every=2, **option)
    with pytest.raises(ValueError, match=message):
        jax.jit(optimizer.update)(START, optimizer.init(START), START)


def test_an_update_without_parameters_raises():
    optimizer = periodic.periodic_restart(optax.sgd(0.1), init, key=KEY, every=2, **RULE)
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(updates, state, params\)"):
        optimizer.update(START, optimizer.init(START))
