"""Time stamps: numbers, dates in many formats, and dates that cannot be told."""

import pytest

from parnl.learn.readers import read
from parnl.learn.readers.times import FORMATS

DAY = 86400


def times(tmp_path, *cells):
    (tmp_path / "t.csv").write_text("time,x\n" + "".join(f"{cell},1\n" for cell in cells))
    found = read(tmp_path / "t.csv")
    return found.times[0].tolist(), found.unit


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("0.5", "2", "1e1"), ([0.5, 2, 10], "")),
        (("2016-07-31", "2016-08-01"), ([0, DAY], "s")),
        (("2016-07-31T23:00:00Z", "2016-08-01T01:00:00+01:00"), ([0, 3600], "s")),
        (("2016-07-31 23:00:00.25", "2016-07-31 23:00:00.75"), ([0, 0.5], "s")),
        (("31.07.2016", "01.08.2016"), ([0, DAY], "s")),
        (("31.07.2016 23:30", "01.08.2016 00:00"), ([0, 1800], "s")),
        (("07/31/2016", "08/01/2016"), ([0, DAY], "s")),
        (("31/07/2016", "01/08/2016"), ([0, DAY], "s")),
        (("20160731", "20160801"), ([0, DAY], "s")),
        (("10000000", "10000001"), ([10000000, 10000001], "")),
    ],
)
def test_times(tmp_path, cells, expected):
    assert times(tmp_path, *cells) == expected


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (("01/02/2016", "02/02/2016"), "line 2, column 'time': got '01/02/2016', expected a date "
         "whose day and month can be told"),
        (("2016-07-31", "yesterday"), "line 3, column 'time': got 'yesterday', expected a date"),
        (("2016-07-31", "2016-02-30"), "line 3, column 'time': got '2016-02-30', expected a date"),
        (("31.07.2016", "31.06.2016"), "line 3, column 'time': got '31.06.2016', expected a date"),
        (("1", "2", "x"), "line 4, column 'time': got 'x', expected a number"),
        (("1", "inf"), "line 3, column 'time': got inf, expected a finite number"),
        (("1", ""), "line 3, column 'time': got an empty cell, expected a time"),
    ],
)  # fmt: skip
def test_times_that_are_none(tmp_path, cells, message):
    with pytest.raises(ValueError, match=message):
        times(tmp_path, *cells)


def test_formats_are_different():
    assert len(set(FORMATS)) == len(FORMATS)
