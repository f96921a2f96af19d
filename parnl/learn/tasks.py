"""What a model is trained for: its loss, the numbers that judge it, and which of them decides.

Metrics are computed on NumPy arrays, in float64, by scikit-learn where it has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Metrics = dict[str, float]


class Task(NamedTuple):
    """A kind of answer.

    loss: of the trainers, "cross_entropy" of logits (N, classes) and labels (N,), or
    "squared_error" of numbers (N, k) and targets (N, k). judge: answers and targets to what people
    ask of them, by name. best: the metric by which epochs are compared unless the user names
    another. less: those of which less is better.
    """

    loss: str
    judge: Callable[[np.ndarray, np.ndarray], Metrics]
    best: str
    less: frozenset[str] = frozenset()


def classes_judged(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Accuracy; F1, the mean over the classes; AUROC of the second of two classes.

    A class that has no series here counts as F1 0 if it was answered, else not at all. AUROC is
    left out where the series are of one class.
    """
    from sklearn.metrics import f1_score, roc_auc_score

    answers = logits.argmax(axis=1)
    found = {
        "accuracy": float(np.mean(answers == labels)),
        "f1": float(f1_score(labels, answers, average="macro", zero_division=0.0)),
    }
    if logits.shape[1] == 2 and len(np.unique(labels)) == 2:
        found["auroc"] = float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
    return found


def numbers_judged(answers: np.ndarray, targets: np.ndarray) -> Metrics:
    """Mean absolute and squared error, the root of it, and the share of the variance explained.

    Over all numbers; R2 is the mean over the k targets, those that do not vary left out.
    """
    gap = answers.astype(np.float64) - targets
    square = np.mean(gap**2, axis=0)
    variance = np.var(targets.astype(np.float64), axis=0)
    found = {"mae": np.mean(np.abs(gap)), "mse": square.mean(), "rmse": np.sqrt(square.mean())}
    if (varies := variance > 0).any():
        found["r2"] = np.mean(1 - square[varies] / variance[varies])
    return {name: float(value) for name, value in found.items()}


ERRORS = frozenset({"mae", "mse", "rmse"})
TASKS = {
    "classify": Task("cross_entropy", classes_judged, "accuracy"),
    "regress": Task("squared_error", numbers_judged, "mse", ERRORS),
}


def check_task(name: str) -> None:
    """Raise ValueError for what is no task."""
    if name not in TASKS:
        raise ValueError(f"task: got {name!r}, expected {' or '.join(map(repr, TASKS))}")


class Scale(NamedTuple):
    """Mean and deviation (k,) of the numbers to be learned; LABELS, 0 and 1, of classes."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray) -> Scale:
        """The scale of the targets (N, k) that are trained on; a constant one gets deviation 1."""
        if targets.ndim == 1:
            return LABELS
        deviation = targets.astype(np.float64).std(axis=0)
        return cls(targets.astype(np.float64).mean(axis=0), np.where(deviation > 0, deviation, 1.0))

    def listed(self) -> list[list[float]]:
        """As JSON has it; `Scale(*map(np.array, listed))` reads it."""
        return [self.mean.tolist(), self.deviation.tolist()]

    def check(self) -> None:
        """Raise ValueError for what cannot be a scale: it may come from a file."""
        whole = self.mean.shape == self.deviation.shape and self.mean.ndim == 1
        if not whole or not np.isfinite([self.mean, self.deviation]).all():
            raise ValueError("a scale that is none")
        if not (self.deviation > 0).all():
            raise ValueError("a scale whose deviations are not positive")

    def learned(self, targets: np.ndarray) -> np.ndarray:
        """What a model is to answer for these targets."""
        if targets.ndim == 1:
            return targets
        return ((targets - self.mean) / self.deviation).astype(np.float32)

    def told(self, answers: np.ndarray) -> np.ndarray:
        """What a model's answers mean."""
        return answers * self.deviation + self.mean


LABELS = Scale(np.zeros(1), np.ones(1))


def judged(task: Task, scale: Scale, answers: np.ndarray, targets: np.ndarray) -> Metrics:
    """The metrics of a model's answers (N, k) for these targets."""
    return task.judge(scale.told(answers), targets)


def loss_of(
    task: Task, answers: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """The mean loss, as the trainers compute it; weights (N,) are of the series of classes."""
    answers = answers.astype(np.float64)
    if task.loss == "squared_error":
        return float(np.mean((answers - targets) ** 2))
    shifted = answers - answers.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[:, None], axis=1)[:, 0]
    return float(np.average(np.log(np.exp(shifted).sum(axis=1)) - chosen, weights=weights))


def score(task: Task, name: str, record: dict[str, float]) -> tuple[float, float]:
    """How good an epoch's record is by its metric `name`; equal ones are decided by the loss."""
    value = record[f"validation_{name}"]
    return (-value if name in task.less else value), -record["validation_loss"]
