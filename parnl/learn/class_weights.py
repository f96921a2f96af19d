"""Weights of classes in the loss, for data in which some classes are rare."""

from __future__ import annotations

import numpy as np

CLASS_WEIGHTS = ("balanced",)


def balanced(labels: np.ndarray, classes: int) -> np.ndarray:
    """A weight (classes,) for each class: N / (classes that occur * series of the class).

    labels: (N,), of the training part. All classes that occur then weigh the same in the loss, as
    with scikit-learn's "balanced". A class that does not occur gets 1: it may yet be in the
    validation part.
    """
    counts = np.bincount(labels, minlength=classes)
    occurs = counts > 0
    weights = len(labels) / (occurs.sum() * np.maximum(counts, 1))
    return np.where(occurs, weights, 1.0).astype(np.float32)
