"""Networks, optimisers and days that are not ours: they work, or one line says what to write instead."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from optax import contrib

import sp_jax
from sp_jax import models, plasticity
from sp_jax.divergence import DivergenceWarning
from sp_jax.fitting import DivergedError
from sp_jax.fitting.evaluation_weights import evaluation_state
from sp_jax.training import Convergence

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
HELD = X[100:], Y[100:]
IDS = RNG.integers(0, 9, (120, 4))
FEW = {"batch_size": 32, "convergence": Convergence.exactly(3)}


def fit(network, inputs=X, count=(100,), **options):
    held = None if inputs is not X else HELD
    return sp_jax.fit_rounds(0, inputs[:100], Y[:100], count, network=network, **{"validation": held, **FEW, **options})


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.relu(nn.Dense(8, name="body")(x)))


@functools.cache
def fitted():
    return fit(Net())


class Text(nn.Module):
    vocabulary: int

    @nn.compact
    def __call__(self, ids):
        return nn.Dense(3)(nn.Embed(self.vocabulary, 4, name="embed")(ids).mean(1))


# Lanes that diverge.


@pytest.fixture(scope="module")
def lost_and_tokens():
    tokens = IDS.copy()
    tokens[60:, 0] = np.where(np.arange(60) == 11, 9, tokens[60:, 0])  # sample 71 has one that is not in the table
    with pytest.warns(DivergenceWarning, match=r"round 2 \(seed 0\) diverged in epoch 1: the loss of sample 71 was"):
        return fit(Text(9), tokens, (50, 100)), tokens


def test_a_day_that_diverges_says_so_and_is_neither_saved_nor_used(tmp_path, lost_and_tokens):
    lost, tokens = lost_and_tokens
    last = lost.history[-1]
    assert (last.stop_reason, np.isnan(last.validation_accuracy)) == ("nan", True)
    with pytest.raises(ValueError, match=r"has diverged and predicts nothing: in epoch 1: the loss of sample 71"):
        lost.predict(tokens)
    kept = tmp_path / "fit.safetensors"
    sp_jax.save_fit(kept, fitted())
    before = kept.read_bytes()
    with pytest.raises(ValueError, match=r"the fit has diverged, its parameter .* is not finite: it is not saved"):
        sp_jax.save_fit(kept, lost)
    assert kept.read_bytes() == before
    with pytest.raises(ValueError, match=r"`since` has diverged, .*or if_diverged='random_init'"):
        fit(Text(9), IDS, since=lost)


@pytest.mark.slow
def test_a_day_that_diverges_can_be_healed(lost_and_tokens):
    lost, _ = lost_and_tokens
    healed = fit(Text(9), IDS, since=lost, if_diverged="random_init")
    assert equal(healed.state.params, fit(Text(9), IDS, since=lost, restart="random_init").state.params)
    assert np.isfinite(healed.predict(IDS)).all()
    assert healed.history[-1].stop_reason == "fixed"


def test_a_round_that_cannot_begin_leaves_those_that_went_well():
    tokens = IDS.copy()
    tokens[60, 0] = 9
    with (
        pytest.warns(DivergenceWarning),
        pytest.raises(DivergedError, match=r"round 2 .* before its first epoch") as found,
    ):
        fit(Text(9), tokens, (50, 80, 100))
    assert found.value.fit is None
    with pytest.raises(ValueError, match="if_diverged must be one of raise, random_init, got 'heal'"):
        fit(Net(), if_diverged="heal")


def test_what_was_not_finite_first_is_told_apart():
    with pytest.warns(DivergenceWarning, match="the loss of all 100 samples was not finite before the first step"):
        fit(Net(), since=fitted(), noise_scale=1e38)
    with pytest.raises(ValueError, match="as float32,: inputs hold NaN or infinite values"):
        fit(Net(), np.where(np.arange(6) == 3, 1e300, X.astype(float)))


@pytest.mark.slow
def test_a_loss_that_was_finite_at_first_is_told_with_its_epoch():
    with pytest.warns(DivergenceWarning, match=r"in epoch \d: (the loss was not finite|parameter '.*' was not finite)"):
        fit(Net(), optimizer=optax.sgd(1e30))


CHOICE = {"network": Net(), "validation": HELD, **FEW}


def test_lanes_that_diverged_are_out_of_the_choice_and_marked():
    with pytest.warns(DivergenceWarning, match=r"1 of 3 lanes diverged: λ=0.6 σ=1e\+38 seed 0 in epoch 1"):
        found = sp_jax.tune_restart(0, X[:100], Y[:100], fitted(), grid=[(1, 0), (0.6, 1e38), (0, 1)], **CHOICE)
    lost = found.table[-1]
    assert (lost.noise_scale, lost.diverged) == (1e38, 1)
    assert np.isnan(lost.accuracy)
    assert found.best.diverged == 0
    assert np.isfinite(found.standard_error)


@pytest.mark.slow
def test_where_all_lanes_diverged_there_is_no_choice_and_where_only_random_init_is_left_it_is_that():
    before = fitted()
    with pytest.raises(ValueError, match=r"all 2 lanes diverged, so there is nothing to choose: λ=0.6"):
        sp_jax.tune_restart(0, X[:100], Y[:100], before, grid=[(0.6, 1e38), (1, 1e38)], **CHOICE)
    nan = before._replace(state=jax.tree.map(lambda x: x * np.nan, before.state))
    with pytest.warns(DivergenceWarning, match="2 of 3 lanes diverged"):
        found = sp_jax.tune_restart(0, X[:100], Y[:100], nan, grid=[(1, 0), (0.5, 0.1), (0, 1)], **CHOICE)
    assert found.best[:2] == (0, 1)


# Switches and masks.


def normed(norm_of, **fields):
    class Normed(nn.Module):
        train: bool = False
        sure: bool = True

        @nn.compact
        def __call__(self, x, test=True):
            return nn.Dense(3)(nn.BatchNorm(norm_of(self, test), name="bn")(nn.Dense(8)(20 * x + 50)))

    return Normed(**fields)


BY_ARGUMENT, BY_ATTRIBUTE = normed(lambda self, test: test), normed(lambda self, test: not self.train)


class Drawn(nn.Module):
    """A dropout of its own."""

    @nn.compact
    def __call__(self, x, quiet=True):
        x = x if quiet else x * jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape)
        return nn.Dense(3)(x)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, test=True):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=test)(x))


class Stands(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.head = nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.off = True

    def __call__(self, x, test=True):
        return self.head(self.norm(x, use_running_average=test and self.off))


HAIKU = hk.transform_with_state(
    lambda x, test=True: hk.Linear(3)(hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(20 * x + 50), not test))
)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (BY_ARGUMENT, "Normed has statistics, as of BatchNorm, that stand still while it trains: name its switch"),
        (BY_ATTRIBUTE, "Normed has statistics"),
        (normed(lambda self, test: not self.train, train=True), "Normed updates 'bn/mean' in evaluation, too: name"),
        (Dropped(), "Dropped has a dropout that drops nothing while it trains: name its switch"),
        (Drawn(), r"Drawn draws random numbers \(a dropout\?\) where 'quiet' is turned: name its switch"),
        (Stands, "Stands has statistics"),
        (HAIKU, "the Haiku network never begins its statistics, as it never trains: name its switch"),
        (eqx.nn.Linear(6, 3, key=jax.random.key(0)), r"an Equinox module is one draw, .* give \(make, apply\)"),
        (Stands(nnx.Rngs(0)), "an NNX module is one draw, .* give lambda rngs"),
    ],
)
def test_a_network_whose_switch_is_unknown_is_refused_in_one_line(network, message):
    with pytest.raises(ValueError, match=message) as found:
        models.as_model(network, X)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("network", "switch", "path"),
    [
        (BY_ARGUMENT, {"test": False}, ("bn", "mean")),
        pytest.param(BY_ATTRIBUTE, {"train": True}, ("bn", "mean"), marks=pytest.mark.slow),
        pytest.param(Stands, {"test": False}, ("norm", "mean"), marks=pytest.mark.slow),
        pytest.param(Stands, {"off": False}, ("norm", "mean"), marks=pytest.mark.slow),
        pytest.param(HAIKU, {"test": False}, ("batch_norm/~/mean_ema", "average"), marks=pytest.mark.slow),
    ],
)
def test_a_switch_that_is_named_is_turned(network, switch, path):
    found = fit(network, switch=switch, convergence=Convergence.exactly(10))
    statistics = found.state.batch_stats
    for key in path:
        statistics = statistics[key]
    assert np.asarray(statistics).all()
    again = fit(network, switch=switch, since=found)
    assert np.isfinite(again.predict(X[:5])).all()


def test_a_boolean_that_adds_a_layer_is_no_switch():
    class Optional(nn.Module):
        norm: bool = False

        @nn.compact
        def __call__(self, x, wide=False):
            x = nn.BatchNorm(True)(x) if self.norm else x
            return nn.Dense(3)(nn.Dense(9, name="more")(x) if wide else x)

    models.as_model(Optional(), X)


def test_integer_parameters_are_refused_in_one_line():
    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x) * self.param("times", lambda key: jnp.int32(2))

    with pytest.raises(ValueError, match="the network has integer parameters, which cannot be trained"):
        fit(Counts())


def test_a_switch_must_be_there_and_be_a_boolean():
    with pytest.raises(ValueError, match="Net has neither an argument nor an attribute 'test'; its arguments are: x"):
        models.as_model(Net(), X, switch={"test": False})
    with pytest.raises(ValueError, match="must say True or False, the value in training, got 'train'"):
        models.as_model(BY_ARGUMENT, X, switch={"test": "train"})


def masked(use, default=None):
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x, mask=default, train=False):
            return nn.Dense(3)(use(nn.BatchNorm(not train, name="bn"), nn.Dense(8)(x), mask))

    return Masked()


def test_an_argument_called_mask_is_tried():
    """Of real samples it is passed; of features or tokens it is not, and padding is filled up with real samples."""
    real = models.as_model(masked(lambda norm, h, mask: norm(h, mask=None if mask is None else mask[:, None])), X)
    other = models.as_model(masked(lambda norm, h, mask: norm(h if mask is None else h * mask)), X)
    mask = jnp.arange(4) < 3
    params, statistics = real.init(jax.random.key(0))
    spoilt = jnp.asarray(X[:4]).at[3].set(1e6)
    for model in (real, other):
        found = model.apply(params, statistics, spoilt, mask, True)[1]
        assert np.abs(np.asarray(found["bn"]["mean"])).max() < 10
    hidden = X[:3] @ np.asarray(params["Dense_1"]["kernel"])
    found = real.apply(params, statistics, spoilt, mask, True)[1]["bn"]["mean"]
    np.testing.assert_allclose(found, 0.01 * hidden.mean(0), rtol=1e-4, atol=1e-6)


def test_a_mask_that_must_be_given_is_asked_for():
    class Needs(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.Dense(3)(x * mask[:, None])

    with pytest.raises(ValueError, match="what the argument `mask` of Needs means is not known: write mask='mask'"):
        models.as_model(Needs(), X)
    with pytest.raises(ValueError, match="Net has no argument 'real' in its call, which mask= names"):
        models.as_model(Net(), X, mask="real")
    logits = models.as_model(Needs(), X, mask="mask")
    params, _ = logits.init(jax.random.key(0))
    assert not np.asarray(logits.apply(params, {}, X[:3], jnp.zeros(3, bool), False)[0]).any()


class Images(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Conv(4, (3, 3))(x).reshape(len(x), -1))


IMAGES = np.random.default_rng(1).normal(size=(120, 4, 4, 1)).astype(np.float32)


def test_samples_that_depend_on_each_other_are_refused():
    with pytest.raises(
        ValueError, match=r"depend on the others in its batch: .* shape \(4, 4\) .* inputs\[..., None\]"
    ):
        fit(Images(), IMAGES[..., 0])


@pytest.mark.slow
def test_samples_that_do_not_depend_on_each_other_are_trained_on():
    fit(Images(), IMAGES)


# Optimisers.


@pytest.mark.slow
def test_what_is_not_trained_is_not_restarted():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            h = nn.BatchNorm(True, name="fixed")(nn.Dense(8, name="body")(x))
            return nn.Dense(3, name="head")(nn.BatchNorm(not train, name="norm")(jax.lax.stop_gradient(h)))

    monday = fit(Frozen())
    stats = monday.state.batch_stats | {"fixed": {"mean": np.ones(8), "var": np.full(8, 4.0)}}
    monday = monday._replace(state=monday.state.replace(batch_stats=stats))
    for restart in ("shrink_perturb", "random_init"):
        tuesday = fit(Frozen(), since=monday, restart=restart)
        assert equal(tuesday.state.params["body"], monday.state.params["body"])
        assert equal(tuesday.state.batch_stats["fixed"], monday.state.batch_stats["fixed"])
        assert not equal(tuesday.state.params["head"], monday.state.params["head"])


def halves(frozen):
    labels = sp_jax.labels({"frozen": sp_jax.layer("body")}, default="train")
    return optax.partition({"train": optax.adam(1e-2), "frozen": frozen}, labels)


FROZEN = {"zero": optax.set_to_zero(), "adam": optax.adam(0.0), "sgd": optax.sgd(0.0)}


@pytest.mark.parametrize("name", ["zero", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adam", "sgd"))])
def test_what_an_optimiser_freezes_is_not_restarted(name):
    after = fit(Net(), since=fitted(), optimizer=halves(FROZEN[name]))
    assert equal(after.state.params["body"], fitted().state.params["body"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FROZEN)
def test_what_an_optimiser_freezes_is_restarted_where_it_is_asked_for(name):
    before, options = fitted(), {"where": sp_jax.kernels, "convergence": Convergence.exactly(0)}
    asked = fit(Net(), since=before, optimizer=halves(FROZEN[name]), **options)
    assert not equal(asked.state.params["body"]["kernel"], before.state.params["body"]["kernel"])
    assert equal(asked.state.params["head"]["bias"], before.state.params["head"]["bias"])


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.MultiSteps(optax.adam(1e-2), 2), id="MultiSteps", marks=pytest.mark.slow),
        pytest.param(optax.adam(optax.linear_schedule(0.0, 1e-2, 10)), id="warm-up", marks=pytest.mark.slow),
        pytest.param(optax.sgd(0.1), id="sgd"),
    ],
)
def test_what_begins_slowly_is_not_frozen(optimizer):
    before = fitted()
    still = fit(Net(), since=before, optimizer=optimizer, noise_scale=0.0, convergence=Convergence.exactly(0))
    np.testing.assert_allclose(still.state.params["body"]["kernel"], 0.6 * before.state.params["body"]["kernel"])


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.MultiSteps(optax.adam(1e-2), 2), id="MultiSteps", marks=pytest.mark.slow),
        pytest.param(optax.chain(optax.adam(1e-2), contrib.reduce_on_plateau()), id="plateau", marks=pytest.mark.slow),
        pytest.param(optax.polyak_sgd(), id="polyak", marks=pytest.mark.slow),
        pytest.param(contrib.sam(optax.sgd(0.1), optax.sgd(0.05)), id="sam", marks=pytest.mark.slow),
        pytest.param(optax.lbfgs(), id="lbfgs", marks=pytest.mark.slow),
    ],
)
def test_optimisers_as_people_have_them_train(optimizer):
    found = fit(Net(), count=(50, 100), optimizer=optimizer, convergence=Convergence.exactly(20))
    assert found.history[-1].train_accuracy > 0.4


def test_an_optimiser_that_does_not_run_says_so_in_one_line():
    with pytest.raises(ValueError, match=r"the optimiser does not run on this network: optax.lookahead trains"):
        fit(Net(), optimizer=optax.lookahead(optax.adam(1e-3), 5, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["schedule-free", "tortoise", "within a chain"])
def test_the_weights_for_evaluation_are_scored_predicted_with_saved_and_restarted(name, tmp_path):
    optimizer = {
        "schedule-free": contrib.schedule_free_adamw(1e-2, warmup_steps=2),
        "tortoise": plasticity.hare_tortoise(optax.adam(1e-2), every=40, decay=0.9),
        "within a chain": optax.chain(optax.clip(1.0), contrib.schedule_free_sgd(0.1)),
    }[name]
    found = fit(Net(), optimizer=optimizer, convergence=Convergence.exactly(8))
    state, inner = found.state, found.state.opt_state
    kept = inner.slow if name == "tortoise" else contrib.schedule_free_eval_params(
        inner[1] if name == "within a chain" else inner, state.params)  # fmt: skip
    assert not equal(kept, state.params)
    logits = Net().apply({"params": kept}, HELD[0])
    np.testing.assert_allclose(found.predict(HELD[0]), logits, rtol=1e-5, atol=1e-6)
    assert found.history[-1].validation_accuracy == pytest.approx(np.mean(np.argmax(logits, 1) == HELD[1]))
    sp_jax.save_fit(tmp_path / "fit", found)
    loaded = sp_jax.load_fit(tmp_path / "fit", X, network=Net())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), loaded.state.params, kept)
    one, two = (fit(Net(), since=each, optimizer=optimizer) for each in (found, loaded))
    np.testing.assert_allclose(one.predict(X), two.predict(X), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_statistics_are_not_those_of_the_weights_for_evaluation_and_a_line_says_so():
    with pytest.warns(UserWarning, match="keeps other weights for evaluation than it trains"):
        fit(BY_ARGUMENT, switch={"test": False}, optimizer=contrib.schedule_free_sgd(0.1))
    state = fitted().state
    assert evaluation_state(state) is state


# Statistics and the end of a round.


@pytest.mark.slow
def test_a_last_batch_of_one_sample_weighs_as_one_sample():
    """Of 97 samples in batches of 32 the last batch has one, of variance 0, which PyTorch's rule counts as a whole."""

    class Only(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(nn.BatchNorm(not train, momentum=0.5, name="bn")(x))

    options = {"batch_size": 32, "convergence": Convergence.exactly(30)}
    found = sp_jax.fit_rounds(0, X[:97], Y[:97], network=Only(), **options)
    np.testing.assert_allclose(found.state.batch_stats["bn"]["var"], X[:97].var(0), rtol=0.4)
    whole = sp_jax.fit_rounds(0, X[:96], Y[:96], network=Only(), **options)
    assert not equal(whole.state.batch_stats, found.state.batch_stats)


def test_statistics_that_are_no_running_means_survive_recalibration():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            count, largest = (self.variable("batch_stats", n, lambda: jnp.float32(7)) for n in ("count", "largest"))
            if train and not self.is_initializing():
                count.value, largest.value = count.value + 1, jnp.maximum(largest.value, jnp.abs(x).max())
            x = nn.SpectralNorm(nn.Dense(8), name="spectral")(x, update_stats=train)
            return nn.Dense(3)(nn.BatchNorm(not train, name="bn")(x))

    model = models.as_model(Odd(), X)
    params, statistics = jax.jit(model.init)(jax.random.key(0))
    batches = X.reshape(4, 30, 6), np.ones((4, 30), bool)
    found = jax.jit(lambda *state: sp_jax.recalibrate(model, *state, *batches))(params, statistics)
    assert equal(*({k: v for k, v in each.items() if k != "bn"} for each in (found, statistics)))
    assert not equal(found["bn"], statistics["bn"])


def test_a_threshold_that_guessing_reaches_is_warned_of():
    rare = (np.arange(100) == 5).astype(int)
    with pytest.warns(UserWarning, match=r"of the 100 samples 99.0% are of one class: guessing it reaches"):
        sp_jax.fit_rounds(0, X[:100], rare, network=Net(), batch_size=32)
