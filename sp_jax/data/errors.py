"""The error that `sp_jax.data` raises."""


class DataError(ValueError):
    """A data set that cannot be loaded; the message is one line: what was wrong, what was expected, what to do."""
