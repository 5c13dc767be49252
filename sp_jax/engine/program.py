"""Programs, which run a function of one lane over all lanes on all devices; and the assignment of lanes to slots."""

import concurrent.futures
import time
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

LANES, BATCH = "lanes", "batch"  # the axes of a mesh: over lanes, and over the samples of a batch inside a lane


class Program:
    """A function of one lane, over all lanes and devices; compiled ahead of time at its first call, and never again.

    A device takes its lanes in batches: those of a batch run side by side (`vmap`), the batches one after the other,
    and a batch without an active lane costs nothing. Devices do not communicate, so each stops independently.
    """

    def __init__(self, function: Callable, mesh: jax.sharding.Mesh, *, side_by_side: int, donate: bool = False):
        """Wrap the function; compile nothing yet.

        Args:
          function: `function(lane, carry, *shared)`, of one lane.
          mesh: of axes `lanes` and `batch`.
          side_by_side: lanes of a batch.
          donate: whether the result reuses the buffers of the carry.
        """

        def on_device(lanes, carries, shared):
            def batch(lanes_and_carries):
                return _unless_idle(function, *lanes_and_carries, shared)

            folded = jax.tree.map(lambda x: x.reshape(-1, side_by_side, *x.shape[1:]), (lanes, carries))
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.lax.map(batch, folded))

        split, whole = PartitionSpec(LANES), PartitionSpec()
        specs = (split, split, whole)
        mapped = jax.shard_map(
            on_device, mesh=mesh, in_specs=specs, out_specs=split, axis_names={LANES}, check_vma=False
        )
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        self._jitted = jax.jit(
            mapped, in_shardings=shardings, out_shardings=shardings[0], donate_argnums=(1,) if donate else ()
        )
        self._compiled = self._ahead = None
        self.compile_seconds = 0.0

    @property
    def bytes(self) -> int:
        """The bytes needed on each device, arguments and results included; 0 where it is not compiled yet."""
        return 0 if self._compiled is None else needed_bytes(self._compiled)

    def __call__(self, lanes, carry, *shared):
        """Run it: `lanes` and `carry` are pytrees of [slots, ...], of a fixed number of slots; all share `shared`."""
        if self._compiled is None:
            start = time.monotonic()
            self._compiled = self._ahead.result() if self._ahead else self.lower(lanes, carry, *shared).compile()
            self.compile_seconds = time.monotonic() - start
        return self._compiled(lanes, carry, shared)

    def shapes(self, lanes, carry, *shared):
        """Return the shapes and dtypes of the result."""
        return jax.eval_shape(self._jitted, lanes, carry, shared)

    def lower(self, lanes, carry, *shared) -> jax.stages.Lowered:
        """Lower it for its devices, which need not be there; shapes are enough."""
        return self._jitted.lower(lanes, carry, shared)

    def compile_ahead(self, lanes, carry, *shared):
        """Compile in another thread, for a call that comes later; the arguments are as those, or their shapes."""
        if self._compiled is None and self._ahead is None:
            executor = concurrent.futures.ThreadPoolExecutor(1)
            self._ahead = executor.submit(self.lower(lanes, carry, *shared).compile)
            executor.shutdown(wait=False)


class Programs:
    """The devices of an engine, the slots that lanes have there, and the programs over these slots, each made once."""

    def __init__(self, mesh: jax.sharding.Mesh, num_lanes: int, side_by_side: int):
        """Make none yet.

        Args:
          mesh: of axes `lanes` and `batch`.
          num_lanes: the most lanes of a call.
          side_by_side: how many of them a device trains at once.
        """
        self.mesh, self.side_by_side, self.rows = mesh, side_by_side, mesh.shape[LANES]
        each = self.rows * side_by_side
        self.slots = -(-num_lanes // each) * each  # of a call, idle ones included: whole batches on each row of devices
        self._made: dict = {}

    def once(self, key, function: Callable, **options) -> Program:
        """Return the program of a key, made of the function at its first call; the options are those of `Program`."""
        if key not in self._made:
            self._made[key] = Program(function, self.mesh, side_by_side=self.side_by_side, **options)
        return self._made[key]

    @property
    def compile_seconds(self) -> float:
        """The compile time so far, of all programs together."""
        return sum(program.compile_seconds for program in self._made.values())

    @property
    def bytes(self) -> int:
        """The bytes that the largest program compiled so far needs on each device."""
        return max((program.bytes for program in self._made.values()), default=0)

    def send(self, lanes):
        """Put a pytree of [slots, ...] on the devices, each lane on its own."""
        return put(lanes, self.mesh, PartitionSpec(LANES))

    def fetch(self, lanes, count: int | None = None):
        """Return NumPy arrays of the first `count` lanes, by default of all slots, idle ones too."""
        return jax.tree.map(lambda x: to_host(x)[:count], lanes)


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a program needs on each device: arguments, results and what it needs meanwhile."""
    needs = compiled.memory_analysis()
    held = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    return held + needs.temp_size_in_bytes


def layout(tree) -> tuple:
    """Return what a program is compiled for: the structure of a pytree, the shapes and dtypes of its leaves."""
    return jax.tree.structure(tree), tuple((x.shape, x.dtype) for x in jax.tree.leaves(tree))


def _unless_idle(function, lanes, carries, shared):
    """Apply the function to each lane of a batch, or return zeros where none of them is active."""

    def each(lanes, carries):
        if lanes.active.shape[0] > 1:
            return jax.vmap(lambda *one: function(*one, *shared))(lanes, carries)
        alone = function(*jax.tree.map(lambda x: x[0], (lanes, carries)), *shared)
        return jax.tree.map(lambda x: x[None], alone)

    def nothing(lanes, carries):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(each, lanes, carries))

    return jax.lax.cond(jnp.any(lanes.active), each, nothing, lanes, carries)


def regrouped(running: np.ndarray, num_devices: int, side_by_side: int) -> np.ndarray | None:
    """Return an order of the slots in which running lanes fill whole batches, distributed evenly over the devices.

    Lanes that have stopped cost nothing only where their whole batch has stopped; so the running ones are regrouped.

    >>> regrouped(np.array([True, False, False, False, True, False, True, True]), num_devices=2, side_by_side=2)
    array([0, 4, 1, 2, 6, 7, 3, 5])

    Args:
      running: [slots] booleans.
      num_devices: the slots of a device follow one another.
      side_by_side: so do those of a batch.

    Returns:
      [slots]: which slot's lane moves to each slot; None where it would not lower the largest number of running batches
      on a device.
    """
    busy = running.reshape(num_devices, -1, side_by_side).any(axis=2)
    needed = -(-int(running.sum()) // side_by_side)
    if busy.sum(axis=1).max() <= -(-needed // num_devices):
        return None
    batches = np.arange(busy.size).reshape(num_devices, -1).T.ravel()  # the first of each device, the second of each, …
    slots = (batches[:, None] * side_by_side + np.arange(side_by_side)).ravel()
    order = np.empty_like(slots)
    order[slots] = np.argsort(~running, kind="stable")
    return order


def pad(lanes: chex.ArrayTree, slots: int) -> chex.ArrayTree:
    """Repeat the last lane of a pytree of [L, ...] until there are `slots` of them."""

    def repeat(x):
        numpy = jnp if isinstance(x, jax.Array) else np
        missing = slots - x.shape[0]
        return numpy.concatenate([x, numpy.repeat(x[-1:], missing, axis=0)]) if missing else x

    return jax.tree.map(repeat, lanes)


def put(tree, mesh, spec):
    """Put a pytree, which all hosts have, on the devices of a mesh; each host puts the part of its own devices."""
    sharding = NamedSharding(mesh, spec)

    def put_leaf(x):
        if jax.process_count() == 1 or isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(np.shape(x), sharding, lambda index: x[index])

    return jax.tree.map(put_leaf, tree)


def to_host(x):
    """Return an array as a whole, as NumPy's, whichever hosts hold its parts."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
