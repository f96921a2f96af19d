"""Files of the .ts kind: what aeon ships, time stamps, and the line of what is wrong."""

from pathlib import Path

import aeon.datasets
import numpy as np
import pytest

from parnl.learn.readers import Options, read

HEAD = "# made\n@problemName x\n@timeStamps false\n@classLabel true run Rest\n@data\n"
TIMED = HEAD.replace("false", "true")


@pytest.fixture
def ts(tmp_path):
    def make(text):
        (tmp_path / "a.ts").write_text(text)
        return read(tmp_path / "a.ts")

    return make


def test_channels_stand_apart_by_colons(ts):
    found = ts(HEAD + "1,?,-3e1:4,5,6:run\n\n# no more than this\n7:8:rest\n")
    np.testing.assert_array_equal(found.series[0], [[1, 4], [np.nan, 5], [-30, 6]])
    np.testing.assert_array_equal(found.series[1], [[7, 8]])
    assert (found.labels.tolist(), found.label_place(1)) == (["run", "rest"], "line 9")


def test_steps_with_times(ts):
    found = ts(TIMED + "(0,-1),(2,3e2):(0,5),(2,NaN):run\n(1.5,1):(1.5,2):rest\n")
    np.testing.assert_array_equal(found.series[0], [[-1, 5], [300, np.nan]])
    assert [own.tolist() for own in found.times] == [[0, 2], [1.5]]


def test_targets_and_no_labels(ts):
    found = ts("@targetLabel true\n@data\n1,2:0.5\n3,4:-1.5\n")
    assert found.labels.tolist() == ["0.5", "-1.5"]
    found = ts("@classLabel false\n@data\n1,2\n3,4\n")
    assert found.labels is None
    assert [one[:, 0].tolist() for one in found.series] == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", ["JapaneseVowels", "UnitTest", "BasicMotions"])
def test_published_files_are_read_as_aeon_reads_them(name):
    folder = Path(aeon.datasets.__file__).parent / "data" / name
    found = read(folder / f"{name}_TRAIN.ts")
    start = 0
    for part, rows in (("train", found.parts.train), ("test", found.parts.test)):
        series, labels = aeon.datasets.load_classification(
            name, split=part, load_equal_length=False
        )
        assert rows.tolist() == list(range(start, start + len(series)))
        start += len(series)
        assert [label.lower() for label in found.labels[rows]] == labels.tolist()
        for i, one in zip(rows, series, strict=True):
            np.testing.assert_array_equal(found.series[i], one.T)
    assert "_TEST" not in found.label_place(found.parts.train[-1])
    assert found.label_place(found.parts.test[0]).endswith(f"{name}_TEST.ts")
    assert found.notes[-1] == f"the test part is {name}_TEST.ts"


BROKEN = [
    ("", "is empty"),
    ("@classLabel false\n1,2\n", "line 2: got '1,2', expected a line of the header"),
    ("@classLabel maybe\n", "line 1: got '@classLabel maybe', expected @classlabel true or"),
    ("@classLabel false\n", "has no line @data"),
    (HEAD, "has no series after the line @data"),
    (HEAD + "1,2:run\n1,2\n", "line 7: got '1,2', expected channels and a label"),
    (HEAD + "1,2:walk\n", "line 6: got 'walk', expected a class that @classLabel names: 'run', "),
    (HEAD + "1,2:3,4:run\n1,2:run\n", "line 7: got 1 channel, expected 2, as in line 6"),
    (HEAD + "1,2:3:run\n", "line 6, channel 2: got 1 value, expected 2, as in channel 1"),
    (HEAD + "1,2:1,b:run\n", "line 6, channel 2, value 2: got 'b', expected a number"),
    (HEAD + "1,inf:run\n", "line 6, channel 1, value 2: got 'inf', expected a finite number"),
    (HEAD + "1e200:run\n", "line 6, channel 1, value 1: got '1e200', expected a finite number"),
    (HEAD + ":run\n", "line 6, channel 1: got no values, expected at least one step"),
    (HEAD.replace(" run Rest", "") + "1,2:?\n", r"line 6: got '\?', expected a label"),
    (TIMED + "(0,1),(1,2:run\n", r"line 6.*expected"),
    (TIMED + "(0,1),1,2:run\n", r"line 6.*expected"),
    (
        TIMED + "(2,1),(1,2):run\n",
        "line 6, channel 1, value 2: got 1.0, expected a time not before",
    ),
    (
        TIMED + "(0,1):(1,2):run\n",
        "line 6, channel 2: got other times, expected those of channel 1",
    ),
    (TIMED + "(2020-01-01 00:00:00,1):run\n", "line 6.*expected"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_what_is_wrong_is_named(ts, text, message):
    with pytest.raises(ValueError, match=f"data: .*a.ts.*{message}"):
        ts(text)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.ts").write_bytes(HEAD.encode() + b"1,2:r\xfcn\n")
    with pytest.raises(ValueError, match="line 6: got the byte 0xfc, expected text in UTF-8"):
        read(tmp_path / "a.ts")


def test_columns_have_no_names(tmp_path):
    (tmp_path / "a.ts").write_text(HEAD + "1:run\n")
    with pytest.raises(ValueError, match=r"id: a .ts file has no named columns"):
        read(tmp_path / "a.ts", Options(id="x"))
