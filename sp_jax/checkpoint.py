"""Save and restore the state of a group of lanes after a round (Orbax)."""

import pathlib
import shutil

import chex
import jax
import orbax.checkpoint as ocp


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; the message is one line."""


class Store:
    """One folder of checkpoints: for each group the state after its newest finished round, older ones deleted."""

    def __init__(self, folder: str | pathlib.Path, *, write: bool = True):
        """Writes nothing yet; `folder` need not exist. Of several hosts, which all see the folder, one has `write`."""
        self._folder, self._write = pathlib.Path(folder).absolute(), write
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"store_{own}"
        )
        options = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
        self._checkpointer = ocp.StandardCheckpointer(**options)

    def save(self, group: str, round_: int, state: chex.ArrayTree) -> None:
        """Saves a pytree of NumPy arrays, atomically, then deletes the group's older rounds."""
        if not self._write:
            return
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

        Raises:
          CheckpointError: it cannot be read as such a state.
        """
        round_ = self.newest(group)
        if round_ == 0:
            return None
        path = self._folder / group / str(round_)
        try:
            return round_, self._checkpointer.restore(path, like)
        except Exception as error:  # Orbax raises whatever its parts raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"the checkpoint {path} is damaged, or of another program: {reason}") from error

    def newest(self, group: str) -> int:
        """The newest finished round of a group, 0 where there is none."""
        return max(self._rounds(group), default=0)

    def _rounds(self, group: str) -> list[int]:
        folder = self._folder / group
        return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
