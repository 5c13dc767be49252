"""The contenders and the lower bounds of `experiments.benchmark`."""
