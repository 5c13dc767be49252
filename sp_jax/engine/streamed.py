"""Data larger than a device: the same rounds, fed with a stream of batches (Grain) in the same order of samples.

The samples stay on the host, in any array, as the memory-mapped cache of decoded ones. Each epoch takes the order of
`training.epoch_order`; Grain's threads gather blocks of several batches, and while the device works on one block the
next is sent. The host waits for the device once an epoch, where it must know which lanes have converged.

Each lane has its own samples, so what is sent grows with the number of lanes, even of lanes of one seed. Results are
those of samples on the devices, bit for bit on a CPU.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from sp_jax import training
from sp_jax.data import task_streams
from sp_jax.engine.engine import Engine
from sp_jax.engine.lanes import check_count
from sp_jax.engine.program import Programs, layout
from sp_jax.engine.source import restart_lane
from sp_jax.training import EVALUATION_BATCH, Lane, Trainer, convergence
from sp_jax.types import Batches, Dataset, Evaluation, Progress, StopReason

BLOCK_BYTES = 2**22  # of samples that a device is sent at a time, for all its lanes together
THREADS = 2  # that gather blocks, and the blocks that they are ahead
NO_LIMIT = np.int32(convergence.NO_LIMIT)


@struct.dataclass
class Fed:
    """A lane and the samples that it is sent; `[L, ...]` for lanes."""

    lane: Lane
    block: Dataset | None  # [K * B] samples

    @property
    def active(self) -> chex.Array:
        """As the lane's."""
        return self.lane.active


def blocks(data: Dataset, indices: np.ndarray, length: int, active: np.ndarray, start: int = 0):
    """Stream samples in a given order, in blocks of one size.

    Args:
      data: on the host.
      indices: [L, n] integers, the order of each lane.
      length: K * B, samples of a block; the last one is filled up with zeros.
      active: [L] booleans; the other lanes get zeros, and cost no reading.
      start: the place in the order where the first block begins.

    Returns:
      A Grain iterator over `(first, block)`: the block's place in the order, and its samples, [L, K * B, ...]. Its
      `close` ends its threads.
    """
    import grain  # only where data are streamed

    lanes = np.flatnonzero(active)

    def gather(i):
        first = start + i * length
        chosen = indices[:, first : first + length]

        def of(array):
            out = np.zeros((len(indices), length, *array.shape[1:]), array.dtype)
            for lane in lanes:
                np.take(array, chosen[lane], axis=0, out=out[lane, : chosen.shape[1]], mode="clip")
            return out

        return first, jax.tree.map(of, data)

    count = -(-(indices.shape[1] - start) // length)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS)
    return iter(grain.MapDataset.range(count).map(gather).to_iter_dataset(options))


class Streamed:
    """A `Source` whose samples stay on the host; the devices never hold more than two blocks of them."""

    resumes_mid_epoch = True

    def __init__(self, trainer: Trainer, data: Dataset, programs: Programs, *, block_bytes: int = BLOCK_BYTES):
        """Send nothing yet.

        Args:
          trainer: the static configuration.
          data: all samples, on the host.
          programs: of the engine.
          block_bytes: of samples that a device is sent at a time; at least one batch.

        Raises:
          ValueError: `block_bytes` below 1; a stream of tasks, whose samples are other ones in each round.
        """
        check_count("block_bytes", block_bytes)
        if trainer.stream is not task_streams.growing:
            raise ValueError("the samples of a stream of tasks are made on the device, where all of them must lie")
        self._trainer, self._programs, self._block_bytes = trainer, programs, block_bytes
        self.feed(data)

    def feed(self, data):
        """Take other samples; they stay where they are on the host."""
        self.data = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, data)

    def epoch(
        self,
        lanes: Lane,
        progress: Progress,
        round_: int,
        num_visible: int,
        epoch_limit: chex.Numeric = NO_LIMIT,
    ) -> Iterator[Progress]:
        """Train one epoch, block by block; it may be left in its middle, saved, and gone on with elsewhere.

        Args:
          lanes: as placed.
          progress: from `begin`, or where an epoch was left; its buffers are reused.
          round_: counted from 1.
          num_visible: how many samples have arrived.
          epoch_limit: lanes that have trained so many epochs of the round stay as they are.

        Yields:
          The progress after each block. Its buffers are reused too: who wants it fetches it before going on.
        """
        running = self._running(lanes, progress, epoch_limit)
        size, shared = self._trainer.batch_size, (np.int32(num_visible), np.int32(epoch_limit))
        shuffle = self._programs.once("order", self._order_lane)
        advance = self._programs.once("advance", self._advance_lane, donate=True)
        order = self._host(shuffle(lanes, progress.epoch, np.int32(round_), shared[0]))
        length, order = self._length(size, lanes.order.shape[1]), order[:, : -(-num_visible // size) * size]
        stream = blocks(self.data, order, length, running, self._begun(progress, running))
        shared = (np.int32(round_), *shared)

        def step(fed, progress, first):
            return advance(fed, progress, first, *shared)

        for _, trained in self._over(stream, lanes, step, progress):
            yield trained
        if lanes.convergence.validates:
            judge, evaluation = (
                self._programs.once("judge", self._judge_lane),
                self.evaluate(lanes, trained.state, round_),
            )
            yield judge(lanes, (trained, evaluation), *shared[1:])

    def measure(self, function, lanes, carry, *shared, round_):
        """Run a function of one lane on all lanes, on the samples that the function says it looks at.

        Its attribute `positions(T, *shared)` gives [P] places in the order of arrival, on the host; a function without
        it gets None for the data.
        """
        del round_
        looks = getattr(function, "positions", None)
        places = None if looks is None else np.asarray(looks(lanes.order.shape[1], *shared), np.int32)

        def measure(fed, carry, places, *shared):
            lane, data = fed.lane, fed.block
            if data is not None:
                renumbered = jnp.zeros_like(lane.order).at[places].set(jnp.arange(len(places), dtype=jnp.int32))
                lane = lane.replace(order=renumbered)
            return function(lane, carry, data, *shared)

        fed = Fed(lanes, None if places is None else self._chosen(lanes, self._host(lanes.order)[:, places]))
        return self._programs.once(("measure", function, layout(carry)), measure)(fed, carry, places, *shared)

    def _host(self, lanes):
        """NumPy arrays of all slots, idle ones too."""
        return self._programs.fetch(lanes)

    def _length(self, batch, count):
        """Return the samples of a block: whole batches, at most `block_bytes` for all lanes of a device."""
        each = sum(x.nbytes // len(x) for x in jax.tree.leaves(self.data))
        each = each * self._programs.slots // self._programs.rows
        return batch * max(1, min(self._block_bytes // (batch * each), -(-count // batch)))

    def _chosen(self, lanes, indices):
        """Send a single block: samples [slots, n] by their indices."""
        with contextlib.closing(blocks(self.data, indices, indices.shape[1], self._host(lanes.active))) as stream:
            return self._programs.send(next(stream)[1])

    def _over(self, stream, lanes, step, carry):
        """Step over the blocks: `step(fed, carry, first) -> (carry, ticket)`; a ready ticket's block is done.

        While the device works on a block the next one is sent; the one after that waits.
        """
        before = None
        with contextlib.closing(stream):
            for first, samples in stream:
                carry, ticket = step(Fed(lanes, self._programs.send(samples)), carry, np.int32(first))
                jax.block_until_ready(before)
                before = ticket
                yield first, carry

    @staticmethod
    def _last(steps):
        """Return the carry after all blocks."""
        for _, carry in steps:
            last = carry
        return last

    # Training.

    def train(self, lanes, progress, round_, num_visible, epoch_limit, fill):
        """Train up to an epoch; where one takes longer than a chunk, the host gets control in its middle too."""
        length = self._length(self._trainer.batch_size, lanes.order.shape[1])
        while (running := self._running(lanes, progress, epoch_limit)).any():
            left = -(-(num_visible - self._begun(progress, running)) // length)
            chunk = fill(running.sum() * length)
            trained = self.epoch(lanes, progress, round_, num_visible, epoch_limit)
            for i, progress in enumerate(trained, 1):
                if i % chunk == 0 and i < left:
                    yield progress
        yield progress

    def _begun(self, progress, running):
        """Return how many samples the lanes that run have seen of their epoch."""
        return int(self._host(progress.samples)[running].max())

    def _running(self, lanes, progress, epoch_limit):
        """Find which lanes have another epoch to train, [slots], on the host."""
        active, epoch, reason = self._host((lanes.active, progress.epoch, progress.stop_reason))
        return active & (reason == StopReason.RUNNING) & (epoch < epoch_limit)

    def _order_lane(self, lane, epoch, round_, num_visible):
        size = self._trainer.batch_size
        key = training.shuffle_key(self._trainer, lane, round_, epoch)
        return training.epoch_order(key, lane.order, num_visible, -(-lane.order.shape[0] // size) * size)

    def _advance_lane(self, fed, progress, first, round_, num_visible, epoch_limit):
        """Train the steps of a block; after the last block, end the epoch."""
        lane, length, trainer = fed.lane, len(fed.block), self._trainer
        whole, _ = lane.convergence.allowed(progress.epoch, num_visible, trainer.batch_size)

        def steps(progress):
            hparams, count = training.at_epoch(lane.hparams, progress.epoch), jnp.minimum(whole - first, length)
            key, before = training.augment_key(lane, round_, progress.epoch), first // trainer.batch_size
            carry = (progress.state, progress.sums)
            state, sums = training.train_batches(
                trainer, hparams, fed.block, jnp.arange(length), carry, count, key=key, first=before
            )
            sums = dict(zip(("loss_sum", "correct_sum", "weight_sum"), sums, strict=True))
            progress = progress.replace(state=state, samples=first + count, **sums)
            return jax.lax.cond(first + count >= whole, end, lambda progress: progress, progress)

        def end(progress):
            progress = progress.replace(state=trainer.method.after_epoch(progress.state))
            return progress if lane.convergence.validates else self._end_epoch(lane, progress, num_visible, None)

        running = self._trains(lane, progress, epoch_limit) & (first < whole)
        progress = jax.lax.cond(running, steps, lambda progress: progress, progress)
        return progress, progress.epoch

    def _judge_lane(self, lane, carry, num_visible, epoch_limit):
        """End the epoch of a lane whose rule looks at the validation samples."""
        progress, evaluation = carry

        def end(progress):
            return self._end_epoch(lane, progress, num_visible, evaluation)

        return jax.lax.cond(self._trains(lane, progress, epoch_limit), end, lambda progress: progress, progress)

    def _end_epoch(self, lane, progress, num_visible, evaluation):
        count, spent = lane.convergence.allowed(progress.epoch, num_visible, self._trainer.batch_size)
        means = progress.sums.means(count)
        return lane.convergence.update(progress, *means, spent=spent, evaluation=evaluation)

    @staticmethod
    def _trains(lane, progress, epoch_limit):
        running = progress.stop_reason == StopReason.RUNNING.value
        return running & (progress.epoch < epoch_limit) & lane.active

    # Evaluation.

    def evaluate(self, lanes, state, round_):
        """Evaluate each lane on its validation samples, block by block."""
        del round_
        order, count = self._host(lanes.validation), lanes.validation.shape[1]
        length = self._length(EVALUATION_BATCH, count)
        order = np.pad(order, ((0, 0), (0, -count % EVALUATION_BATCH)))
        stream = blocks(self.data, order, length, self._host(lanes.active))
        add, zero = self._programs.once("evaluate", self._evaluate_block), self._trainer.zero_sums(self.data)
        nothing = self._programs.send(jax.tree.map(lambda x: np.zeros(self._programs.slots, x.dtype), zero))

        def step(fed, carry, first):
            sums, evaluation = add(fed, (state, carry[0]), first)
            return (sums, evaluation), evaluation

        return self._last(self._over(stream, lanes, step, (nothing, None)))[1]

    def _evaluate_block(self, fed, carry, first):
        """Add a block's samples to the sums; return them, and the evaluation that they give after the last block."""
        (state, sums), lane, length, trainer = carry, fed.lane, len(fed.block), self._trainer
        count = lane.validation.shape[0] if lane.num_validation is None else lane.num_validation
        state, here = trainer.method.evaluated(state), jnp.minimum(count - first, length)
        sums = training.evaluate_batches(
            trainer.model, state, fed.block, jnp.arange(length), sums, here, task=trainer.task
        )
        return sums, Evaluation(*sums.means(count))

    # Restarts.

    def expect(self, restart, lanes, states):
        """Do nothing: beside a round of so many samples, compiling is short."""

    def begin(self, restart, lanes, states, round_, num_visible):
        """Restart each lane before a round, from the batches that the restart says it looks at."""
        kind, count, order = (restart, layout(states[0])), restart.num_batches, self._arrival(lanes)
        fed = Fed(lanes, self._chosen(lanes, order[:, : count * self._size(lanes)]) if count else None)
        swept = self._sweep(kind, lanes, states[0], order, num_visible) if restart.data_pass else ()

        def begin(fed, carry, round_, num_visible):
            (states, swept), lane = carry, fed.lane
            left = iter(swept)

            def swept_restart(*args, **options):
                return restart.data_pass.finish(next(left))(*args, **options)

            if fed.block is not None:  # these are all samples now, in the order of arrival
                lane = lane.replace(order=jnp.arange(len(fed.block)))
            one, sums = swept_restart if restart.data_pass else restart, self._trainer.zero_sums(self.data)
            return restart_lane(self._trainer, one, lane, states, fed.block, round_, num_visible, sums)

        return self._programs.once(("begin", kind), begin)(fed, (states, swept), round_, num_visible)

    def _sweep(self, kind, lanes, state, order, num_visible):
        """Pass a restart over all samples that have arrived, for each state that the method restarts."""
        data_pass, size = kind[0].data_pass, self._size(lanes)

        def restarted(state):
            seen = []
            self._trainer.method.restarted(lambda state: seen.append(state) or state, state)
            return seen

        def start(lane, state):
            return [data_pass.start(each) for each in restarted(state)]

        def update(fed, carry, first, num_visible):
            state, swept = carry
            samples = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), fed.block)
            masks = first + jnp.arange(len(fed.block)) < num_visible
            batches = Batches(samples.inputs, masks.reshape(-1, size), samples.labels)
            return [data_pass.update(each, one, batches) for each, one in zip(restarted(state), swept, strict=True)]

        def step(fed, swept, first):
            swept = self._programs.once(("sweep", kind), update)(fed, (state, swept), first, num_visible)
            return swept, swept

        visible, length = order[:, : -(-num_visible // size) * size], self._length(size, order.shape[1])
        stream = blocks(self.data, visible, length, self._host(lanes.active))
        begun = self._programs.once(("start", kind), start)(lanes, state)
        return self._last(self._over(stream, lanes, step, begun))

    def _size(self, lanes):
        """Return the samples of a batch that a restart looks at."""
        return min(self._trainer.batch_size, lanes.order.shape[1])

    def _arrival(self, lanes):
        """Return the order of arrival, [slots, K * B] with the padding that the resident engine has."""
        order = self._host(lanes.order)
        return np.pad(order, ((0, 0), (0, -order.shape[1] % self._size(lanes))))


class StreamedEngine(Engine):
    """An `Engine` with a `Streamed` source."""

    def __init__(self, trainer: Trainer, data: Dataset, num_lanes: int, *, block_bytes: int = BLOCK_BYTES, **options):
        """Set up the source; send nothing yet.

        Args:
          trainer: the static configuration.
          data: all samples, on the host.
          num_lanes: the most lanes of a call.
          block_bytes: of samples that a device is sent at a time; at least one batch.
          **options: of `Engine`.

        Raises:
          ValueError: as `Engine`; float inputs are read once to look for NaN.
        """
        super().__init__(trainer, data, num_lanes, source=partial(Streamed, block_bytes=block_bytes), **options)

    def epoch(self, lanes: Lane, progress: Progress, round_: int, num_visible: int, **limit) -> Iterator[Progress]:
        """Train one epoch, block by block, as `Streamed.epoch` does."""
        return self.source.epoch(lanes, progress, round_, num_visible, **limit)
