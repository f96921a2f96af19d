"""Labelled time series by name, as padded arrays a model can read.

Every classification data set known to `aeon` can be named. Some ship inside its wheel
(JapaneseVowels, BasicMotions, GunPoint, OSULeaf, ACSF1, ...); others are downloaded by aeon.

    dataset = load("JapaneseVowels")
    dataset.train.inputs.shape       # (216, 29, 12): (series, steps, channels)
    dataset.train.lengths[:3]        # array([20, 26, 22])
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Labelled series, padded at the end to one length.

    inputs: (N, T, channels) float32. labels: (N,) int64.
    lengths: (N,) int64, the number of real steps of each, or None when all T steps are real.
    """

    inputs: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray | None


class Dataset(NamedTuple):
    """A data set in three parts; label k stands for `classes[k]`. All parts share one T."""

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split


def load(name: str, *, validation: float = 0.2, seed: int = 0) -> Dataset:
    """The data set `name`, standardised channel by channel.

    The test part is the published one. A share `validation` of every class of the published
    training part, drawn with `seed`, is set aside for validation. Means and deviations are those of
    the remaining training series alone; missing values become the mean.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation: got {validation}, expected a share between 0 and 1")
    (series, names), (test_series, test_names) = _read(name, "train"), _read(name, "test")
    classes, numbers = np.unique(np.concatenate([names, test_names]), return_inverse=True)
    labels, test_labels = np.split(numbers.astype(np.int64), [len(names)])

    lengths = [len(one) for one in (*series, *test_series)]
    steps = max(lengths)
    padded = min(lengths) < steps
    kept, held = _stratify(labels, validation, seed)
    mean, deviation = _moments(np.concatenate([series[i] for i in kept]))

    def split(series: Sequence[np.ndarray], labels: np.ndarray) -> Split:
        inputs = np.zeros((len(series), steps, len(mean)), np.float32)
        for row, one in zip(inputs, series, strict=True):
            row[: len(one)] = np.nan_to_num((one - mean) / deviation, nan=0.0)
        lengths = np.array([len(one) for one in series], np.int64)
        return Split(inputs, labels, lengths if padded else None)

    return Dataset(
        name,
        tuple(map(str, classes)),
        train=split([series[i] for i in kept], labels[kept]),
        validation=split([series[i] for i in held], labels[held]),
        test=split(test_series, test_labels),
    )


def shipped() -> list[str]:
    """The classification data sets inside aeon's wheel, which need no download."""
    import aeon.datasets

    files = (Path(aeon.datasets.__file__).parent / "data").glob("*/*_TRAIN.ts")
    return sorted({f.parent.name for f in files if "@classlabel true" in f.read_text().lower()})


def _read(name: str, part: str) -> tuple[list[np.ndarray], np.ndarray]:
    """The series of one published part, each (steps, channels), and their class names."""
    import aeon.datasets

    try:
        series, names = aeon.datasets.load_classification(
            name, split=part, load_equal_length=False, load_no_missing=False
        )
    except ValueError as error:
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"aeon ships {', '.join(shipped())}"
        raise ValueError(f"data: aeon cannot load {name!r}; {hint} (aeon says: {error})") from error
    return [np.asarray(one, np.float64).T for one in series], np.asarray(names)


def _stratify(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted indices (kept, held): `share` of every class is held, but never its last member."""
    generator = np.random.default_rng(seed)
    held: list[int] = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.extend(members[:count].tolist())
    if not held:
        raise ValueError("validation: every class has a single training series, none can be held")
    indices = np.array(sorted(held))
    return np.setdiff1d(np.arange(len(labels)), indices), indices


def _moments(steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel of (steps, channels); a constant channel gets 1."""
    real = ~np.isnan(steps)
    count = np.maximum(real.sum(axis=0), 1)
    mean = np.where(real, steps, 0).sum(axis=0) / count
    square = np.where(real, (steps - mean) ** 2, 0).sum(axis=0) / count
    return mean, np.where(square > 0, np.sqrt(square), 1.0)
