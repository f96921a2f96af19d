"""Arrays of NumPy: .npy files, and .npz files with labels and splits. Nothing is unpickled.

An .npz file holds one of

    X (N, T, channels), y (N,), val_<seed>, test_<seed>       indices of one or more splits
    X_train, y_train, X_test, y_test                          and X_val, y_val if there are any
    X (N, T, channels) or (N, T), y                           split by a seed
    X (all steps, channels) or (all steps,), lengths, y       series one after the other

In the second and third X may have lengths as well: then each series is padded at its end.
"""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from parnl.learn.readers import mapped
from parnl.learn.readers.collection import (
    Collection,
    Parts,
    check_real,
    check_values,
    listed,
    shown,
    wrong,
)

# What NumPy and zipfile raise of files with bytes changed (tests/learn/readers/test_damaged_files).
DAMAGED = (
    ValueError, OSError, EOFError, KeyError, TypeError, OverflowError, SyntaxError, RuntimeError,
    TokenError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
FORMATS = (
    "expected X and y; X, lengths and y; X, y, val_<seed> and test_<seed>; or X_train, y_train, "
    "X_test and y_test"
)


def read_npy(path: Path, one: bool = False) -> Collection:
    """The series of an array (N, T, channels) or (N, T); its labels stand elsewhere.

    `one`: of an array (steps, channels) or (steps,), a single series.
    """
    with plain(path):
        place: Any = mapped.place_of_npy(path)
        if place.bytes < mapped.MAPPED_FROM:
            place = np.load(path, allow_pickle=False)
        steps = np.array(place.shape[:1]) if one else None
        return _collected(path, _series(path, "the array", place, steps), None, None)


def read_labels(path: Path, count: int) -> np.ndarray:
    """Labels (N,) or (N, k) of an .npy file."""
    with plain(path):
        return _labels(path, "the array", np.load(path, allow_pickle=False), count)


def read_npz(path: Path, seed: int) -> Collection:
    """Labelled series, and their parts where the file gives them for `seed`."""
    with plain(path):
        places = mapped.places_of_npz(path)
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            seeds = sorted(int(k[4:]) for k in names if k.startswith("val_") and k[4:].isdecimal())
            tested = any(k.startswith("test_") and k[5:].isdecimal() for k in names)

            def array(name: str) -> Any:
                place = places.get(name) if name.startswith("X") else None
                if place is not None and place.bytes >= mapped.MAPPED_FROM:
                    return place
                return file[name]

            if "X" in names and (seeds or tested):
                return _published(path, names, array, seed, seeds)
            if "X" in names:
                lengths = array("lengths") if "lengths" in names else None
                labels = array("y") if "y" in names else None
                return _collected(path, _series(path, "X", array("X"), lengths), labels, None)
            if {"X_train", "X_test"} <= names:
                return _parted(path, names, array)
    raise ValueError(f"data: {path} holds {listed(sorted(names)) or 'nothing'}; {FORMATS}")


@contextmanager
def plain(path: Path) -> Any:
    """Say of what NumPy refuses that it is no file of plain arrays."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"data: {path} does not fit into memory ({error})") from error
    except DAMAGED as error:
        if str(error).startswith("data: "):
            raise
        said = shown(str(error).partition("\n")[0], 200)
        raise ValueError(f"data: {path} is not a file of plain arrays ({said})") from error


def _published(path: Path, names: set[str], array: Any, seed: int, seeds: list[int]) -> Collection:
    if not {"X", "y", f"val_{seed}", f"test_{seed}"} <= names:
        raise ValueError(
            f"data: {path} has no X, y, val_{seed} and test_{seed}; it has splits for {seeds}"
        )
    values, labels = array("X"), array("y")
    count = values.shape[0] if values.shape else 0
    validation, test = array(f"val_{seed}"), array(f"test_{seed}")
    if len(values.shape) != 3 or labels.shape != (count,):
        raise ValueError(
            f"data: {path} has X {values.shape} and y {labels.shape}, expected (N, T, channels) "
            "and (N,), and indices of splits below N"
        )
    parts = Parts(
        validation=indices(validation, count, path, f"val_{seed}"),
        test=indices(test, count, path, f"test_{seed}"),
    )
    return _collected(path, _series(path, "X", values, None), labels, parts)


def _parted(path: Path, names: set[str], array: Any) -> Collection:
    """Parts that are arrays of their own, joined."""
    held = next((n for n in ("val", "valid", "validation") if f"X_{n}" in names), None)
    keys = ["train", *([held] if held else []), "test"]
    series: list[np.ndarray] = []
    labels, ranges = [], []
    for key in keys:
        lengths = array(f"lengths_{key}") if f"lengths_{key}" in names else None
        part = _series(path, f"X_{key}", array(f"X_{key}"), lengths)
        if isinstance(part, mapped.MappedSeries):
            raise ValueError(
                f"data: {path} is too large to join X_train and X_test; expected X, y and the "
                "indices val_<seed> and test_<seed>"
            )
        if series and part[0].shape[1] != series[0].shape[1]:
            got = f"{part[0].shape[1]} channels"
            raise wrong(path, f"X_{key}", got, f"{series[0].shape[1]} as in X_train")
        if f"y_{key}" in names:
            labels.append(_labels(path, f"y_{key}", array(f"y_{key}"), len(part)))
        ranges.append(np.arange(len(series), len(series) + len(part)))
        series += part
    if labels and len(labels) < len(keys):
        raise ValueError(f"data: {path} has no y_{keys[len(labels)]}; {FORMATS}")
    parts = Parts(ranges[0], ranges[1] if held else None, ranges[-1])
    joined = np.concatenate(labels) if labels else None
    return _collected(path, series, joined, parts)


def _collected(
    path: Path, series: Sequence[np.ndarray], labels: Any, parts: Parts | None
) -> Collection:
    if labels is not None:
        labels = _labels(path, "y", labels, len(series))
    own = isinstance(series, mapped.MappedSeries)
    channels = series.channels if isinstance(series, mapped.MappedSeries) else series[0].shape[1]
    notes = ("the file is larger than what is kept in memory: series are read as needed",)
    return Collection(
        str(path),
        tuple(map(str, range(channels))),
        series,
        labels=labels,
        parts=parts,
        label_place=lambda i: f"y[{i}]",
        notes=notes if own else (),
    )


def _labels(path: Path, name: str, labels: np.ndarray, count: int) -> np.ndarray:
    """Text, or float64; (N,) or (N, k)."""
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise wrong(path, name, f"shape {labels.shape}", f"({count},): one for each series")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "US":
        return np.char.strip(np.char.decode(labels) if labels.dtype.kind == "S" else labels)
    check_real(labels, path, name)
    return labels if labels.dtype.kind in "iub" else labels.astype(np.float64)


def indices(found: np.ndarray, count: int, path: Any, name: str) -> np.ndarray:
    """Indices of a part; a mask of all series is turned into indices."""
    if found.dtype.kind == "b":
        if found.shape != (count,):
            raise wrong(path, name, f"a mask of shape {found.shape}", f"({count},) or indices")
        return np.flatnonzero(found)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        got = f"{found.dtype} of shape {found.shape}"
        raise wrong(path, name, got, "integers (k,): indices of series")
    below = (found >= 0) & (found < count)
    if not below.all():
        got = str(found[~below][0])
        raise wrong(path, name, got, f"indices of splits below N = {count} and not negative")
    return found.astype(np.int64)


def _series(path: Path, name: str, values: Any, lengths: Any) -> Sequence[np.ndarray]:
    """Series of an array (or of its place in the file, if it is large), float64 in memory."""
    shape = values.shape
    check_real(values, path, name)
    cut = None if lengths is None else _lengths(path, lengths, shape)
    packed = cut is not None and len(shape) < 3 and int(cut.sum()) == shape[0]
    if not packed and len(shape) not in (2, 3):
        raise wrong(path, name, f"shape {shape}", "(N, T, channels) or (N, T)")
    if 0 in shape[:1] or (cut is not None and not len(cut)):
        raise wrong(path, name, f"shape {shape}", "at least one series")
    if 0 in shape:
        what = "channel" if shape[-1] == 0 and len(shape) == 3 else "step in every series"
        raise wrong(path, name, f"shape {shape}", f"at least one {what}")
    if isinstance(values, mapped.Place):
        if values.bytes >= mapped.MAPPED_FROM:
            return mapped.MappedSeries(values, cut, packed)
        values = np.array(values.open())
    values = values.astype(np.float64)
    if packed and cut is not None:
        check_values(values, path, lambda step, *c: _packed_place(name, np.cumsum(cut), step, *c))
        values = values[:, None] if values.ndim == 1 else values
        return np.split(values, np.cumsum(cut)[:-1])
    check_values(values, path, lambda *index: place(name, *index))
    values = values[..., None] if values.ndim == 2 else values
    return [one[: None if cut is None else cut[i]] for i, one in enumerate(values)]


def place(name: str, i: int, step: int, channel: int | None = None) -> str:
    """Where a number of an array stands."""
    return f"{name}[{i}, {step}]" if channel is None else f"{name}[{i}, {step}, {channel}]"


def _packed_place(name: str, ends: np.ndarray, step: int, channel: int | None = None) -> str:
    i = int(np.searchsorted(ends, step, side="right"))
    own = step - (int(ends[i - 1]) if i else 0)
    where = f"{name}[{step}]" if channel is None else f"{name}[{step}, {channel}]"
    return f"{where}, step {own} of series {i}"


def _lengths(path: Path, lengths: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Lengths of packed series, which sum to the steps, or of padded ones, none above T."""
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        got = f"{lengths.dtype} of shape {lengths.shape}"
        raise wrong(path, "lengths", got, "integers (N,): the steps of each series")
    cut = lengths.astype(np.int64)
    if (cut < 1).any():
        i = int((cut < 1).argmax())
        raise wrong(path, f"lengths[{i}]", cut[i], "at least one step")
    padded = len(shape) > 1 and len(cut) == shape[0] and int(cut.max()) <= shape[1]
    packed = len(shape) < 3 and int(cut.sum()) == shape[0]
    if not (padded or packed):
        got = f"a sum of {cut.sum()} for X {shape}"
        raise wrong(path, "lengths", got, "the sum of all steps, or lengths (N,) of at most T")
    return cut
