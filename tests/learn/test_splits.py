"""Parts that a file gives, parts that are drawn, and parts that cannot be."""

import numpy as np
import pytest

from parnl.learn import splits
from parnl.learn.readers import Parts

LABELS = np.array([0] * 20 + [1] * 10)
SHARES = dict(validation=0.25, test=0.2, seed=0)


def drawn(labels=LABELS, parts=None, count=30, **changes):
    return splits.drawn("a.csv", count, labels, parts, **SHARES | changes)


def test_shares_of_every_class_are_drawn():
    rows = drawn()
    assert sorted(np.concatenate(rows).tolist()) == list(range(30))
    assert [np.bincount(LABELS[own]).tolist() for own in rows] == [[12, 6], [4, 2], [4, 2]]
    np.testing.assert_array_equal(drawn().test, rows.test)
    assert not np.array_equal(drawn(seed=1).test, rows.test)


def test_without_classes_shares_of_all_are_drawn():
    rows = drawn(labels=None)
    assert [len(own) for own in rows] == [18, 6, 6]


def test_classes_of_one_series():
    with pytest.raises(ValueError, match=r"data: a\.csv: test: every class has a single series"):
        drawn(labels=np.arange(30))


def test_parts_that_a_file_gives_are_kept():
    parts = Parts(validation=np.array([1, 2]), test=np.array([7]))
    rows = drawn(parts=parts)
    assert (rows.validation.tolist(), rows.test.tolist()) == ([1, 2], [7])
    assert sorted([*rows.train, 1, 2, 7]) == list(range(30))
    rows = drawn(parts=Parts(np.arange(20), None, np.arange(20, 30)), labels=LABELS)
    assert rows.test.tolist() == list(range(20, 30))
    assert len(rows.validation) == 5
    assert sorted([*rows.train, *rows.validation]) == list(range(20))


@pytest.mark.parametrize(
    ("train", "validation", "test", "message"),
    [
        (None, [1, 2, 1], [3], "the validation part repeats the series '1', expected each once"),
        (None, [1], [3, 3], "the test part repeats the series '3'"),
        (None, [1, 2], [2, 3], "the validation and test parts overlap: they share 1 series, '2'"),
        ([0, 1], [1], [2], "the train and validation parts overlap"),
        ([0, 1], [2], [1], "the train and test parts overlap"),
        (None, [], [3], "the validation part has no series, expected at least one"),
        (None, [1], [], "the test part has no series"),
        (None, range(20), range(20, 30), "the train part has no series"),
    ],
)
def test_parts_that_cannot_be(train, validation, test, message):
    parts = (None if p is None else np.array(p, int) for p in (train, validation, test))
    with pytest.raises(ValueError, match=f"data: a.csv: {message}"):
        drawn(parts=Parts(*parts))
