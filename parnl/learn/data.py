"""Labelled time series, from aeon by name or from a file, as padded arrays a model can read.

Every classification data set known to `aeon` can be named. Some ship inside its wheel
(JapaneseVowels, BasicMotions, GunPoint, OSULeaf, ACSF1, ...); others are downloaded by aeon.

    dataset = load("JapaneseVowels")
    dataset.train.inputs.shape       # (216, 29, 12): (series, steps, channels)
    dataset.train.lengths[:3]        # array([20, 26, 22])

    dataset = load("walks.csv", id="walk", time="t", label="kind")

`parnl.learn.readers` reads files; `parnl.learn.preparation` makes numbers of them that a model can
learn from, and does the same to new data later: `dataset.preparation`.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parnl.learn import readers, splits
from parnl.learn.labels import class_numbers, classes_of, targets_of
from parnl.learn.lazy import Lazy
from parnl.learn.preparation import Preparation, learn, said
from parnl.learn.readers import Collection, Options, Parts
from parnl.learn.readers.collection import check_values, listed, shown, wrong
from parnl.learn.readers.mapped import lengths_of


class Split(NamedTuple):
    """Labelled series, padded at the end to one length.

    Attributes:
        inputs: (N, T, channels) float32, or (N, T) int64 tokens; windows, and series of files
            larger than memory, are `lazy.Lazy`.
        labels: (N,) int64 classes, or (N, k) float32 targets; of each step (N, T, k) float32 or
            (N, T) int64.
        lengths: (N,) int64, the number of real steps of each, or None when all T steps are real.
        dt: (N, T) float32, the time since the step before, 1 for the usual step; None when all are
            usual or not known.
    """

    inputs: Any
    labels: Any
    lengths: np.ndarray | None
    dt: np.ndarray | None = None


class Dataset(NamedTuple):
    """A data set in three parts; label k stands for `classes[k]`. All parts share one T.

    Attributes:
        name: of the file or the data set.
        classes: their names; none for targets that are numbers.
        train: series to train on.
        validation: series to choose the best epoch by.
        test: series to judge by.
        preparation: what was done to the series.
        notes: sentences that say what was taken for what.
        reading: how a table was read.
        ahead: where targets are later steps of the series, a `parnl.learn.ahead.Ahead`.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    preparation: Preparation | None = None
    notes: tuple[str, ...] = ()
    reading: Options | None = None
    ahead: Any = None


def load(
    name: str,
    *,
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    pooled: bool = False,
    channels: Sequence[int] | None = None,
    standardise: bool = True,
    id: str | None = None,
    time: str | None = None,
    label: str | Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    layout: str = "auto",
    missing: str | None = None,
    task: str = "classify",
) -> Dataset:
    """The data set `name`, standardised channel by channel or with its values as they are.

    The parts are those that are published, or that a file gives. Else a share `test` of every class
    is set aside for the test, and a share `validation` of the rest for validation, both drawn with
    `seed`.

    Args:
        name: one of aeon's, or a file or folder (`parnl.learn.readers`).
        validation: share of the series, more than 0 and less than 1.
        test: share of the series, more than 0 and less than 1.
        seed: of the parts that are drawn.
        pooled: join the parts of aeon's data, or of NAME_TRAIN and NAME_TEST, and split them anew
            with `seed`: 15 % of every class for the test and 15 % for validation.
        channels: keep only these, by their indices.
        standardise: bring channels to mean 0 and deviation 1, by the training series alone.
        id: of a table, the column that tells series apart.
        time: of a table, the column of the time stamps.
        label: of a table, the column or columns of the labels, or a file of them.
        columns: keep only these channels, by their names.
        layout: of a table, "long" (a row is a step), "wide" (a row is a series) or "auto".
        missing: what becomes of missing values: "interpolate", "previous", "mean", or "mask",
            the mean and a further channel that marks them. None is the mean in aeon's data and in
            files with splits by seed, and else interpolates.
        task: "classify", or "regress", whose labels are real numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file, line and column of what is wrong, or the argument.
    """
    for option, value in (("validation", validation), ("test", test)):
        if not 0 < value < 1:
            raise ValueError(f"{option}: got {value}, expected a share between 0 and 1")
    if task not in ("classify", "regress"):
        raise ValueError(f"task: got {task!r}, expected 'classify' or 'regress'")
    options = Options(id, time, label, columns, layout)
    file = readers.is_file(name)
    collection = readers.read(name, options, seed=seed) if file else published(name, options)
    names = names_of(collection, channels, columns)
    by_seed = file and collection.parts is not None and collection.parts.train is None
    classes, labels = _labels(collection, task, text=not file)
    shares = dict(validation=validation, test=test)
    rows = _rows(collection, labels, task, shares, pooled and not by_seed, seed)
    if missing is None:
        missing = "mean" if by_seed or not file else "interpolate"
    preparation = learn(
        collection, rows.train, channels=names, standardise=standardise, missing=missing
    )
    lengths = lengths_of(collection.series)
    longest = int(lengths.max())

    def split(own: np.ndarray) -> Split:
        inputs, _, dt = preparation.apply(collection, own, longest)
        return Split(inputs, labels[own], lengths[own] if lengths.min() < longest else None, dt)

    notes = [*collection.notes, *said(preparation, collection)]
    unseen = [k for k in range(len(classes)) if not (labels[rows.train] == k).any()]
    if unseen:
        notes.append(f"no training series has the class {listed([classes[k] for k in unseen])}")
    train, validate, tested = (split(own) for own in rows)
    parts = train, validate, tested
    return Dataset(Path(name).stem, classes, *parts, preparation, tuple(notes), collection.taken)


def prepared(collection: Collection, preparation: Preparation, classes: Sequence[str]) -> Split:
    """New data as a model reads it, by the preparation and the classes of its training.

    Labels are -1 where the collection has none; without `classes` they are real targets.
    """
    inputs, lengths, dt = preparation.apply(collection)
    if collection.labels is None:
        labels = np.full(len(collection.series), -1, np.int64)
    elif classes:
        labels = class_numbers(collection, tuple(classes))
    else:
        labels = targets_of(collection)
    return Split(inputs, labels, lengths, dt)


def _labels(collection: Collection, task: str, text: bool) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of classes and the class of each series, or no names and targets."""
    if task == "regress":
        return (), targets_of(collection)
    if not text:
        return classes_of(collection)
    # the names of aeon's classes are text, whatever they look like
    names, found = np.unique(np.asarray(collection.labels), return_inverse=True)
    return tuple(map(str, names)), found.astype(np.int64)


def patched(dataset: Dataset, size: int) -> Dataset:
    """The data set with `size` steps of a series joined into one step of `size` times the channels.

    The input reshaping of arXiv 2605.16048, for long series of few channels. Zeros fill up the last
    step; where channels are standardised, 0 is the mean. dt is the mean of the steps that are
    joined.
    """
    if size < 1:
        raise ValueError(f"patch: got {size}, expected at least 1")
    steps = dataset.train.inputs.shape[1]
    if size > steps:
        raise ValueError(f"patch: got {size}, expected at most {steps}, the steps of a series")
    return _through(lambda split: joined(split, size), dataset)


def joined(split: Split, size: int) -> Split:
    """What `patched` does, for one part."""
    steps = split.inputs.shape[1]
    lengths = None if split.lengths is None else -(-split.lengths // size)
    dt = split.dt
    if dt is not None:
        whole = np.ones((len(dt), -(-steps // size) * size), np.float32)
        whole[:, :steps] = dt
        dt = whole.reshape(len(dt), -1, size).mean(axis=2)
    count, _, channels = split.inputs.shape
    shape = count, -(-steps // size), size * channels

    def together(taken: np.ndarray) -> np.ndarray:
        padded = np.zeros((len(taken), shape[1] * size, channels), np.float32)
        padded[:, :steps] = taken
        return padded.reshape(len(taken), *shape[1:])

    inputs: Any = split.inputs
    if isinstance(inputs, Lazy):
        own = inputs
        inputs = Lazy(shape, lambda rows: together(own[rows]), np.float32)
    else:
        inputs = together(inputs)
    return Split(inputs, split.labels, lengths, dt)


def timed(dataset: Dataset) -> Dataset:
    """The data set with dt, where it has one, as one more channel: for models without a clock."""
    if dataset.train.dt is None:
        return dataset
    notes = (*dataset.notes, "dt is one more channel of the model's inputs")
    return _through(with_clock, dataset)._replace(notes=notes)


def channels_of(preparation: Preparation) -> list[str]:
    """The names of what a model reads: the channels that are prepared, and dt where it is one."""
    if preparation.time_step is None:
        return [*preparation.inputs]
    unit = f" {preparation.time_unit}".rstrip()
    return [*preparation.inputs, f"dt in {preparation.time_step:g}{unit}"]


def with_clock(split: Split) -> Split:
    """What `timed` does, for one part."""
    if split.dt is None:
        return split
    lengths = np.inf if split.lengths is None else split.lengths[:, None]
    real = np.arange(split.dt.shape[1]) < lengths
    dt = np.where(real, split.dt, 0).astype(np.float32)[..., None]
    return split._replace(inputs=np.concatenate([split.inputs, dt], axis=2), dt=None)


def _through(change: Callable[[Split], Split], dataset: Dataset) -> Dataset:
    """The data set with each of its parts changed."""
    train, validation, test = map(change, (dataset.train, dataset.validation, dataset.test))
    return dataset._replace(train=train, validation=validation, test=test)


def fingerprint(dataset: Dataset) -> str:
    """A short text that differs wherever the numbers, classes or parts of two data sets differ."""
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    array: Any
    for array in (a for part in (dataset.train, dataset.validation, dataset.test) for a in part):
        digest.update(str(None if array is None else array.shape).encode())
        count = 0 if array is None else len(array)
        for first in range(0, count, 256):  # inputs larger than memory are read by rows
            rows = np.ascontiguousarray(array[np.arange(first, min(first + 256, count))])
            digest.update(rows.data)
    return digest.hexdigest()[:16]


def shipped() -> list[str]:
    """The classification data sets inside aeon's wheel, which need no download."""
    import aeon.datasets

    files = (Path(aeon.datasets.__file__).parent / "data").glob("*/*_TRAIN.ts")
    return sorted({f.parent.name for f in files if "@classlabel true" in f.read_text().lower()})


def names_of(
    collection: Collection, channels: Sequence[int] | None, columns: Sequence[str] | None
) -> tuple[str, ...]:
    """The channels of a collection that are kept: all, or some by their indices or names."""
    if channels is not None and columns is not None:
        raise ValueError("channels: got columns as well, expected one of them")
    known = collection.channels
    if columns is not None:
        for name in columns:
            if name not in known:
                raise wrong(collection.source, "columns", shown(name), f"among {listed(known)}")
    else:
        for index in channels or ():
            if isinstance(index, bool) or index != int(index) or not 0 <= index < len(known):
                expected = f"indices at least 0 and less than {len(known)}"
                raise wrong(collection.source, "channels", index, expected)
    found = known
    if columns is not None:
        found = tuple(columns)
    elif channels is not None:
        found = tuple(known[int(index)] for index in channels)
    if not found or len(set(found)) < len(found):
        option = "columns" if channels is None else "channels"
        raise wrong(collection.source, option, listed(found) or "none", "one or more, each once")
    return found


def _rows(
    collection: Collection, labels: np.ndarray, task: str, shares: dict[str, float], pooled: bool,
    seed: int,
) -> splits.Rows:  # fmt: skip
    count = len(labels)
    classes = labels if task == "classify" else None
    parts = None if pooled else collection.parts
    if pooled:
        shares = dict(validation=0.15 / 0.85, test=0.15)
    return splits.drawn(collection.source, count, classes, parts, seed=seed, **shares)


def published(name: str, options: Options) -> Collection:
    """The two published parts of one of aeon's data sets."""
    for option in ("id", "time", "label"):
        if getattr(options, option) is not None:
            raise ValueError(
                f"data: {name}: {option}: aeon's data sets have no named columns; expected a file"
            )
    (series, names), (test_series, test_names) = _read(name, "train"), _read(name, "test")
    both = [*series, *test_series]
    for i, one in enumerate(both):
        check_values(one, name, lambda step, c, i=i: f"series {i}, step {step}, channel {c}")
    return Collection(
        name,
        tuple(map(str, range(both[0].shape[1]))),
        both,
        labels=np.concatenate([names, test_names]),
        parts=Parts(np.arange(len(series)), None, np.arange(len(series), len(both))),
    )


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
