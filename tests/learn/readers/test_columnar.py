"""Parquet and feather files, with the types that tables have."""

import datetime
import decimal

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from parnl.learn.readers import Options, read
from parnl.learn.readers.columnar import read_columnar

FRAME = pandas.DataFrame(
    dict(
        id=["a", "a", "b"],
        when=pandas.to_datetime(["2020-01-01", "2020-01-02", "2020-01-01"], utc=True),
        x=[1.5, None, 3.0],
        n=pandas.array([1, None, 3], dtype="Int64"),
        on=[True, False, True],
        mood=pandas.Categorical(["good", "bad", "good"]),
        label=[0, 0, 1],
    )
)
WRITE = {".parquet": pandas.DataFrame.to_parquet, ".feather": pandas.DataFrame.to_feather}


@pytest.mark.parametrize("kind", WRITE)
def test_columns_have_their_types(tmp_path, kind):
    WRITE[kind](FRAME, tmp_path / f"t{kind}")
    found = read(tmp_path / f"t{kind}")
    assert found.channels == ("x", "n", "on", "mood")
    np.testing.assert_array_equal(found.series[0], [[1.5, 1, 1, 1], [np.nan, np.nan, 0, 0]])
    assert [own.tolist() for own in found.times] == [[0, 86400], [0]]
    assert found.labels.tolist() == ["0", "1"]
    assert found.label_place(1) == "row 3, column 'label'"


def test_an_index_of_times_is_a_column(tmp_path):
    index = pandas.to_datetime(["2020-01-01", "2020-01-03"])
    pandas.DataFrame(dict(x=[1.0, 2.0]), index=index).to_parquet(tmp_path / "t.PARQUET")
    found = read(tmp_path / "t.PARQUET")
    assert (found.channels, found.times[0].tolist()) == (("x",), [0, 172800])


def test_types_that_pandas_does_not_write(tmp_path):
    number, day = decimal.Decimal("1.25"), datetime.date(2020, 1, 2)
    columns = dict(
        day=pyarrow.array([datetime.date(2020, 1, 1), day]),
        price=pyarrow.array([number, None]),
        half=pyarrow.array(np.array([0.5, 1], np.float16)),
        name=pyarrow.array(["a", None], pyarrow.large_string()),
        none=pyarrow.nulls(2),
    )
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet")
    assert (found.channels, found.unit) == (("price", "half", "name", "none"), "s")
    expected = [[1.25, 0.5, 0, np.nan], [np.nan, 1, np.nan, np.nan]]
    np.testing.assert_array_equal(found.series[0], expected)


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize(
    ("column", "message"),
    [
        (dict(x=[1.0, np.inf, 3.0]), "row 2, column 'x': got inf, expected a finite number"),
        (dict(x=[1.0, 2.0, 1e200]), r"row 3, column 'x': got 1e\+200, expected a finite number"),
        (dict(x=["1", "2", "c"]), "row 3, column 'x': got 'c', expected a number"),
        (dict(x=[[1], [2], [3]]), "column 'x': got list<.*int64>, expected numbers, text or times"),
        (dict(id=["a", None, "b"]), "row 2, column 'id': got an empty cell, expected the series'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, kind, column, message):
    WRITE[kind](FRAME.assign(**column), tmp_path / f"t{kind}")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / f"t{kind}", Options(columns=["x"]))


@pytest.mark.parametrize("kind", WRITE)
@pytest.mark.parametrize("content", [b"", b"text", b"PAR1" + bytes(40) + b"PAR1", b"ARROW1" * 9])
def test_files_that_are_none(tmp_path, kind, content):
    (tmp_path / f"t{kind}").write_bytes(content)
    with pytest.raises(ValueError, match=f"data: .*t{kind} is not a {kind[1:]} file"):
        read_columnar(tmp_path / f"t{kind}")


@pytest.mark.parametrize("kind", WRITE)
def test_a_file_without_rows(tmp_path, kind):
    WRITE[kind](FRAME[:0].reset_index(drop=True), tmp_path / f"t{kind}")
    with pytest.raises(ValueError, match="is empty, expected a table with rows"):
        read_columnar(tmp_path / f"t{kind}")
