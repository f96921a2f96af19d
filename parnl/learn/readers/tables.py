"""Tables in text: .csv and .tsv files as columns of text, each row with its line.

table = read_text(Path("walks.csv"))
table.numbers("speed")           # float64; an error names the line of what is no number
"""

import csv
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from parnl.learn.readers.collection import (
    MISSING,
    NAMELESS,
    check_values,
    counted,
    listed,
    number,
    shown,
    wrong,
)
from parnl.learn.readers.lines import lines_of

BLOCK = 20_000  # rows that become arrays at once
LONGEST = 500  # letters in a cell


class Table(NamedTuple):
    """Columns of one length, by name: text, float64, or datetime64 where a format knows times.

    lines: (rows,), the line of each row, or its number where a format has no lines.
    unit: "line" or "row". header: whether the file names its columns. notes: what was left out.
    """

    source: str
    columns: dict[str, np.ndarray]
    lines: np.ndarray
    unit: str = "line"
    header: bool = True
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, in their order."""
        return tuple(self.columns)

    def column(self, name: str) -> np.ndarray:
        """One column as it was read."""
        return self.columns[name]

    def place(self, row: int, name: str) -> str:
        """Where a cell stands."""
        return f"{self.unit} {self.lines[row]}, column {shown(name)}"

    def missing(self, name: str) -> np.ndarray:
        """(rows,) True where a cell is empty or says that its value is missing."""
        column = self.column(name)
        if column.dtype.kind == "U":
            return np.isin(np.char.lower(np.char.strip(column)), list(MISSING))
        return np.isnat(column) if column.dtype.kind == "M" else np.isnan(column)

    def is_category(self, name: str) -> bool:
        """Whether a column is text: at most half of what stands there are numbers."""
        column = self.column(name)
        if column.dtype.kind != "U" or _floats(column) is not None:
            return False
        cells = column[~self.missing(name)]
        right = sum(_is_number(cell) for cell in cells.tolist())
        return len(cells) > 0 and right <= len(cells) / 2

    def numbers(self, name: str) -> np.ndarray:
        """A column as float64, NaN where a value is missing."""
        column = self.column(name)
        if column.dtype.kind == "M":
            raise ValueError(f"data: {self.source}: column {shown(name)} holds times, not numbers")
        values = column if column.dtype.kind == "f" else _floats(column)
        if values is None:
            missing = self.missing(name)
            values = np.full(len(column), np.nan)
            values[~missing] = [
                number(cell, self.source, self.place(row, name))
                for row, cell in zip(
                    np.flatnonzero(~missing).tolist(), column[~missing].tolist(), strict=True
                )
            ]
        check_values(values, self.source, lambda row: self.place(row, name))
        return values

    def texts(self, name: str, what: str) -> np.ndarray:
        """A column as text without gaps: ids or labels. `what` names it in the error."""
        column, missing = self.column(name), self.missing(name)
        if column.dtype.kind == "U":
            missing = np.isin(np.char.lower(np.char.strip(column)), list(NAMELESS))
        if missing.any():
            row = int(missing.argmax())
            raise wrong(self.source, self.place(row, name), "an empty cell", what)
        if column.dtype.kind == "f" and (column == np.round(column)).all():
            column = column.astype(np.int64)
        return np.char.strip(column.astype(str))

    def check_names(self, names: Any, option: str) -> None:
        """Refuse names of columns that are not there."""
        for name in names:
            if name not in self.columns:
                near = get_close_matches(str(name), self.names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {listed(self.names)}"
                raise ValueError(
                    f"data: {self.source}: {option}: there is no column {shown(name)}; {hint}"
                )


def read_text(path: Path) -> Table:
    """The table in a text file in UTF-8. Commas, semicolons or tabs stand between the cells."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(path, file)
    except UnicodeDecodeError:
        for _ in lines_of(path):  # it raises the error with the line
            pass
        raise


def _read(path: Path, file: TextIO) -> Table:
    first = file.readline(1 << 20)
    delimiter = next((d for d in "\t;" if d in first and "," not in first), ",")
    if path.suffix.lower() == ".tsv" and "\t" in first:
        delimiter = "\t"
    file.seek(0)
    rows = _rows(path, file, delimiter)
    first_line, cells = next(rows, (0, []))
    if not cells:
        raise ValueError(f"data: {path} is empty, expected a table with a header")
    names = [cell.strip() for cell in cells]
    header = not all(map(_is_number, names)) or _counts(names)
    blocks: list[list[np.ndarray]] = []
    lines: list[int] = []
    waiting: list[list[str]] = []
    if not header:
        lines, waiting = [first_line], [cells]
        names = [str(i + 1) for i in range(len(cells))]
    _check_header(path, first_line, names)
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(
                f"data: {path}: line {line}: got {counted(len(row), 'field')}, expected "
                f"{len(names)}, as in line {first_line}"
            )
        lines.append(line)
        waiting.append(row)
        if len(waiting) == BLOCK:
            blocks.append(_block(path, waiting, lines))
            waiting = []
    if waiting:
        blocks.append(_block(path, waiting, lines))
    if not blocks:
        raise ValueError(f"data: {path} has a header and no rows")
    joined = map(np.concatenate, zip(*blocks, strict=True))
    columns = dict(zip(names, joined, strict=True))
    return without_counter(Table(str(path), columns, np.array(lines), header=header))


def without_counter(table: Table) -> Table:
    """The table without a nameless first column that counts its rows, as pandas writes one."""
    if table.names[0] != "":
        return table
    first = table.columns[""]
    values = _floats(first) if first.dtype.kind in "Uf" else None
    start = np.arange(len(table.lines))
    if values is None or not any(np.array_equal(values, start + k) for k in (0, 1)):
        raise wrong(table.source, f"{table.unit} 1, column 1", "nothing", "the name of the column")
    note = "the first column has no name and counts the rows: it is left out"
    others = {name: column for name, column in table.columns.items() if name}
    return table._replace(columns=others, notes=(note,))


def _rows(path: Path, file: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line it begins in; empty lines are passed over."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"data: {path}: line {line}: expected {'tabs' if delimiter == chr(9) else 'fields'} "
            f"and closed quotes ({error})"
        ) from error


def _check_header(path: Path, line: int, names: list[str]) -> None:
    first = {name: i for i, name in reversed([*enumerate(names)])}
    for i, name in enumerate(names):
        if name == "" and i > 0:
            raise wrong(path, f"line {line}, column {i + 1}", "nothing", "the name of the column")
        if len(name) > LONGEST:
            raise wrong(path, f"line {line}, column {i + 1}", shown(name), "the name of the column")
        if first[name] < i:
            raise wrong(
                path,
                f"line {line}, column {i + 1}",
                shown(name),
                f"another name than that of column {first[name] + 1}",
            )


def _block(path: Path, rows: list[list[str]], lines: list[int]) -> list[np.ndarray]:
    """Rows of text as columns of text."""
    columns = list(zip(*rows, strict=True))
    for i, column in enumerate(columns):
        if max(map(len, column)) > LONGEST:
            row = next(r for r, cell in enumerate(column) if len(cell) > LONGEST)
            line = lines[len(lines) - len(rows) + row]
            expected = f"a number, a time or a name of at most {LONGEST} letters"
            raise wrong(path, f"line {line}, column {i + 1}", shown(column[row]), expected)
        if "\0" in "".join(column):  # NumPy's text drops it at the end of a cell
            row = next(r for r, cell in enumerate(column) if "\0" in cell)
            line = lines[len(lines) - len(rows) + row]
            raise wrong(path, f"line {line}, column {i + 1}", "a byte that is 0", "text")
    return [np.array(column, str) for column in columns]


def _counts(names: list[str]) -> bool:
    """Whether these are 0, 1, 2, ... or 1, 2, 3, ...: names that pandas gives to columns."""
    return len(names) > 1 and any(names == [str(i + k) for i in range(len(names))] for k in (0, 1))


def _floats(column: np.ndarray) -> np.ndarray | None:
    """Text as float64, or None unless every cell is a number or NaN. Fast where all are."""
    try:
        values = column.astype(np.float64)
    except ValueError:
        return None
    return None if (np.char.find(column, "_") >= 0).any() else values


def _is_number(text: str) -> bool:
    try:
        float(text)
        return "_" not in text
    except ValueError:
        return False
