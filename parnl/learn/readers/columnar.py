"""Tables in columns: .parquet and .feather files, by pyarrow."""

from pathlib import Path
from typing import Any

import numpy as np

from parnl.learn.readers.collection import shown, wrong
from parnl.learn.readers.tables import Table, without_counter

INDEX = "__index_level_0__"


def read_columnar(path: Path) -> Table:
    """The table in a .parquet or .feather file; its rows count from 1."""
    import pyarrow as pa
    from pyarrow import feather, parquet

    read = parquet.read_table if path.suffix.lower() == ".parquet" else feather.read_table
    try:
        held = read(path)
        held.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        line = str(error).partition("\n")[0]
        kind = path.suffix.lower()[1:]
        raise ValueError(f"data: {path} is not a {kind} file ({shown(line, 200)})") from error
    names = [str(name) for name in held.column_names]
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            expected = "a name that no other column has"
            raise wrong(path, f"column {i + 1}", shown(name), expected)
    if not names or not held.num_rows:
        raise ValueError(f"data: {path} is empty, expected a table with rows")
    # pandas writes an index without a name as this, after the columns
    order = sorted(range(len(names)), key=lambda i: names[i] != INDEX)
    columns = [_column(path, names[i], held.column(i)) for i in order]
    renamed = ["" if names[i] == INDEX else names[i] for i in order]
    if renamed[0] == "" and columns[0].dtype.kind == "M":
        renamed[0] = "index" if "time" in renamed else "time"
    lines = np.arange(1, held.num_rows + 1)
    found = dict(zip(renamed, columns, strict=True))
    return without_counter(Table(str(path), found, lines, unit="row"))


def _column(path: Path, name: str, column: Any) -> np.ndarray:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    types = pa.types
    if types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind):
        if types.is_boolean(kind):
            column = column.cast(pa.int8())
        return np.asarray(column.to_numpy(), np.float64)
    if types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    if types.is_timestamp(kind) or types.is_date(kind):
        return np.asarray(column.cast(pa.timestamp("us"), safe=False).to_numpy(), "datetime64[us]")
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if text or types.is_null(kind):
        return np.array(["" if cell is None else cell for cell in column.to_pylist()], str)
    raise wrong(path, f"column {shown(name)}", str(kind), "numbers, text or times")
