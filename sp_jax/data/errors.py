"""The one error of this room."""


class DataError(ValueError):
    """A data set that cannot be had; the message is one line: what was wrong, what was expected, what to do."""
