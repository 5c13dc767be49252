"""Training of one lane: step, epoch, round until convergence, evaluation; pure functions of any model and data set.

A round is training to convergence (Section 2.1): a `while_loop` of epochs inside one program; an epoch is a
`fori_loop` of steps. The data stay on the device at full size; how many samples have arrived is a traced scalar, so
round 1 and round 34 are the same program.
"""

from sp_jax.training.convergence import MONITORS, Convergence, holds_nan
from sp_jax.training.evaluation import EVALUATION_BATCH, evaluate, evaluate_batches, evaluate_lane
from sp_jax.training.optimizers import Optimizer, adam, adam_per_entry, at_epoch, only, sgd, update
from sp_jax.training.rounds import augment_key, shuffle_key, train_epoch, train_round
from sp_jax.training.shuffling import SHUFFLES, epoch_order
from sp_jax.training.steps import train_batches, train_step
from sp_jax.training.trainer import Lane, Trainer, init_state

__all__ = [
    "EVALUATION_BATCH",
    "MONITORS",
    "SHUFFLES",
    "Convergence",
    "Lane",
    "Optimizer",
    "Trainer",
    "adam",
    "adam_per_entry",
    "at_epoch",
    "augment_key",
    "epoch_order",
    "evaluate",
    "evaluate_batches",
    "evaluate_lane",
    "holds_nan",
    "init_state",
    "only",
    "sgd",
    "shuffle_key",
    "train_batches",
    "train_epoch",
    "train_round",
    "train_step",
    "update",
]
