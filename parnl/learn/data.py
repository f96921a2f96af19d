"""Labelled time series by name, as padded arrays a model can read.

Every classification data set known to `aeon` can be named. Some ship inside its wheel
(JapaneseVowels, BasicMotions, GunPoint, OSULeaf, ACSF1, ...); others are downloaded by aeon.

    dataset = load("JapaneseVowels")
    dataset.train.inputs.shape       # (216, 29, 12): (series, steps, channels)
    dataset.train.lengths[:3]        # array([20, 26, 22])

A file `name.npz` can take the place of a name. It holds the series `X` (N, T, channels), their
labels `y` (N,), and the indices `val_<seed>` and `test_<seed>` of one or more splits; what is in
neither is trained on.
"""

import difflib
import hashlib
import json
import zipfile
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


def load(
    name: str,
    *,
    validation: float = 0.2,
    seed: int = 0,
    pooled: bool = False,
    channels: Sequence[int] | None = None,
    standardise: bool = True,
) -> Dataset:
    """The data set `name`, standardised channel by channel or its values as they are.

    The test part is the published one. A share `validation` of every class of the published
    training part, drawn with `seed`, is set aside for validation. With `pooled` the published parts
    are thrown together and split anew with `seed`, 15 % of every class for the test and 15 % for
    validation. A file is split as it says for `seed`. Means and deviations are those of the
    training series alone; missing values become the mean. `channels` keeps only these.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation: got {validation}, expected a share between 0 and 1")
    if name.endswith(".npz"):
        series, names, held, tested = _read_file(Path(name), seed)
    else:
        series, names, held, tested = _read_published(name, validation, seed, pooled)
    if channels is not None:
        series = [one[:, list(channels)] for one in series]
    classes, numbers = np.unique(names, return_inverse=True)
    labels = numbers.astype(np.int64)

    lengths = np.array([len(one) for one in series], np.int64)
    steps = lengths.max()
    kept = np.setdiff1d(np.arange(len(series)), np.concatenate([held, tested]))
    mean, deviation = _moments(np.concatenate([series[i] for i in kept]))

    def split(rows: np.ndarray) -> Split:
        inputs = np.zeros((len(rows), steps, len(mean)), np.float32)
        for row, i in zip(inputs, rows, strict=True):
            real = np.where(np.isnan(series[i]), mean, series[i])
            row[: lengths[i]] = (real - mean) / deviation if standardise else real
        return Split(inputs, labels[rows], lengths[rows] if lengths.min() < steps else None)

    return Dataset(
        Path(name).stem, tuple(map(str, classes)), split(kept), split(held), split(tested)
    )


def patched(dataset: Dataset, size: int) -> Dataset:
    """The data set with `size` steps of a series joined into one step of `size` times the channels.

    The input reshaping of arXiv 2605.16048, for long series of few channels. The last step is
    filled up with zeros: with the mean, where channels are standardised.
    """
    if size < 1:
        raise ValueError(f"patch: got {size}, expected at least 1")

    def joined(split: Split) -> Split:
        count, steps, channels = split.inputs.shape
        whole = -(-steps // size)
        inputs = np.zeros((count, whole * size, channels), np.float32)
        inputs[:, :steps] = split.inputs
        lengths = None if split.lengths is None else -(-split.lengths // size)
        return Split(inputs.reshape(count, whole, size * channels), split.labels, lengths)

    parts = (joined(part) for part in (dataset.train, dataset.validation, dataset.test))
    return Dataset(dataset.name, dataset.classes, *parts)


def fingerprint(dataset: Dataset) -> str:
    """A short text that differs wherever the numbers, classes or parts of two data sets differ."""
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    for array in (a for part in dataset[2:] for a in part):
        known = None if array is None else np.ascontiguousarray(array)
        digest.update(str(None if known is None else (known.shape, known.dtype)).encode())
        digest.update(b"" if known is None else known.data)
    return digest.hexdigest()[:16]


def shipped() -> list[str]:
    """The classification data sets inside aeon's wheel, which need no download."""
    import aeon.datasets

    files = (Path(aeon.datasets.__file__).parent / "data").glob("*/*_TRAIN.ts")
    return sorted({f.parent.name for f in files if "@classlabel true" in f.read_text().lower()})


Pool = tuple[Sequence[np.ndarray], np.ndarray, np.ndarray, np.ndarray]


def _read_published(name: str, validation: float, seed: int, pooled: bool) -> Pool:
    """Series (steps, channels), class names, and the rows to validate and to test on."""
    (series, names), (test_series, test_names) = _read(name, "train"), _read(name, "test")
    everything, every_name = [*series, *test_series], np.concatenate([names, test_names])
    if not pooled:
        _, held = _stratify(names, validation, seed)
        return everything, every_name, held, np.arange(len(series), len(everything))
    rest, tested = _stratify(every_name, 0.15, seed)
    _, held = _stratify(every_name[rest], 0.15 / 0.85, seed)
    return everything, every_name, rest[held], tested


def _read_file(path: Path, seed: int) -> Pool:
    """What `_read_published` returns, of an .npz file. Nothing in it is unpickled."""
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {key: file[key] for key in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"data: {path} is not a file of plain arrays ({error})") from error
    seeds = sorted(int(k[4:]) for k in held if k.startswith("val_") and k[4:].isdecimal())
    if not {"X", "y", f"val_{seed}", f"test_{seed}"} <= held.keys():
        raise ValueError(
            f"data: {path} has no X, y, val_{seed} and test_{seed}; it has splits for {seeds}"
        )
    series, rows = np.asarray(held["X"], np.float64), np.arange(len(held["X"]))
    parts = held[f"val_{seed}"], held[f"test_{seed}"]
    if (
        series.ndim != 3
        or held["y"].shape != rows.shape
        or not np.isin(np.hstack(parts), rows).all()
    ):
        raise ValueError(
            f"data: {path} has X {series.shape} and y {held['y'].shape}, expected (N, T, channels) "
            "and (N,), and indices of splits below N"
        )
    return list(series), held["y"], *parts


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
