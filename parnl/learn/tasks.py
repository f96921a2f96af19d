"""What a model is trained for: its loss, the numbers that judge it, and which of them decides.

Metrics are computed on NumPy arrays, in float64, by scikit-learn where it has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Metrics = dict[str, float]


def as_they_are(
    answers: np.ndarray, targets: np.ndarray, lengths: np.ndarray | None
) -> tuple[np.ndarray, ...]:
    """All answers and targets."""
    return answers, targets


class Task(NamedTuple):
    """A kind of answer.

    loss: of the trainers, "cross_entropy" of logits (N, classes) and labels (N,), or
    "squared_error" of numbers (N, k) and targets (N, k); of each step where T comes after N. What
    is NaN in targets is not known and does not count, nor do steps after a series' end. readout: of
    the model, see `parnl.torch.Classifier`. measure: makes of answers, targets and lengths of a
    batch the arrays that `judge` needs, joined over all batches. judge: makes of those arrays the
    metrics, by name. best: the metric by which epochs are compared unless the user names another.
    less: the metrics for which less is better.
    """

    loss: str
    judge: Callable[..., Metrics]
    best: str
    less: frozenset[str] = frozenset()
    readout: str = "mean"
    measure: Callable[..., tuple[np.ndarray, ...]] = as_they_are


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

    Over all numbers; R2 is the mean over those of the k targets that vary.
    """
    gap = answers.astype(np.float64) - targets
    square = np.mean(gap**2, axis=0)
    variance = np.var(targets.astype(np.float64), axis=0)
    found = {"mae": np.mean(np.abs(gap)), "mse": square.mean(), "rmse": np.sqrt(square.mean())}
    if (varies := variance > 0).any():
        found["r2"] = np.mean(1 - square[varies] / variance[varies])
    return {name: float(value) for name, value in found.items()}


def errors(
    answers: np.ndarray, targets: np.ndarray, lengths: np.ndarray | None
) -> tuple[np.ndarray, ...]:
    """Sums (1, 4): of squared errors, of absolute ones, of squared targets, and how many."""
    counted = known(targets, lengths, answers.ndim == 3)
    right = np.where(counted, targets, 0).astype(np.float64)
    gap = np.where(counted, answers - right, 0)
    return (np.array([[(gap**2).sum(), np.abs(gap).sum(), (right**2).sum(), counted.sum()]]),)


def forecasts_judged(sums: np.ndarray) -> Metrics:
    """Mean squared and absolute error; `persistence` is the former if the last value stays.

    Of all numbers, steps and windows alike, on the scale of the model: standardised, as the
    literature on forecasting has it, unless the data was taken as it is.
    """
    square, absolute, change, _ = sums.sum(axis=0) / sums[:, 3].sum()
    return {"mse": float(square), "mae": float(absolute), "persistence": float(change)}


def next_numbers_judged(sums: np.ndarray) -> Metrics:
    """Mean squared and absolute error over all steps, on the scale of the model."""
    square, absolute, _, _ = sums.sum(axis=0) / sums[:, 3].sum()
    return {"mse": float(square), "mae": float(absolute)}


def surprises(
    logits: np.ndarray, tokens: np.ndarray, lengths: np.ndarray | None
) -> tuple[np.ndarray, ...]:
    """Sums (1, 3): of the tokens' information in bits, of those that were likeliest, and all."""
    counted = known(tokens, lengths, True)
    bits = cross_entropy(logits, tokens)[counted].sum() / np.log(2)
    hits = (logits.argmax(axis=-1) == tokens)[counted].sum()
    return (np.array([[bits, hits, counted.sum()]], np.float64),)


def next_tokens_judged(sums: np.ndarray) -> Metrics:
    """Bits for a token (for bytes: bits per byte), and the share that was found likeliest."""
    bits, hits, _ = sums.sum(axis=0) / sums[:, 2].sum()
    return {"bits": float(bits), "accuracy": float(hits)}


ERRORS = frozenset({"mae", "mse", "rmse", "persistence"})
TASKS = {
    "classify": Task("cross_entropy", classes_judged, "accuracy"),
    "regress": Task("squared_error", numbers_judged, "mse", ERRORS),
    "forecast": Task("squared_error", forecasts_judged, "mse", ERRORS, "last", errors),
    "next": Task("squared_error", next_numbers_judged, "mse", ERRORS, "each", errors),
}
# Of "next", where steps are tokens.
TOKENS = Task(
    "cross_entropy", next_tokens_judged, "bits", frozenset({"bits"}), "each", surprises
)  # fmt: skip


def check_task(name: str) -> None:
    """Raise ValueError for what is no task."""
    if name not in TASKS:
        *some, last = map(repr, TASKS)
        raise ValueError(f"task: got {name!r}, expected {', '.join(some)} or {last}")


def known(targets: np.ndarray, lengths: np.ndarray | None, each: bool) -> np.ndarray:
    """Which targets count: those that are not NaN; of `each` step, before the end of a series."""
    found = ~np.isnan(targets) if targets.dtype.kind == "f" else np.ones(targets.shape, bool)
    if each and lengths is not None:
        real = np.arange(targets.shape[1]) < lengths[:, None]
        found &= real.reshape(real.shape + (1,) * (targets.ndim - 2))
    return found


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The negative logarithm of the probability of each label (...,); logits: (..., classes)."""
    logits = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    chosen = np.take_along_axis(logits, labels[..., None], axis=-1)
    return (np.log(np.exp(logits).sum(axis=-1, keepdims=True)) - chosen)[..., 0]


class Scale(NamedTuple):
    """Mean and deviation (k,) of the numbers to be learned; PLAIN, 0 and 1, of others."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, targets: Any) -> Scale:
        """The scale of the targets (N, k) that are trained on; a constant one gets deviation 1."""
        if targets.ndim == 1:
            return PLAIN
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
        if self is PLAIN or targets.ndim == 1:
            return targets
        return ((targets - self.mean) / self.deviation).astype(np.float32)

    def told(self, answers: np.ndarray) -> np.ndarray:
        """What a model's answers mean."""
        return answers if self is PLAIN else answers * self.deviation + self.mean


PLAIN = Scale(np.zeros(1), np.ones(1))


class Tally:
    """Collects a model's answers batch by batch, for the loss and the metrics of all of them.

    weights: (classes,), of each class in the loss.
    """

    def __init__(self, task: Task, scale: Scale, weights: np.ndarray | None = None) -> None:
        self.task, self.scale, self.weights = task, scale, weights
        self._kept: list[tuple[np.ndarray, ...]] = []
        self._loss = self._count = 0.0

    def add(
        self, answers: np.ndarray, targets: np.ndarray, lengths: np.ndarray | None = None
    ) -> None:
        """A batch: the model's answers to series of these targets and lengths."""
        learned = self.scale.learned(targets)
        counted = known(learned, lengths, self.task.readout == "each")
        if self.task.loss == "squared_error":
            own = np.square(answers.astype(np.float64) - learned)
        else:
            own = cross_entropy(answers, learned)
        heavy = counted if self.weights is None else self.weights[learned]
        self._loss += float((own * heavy)[counted].sum(dtype=np.float64))
        self._count += float(heavy[counted].sum(dtype=np.float64))
        self._kept.append(self.task.measure(self.scale.told(answers), targets, lengths))

    @property
    def loss(self) -> float:
        """The mean loss, as the trainers compute it."""
        return self._loss / self._count

    def metrics(self) -> Metrics:
        """What the task's `judge` says."""
        return self.task.judge(*map(np.concatenate, zip(*self._kept, strict=True)))


def score(task: Task, name: str, record: dict[str, float]) -> tuple[float, float]:
    """How good an epoch's record is by its metric `name`; equal ones are decided by the loss."""
    value = record[f"validation_{name}"]
    return (-value if name in task.less else value), -record["validation_loss"]
