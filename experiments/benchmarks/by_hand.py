"""Ten nights as one writes them by hand, in plain Flax and optax: what `fit_rounds` is measured against."""

import jax
import numpy as np
import optax

import sp_jax


def nights(network, losses, x, y, held, arrivals, *, patience, max_epochs, batch_size=128):
    """Train every night by shrink-perturb until the validation loss is best; return the parameters and the samples."""
    optimizer, rng, params, seen = optax.adam(1e-3), np.random.default_rng(0), None, 0

    def mean_loss(params, x, y):
        return losses(network.apply({"params": params}, x), y).mean()

    @jax.jit
    def step(params, opt_state, x, y):
        updates, opt_state = optimizer.update(jax.grad(mean_loss)(params, x, y), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    evaluate = jax.jit(mean_loss)
    for night, count in enumerate(arrivals):
        fresh = network.init(jax.random.key(night), x[:1])["params"]
        params = fresh if params is None else sp_jax.shrink_perturb(params, fresh, shrink=0.6, noise_scale=0.01)
        opt_state, best, best_loss, since = optimizer.init(params), params, np.inf, 0
        for _ in range(max_epochs):
            order = rng.permutation(count)
            for i in range(0, count, batch_size):
                chosen = order[i : i + batch_size]
                params, opt_state = step(params, opt_state, x[chosen], y[chosen])
            seen, loss = seen + count, float(evaluate(params, *held))
            best, best_loss, since = (params, loss, 0) if loss < best_loss - 1e-3 else (best, best_loss, since + 1)
            if since >= patience:
                break
        params = best
    return params, seen
