"""Found in place of the package where a binary is run as a file, or from inside this folder; says how it is run."""

import pathlib
import sys

sys.exit(
    "error: run the binaries as modules, from the folder above this one: "
    f"cd {pathlib.Path(__file__).resolve().parents[1]} && python -m experiments.run"
)
