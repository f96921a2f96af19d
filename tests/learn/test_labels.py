"""Labels as classes or as targets, and those that are neither."""

import numpy as np
import pytest

from parnl.learn import labels
from parnl.learn.readers import Collection


def of(values):
    place = "line {}, column 'kind'".format
    series = [np.zeros((2, 1))] * len(values)
    return Collection("a.csv", ("x",), series, labels=np.array(values), label_place=place)


@pytest.mark.parametrize(
    ("values", "classes", "numbers"),
    [
        (["run", "rest", "run"], ("rest", "run"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([10.0, 9.0, -1.0], ("-1", "9", "10"), [2, 1, 0]),
        ([True, False], ("0", "1"), [1, 0]),
        (["1", "b"], ("1", "b"), [0, 1]),
        (["nan", "b"], ("b", "nan"), [1, 0]),
    ],
)
def test_classes(values, classes, numbers):
    names, found = labels.classes_of(of(values))
    assert (names, found.tolist(), found.dtype) == (classes, numbers, np.int64)
    assert labels.class_numbers(of(values), classes).tolist() == numbers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["1", "0.5", "2"],
            "line 1, column 'kind': got the label 0.5, expected a class: a name or",
        ),
        ([1.0, 2.0, np.nan], "line 2, column 'kind': got the label nan, expected a class"),
        ([1.0, np.inf], "line 1, column 'kind': got the label inf, expected a class"),
        (["a", "a"], "all labels are 'a', expected at least two classes"),
        ([3, 3], "all labels are '3', expected at least two classes"),
        (np.zeros((3, 2)), "got 2 labels a series, expected one class"),
    ],
)
def test_what_is_no_class(values, message):
    with pytest.raises(ValueError, match=f"data: a.csv: {message}"):
        labels.classes_of(of(values))


def test_a_class_that_a_model_does_not_know():
    with pytest.raises(
        ValueError, match="line 1, column 'kind': got the label 'c', expected one of"
    ):
        labels.class_numbers(of(["a", "c"]), ("a", "b"))


def test_targets():
    found = labels.targets_of(of(["0.5", "-1e3"]))
    assert (found.tolist(), found.dtype) == ([[0.5], [-1000]], np.float32)
    assert labels.targets_of(of(np.ones((4, 3)))).shape == (4, 3)
    for value, message in (("x", "got the label 'x'"), ("nan", "got the label nan"),
                           ("1e200", r"got the label 1e\+200")):  # fmt: skip
        with pytest.raises(ValueError, match=f"line 1, column 'kind': {message}, expected a"):
            labels.targets_of(of(["0.5", value]))


def test_no_labels():
    with pytest.raises(ValueError, match=r"data: a.csv has no labels; .* named by label="):
        labels.classes_of(of(["a"])._replace(labels=None))
