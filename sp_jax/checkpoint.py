"""Save and restore the state of a group of lanes after a round (Orbax)."""

import pathlib
import shutil

import chex
import orbax.checkpoint as ocp


class Store:
    """One folder of checkpoints: for each group the state after its newest finished round, older ones deleted."""

    def __init__(self, folder: str | pathlib.Path):
        """Writes nothing yet; `folder` need not exist."""
        self._folder = pathlib.Path(folder).absolute()
        self._checkpointer = ocp.StandardCheckpointer()

    def save(self, group: str, round_: int, state: chex.ArrayTree) -> None:
        """Saves a pytree of NumPy arrays, atomically, then deletes the group's older rounds."""
        self._checkpointer.save(self._folder / group / str(round_), state, force=True)
        self._checkpointer.wait_until_finished()
        for other in self._rounds(group):
            if other != round_:
                shutil.rmtree(self._folder / group / str(other), ignore_errors=True)

    def restore(self, group: str, like: chex.ArrayTree) -> tuple[int, chex.ArrayTree] | None:
        """The newest finished round of a group and its state, or None where there is none.

        Args:
          group: its name.
          like: pytree of `jax.ShapeDtypeStruct`, the state's structure.

        Returns:
          `(round, state)`, the state as NumPy arrays.
        """
        rounds = self._rounds(group)
        if not rounds:
            return None
        round_ = max(rounds)
        return round_, self._checkpointer.restore(self._folder / group / str(round_), like)

    def _rounds(self, group: str) -> list[int]:
        folder = self._folder / group
        return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
