"""Labels that stand in a file of their own.

An .npy file, or a table of one column (a label a series, in their order) or of two (the id of a
series, or the name of its file, and its label).
"""

from pathlib import Path

import numpy as np

from parnl.learn.readers.collection import Collection, counted, listed, shown, wrong
from parnl.learn.readers.tables import Table, read_text

SUFFIXES = (".npy", ".csv", ".tsv", ".txt")


def file_of(label: object, data: Path) -> Path | None:
    """The file that `label` names, as it is given or beside the data; None if it is a column."""
    if not isinstance(label, str) or Path(label).suffix.lower() not in SUFFIXES:
        return None
    folder = data if data.is_dir() else data.parent
    for path in (Path(label), folder / label):
        if path.is_file():
            return path
    raise FileNotFoundError(f"data: {data}: label: there is no file {label}")


def labelled(collection: Collection, path: Path) -> Collection:
    """The collection with the labels in the file."""
    count = len(collection.series)
    if path.suffix.lower() == ".npy":
        from parnl.learn.readers.arrays import read_labels

        labels = read_labels(path, count)
        return _with(collection, path, labels, [f"[{i}]" for i in range(count)])
    table = read_text(path)
    if not table.header:  # a first label that is a number is no name of a column
        table = table._replace(columns={f"column {n}": c for n, c in table.columns.items()})
    if len(table.names) > 2:
        got = counted(len(table.names), "column")
        raise wrong(path, "line 1", got, "one of labels, or one of ids and one of labels")
    name = table.names[-1]
    labels = table.texts(name, "a label")
    rows = np.arange(len(labels))
    if len(table.names) == 2:
        rows = _matched(table, collection, path)
    elif len(labels) != count:
        got = counted(len(labels), "label")
        raise ValueError(f"data: {path}: got {got}, expected {count}, one for each series")
    return _with(collection, path, labels[rows], [table.place(int(row), name) for row in rows])


def _matched(table: Table, collection: Collection, path: Path) -> np.ndarray:
    """The row of each series, by its id."""
    if collection.ids is None:
        raise ValueError(
            f"data: {path} has ids in {shown(table.names[0])}, but the series of "
            f"{collection.source} have none; expected a single column of labels in their order"
        )
    found: dict[str, int] = {}
    for row, key in enumerate(table.texts(table.names[0], "the id of a series").tolist()):
        if key in found:
            first = f"an id other than that of line {table.lines[found[key]]}"
            raise wrong(path, table.place(row, table.names[0]), shown(key), first)
        found[key] = row
    stems = {Path(key).stem: row for key, row in found.items()}
    lacking = [key for key in collection.ids if key not in found and Path(key).stem not in stems]
    if lacking:
        raise ValueError(f"data: {path} has no label for the series {listed(lacking)}")
    return np.array([found.get(key, stems.get(Path(key).stem)) for key in collection.ids])


def _with(collection: Collection, path: Path, labels: np.ndarray, places: list[str]) -> Collection:
    return collection._replace(
        labels=labels,
        label_place=lambda i: f"{places[i]} of {path}",
        notes=(*collection.notes, f"labels from {path}"),
    )
