"""Files of the .arff kind: of one and of several channels, and the line of what is wrong."""

import numpy as np
import pytest

from parnl.learn.readers import read

ONE = "% made\n@relation x\n@attribute a0 numeric\n@attribute a1 numeric\n"
CLASS = "@attribute target {run,'at rest'}\n@data\n"
MANY = f"@relation x\n@attribute r relational\n@attribute c0 numeric\n@end r\n{CLASS}"


@pytest.fixture
def arff(tmp_path):
    def make(text):
        (tmp_path / "a.arff").write_text(text)
        return read(tmp_path / "a.arff")

    return make


def test_one_channel(arff):
    found = arff(f"{ONE}{CLASS}1,?,run\n% said\n3, 4 ,'at rest'\n".replace("?", "2.5"))
    assert [one[:, 0].tolist() for one in found.series] == [[1, 2.5], [3, 4]]
    assert (found.labels.tolist(), found.label_place(1)) == (["run", "at rest"], "line 9")
    found = arff(f"{ONE}{CLASS}1,?,run\n?,4,run\n")
    assert found.series[0].tolist() == [[1]]
    np.testing.assert_array_equal(found.series[1][:, 0], [np.nan, 4])


@pytest.mark.parametrize("quote", "'\"")
def test_several_channels(arff, quote):
    row = f"{quote}1,2,3\\n4,?,6{quote}"
    found = arff(f"{MANY}{row},run\n{row},'at rest'\n")
    np.testing.assert_array_equal(found.series[1], [[1, 4], [2, np.nan], [3, 6]])


def test_targets_and_no_labels(arff):
    found = arff(f"{ONE}@attribute target numeric\n@data\n1,2,0.5\n")
    assert found.labels.tolist() == ["0.5"]
    found = arff(f"{ONE}@data\n1,2\n")
    assert (found.labels, len(found.series[0])) == (None, 2)


BROKEN = [
    ("", "is empty"),
    (ONE, "has no line @data"),
    (f"{ONE}@attribute b\n@data\n", "line 5: got '@attribute b', expected @attribute, a name and"),
    (f"{ONE}{CLASS}", "has no series after the line @data"),
    (f"{ONE}nonsense\n", "line 5: got 'nonsense', expected @attribute, @data or a comment"),
    (f"{ONE}{CLASS}1,2\n", "line 7: got 2 fields, expected 3, one for each attribute"),
    (f"{ONE}{CLASS}1,2,3,run\n", "line 7: got 4 fields, expected 3"),
    (f"{ONE}{CLASS}1,2,run\n1,b,run\n", "line 8, value 2: got 'b', expected a number"),
    (f"{ONE}{CLASS}1,1e200,run\n", "line 7, value 2: got '1e200', expected a finite number"),
    (f"{ONE}{CLASS}1,2,walk\n", "line 7: got 'walk', expected a class that the attribute names"),
    (f"{ONE}{CLASS}1,2,?\n", r"line 7: got '\?', expected a label"),
    (f"{ONE}{CLASS}?,?,run\n", "line 7: got no values, expected a series of numbers"),
    (f"{ONE}{CLASS}" + "{0 1}\n", "line 7: got '{0 1}', expected all values of a row"),
    (f"{MANY}'1,2\\n3',run\n", "line 7: got channels of several lengths or none"),
    (f"{MANY}'1,2',run\n'1,2\\n3,4',run\n", "line 8: got 2 channels, expected 1, as in line 7"),
    (f"{MANY}'1,x',run\n", "line 7, channel 1, value 2: got 'x', expected a number"),
    (f"{MANY}1,2,run\n", "line 7: got '1,2,run', expected a series in quotes"),
    (f"@attribute b numeric\n{MANY}'1,2',run\n", "one relational attribute and one of labels"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_what_is_wrong_is_named(arff, text, message):
    with pytest.raises(ValueError, match=f"data: .*a.arff.*{message}"):
        arff(text)
