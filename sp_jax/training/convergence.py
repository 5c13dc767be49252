"""When a round of training ends (Section 2.1)."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
from flax import struct

from sp_jax.transforms import filters
from sp_jax.types import Evaluation, Progress, StopReason, Sums, TrainState

NO_LIMIT = 2**31 - 1
MONITORS = ("train_accuracy", "train_loss", "validation_accuracy", "validation_loss")


@struct.dataclass
class Convergence:
    """When a round ends; every field is traced, so a sweep may vary it. Each is a scalar, or [L].

    The paper trains to 99 % training accuracy; the authors stopped models that cannot reach it "when training accuracy
    stops improving". Training accuracy is the online one: counted in train mode while the epoch runs.

    Where another quantity is watched (`monitor`), it decides on the plateau, and `reaches` is the threshold. One of the
    validation samples costs an evaluation an epoch; `restore_best` ends the round with the network of the best epoch.

    A lane whose loss is no longer finite, or whose network holds a NaN, stops (`StopReason.NAN`) and costs no time,
    in later rounds either: a round that begins with a NaN has no epochs. So with λ > 0 a lane stays NaN for good; only
    a restart that forgets the old network (random init, or λ = 0 with statistics and optimiser reset) recovers it.
    """

    train_accuracy: chex.Numeric = 0.99  # fraction: the threshold, where it is what `monitor` names
    patience: chex.Numeric = 100  # epochs without an improvement that count as a plateau
    min_improvement: chex.Numeric = 0.001  # fraction, or nats of a loss: less than this is no improvement
    max_epochs: chex.Numeric = 1000
    fixed: chex.Numeric = False  # True: exactly `max_epochs` epochs, whatever the accuracy
    reaches: chex.Numeric = math.nan  # the threshold of another `monitor`; NaN for none
    # Budgets of a round, None for none: then the compiler knows that lanes side by side take the same steps. Samples
    # visited, one once an epoch; steps of the optimiser. The last epoch may be a part.
    max_samples: chex.Numeric | None = None
    max_steps: chex.Numeric | None = None
    monitor: str = struct.field(pytree_node=False, default="train_accuracy")  # one of `MONITORS`
    restore_best: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def exactly(
        cls, epochs: int | None = None, *, steps: int | None = None, samples: int | None = None
    ) -> "Convergence":
        """Make the rule of exactly so many epochs (Figure 1 has 350; Figure 6 has none), steps or samples.

        Raises:
          ValueError: none of them is said.
        """
        if epochs is None and steps is None and samples is None:
            raise ValueError("a round must end: say exactly how many epochs, steps or samples")
        epochs = NO_LIMIT if epochs is None else epochs
        return cls(max_epochs=epochs, fixed=True, max_steps=steps, max_samples=samples)

    @property
    def validates(self) -> bool:
        """Whether the rule looks at the validation samples after each epoch."""
        return self.monitor.startswith("validation")

    @property
    def budgeted(self) -> bool:
        """Whether a round has a budget of samples or steps."""
        return self.max_samples is not None or self.max_steps is not None

    def allowed(self, epoch: chex.Array, num_visible: chex.Numeric, batch_size: int) -> tuple[chex.Array, chex.Array]:
        """Return how many samples the next epoch may visit after `epoch` ones, and whether it is the budget's last."""
        if not self.budgeted:
            return num_visible, False

        def left(epoch, total, each):
            if total is None:
                return each
            whole = total // each
            return jnp.where(epoch < whole, each, jnp.where(epoch == whole, total % each, 0))

        def count(epoch):
            steps = left(epoch, self.max_steps, (num_visible + batch_size - 1) // batch_size)
            return jnp.minimum(left(epoch, self.max_samples, num_visible), jnp.minimum(steps * batch_size, num_visible))

        return count(epoch), (count(epoch) < num_visible) | (count(epoch + 1) == 0)

    def start(self, state: TrainState, *, active: chex.Array = True, sums: Sums | None = None) -> Progress:
        """Return the progress of a round before its first epoch; it has already stopped where `active` is False, the
        network holds a NaN, or the round has exactly 0 epochs. `sums` are those of no samples, of the task."""
        untrained = jnp.logical_and(self.fixed, self.max_epochs <= 0)
        reason = jnp.where(untrained, StopReason.FIXED.value, StopReason.RUNNING.value)
        reason = jnp.where(holds_nan(state), StopReason.NAN.value, reason)
        progress = Progress.start(state, stop_reason=jnp.where(active, reason, StopReason.CAP.value), sums=sums)
        return progress.replace(best_state=state) if self.restore_best else progress

    def update(
        self,
        progress: Progress,
        accuracy: chex.Array,
        loss: chex.Array,
        *,
        spent: chex.Numeric = False,
        evaluation: Evaluation | None = None,
    ) -> Progress:
        """Record one more epoch, and decide whether to stop.

        Args:
          progress: after the epoch's steps.
          accuracy: of training, a fraction.
          loss: of training, nats.
          spent: whether the budget of samples or steps is used up.
          evaluation: on the validation samples, where the rule looks at them.
        """
        epoch = progress.epoch + 1
        held = evaluation or Evaluation(None, None)
        watched = dict(zip(MONITORS, (accuracy, loss, held.accuracy, held.loss), strict=True))[self.monitor]
        sign, goal = -1 if "loss" in self.monitor else 1, self.reaches
        goal = self.train_accuracy if self.monitor == "train_accuracy" else goal
        watched = sign * watched
        # A thousandth less as tolerance for rounding: of 1,000 samples, one more correct is 0.001 or a little less.
        improved = watched - progress.best_accuracy >= self.min_improvement * 0.999
        best_epoch = jnp.where(improved, epoch, progress.best_epoch)
        open_ended = jnp.logical_not(self.fixed)
        reasons = {  # the first that holds
            StopReason.NAN: ~jnp.isfinite(loss) | holds_nan(progress.state),
            StopReason.THRESHOLD: open_ended & (watched >= sign * goal),
            StopReason.PLATEAU: open_ended & (epoch - best_epoch >= self.patience),
            StopReason.BUDGET: spent,
            StopReason.CAP: open_ended & (epoch >= self.max_epochs),
            StopReason.FIXED: epoch >= self.max_epochs,
        }
        stop_reason = jnp.int32(StopReason.RUNNING.value)
        for reason in reversed(reasons):
            stop_reason = jnp.where(reasons[reason], jnp.int32(reason.value), stop_reason)
        state, best_state = progress.state, progress.best_state
        if self.restore_best:
            best_state = jax.tree.map(partial(jnp.where, improved), state, best_state)
            ended = (stop_reason != StopReason.RUNNING.value) & (stop_reason != StopReason.NAN.value)
            state = jax.tree.map(partial(jnp.where, ended), best_state, state)
        return Progress.start(state, sums=progress.sums).replace(
            epoch=epoch,
            stop_reason=stop_reason,
            best_accuracy=jnp.where(improved, watched, progress.best_accuracy),
            best_epoch=best_epoch,
            train_accuracy=accuracy,
            train_loss=loss,
            accuracy_sum=progress.accuracy_sum + accuracy,
            best_state=best_state,
        )


def holds_nan(state: TrainState) -> chex.Array:
    """Return whether a parameter or a statistic is NaN: the loss does not reflect the last step of an epoch."""
    leaves = jax.tree.leaves((state.params, state.batch_stats))
    found = [jnp.any(jnp.isnan(x)) for x in leaves if filters.is_changeable(x)]
    return jnp.any(jnp.array(found, bool))
