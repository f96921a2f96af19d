"""Text tables: what is read, and the line and column of what is wrong."""

import numpy as np
import pytest

from parnl.learn import readers
from parnl.learn.readers import tables


def written(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def test_cells_keep_their_text_and_their_line(tmp_path):
    text = '\ufeffname,x\n"one\nword",1.5\n\n two ,NA\n'
    table = tables.read_text(written(tmp_path / "t.csv", text))
    assert table.names == ("name", "x")
    assert table.lines.tolist() == [2, 5]
    assert table.texts("name", "a name").tolist() == ["one\nword", "two"]
    np.testing.assert_array_equal(table.numbers("x"), [1.5, np.nan])
    assert table.is_category("name")
    assert not table.is_category("x")


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", "a;b\n1;2\n"), ("t.tsv", "a\tb\n1\t2\n"), ("t.csv", "a\tb\n1\t2\n"),
     ("t.TSV", "a\tb,c\n1\t2\n"), ("t.csv", "a,b\r\n1,2\r\n"), ("t.csv", " a , b\n 1, 2 \n")],
)  # fmt: skip
def test_separators(tmp_path, name, text):
    table = tables.read_text(written(tmp_path / name, text))
    assert [n[0] for n in table.names] == ["a", "b"]
    assert [table.numbers(n).tolist() for n in table.names] == [[1.0], [2.0]]


def test_an_empty_column_is_of_numbers(tmp_path):
    table = tables.read_text(written(tmp_path / "t.csv", "x,y\n1,\n2, NA\n"))
    assert not table.is_category("y")
    assert np.isnan(table.numbers("y")).all()


def test_large_tables_are_read_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 7)
    rows = "".join(f"{i},{'long name' * (i == 12)}\n" for i in range(20))
    table = tables.read_text(written(tmp_path / "t.csv", "x,n\n" + rows))
    assert table.numbers("x").tolist() == list(range(20))
    assert table.lines.tolist() == list(range(2, 22))
    assert table.column("n")[12] == "long name"


def test_a_first_row_of_numbers_is_no_header(tmp_path):
    table = tables.read_text(written(tmp_path / "t.csv", "1.5,2\n3,4\n"))
    assert (table.header, table.names, table.lines.tolist()) == (False, ("1", "2"), [1, 2])
    counted = tables.read_text(written(tmp_path / "t.csv", "0,1\n3,4\n"))
    assert (counted.header, counted.names) == (True, ("0", "1"))


def test_the_counter_that_pandas_writes_is_left_out(tmp_path):
    table = tables.read_text(written(tmp_path / "t.csv", ",x\n0,5\n1,6\n"))
    assert table.names == ("x",)
    assert "left out" in table.notes[0]


BROKEN = {
    "empty": ("", "t.csv is empty"),
    "only a header": ("x,y\n", "t.csv has a header and no rows"),
    "too few fields": ("x,y\n1,2\n\n3\n", "line 4: got 1 field, expected 2, as in line 1"),
    "too many fields": ("x,y\n1,2,3\n", "line 2: got 3 fields, expected 2, as in line 1"),
    "an open quote": ('x,y\n1,"2\n3,4\n', "line 2: expected fields and closed quotes"),
    "a name twice": ("x,y,x\n1,2,3\n", "line 1, column 3: got 'x', expected another name than"),
    "no name": ("x,,z\n1,2,3\n", "line 1, column 2: got nothing, expected the name"),
    "no name at first": (",z\n7,3\n", "line 1, column 1: got nothing, expected the name"),
    "text among numbers": (
        "x,y\n1,2\n3,a\n5,6\n", "line 3, column 'y': got 'a', expected a number"),
    "a comma in a number": (
        "x;y\n1;2\n3;4,5\n5;6\n", "line 3, column 'y': got '4,5', .*point, not"),
    "infinite": ("x,y\n1,2\n3,inf\n", "line 3, column 'y': got .?inf.?, expected a finite number"),
    "huge": ("x,y\n1,2\n3,1e200\n", r"line 3, column 'y': got .?1e\+?200.?, expected a finite"),
    "infinite among gaps": ("x,y\n1,\n3,-inf\n", "line 3, column 'y': got '-inf', expected a fin"),
    "complex": ("x,y\n1,2\n3,1+2j\n5,6\n", r"line 3, column 'y': got '1\+2j', expected a number"),
    "python's thousands": (
        "x\n1\n2\n1_000\n", "line 4, column 'x': got '1_000', expected a number"),
    "a long cell": (f"x,y\n1,2\n3,{'a' * 600}\n", "line 3, column 2: got 'a{40}...', expected"),
    "not UTF-8": (b"x,y\n1,2\n3,\xe9\n", "line 3: got the byte 0xe9, expected text in UTF-8"),
    "UTF-16": ("x,y\n1,2\n".encode("utf-16"), "line 1: got text in UTF-16, expected text in UTF-8"),
    "control characters": ("x,y\n1,2\n3,\x1b[2J\n5,6\n", r"line 3, column 'y': got '\\x1b\[2J'"),
    "a zero byte": ("x,y\n1,2\n3,\0\n5,6\n", "line 3, column 2: got a byte that is 0, expected"),
    "many different texts": (
        "x,y\n" + "".join(f"{i},t{i}\n" for i in range(200)),
        "column 'y' holds 200 different texts, expected numbers or at most 100 names; columns=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(tmp_path, name):
    text, message = BROKEN[name]
    path = written(tmp_path / "t.csv", text)
    with pytest.raises(ValueError, match=message) as caught:
        readers.read(path)
    assert str(caught.value).startswith(f"data: {path}")
    assert str(caught.value).isprintable()
