"""Scoring rows with the promoted network."""

import pathlib

from experiments.config.fields import UsageError
from experiments.nightly import columns, fitting, scaling, tables
from experiments.nightly.history import Folder
from experiments.nightly.tables import DayError


def predict(path: pathlib.Path, source: pathlib.Path, out: pathlib.Path) -> int:
    """Write what the promoted network of a folder says of a file's rows, one row for each, in their order.

    Args:
      path: of the folder.
      source: of the rows; the label need not be among their columns.
      out: of the predictions.

    Returns:
      How many rows there are.

    Raises:
      UsageError: there is no promoted network, or the rows are not like those that it was trained on.
    """
    folder = Folder(path)
    if folder.promoted is None:
        raise UsageError(f"{path} holds no promoted network yet: give --data first")
    preparation = folder.preparation()
    try:
        rows = columns.extract(preparation, tables.read(source, preparation.text), labelled=False)
        rows = rows._replace(numbers=scaling.standardised(preparation, rows))
    except DayError as error:
        raise UsageError(f"--predict={source} {error}") from None
    fitted = fitting.load(folder.network, preparation, rows, folder.outputs())
    tables.write(out, scaling.readable(preparation, fitting.outputs(fitted, rows)))
    return len(rows.numbers)
