"""NumPy's files: three layouts of .npz, .npy, and what is no data set."""

import numpy as np
import pytest

from parnl.learn.readers import Options, read
from parnl.learn.readers.mapped import MappedSeries

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 5, 2)).astype(np.float32)
Y = np.array(["u", "v"] * 3)
PUBLISHED = dict(X=X, y=Y, val_0=np.array([1]), test_0=np.array([0, 5]))
PACKED = dict(X=X.reshape(30, 2), lengths=np.array([10, 8, 12]), y=Y[:3])
PARTED = dict(X_train=X[:4, :, 0], y_train=Y[:4], X_test=X[4:, :, 0], y_test=Y[4:])


def stored(path, arrays, compressed=False):
    with path.open("wb") as file:  # savez would add to the name
        (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return path


@pytest.fixture(params=[False, True], ids=["plain", "compressed"])
def compressed(request):
    return request.param


@pytest.mark.parametrize("limit", [2**28, 0], ids=["in memory", "mapped"])
def test_published_splits(tmp_path, compressed, limit, monkeypatch):
    monkeypatch.setattr("parnl.learn.readers.mapped.MAPPED_FROM", limit)
    found = read(stored(tmp_path / "a.NPZ", PUBLISHED, compressed))
    assert isinstance(found.series, MappedSeries) == (not limit and not compressed)
    assert found.parts.train is None
    assert [found.parts.validation.tolist(), found.parts.test.tolist()] == [[1], [0, 5]]
    assert (found.channels, found.label_place(2)) == (("0", "1"), "y[2]")
    np.testing.assert_array_equal(np.stack(found.series), X)


def test_series_one_after_the_other(tmp_path, compressed):
    for values in (X.reshape(30, 2), X.reshape(30, 2)[:, 0]):
        found = read(stored(tmp_path / "a.npz", PACKED | dict(X=values), compressed))
        assert [len(one) for one in found.series] == [10, 8, 12]
        np.testing.assert_array_equal(np.concatenate(found.series)[:, 0], X.reshape(30, 2)[:, 0])
        assert found.labels.tolist() == ["u", "v", "u"]


def test_padded_series_have_lengths(tmp_path, compressed):
    lengths = np.array([5, 4, 3, 2, 1, 5])
    found = read(stored(tmp_path / "a.npz", dict(X=X, lengths=lengths, y=Y), compressed))
    for one, own, length in zip(found.series, X, lengths, strict=True):
        np.testing.assert_array_equal(one, own[:length])


def test_parts_of_their_own(tmp_path, compressed):
    validation = dict(X_val=X[:1, :3, 0], y_val=Y[:1])
    found = read(stored(tmp_path / "a.npz", PARTED | validation, compressed))
    assert [part.tolist() for part in found.parts] == [[0, 1, 2, 3], [4], [5, 6]]
    assert [len(one) for one in found.series] == [5, 5, 5, 5, 3, 5, 5]
    assert found.labels.tolist() == [*Y[:4], Y[0], *Y[4:]]
    assert read(stored(tmp_path / "b.npz", PARTED)).parts.validation is None


def test_arrays_alone(tmp_path):
    np.save(tmp_path / "a.npy", X[..., 0])
    np.save(tmp_path / "y.npy", Y)
    found = read(tmp_path / "a.npy", Options(label="y.npy"))
    assert (len(found.series), found.series[0].shape, found.labels.tolist()) == (6, (5, 1), [*Y])
    assert read(tmp_path / "a.npy").labels is None
    one = read(tmp_path / "a.npy", Options(layout="long"))
    assert [own.shape for own in one.series] == [(6, 5)]


@pytest.mark.parametrize(
    ("arrays", "shape"),
    [(dict(X=X, y=Y), (5, 2)), (dict(X=X[..., 0], y=Y), (5, 1)), (PACKED, (10, 2)),
     (dict(X=np.asfortranarray(X), y=Y), (5, 2)), (dict(X=X.astype(">f8"), y=Y), (5, 2)),
     (dict(X=X, lengths=np.array([5, 4, 3, 2, 1, 5]), y=Y), (5, 2))],
    ids=["three axes", "two axes", "packed", "Fortran", "big-endian", "padded"],
)  # fmt: skip
def test_mapped_series_are_those_in_memory(tmp_path, monkeypatch, arrays, shape):
    path = stored(tmp_path / "a.npz", arrays)
    expected = read(path).series
    monkeypatch.setattr("parnl.learn.readers.mapped.MAPPED_FROM", 100)  # X is larger, y is not
    found = read(path).series
    assert isinstance(found, MappedSeries)
    assert found[0].shape == shape
    assert found.lengths.tolist() == [len(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found[1:3][1], expected[2])


def test_parts_that_are_mapped_cannot_be_joined(tmp_path, monkeypatch):
    monkeypatch.setattr("parnl.learn.readers.mapped.MAPPED_FROM", 0)
    with pytest.raises(ValueError, match="too large to join X_train and X_test; expected X, y and"):
        read(stored(tmp_path / "a.npz", PARTED))


def test_a_file_that_shrinks_while_it_is_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("parnl.learn.readers.mapped.MAPPED_FROM", 0)
    np.save(tmp_path / "a.npy", X)
    series = read(tmp_path / "a.npy").series
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a\.npy changed while it was read"):
        series[0]


def test_an_array_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr("parnl.learn.readers.mapped.MAPPED_FROM", 0)
    np.save(tmp_path / "a.npy", X)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"a.npy is cut short: \(6, 5, 2\) float32 need 240 bytes"):
        read(tmp_path / "a.npy")


def changed(value, *index):
    values = X.astype(np.asarray(value).dtype if np.iscomplexobj(value) else np.float64)
    values[index] = value
    return values


BROKEN = {
    "no arrays": ({}, "holds nothing; expected X and y"),
    "other arrays": (dict(a=X), "holds 'a'; expected X and y; X, lengths and y"),
    "another seed": (PUBLISHED | dict(val_0=None, val_3=np.array([1])), r"no .*val_0.*\[3\]"),
    "infinite": (PUBLISHED | dict(X=changed(np.inf, 2, 3, 1)), r"X\[2, 3, 1\]: got inf, expected"),
    "huge": (PUBLISHED | dict(X=changed(1e200, 4, 0, 0)), r"X\[4, 0, 0\]: got 1e\+200, expected"),
    "infinite, packed": (
        PACKED | dict(X=changed(-np.inf, 2, 3, 1).reshape(30, 2)),
        r"X\[13, 1\], step 3 of series 1: got -inf, expected a finite number",
    ),
    "complex": (PUBLISHED | dict(X=changed(1j, 0, 0, 0)), "X: got complex numbers .complex128"),
    "complex labels": (PUBLISHED | dict(y=np.zeros(6, complex)), "y: got complex numbers"),
    "text": (PUBLISHED | dict(X=X.astype(str)), "X: got an array of <U32, expected numbers"),
    "dates": (PUBLISHED | dict(X=X.astype("m8[s]")), "X: got an array of timedelta64"),
    "objects": (PUBLISHED | dict(X=X.astype(object)), "is not a file of plain arrays"),
    "indices as floats": (PUBLISHED | dict(val_0=np.array([1.0])), r"val_0: got float64 of shape "
                          r"\(1,\), expected integers"),
    "indices of two axes": (PUBLISHED | dict(test_0=np.array([[1]])), r"test_0: got int64 of shape "
                            r"\(1, 1\), expected integers"),
    "an index too high": (PUBLISHED | dict(test_0=np.array([6])), "test_0: got 6, expected indices "
                          "of splits below N = 6"),
    "a negative index": (PUBLISHED | dict(test_0=np.array([-1])), "test_0: got -1, expected"),
    "a mask too short": (PUBLISHED | dict(val_0=np.ones(5, bool)), r"val_0: got a mask of shape "
                         r"\(5,\), expected \(6,\) or indices"),
    "no series": (dict(X=X[:0], y=Y[:0]), r"X: got shape \(0, 5, 2\), expected at least one se"),
    "no steps": (dict(X=X[:, :0], y=Y), r"X: got shape \(6, 0, 2\), expected at least one st"),
    "no channels": (dict(X=X[..., :0], y=Y), r"X: got shape \(6, 5, 0\), expected .* one channel"),
    "four axes": (dict(X=X[..., None], y=Y), r"X: got shape \(6, 5, 2, 1\), expected \(N, T, ch"),
    "one axis": (dict(X=X[:, 0, 0], y=Y), r"X: got shape \(6,\), expected \(N, T, channels\) or"),
    "labels of another length": (dict(X=X, y=Y[:5]), r"y: got shape \(5,\), expected \(6,\): one"),
    "a length of 0": (PACKED | dict(lengths=np.array([10, 0, 20])), r"lengths\[1\]: got 0, "
                      "expected at least one step"),
    "lengths as floats": (PACKED | dict(lengths=np.array([10.0, 8, 12])), "lengths: got float64"),
    "lengths of another sum": (PACKED | dict(lengths=np.array([10, 8, 11])), "lengths: got a sum "
                               r"of 29 for X \(30, 2\)"),
    "labels of one part": (PARTED | dict(y_test=None), "has no y_test"),
    "parts of other channels": (PARTED | dict(X_test=X[4:]), "X_test: got 2 channels, expected 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(tmp_path, name):
    arrays, message = BROKEN[name]
    kept = {key: value for key, value in arrays.items() if value is not None}
    path = stored(tmp_path / "a.npz", kept)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"data: {path}")


def test_masks_are_splits(tmp_path):
    mask = np.arange(6) == 3
    found = read(stored(tmp_path / "a.npz", PUBLISHED | dict(val_0=mask)))
    assert found.parts.validation.tolist() == [3]


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4" + bytes(90), b"\x93NUMPY\1\0\xff\xff"])
@pytest.mark.parametrize("name", ["a.npz", "a.npy", "A.NPZ"])
def test_files_that_are_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"data: .*{name} is not a file of plain arrays"):
        read(tmp_path / name)


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}] * 3), allow_pickle=True)
    for limit in (2**28, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("parnl.learn.readers.mapped.MAPPED_FROM", limit)
            with pytest.raises(ValueError, match="is not a file of plain arrays"):
                read(tmp_path / "a.npy")
