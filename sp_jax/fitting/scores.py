"""Measures of a fit beyond the mean metric, by scikit-learn: what is rare, how well it ranks, what it explains."""

import jax
import numpy as np

from sp_jax.fitting.arrays import Arrays
from sp_jax.tasks import Task


def score(task: Task, outputs: np.ndarray, samples: Arrays) -> dict[str, float]:
    """Return measures of predictions, by name.

    Args:
      task: "classification", "binary", "multilabel" or "regression".
      outputs: [N, ...] of a network.
      samples: their targets [N] or [N, K], and their weights.

    Returns:
      `accuracy`, `log_loss` (nats) and `recall_<class>` of classes; `accuracy`, `log_loss` and `auc` of a binary task;
      the same, averaged over labels, of a multilabel one; `r2`, `rmse` and `mae` (in units of the targets) of a
      regression. AUC is NaN where only one kind of target is there.

    Raises:
      ValueError: scikit-learn is not installed, or the task is another.
    """
    try:
        from sklearn import metrics
    except ImportError:
        raise ValueError("these measures are scikit-learn's: pip install scikit-learn") from None
    y, how = np.asarray(samples.targets), {"sample_weight": samples.weights}
    z = np.asarray(outputs, float)
    if task.name == "regression":
        z = z.reshape(y.shape)
        return {
            "r2": float(metrics.r2_score(y, z, **how)),
            "rmse": float(metrics.root_mean_squared_error(y, z, **how)),
            "mae": float(metrics.mean_absolute_error(y, z, **how)),
        }
    if task.name == "classification":
        p, classes = np.asarray(jax.nn.softmax(z, axis=-1), float), np.arange(z.shape[1])
        recall = metrics.recall_score(y, z.argmax(1), labels=classes, average=None, zero_division=np.nan, **how)
        return {
            "accuracy": float(metrics.accuracy_score(y, z.argmax(1), **how)),
            "log_loss": float(metrics.log_loss(y, p / p.sum(1, keepdims=True), labels=classes, **how)),
            **{f"recall_{k}": float(recall[k]) for k in classes},
        }
    if task.name not in ("binary", "multilabel"):
        raise ValueError(f"no measures are known of the task {task.name!r}: its loss and metric are in the history")
    y, z = (x.reshape(len(y), -1) for x in (y, z))
    columns = [_binary(metrics, y[:, k], z[:, k], how) for k in range(y.shape[1])]
    return {name: float(np.mean([column[name] for column in columns])) for name in columns[0]}


def _binary(metrics, y, z, how):
    p = 1 / (1 + np.exp(-z))
    return {
        "accuracy": metrics.accuracy_score(y, z > 0, **how),
        "log_loss": metrics.log_loss(y, p, labels=[0, 1], **how),
        "auc": metrics.roc_auc_score(y, z, **how) if len(np.unique(y)) == 2 else np.nan,
    }
