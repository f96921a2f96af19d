"""A folder of files, one series a file: tables whose rows are steps, or .npy arrays.

walks/run/a.csv, walks/rest/b.csv        labels are the names of the folders
walks/a.csv, walks/b.csv                 labels stand in a file, label="labels.csv"
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from parnl.learn.readers.collection import Collection, Options, check_alike, listed

SUFFIXES = (".csv", ".tsv", ".parquet", ".feather", ".npy")


def read_folder(
    folder: Path, read: Callable[[Path, Options], Collection], options: Options, beside: Path | None
) -> Collection:
    """The series of all files, in the order of their names; `beside` is no series."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not (beside is not None and path.samefile(beside))
    )
    if not files:
        raise ValueError(f"data: {folder} holds no files, expected one a series")
    kinds: dict[str, Path] = {}
    for path in files:
        kinds.setdefault(path.suffix.lower(), path)
    if len(kinds) > 1 or not kinds.keys() <= {*SUFFIXES}:
        found = listed([str(path.relative_to(folder)) for path in kinds.values()])
        raise ValueError(
            f"data: {folder} holds {found}, expected files of one kind ({', '.join(SUFFIXES)}), "
            "one for each series; if one file is a whole data set, name that file"
        )
    depth = {len(path.relative_to(folder).parts) for path in files}
    if depth not in ({1}, {2}):
        raise ValueError(
            f"data: {folder} holds files at several depths, expected all of them directly in it, "
            "or all in folders named by their classes"
        )
    by_folder = depth == {2} and beside is None and options.label is None
    note = (f"labels are the names of the folders in {folder}",) if by_folder else ()
    parts = [read(path, options._replace(layout="long")) for path in files]
    return _joined(folder, files, parts, by_folder, note)


def _joined(
    folder: Path, files: list[Path], parts: list[Collection], by_folder: bool, note: tuple[str, ...]
) -> Collection:
    first = parts[0]
    for path, part in zip(files, parts, strict=True):
        if len(part.series) != 1:
            raise ValueError(
                f"data: {path} holds {len(part.series)} series, expected one a file in {folder}"
            )
        check_alike(path, part, first)
        if part.unit != first.unit:
            raise ValueError(f"data: {path} has other times (dates or numbers) than {files[0]}")
    categories = {
        name: tuple(sorted({n for part in parts for n in part.categories.get(name, ())}))
        for name in first.channels
        if any(name in part.categories for part in parts)
    }
    series = [_recoded(path, part, categories) for path, part in zip(files, parts, strict=True)]
    labels = None
    if by_folder:
        labels = np.array([path.parent.name for path in files])
    elif all(part.labels is not None for part in parts):
        labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    times = [part.times[0] for part in parts if part.times is not None]
    return Collection(
        str(folder),
        first.channels,
        series,
        labels=labels,
        times=times or None,
        unit=first.unit,
        categories=categories,
        label_place=lambda i: f"the file {files[i].relative_to(folder)}",
        ids=[str(path.relative_to(folder)) for path in files],
        notes=(f"a file is a series ({len(files)} files)", *note, *first.notes),
    )


def _recoded(path: Path, part: Collection, categories: dict[str, tuple[str, ...]]) -> np.ndarray:
    """The series, with names counted as in all files together."""
    values = part.series[0].copy()
    for c, name in enumerate(part.channels):
        if name not in categories:
            continue
        if name not in part.categories and not np.isnan(values[:, c]).all():
            raise ValueError(
                f"data: {path}: column {name!r} holds numbers, expected names as in other files"
            )
        codes = np.array([categories[name].index(n) for n in part.categories.get(name, ())])
        real = ~np.isnan(values[:, c])
        values[real, c] = codes[values[real, c].astype(int)] if real.any() else 0
    return values
