"""Tables as series: long, wide, a single one; what is found by itself."""

import numpy as np
import pytest

from parnl.learn.readers import Options, read

LONG = """walk,t,x,y,kind
a,0,1,10,run
b,5,2,20,rest
a,1,3,30,run
b,7,4,,rest
a,1,5,50,run
"""


@pytest.fixture
def table(tmp_path):
    def make(text, **options):
        (tmp_path / "t.csv").write_text(text)
        return read(tmp_path / "t.csv", Options(**options))

    return make


def test_long_tables_keep_series_apart_by_their_ids(table):
    found = table(LONG, id="walk", label="kind")
    assert found.channels == ("x", "y")
    assert found.ids == ["a", "b"]
    np.testing.assert_array_equal(found.series[0], [[1, 10], [3, 30], [5, 50]])
    np.testing.assert_array_equal(found.series[1], [[2, 20], [4, np.nan]])
    assert [own.tolist() for own in found.times] == [[0, 1, 1], [5, 7]]
    assert found.labels.tolist() == ["run", "rest"]
    assert found.label_place(1) == "line 3, column 'kind'"
    notes = "; ".join(found.notes)
    assert "'walk' tells 2 series apart; values in 'x', 'y'; labels in 'kind'" in notes
    assert "'t' holds the times, numbers" in notes
    assert "1 step at the time of the step before: dt is 0 there" in notes


def test_series_are_in_the_order_of_their_first_rows(table):
    found = table("id,x\nz,1\na,2\nz,3\nm,4\n")
    assert found.ids == ["z", "a", "m"]
    assert [one[:, 0].tolist() for one in found.series] == [[1, 3], [2], [4]]


def test_usual_names_are_found_and_columns_chosen(table):
    text = LONG.replace("walk,t", "Series ID,Time").replace("kind", "Label")
    found = table(text, columns=["y"])
    assert (found.channels, found.labels.tolist()) == (("y",), ["run", "rest"])
    assert found.times is not None
    assert table(text).channels == ("x", "y")


def test_a_table_without_ids_is_one_series(table):
    found = table("date,a,b\n2016-07-01 00:00:00,1,2\n2016-07-01 01:30:00,3,4\n")
    assert (len(found.series), found.channels, found.unit) == (1, ("a", "b"), "s")
    assert found.times[0].tolist() == [0, 5400]
    assert found.labels is None
    assert "the table is one series" in found.notes[0]


def test_a_column_of_dates_is_found_by_what_it_holds(table):
    found = table("when,a\n2016-07-01,1\n2016-07-03,3\n")
    assert (found.channels, found.times[0].tolist()) == (("a",), [0, 172800])


def test_wide_tables_have_a_series_a_row(table):
    found = table("id,0,1,2,label\np,1,2,3,u\nq,4,,6,v\nr,7,8,,u\n")
    assert [one[:, 0].tolist() for one in found.series[::2]] == [[1, 2, 3], [7, 8]]
    np.testing.assert_array_equal(found.series[1][:, 0], [4, np.nan, 6])
    assert (found.ids, found.labels.tolist()) == (["p", "q", "r"], ["u", "v", "u"])
    assert found.label_place(2) == "line 4, column 'label'"
    assert "1 row with empty cells at the end" in found.notes[-1]


def test_wide_tables_without_a_header(table):
    found = table("1,0.5,0.25\n2,1.5,1.25\n", label="1")
    assert found.labels.tolist() == ["1", "2"]
    assert [one[:, 0].tolist() for one in found.series] == [[0.5, 0.25], [1.5, 1.25]]


def test_columns_of_names_are_codes(table):
    found = table("id,t,mood\na,0,good\na,1,bad\nb,0,\nb,1,good\n")
    assert found.categories == {"mood": ("bad", "good")}
    np.testing.assert_array_equal(found.series[0], [[1], [0]])
    np.testing.assert_array_equal(found.series[1], [[np.nan], [1]])
    assert "'mood' holds names, a channel of 0 and 1 each: 'bad', 'good'" in found.notes


def test_several_columns_of_targets(table):
    found = table("id,x,u,v\na,1,0.5,2\na,2,0.5,2\nb,3,1,4\n", label=["u", "v"])
    np.testing.assert_array_equal(found.labels, [[0.5, 2], [1, 4]])


BROKEN = [
    (LONG, dict(id="wolk"), "id: there is no column 'wolk'; did you mean 'walk'?"),
    (LONG, dict(label="zzz"), "label: there is no column 'zzz'; it has 'walk', 't', 'x', 'y'"),
    (LONG, dict(columns=["x", "z"]), "columns: there is no column 'z'"),
    (LONG, dict(id="walk", label="kind", columns=["x", "kind"]), "columns: got 'kind', wh"),
    (LONG, dict(id="walk", columns=["walk"]), "columns: got 'walk', which tells the label or the"),
    (LONG, dict(layout="tall"), "layout: got 'tall', expected 'auto', 'long' or 'wide'"),
    (LONG, dict(label="kind"), "times in 't' and labels in 'kind', but no column tells the series"),
    (LONG, dict(id="walk", label="x"), "line 4, column 'x': got '3', expected '1' as in line 2"),
    (LONG, dict(id="walk", time="y"), "line 5, column 'y': got an empty cell, expected a time"),
    (LONG, dict(layout="wide", time="t"), "time: the layout is wide"),
    ("id,t,x\na,3,1\nb,0,1\na,2,1\n", {}, "line 4, column 't': got 2, expected a time not before "
     "that of line 2"),
    ("date,x\n2016-01-02,1\n2016-01-01,1\n", {},
     "line 3, column 'date': got 2016-01-01, expected a "
     "time not before that of line 2"),
    ("t,x\n1,1\n0,2\n", {}, "line 3, column 't': got 0, .*; if the table holds several"),
    ("id,x\na,1\n,2\n", {}, "line 3, column 'id': got an empty cell, expected the series' id"),
    ("id,x,label\na,1,u\nb,2,\n", {},
     "line 3, column 'label': got an empty cell, expected a label"),
    ("id,label\na,u\na,u\n", {}, "no column of values left"),
    ("0.5,1\n2,3\n", {}, "cannot be told whether a row is a step or a series; .*layout="),
    ("label,0,1\nu,,\nv,1,2\n", {}, "line 2: got an empty row, expected a series of numbers"),
    ("label,0,1\nu,1,2\nv,1,a\nu,3,4\nw,5,6\n", {}, "line 3, column '1': got 'a', expected a num"),
    ("id,x,u,v\na,1,p,2\nb,1,q,2\n", dict(label=["u", "v"]), "label: got text in 'u', 'v'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "message"), BROKEN)
def test_what_is_wrong_is_named(table, text, options, message):
    with pytest.raises(ValueError, match=message):
        table(text, **options)
