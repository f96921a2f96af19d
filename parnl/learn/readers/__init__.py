"""Files of labelled time series, whatever their format: `read("walks.csv")`.

A reader returns a `Collection`. It executes nothing that stands in a file and unpickles nothing.
"""

from pathlib import Path

import numpy as np

from parnl.learn.readers.arff import read_arff
from parnl.learn.readers.arrays import read_npy, read_npz
from parnl.learn.readers.collection import Collection, Options, Parts, check_alike
from parnl.learn.readers.columnar import read_columnar
from parnl.learn.readers.folders import read_folder
from parnl.learn.readers.labels import file_of, labelled
from parnl.learn.readers.layouts import read as read_table
from parnl.learn.readers.tables import read_text
from parnl.learn.readers.ts import read_ts

__all__ = ["SUFFIXES", "Collection", "Options", "Parts", "is_file", "read"]

TABLES = (".csv", ".tsv", ".txt", ".parquet", ".feather")
SUFFIXES = (*TABLES, ".npz", ".npy", ".ts", ".arff")


def is_file(name: str) -> bool:
    """Whether a name stands for a file or a folder, and not for one of aeon's data sets."""
    path = Path(name)
    if path.suffix.lower() in SUFFIXES or len(path.parts) > 1:
        return True
    if not path.exists():
        return False
    from aeon.datasets import tsc_datasets

    return name not in {*tsc_datasets.univariate, *tsc_datasets.multivariate}


def read(name: str | Path, options: Options | None = None, *, seed: int = 0) -> Collection:
    """The series in a file or a folder. `seed` chooses among splits that an .npz file holds.

    Where a file is called NAME_TRAIN and NAME_TEST stands beside it, both are read.
    """
    path, options = Path(name), options or Options()
    if not path.exists():
        raise FileNotFoundError(f"data: there is no file {path}")
    beside = file_of(options.label, path)
    if beside is not None:
        options = options._replace(label=None)
    if path.is_dir():
        found = read_folder(path, _read, options, beside)
    else:
        found = _read(path, options, seed)
        test = _test_of(path)
        if test is not None:
            found = _both(found, _read(test, options, seed), test)
    return found if beside is None else labelled(found, beside)


def _read(path: Path, options: Options, seed: int = 0) -> Collection:
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"data: {path}: expected a file of the kind {', '.join(SUFFIXES)}")
    if kind in TABLES:
        columnar = kind in (".parquet", ".feather")
        return read_table(read_columnar(path) if columnar else read_text(path), options)
    for option in ("id", "time", "label"):
        if getattr(options, option) not in (None, (), []):
            raise ValueError(
                f"data: {path}: {option}: a {kind} file has no named columns; "
                + ("expected a file of labels" if option == "label" else "expected none")
            )
    if kind == ".npz":
        found = read_npz(path, seed)
    elif kind == ".npy":
        found = read_npy(path, one=options.layout == "long")
    else:
        found = read_ts(path) if kind == ".ts" else read_arff(path)
    return found


def _test_of(path: Path) -> Path | None:
    """NAME_TEST.ts of NAME_TRAIN.ts, if it is there."""
    if not path.stem.endswith("_TRAIN"):
        return None
    test = path.with_name(path.stem.removesuffix("_TRAIN") + "_TEST" + path.suffix)
    return test if test.is_file() else None


def _both(train: Collection, test: Collection, path: Path) -> Collection:
    """Two files as the two parts of one collection."""
    check_alike(path, test, train)
    if test.categories != train.categories:
        raise ValueError(f"data: {path} has other names in its columns of text than {train.source}")
    if (test.labels is None) != (train.labels is None):
        raise ValueError(f"data: {path}: expected labels in both files or in none")
    count = len(train.series)
    labels = None
    if train.labels is not None and test.labels is not None:
        labels = np.concatenate([train.labels, test.labels])
    times = None
    if train.times is not None and test.times is not None:
        times = [*train.times, *test.times]
    return train._replace(
        series=[*train.series, *test.series],
        labels=labels,
        times=times,
        began=train.began if train.began == test.began else None,
        parts=Parts(np.arange(count), None, np.arange(count, count + len(test.series))),
        label_place=lambda i: (
            train.label_place(i) if i < count else f"{test.label_place(i - count)} of {path}"
        ),
        ids=None if train.ids is None or test.ids is None else [*train.ids, *test.ids],
        notes=(*train.notes, f"the test part is {path.name}"),
    )
