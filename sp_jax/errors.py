"""Errors of others in a line of ours."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def with_kind(error: BaseException) -> str:
    """Return the first line of an error's message after the name of its class; the name alone where it has none."""
    line, kind = first_line(error), type(error).__name__
    return line if line == kind else f"{kind}: {line}"
