"""What every reader returns: labelled series, and where they stand for the user who reads an error.

Every error of a reader begins with "data: " and the file; then come the line and the column as an
editor counts them, what was found there and what was expected.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

LARGEST = 3e38
"""What float32 holds. Larger values are mistakes, or want another unit."""

_FINITE = "a finite number that float32 holds, up to 3e38"

MISSING = frozenset(("", "?", "na", "n/a", "nan", "-nan", "null", "none", "<na>", "nat"))
"""Cells, in small letters, that say a value is missing."""

NAMELESS = frozenset(("", "?", "nan", "<na>"))
"""Of labels and ids; a class may be called none, or NA."""


class Options(NamedTuple):
    """What a user may say of a file; None and "auto" are found out.

    Attributes:
        id: name of the column that tells series apart.
        time: name of the column of time stamps.
        label: names of columns, or of one file with the labels; () says that there are none.
        columns: the columns that are channels.
        layout: "long" (a row is a step), "wide" (a row is a series) or "auto".
        unlabelled: columns of labels may be missing, as in data to predict.
    """

    id: str | None = None
    time: str | None = None
    label: str | Sequence[str] | None = None
    columns: Sequence[str] | None = None
    layout: str = "auto"
    unlabelled: bool = False


class Parts(NamedTuple):
    """Indices of the series of each part as a file gives them; None where it does not say."""

    train: np.ndarray | None = None
    validation: np.ndarray | None = None
    test: np.ndarray | None = None


def _somewhere(index: int) -> str:
    return f"series {index}"


class Collection(NamedTuple):
    """Series as they were read. N is their number.

    Attributes:
        source: the file.
        channels: their names.
        series: N arrays (steps, channels) of real numbers, NaN where a value is missing; a channel
            in `categories` holds indices of the names given there.
        labels: (N,) of text, or (N,) or (N, k) of numbers.
        times: of each step, N arrays (steps,), which never decrease.
        unit: of the times, "" if the file does not say.
        began: the date they count from, if they are dates.
        categories: channel -> the names that its numbers stand for.
        parts: as the file gives them.
        label_place: where the label of a series stands.
        ids: names of the series.
        notes: sentences that say what was taken for what.
        taken: what was taken for what in a table, for reading another file in the same way.
    """

    source: str
    channels: tuple[str, ...]
    series: Sequence[np.ndarray]
    labels: np.ndarray | None = None
    times: Sequence[np.ndarray] | None = None
    unit: str = ""
    began: np.datetime64 | None = None
    categories: dict[str, tuple[str, ...]] = {}
    parts: Parts | None = None
    label_place: Callable[[int], str] = _somewhere
    ids: Sequence[str] | None = None
    notes: tuple[str, ...] = ()
    taken: Options | None = None


def check_alike(source: Any, found: Collection, known: Collection) -> None:
    """Refuse a file if it has other channels than one before it, or only one of them has times."""
    if found.channels != known.channels or (found.times is None) != (known.times is None):
        raise ValueError(
            f"data: {source} has the channels {listed(found.channels)}, expected "
            f"{listed(known.channels)} as in {known.source}"
        )


def wrong(source: Any, place: str, got: Any, expected: str) -> ValueError:
    """The error on one cell: `raise wrong(path, "line 7, column 'x'", "'abc'", "a number")`."""
    return ValueError(f"data: {source}: {place}: got {got}, expected {expected}")


def shown(value: Any, most: int = 40) -> str:
    """A value from a file as it is safe to print: short, and without control characters."""
    text = value if isinstance(value, str) else str(value)
    cut = text if len(text) <= most else text[:most] + "..."
    return ascii(cut) if not cut.isprintable() else repr(cut) if isinstance(value, str) else cut


def number(text: str, source: Any, place: str) -> float:
    """The number in a cell, NaN where it is missing."""
    text = text.strip()
    if text.lower() in MISSING:
        return np.nan
    hint = " (with a point, not a comma)" if "," in text else ""
    try:
        value = float(text)
    except ValueError:
        raise wrong(source, place, shown(text), f"a number{hint}") from None
    if "_" in text:  # Python takes 1_000 for a number
        raise wrong(source, place, shown(text), "a number")
    if not abs(value) <= LARGEST:
        raise wrong(source, place, shown(text), _FINITE)
    return value


def check_values(values: np.ndarray, source: Any, place: Callable[..., str]) -> None:
    """Refuse infinite and huge values; `place(*index)` says where one stands."""
    with np.errstate(invalid="ignore"):
        bad = np.abs(values) > LARGEST
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise wrong(source, place(*index), f"{values[index]:g}", _FINITE)


def check_real(array: np.ndarray, source: Any, name: str) -> None:
    """Refuse arrays of anything but real numbers."""
    if array.dtype.kind == "c":
        raise wrong(source, name, f"complex numbers ({array.dtype})", "real numbers")
    if array.dtype.kind not in "fiub":
        raise wrong(source, name, f"an array of {array.dtype}", "numbers")


def listed(names: Sequence[Any], most: int = 6) -> str:
    """'a', 'b', 'c' and 7 more."""
    few = ", ".join(shown(str(name)) for name in names[:most])
    return few if len(names) <= most else f"{few} and {len(names) - most} more"


def counted(number: int, name: str) -> str:
    """1 column, 2 columns; series stay as they are."""
    return f"{number} {name}{'' if number == 1 or name.endswith('s') else 's'}"
