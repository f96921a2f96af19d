"""Time stamps of a column as numbers: seconds where they are dates, else as they are."""

from typing import Any

import numpy as np

from parnl.learn.readers.collection import shown, wrong
from parnl.learn.readers.tables import Table

# What is tried after ISO 8601. A date is never guessed: two of these that fit are an error.
_DATES = ("%d.%m.%Y", "%Y/%m/%d", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m-%d-%Y")
_HOURS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f")
FORMATS = (*(date + hour for date in _DATES for hour in _HOURS), "%Y%m%d")


def stamps(table: Table, name: str) -> tuple[np.ndarray, str, np.datetime64 | None]:
    """The times (rows,) in a column, their unit, "s" for dates and "" for numbers, and the first.

    Dates count from the earliest in the column, so that float64 holds microseconds; it is the last
    that is returned, None of numbers.
    """
    missing = table.missing(name)
    if missing.any():
        place = table.place(int(missing.argmax()), name)
        raise wrong(table.source, place, "an empty cell", "a time")
    column = table.column(name)
    if column.dtype.kind == "M":
        return _seconds(column)
    if not table.is_category(name) and not _compact(column):
        return table.numbers(name), "", None
    return _seconds(_dates(table, name))


def is_dates(table: Table, name: str) -> bool:
    """Whether a column is of dates, by its type or by its first cells in ISO 8601."""
    column = table.column(name)
    if column.dtype.kind == "M":
        return True
    if column.dtype.kind != "U" or not table.is_category(name):
        return False
    first = [str(cell) for cell in column[:20] if str(cell).strip()]
    return bool(first) and not bool(_parse(first, "ISO8601").isna().any())


def _dates(table: Table, name: str) -> np.ndarray:
    texts = np.char.strip(table.column(name))
    dates = _parse(texts, "ISO8601")
    if dates.isna().any():
        likely = [kind for kind in FORMATS if _parse(texts[:50], kind).notna().mean() >= 0.5]
        tried = [_parse(texts, kind) for kind in likely]
        fitting = [found for found in tried if not found.isna().any()]
        if len(fitting) > 1:
            expected = "a date whose day and month can be told, as in 2016-07-31 12:00:00"
            raise wrong(table.source, table.place(0, name), shown(str(texts[0])), expected)
        dates = max([dates, *tried], key=lambda found: int(found.notna().sum()))
    bad = np.asarray(dates.isna())
    if bad.any():
        row = int(bad.argmax())
        expected = "a date such as 2016-07-31 12:00:00, or a number"
        raise wrong(table.source, table.place(row, name), shown(str(texts[row])), expected)
    return np.asarray(dates.to_numpy(), "datetime64[us]")


def _parse(texts: Any, kind: str) -> Any:
    """Dates in UTC, NaT where a text is none of this kind."""
    import pandas

    return pandas.to_datetime(
        pandas.Series(np.asarray(texts, object)), format=kind, utc=True, errors="coerce"
    ).dt.tz_localize(None)


def _compact(column: np.ndarray) -> bool:
    """Whether all cells look like 20160731. Taken as numbers, months would be 70 days apart."""
    if column.dtype.kind != "U" or not (np.char.str_len(column) == 8).all():
        return False
    return bool(np.char.isdigit(column).all()) and not bool(_parse(column, "%Y%m%d").isna().any())


def _seconds(dates: np.ndarray) -> tuple[np.ndarray, str, np.datetime64]:
    exact = dates.astype("datetime64[us]")
    return (exact - exact.min()).astype(np.int64) / 1e6, "s", exact.min()


def check_order(
    times: np.ndarray, table: Table, rows: np.ndarray, name: str, alone: bool = False
) -> int:
    """Refuse times of one series that decrease; return how many equal the one before.

    `alone`: the table was taken for one series, so that the reason may be that it is not.
    """
    steps = np.diff(times)
    if (steps < 0).any():
        i = int((steps < 0).argmax()) + 1
        before = f"a time not before that of {table.unit} {table.lines[rows[i - 1]]}"
        if alone:
            before += (
                "; if the table holds several series, id= names the column that tells them apart"
            )
        raise wrong(
            table.source,
            table.place(int(rows[i]), name),
            str(table.column(name)[rows[i]])[:40],
            before,
        )
    return int((steps == 0).sum())
