"""A table as series: one series (a row is a step), many (an id tells them apart), or a row each.

read(table, Options())                  what can be found by itself, said in `notes`
read(table, Options(id="walk", time="t", label="kind"))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from parnl.learn.readers.collection import Collection, Options, counted, listed, shown, wrong
from parnl.learn.readers.tables import Table
from parnl.learn.readers.times import check_order, is_dates, stamps

IDS = "id series series_id seriesid case case_id sample sample_id unit unit_id unique_id item_id"
TIMES = "time date datetime timestamp time_stamp t ds"
LABELS = "label class target"
MOST_CATEGORIES = 100


def read(table: Table, options: Options) -> Collection:
    """The series of a table. What the options leave open is found by names of columns."""
    if options.layout not in ("auto", "long", "wide"):
        raise ValueError(f"layout: got {options.layout!r}, expected 'auto', 'long' or 'wide'")
    columns = None if options.columns is None else list(options.columns)
    labels = [options.label] if isinstance(options.label, str) else list(options.label or ())
    if options.unlabelled:
        labels = [name for name in labels if name in table.names]
    for option, names in (
        ("id", [options.id]),
        ("time", [options.time]),
        ("label", labels),
        ("columns", columns or []),
    ):
        table.check_names([n for n in names if n is not None], option)
    both = [n for n in columns or () if n in {*labels, options.id}]
    if both:
        raise ValueError(
            f"data: {table.source}: columns: got {listed(both)}, which tells the label or the "
            "series; expected other columns"
        )
    taken = {*labels, *(columns or []), options.id, options.time}
    used = _Found(table, taken)
    id_name = options.id or used.find(IDS)
    time_name = options.time or used.find(TIMES) or used.dates()
    if options.label is None:
        labels = [name for name in [used.find(LABELS)] if name]
    layout = options.layout
    if layout == "auto":
        layout = _layout(table, id_name, time_name, labels)
    if layout == "wide" and options.time is None:
        time_name = None
    elif layout == "wide":
        raise ValueError(
            f"data: {table.source}: time: the layout is wide: a row is a series, so no column "
            "holds its times; expected layout='long' or no time"
        )
    others = [n for n in table.names if n not in {id_name, time_name, *labels}]
    values = others if columns is None else columns
    if not values:
        raise ValueError(
            f"data: {table.source}: there is no column of values left beside "
            f"{listed([n for n in table.names])}; columns= names them"
        )
    make = _wide if layout == "wide" else _long
    found = make(table, id_name, time_name, labels, values)
    return found._replace(taken=Options(id_name, time_name, labels or options.label, None, layout))


class _Found:
    """Finds columns by their usual names, in any case, among those with no other use."""

    def __init__(self, table: Table, taken: set[str | None]) -> None:
        self.table, self.taken = table, taken

    def find(self, names: str) -> str | None:
        for wanted in names.split():
            for name in self.table.names:
                if name.lower().replace(" ", "_") == wanted and name not in self.taken:
                    self.taken.add(name)
                    return name
        return None

    def dates(self) -> str | None:
        """The only column of dates."""
        names = [n for n in self.table.names if n not in self.taken and is_dates(self.table, n)]
        self.taken |= {*names[:1]} if len(names) == 1 else set()
        return names[0] if len(names) == 1 else None


def _layout(table: Table, id_name: str | None, time_name: str | None, labels: Sequence[str]) -> str:
    if id_name is not None:
        column = table.texts(id_name, "the series' id")
        return "wide" if len(np.unique(column)) == len(column) > 1 else "long"
    if not labels:
        numbered = all(name.isdecimal() for name in table.names)
        if numbered and len(table.names) > 1:
            raise ValueError(
                f"data: {table.source}: it cannot be told whether a row is a step or a series; "
                "expected layout='long' or layout='wide'"
            )
        return "long"
    if time_name is None:
        return "wide"
    raise ValueError(
        f"data: {table.source}: there are times in {shown(time_name)} and labels in "
        f"{listed(labels)}, but no column tells the series apart; expected id= or layout="
    )


def _long(
    table: Table,
    id_name: str | None,
    time_name: str | None,
    labels: Sequence[str],
    values: Sequence[str],
) -> Collection:
    groups, ids = [np.arange(len(table.lines))], None
    if id_name is not None:
        ids, groups = _groups(table.texts(id_name, "the series' id"))
    matrix, categories = _matrix(table, values)
    notes = [*table.notes]
    kind = "the table is one series"
    if id_name is not None:
        kind = f"{shown(id_name)} tells {counted(len(groups), 'series')} apart"
    notes.append(f"a row is a step; {kind}; {_channels(values, labels)}")
    notes += _category_notes(categories)
    times, unit, began = None, "", None
    if time_name is not None:
        every, unit, began = stamps(table, time_name)
        times = [every[rows] for rows in groups]
        equal = sum(
            check_order(own, table, rows, time_name, alone=id_name is None)
            for own, rows in zip(times, groups, strict=True)
        )
        said = "dates" if unit == "s" else "numbers"
        notes.append(f"{shown(time_name)} holds the times, {said}")
        if equal:
            notes.append(f"{counted(equal, 'step')} at the time of the step before: dt is 0 there")
    return Collection(
        table.source,
        tuple(values),
        [matrix[rows] for rows in groups],
        labels=_constant_labels(table, labels, groups),
        times=times,
        unit=unit,
        began=began,
        categories=categories,
        label_place=lambda i: (
            table.place(int(groups[i][0]), labels[0]) if labels else f"series {i}"
        ),
        ids=ids,
        notes=tuple(notes),
    )


def _wide(
    table: Table, id_name: str | None, _: str | None, labels: Sequence[str], values: Sequence[str]
) -> Collection:
    for name in values if id_name is None else ():
        if table.is_category(name):
            raise ValueError(
                f"data: {table.source}: a row was taken for a series of numbers, but column "
                f"{shown(name)} holds text; if it tells series apart, say id={shown(name)}"
            )
    matrix = np.stack([table.numbers(name) for name in values], axis=1)
    series = []
    for row, line in zip(matrix, table.lines, strict=True):
        real = np.flatnonzero(~np.isnan(row))
        if not len(real):
            raise wrong(table.source, f"{table.unit} {line}", "an empty row", "a series of numbers")
        series.append(row[: real[-1] + 1, None])
    shorter = sum(len(one) < len(values) for one in series)
    notes = [*table.notes, f"a row is a series of one channel; {_channels(values, labels)} (steps)"]
    if shorter:
        notes.append(f"{counted(shorter, 'row')} with empty cells at the end: shorter series")
    found = [table.texts(name, "a label") for name in labels]
    return Collection(
        table.source,
        ("value",),
        series,
        labels=_joined(found, table, labels),
        label_place=lambda i: table.place(i, labels[0]) if labels else f"series {i}",
        ids=None if id_name is None else table.texts(id_name, "the series' id").tolist(),
        notes=tuple(notes),
    )


def _groups(ids: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Each id in the order of their first rows, and its rows."""
    names, first, codes = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rows = np.argsort(codes, kind="stable")
    groups = np.split(rows, np.cumsum(np.bincount(codes))[:-1])
    return names[order].tolist(), [groups[i] for i in order]


def _matrix(table: Table, values: Sequence[str]) -> tuple[np.ndarray, dict[str, tuple[str, ...]]]:
    """(rows, columns) of numbers, text as indices of the names it holds."""
    columns, categories = [], {}
    for name in values:
        if not table.is_category(name):
            columns.append(table.numbers(name))
            continue
        missing = table.missing(name)
        names, codes = np.unique(np.char.strip(table.column(name)[~missing]), return_inverse=True)
        if len(names) > MOST_CATEGORIES:
            raise ValueError(
                f"data: {table.source}: column {shown(name)} holds {len(names)} different texts, "
                f"expected numbers or at most {MOST_CATEGORIES} names; columns= can leave it out"
            )
        categories[name] = tuple(names.tolist())
        column = np.full(len(missing), np.nan)
        column[~missing] = codes
        columns.append(column)
    return np.stack(columns, axis=1), categories


def _category_notes(categories: dict[str, tuple[str, ...]]) -> list[str]:
    return [
        f"{shown(name)} holds names, a channel of 0 and 1 each: {listed(names)}"
        for name, names in categories.items()
    ]


def _channels(values: Sequence[str], labels: Sequence[str]) -> str:
    said = f"values in {listed(values)}"
    return f"{said}; labels in {listed(labels)}" if labels else said


def _constant_labels(
    table: Table, labels: Sequence[str], groups: Sequence[np.ndarray]
) -> np.ndarray | None:
    """The label of each series, which must be the same in all of its rows."""
    found = []
    for name in labels:
        texts = table.texts(name, "a label")
        for rows in groups:
            changed = texts[rows] != texts[rows[0]]
            if changed.any():
                row = int(rows[changed.argmax()])
                raise wrong(
                    table.source,
                    table.place(row, name),
                    shown(str(texts[row])),
                    f"{shown(str(texts[rows[0]]))} as in {table.unit} {table.lines[rows[0]]}: one "
                    "label a series (label= names another column, id= what tells series apart)",
                )
        found.append(texts[[rows[0] for rows in groups]])
    return _joined(found, table, labels)


def _joined(found: list[np.ndarray], table: Table, labels: Sequence[str]) -> Any:
    """Labels (N,), or (N, k) of numbers where several columns hold them."""
    if len(found) < 2:
        return found[0] if found else None
    try:
        return np.stack([one.astype(np.float64) for one in found], axis=1)
    except ValueError as error:
        raise ValueError(
            f"data: {table.source}: label: got text in {listed(labels)}, expected numbers where "
            "there are several columns of labels"
        ) from error
