"""A method of one's own is checked before anything trains: one line says which function does what it must not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sp_jax import models
from sp_jax.plasticity.hooks import check_hooks
from sp_jax.plasticity.methods import METHODS, Method

INPUTS = np.ones((4, 3), np.float32)


def check(method, network=None):
    model = models.from_module(network or models.MLP(2, hidden=(5,)), INPUTS)
    check_hooks(method, model, optax.adam(1e-3), INPUTS)


@pytest.mark.parametrize("name", METHODS)
def test_ours_pass(name):
    check(METHODS[name])


def test_a_methods_functions_may_use_all_that_they_are_given():
    def count(key, model, params, batch_stats):
        return {"n": jnp.zeros((), jnp.int32), "key": jax.random.key_data(key)}

    def observe(state, gradient, strength):
        return state.replace(memory=state.memory | {"n": state.memory["n"] + 1})

    def halve(state, gradient, strength):
        return jax.tree.map(lambda g: strength * g, gradient)

    def step(model, optimizer, state, inputs, mask, strength):
        seen = model.activations(state.params, state.batch_stats, inputs, mask, True)
        due = jnp.mean(jax.tree.leaves(seen)[0]) > strength
        return state.replace(params=jax.tree.map(lambda x: jnp.where(due, x, 0), state.params))

    check(Method(init=count, observe=observe, gradient=halve, after_step=step, default_strength=0.5))


def scaled(state, by):
    return state.replace(params=jax.tree.map(lambda x: by * x, state.params))


WRONG = {
    "gradient does not run: TypeError": {"gradient": lambda state, gradient: gradient},
    "gradient returns NoneType; expected a tree like the parameters": {"gradient": lambda *_: None},
    r"gradient returns 'head/bias' as float32 \(\); expected float32 \(2,\)": {
        "gradient": lambda state, gradient, strength: jax.tree.map(jnp.sum, gradient)
    },
    r"gradient returns 'head/bias' as bfloat16 \(2,\)": {
        "gradient": lambda state, gradient, strength: jax.tree.map(lambda g: g.astype(jnp.bfloat16), gradient)
    },
    "observe changes more than memory": {"observe": lambda state, gradient, strength: scaled(state, 0.5)},
    "observe does not run: TracerBoolConversionError": {
        "observe": lambda state, gradient, strength: state if strength > 0 else None
    },
    "after_step returns dict; expected the training state": {"after_step": lambda *args: args[2].params},
    "after_step does not run: TypeError: 'NoneType' object is not callable": {"after_step": None},
    "after_epoch returns NoneType": {"after_epoch": lambda state: None},
    "restarted returns another structure": {
        "restarted": lambda restart, state: restart(state).replace(memory={"new": jnp.ones(2)})
    },
    "evaluated does not run: KeyError: 'slow'": {"evaluated": lambda state: state.replace(params={}["slow"])},
    "init does not run: ZeroDivisionError": {"init": lambda *_: 1 / 0},
    "memory 'count' is int; expected an array": {"init": lambda *_: {"count": 0}},
    "memory 'name' is str": {"init": lambda *_: {"name": "mine"}},
    "memory 'key' is a key": {"init": lambda key, *_: {"key": key}},
}


@pytest.mark.parametrize("line", WRONG)
def test_one_line_names_the_function(line):
    with pytest.raises(ValueError, match=f"the method's .*{line}") as raised:
        check(Method(**WRONG[line]))
    assert "\n" not in str(raised.value)
