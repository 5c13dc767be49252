"""Rows of `results.csv` that nobody trained."""

CELLS = {"warm_start": ("1", "0"), "random_init": ("0", "1"), "noise_only": ("1", "0.1")}


def made_up(restart, accuracies, samples=100, rounds=(1, 2), **more):
    """Rows of one line; `accuracies` of the seeds in the last round, the earlier ones are at 10 %."""
    shrink, noise_scale = CELLS.get(restart, ("0.6", "0.01"))
    row = {
        "experiment": "x", "dataset": "cifar10", "model": "mlp", "optimizer": "sgd", "batch_size": 128,
        "learning_rate": 0.1, "weight_decay": 0.0, "restart": restart, "shrink": shrink, "noise_scale": noise_scale,
        "converged": True, "stop_reason": "threshold", "epochs": 1, "num_train": 10, "seconds": 1.0, "lanes": 1,
        "samples_seen": samples,
    }  # fmt: skip
    return [
        row | {"seed": seed, "round": n, "validation_accuracy": accuracy if n == rounds[-1] else 0.1} | more
        for seed, accuracy in enumerate(accuracies) for n in rounds
    ]  # fmt: skip
