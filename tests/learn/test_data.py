"""Data sets: splits, padding, statistics, and files that are none."""

import aeon.datasets
import numpy as np
import pytest
from toy_runs import toy

from parnl.learn import data, readers, splits


def test_japanese_vowels_is_padded_split_and_standardised():
    dataset = data.load("JapaneseVowels", seed=3)
    assert dataset.classes == tuple("123456789")
    assert dataset.train.inputs.shape == (216, 29, 12)
    assert dataset.validation.inputs.shape == (54, 29, 12)
    assert dataset.test.inputs.shape == (370, 29, 12)
    assert np.bincount(dataset.validation.labels).tolist() == [6] * 9
    for part in (dataset.train, dataset.validation, dataset.test):
        assert (part.inputs.dtype, part.labels.dtype) == (np.float32, np.int64)
        padding = np.arange(29) >= part.lengths[:, None]
        assert (part.inputs[padding] == 0).all()
        assert (part.inputs[~padding] != 0).all()
    real = dataset.train.inputs[np.arange(29) < dataset.train.lengths[:, None]]
    np.testing.assert_allclose(real.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(real.std(axis=0), 1, atol=1e-5)


def test_every_training_series_is_kept_or_held_once():
    published, _ = aeon.datasets.load_classification("JapaneseVowels", split="train")
    dataset = data.load("JapaneseVowels", seed=1)
    lengths = np.concatenate([dataset.train.lengths, dataset.validation.lengths])
    assert sorted(lengths) == sorted(one.shape[1] for one in published)
    again, other = data.load("JapaneseVowels", seed=1), data.load("JapaneseVowels", seed=2)
    np.testing.assert_array_equal(again.train.inputs, dataset.train.inputs)
    assert not np.array_equal(other.train.lengths, dataset.train.lengths)


def test_statistics_come_from_the_training_part_alone(monkeypatch):
    rng = np.random.default_rng(0)
    known = rng.normal(5, 3, size=(10, 2, 7))
    known[:, 1] = 4.0  # constant
    known[2, 0, 3] = np.nan
    far = np.full((4, 2, 7), 1e6)

    def load_classification(name, split, **options):
        return (
            (known, np.array(list("ab" * 5))) if split == "train" else (far, np.array(list("abab")))
        )

    monkeypatch.setattr(aeon.datasets, "load_classification", load_classification)
    dataset = data.load("made up")
    assert dataset.train.lengths is None
    both = np.concatenate([dataset.train.inputs, dataset.validation.inputs])
    assert np.count_nonzero(both[..., 0] == 0) == 1  # the missing value became the mean
    assert (both[..., 1] == 0).all()
    kept = dataset.train.inputs[..., 0]
    np.testing.assert_allclose([kept.mean(), kept[kept != 0].std()], [0, 1], atol=1e-5)
    assert dataset.test.inputs.min() > 1e5
    as_they_are = data.load("made up", standardise=False)
    both = np.concatenate([as_they_are.train.inputs, as_they_are.validation.inputs])
    assert set(known[~np.isnan(known)].astype(np.float32)) <= set(both.ravel())
    assert (as_they_are.test.inputs == 1e6).all()
    (missing,) = set(both.ravel()) - set(known.astype(np.float32).ravel())
    assert abs(missing - as_they_are.train.inputs[..., 0].mean()) < 0.5  # that of the channel


def npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = dict(
        X=rng.normal(3, 2, size=(9, 5, 3)).astype(np.float32),
        y=np.array([0, 1, 2] * 3, np.int8),
        val_7=np.array([1, 3]),
        test_7=np.array([0, 8]),
    )
    arrays |= changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return arrays


def test_a_file_brings_its_own_splits(tmp_path):
    arrays = npz(tmp_path / "own.npz")
    dataset = data.load(str(tmp_path / "own.npz"), seed=7, channels=[2, 0])
    assert (dataset.name, dataset.classes) == ("own", ("0", "1", "2"))
    rest = [2, 4, 5, 6, 7]
    for part, rows in zip(dataset[2:5], (rest, [1, 3], [0, 8]), strict=True):
        np.testing.assert_array_equal(part.labels, arrays["y"][rows])
        assert part.lengths is None
    train_x = arrays["X"][rest][..., [2, 0]].astype(np.float64)
    mean, deviation = train_x.mean(axis=(0, 1)), train_x.std(axis=(0, 1))
    expected = (arrays["X"][[0, 8]][..., [2, 0]] - mean) / deviation
    np.testing.assert_allclose(dataset.test.inputs, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(val_7=None), r"no X, y, val_7 and test_7; it has splits for \[\]"),
        (dict(y=np.zeros(4)), r"X \(9, 5, 3\) and y \(4,\)"),
        (dict(X=np.zeros((9, 5))), r"X \(9, 5\)"),
        (dict(test_7=np.array([0, 9])), "indices of splits below N"),
        (dict(y=np.array([{}] * 9)), "not a file of plain arrays"),
    ],
)
def test_files_that_are_no_data_set(tmp_path, changes, message):
    npz(tmp_path / "own.npz", **changes)
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path / "own.npz"), seed=7)


def test_files_that_are_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        data.load(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match="not a file of plain arrays"):
        data.load(str(tmp_path / "text.npz"))


def test_pooled_parts_are_split_anew():
    published = data.load("JapaneseVowels")
    parts = [data.load("JapaneseVowels", seed=seed, pooled=True) for seed in (1, 1, 2)]
    count = sum(len(part.labels) for part in published[2:5])
    for found in parts:
        assert sum(len(part.labels) for part in found[2:5]) == count
        for part in (found.validation, found.test):
            assert abs(len(part.labels) / count - 0.15) < 0.01
            assert np.bincount(part.labels, minlength=9).min() > 0
        labels = np.concatenate([part.labels for part in found[2:5]])
        everything = np.concatenate([part.labels for part in published[2:5]])
        np.testing.assert_array_equal(np.bincount(labels), np.bincount(everything))
    np.testing.assert_array_equal(parts[0].test.inputs, parts[1].test.inputs)
    assert not np.array_equal(parts[0].test.lengths, parts[2].test.lengths)


def test_patches_join_steps():
    dataset = toy(channels=2, steps=7, count=4)
    found = data.patched(dataset, 3)
    for before, after in zip(dataset[2:5], found[2:5], strict=True):
        assert after.inputs.shape == (len(before.labels), 3, 6)
        np.testing.assert_array_equal(after.inputs[:, 1, 2:4], before.inputs[:, 4])
        np.testing.assert_array_equal(after.inputs[:, 2, :2], before.inputs[:, 6])
        assert (after.inputs[:, 2, 2:] == 0).all()
        np.testing.assert_array_equal(after.lengths, np.ceil(before.lengths / 3))
    with pytest.raises(ValueError, match="patch: got 0"):
        data.patched(dataset, 0)


def test_a_class_with_one_series_is_never_held():
    labels = np.array([0] * 10 + [1])
    kept, held = splits.stratify(labels, 0.2, seed=0)
    assert 10 in kept
    assert len(held) == 2
    assert sorted([*kept, *held]) == list(range(11))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("JapanesVowels", "did you mean 'JapaneseVowels'"),
        ("Nonsense", "aeon ships ACSF1,.*UnitTest"),
        ("Covid3Month", "regression"),
    ],
)
def test_data_that_aeon_cannot_load(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


KINDS = ("run", "rest")
CSV = "walk,t,x,y,kind\n" + "".join(
    f"w{i},{step},{i % 2 * 5 + step / 7},{'' if (i, step) == (3, 2) else i},{KINDS[i % 2]}\n"
    for i in range(20)
    for step in range(3 + i % 3)
)


def csv(tmp_path, text=CSV):
    (tmp_path / "walks.csv").write_text(text)
    return str(tmp_path / "walks.csv")


def test_a_table_is_split_by_class_and_padded(tmp_path):
    dataset = data.load(csv(tmp_path), id="walk", label="kind", validation=0.25, test=0.2)
    assert (dataset.name, dataset.classes) == ("walks", ("rest", "run"))
    assert [len(part.labels) for part in dataset[2:5]] == [12, 4, 4]
    assert [np.bincount(part.labels).tolist() for part in dataset[2:5]] == [[6, 6], [2, 2], [2, 2]]
    assert dataset.train.inputs.shape == (12, 5, 2)
    assert {*dataset.train.lengths} <= {3, 4, 5}
    assert dataset.train.dt is None
    assert dataset.preparation.channels == ("x", "y")
    assert "1 of 158 values are missing: interpolated" in dataset.notes
    assert "the times are regular: dt is not used" in dataset.notes
    other = data.load(csv(tmp_path), id="walk", label="kind", seed=1)
    assert not np.array_equal(other.test.lengths, dataset.test.lengths)
    (one,) = {part.inputs.shape[2] for part in data.load(csv(tmp_path), id="walk", label="kind",
                                                         channels=[1])[2:5]}  # fmt: skip
    assert one == 1


def test_new_data_goes_the_same_way(tmp_path):
    dataset = data.load(csv(tmp_path), id="walk", label="kind", columns=["y", "x"])
    options = readers.Options(id="walk", label="kind")
    split = data.prepared(
        readers.read(csv(tmp_path), options), dataset.preparation, dataset.classes
    )
    assert len(split.labels) == 20
    for part in dataset[2:5]:
        for own, length, label in zip(part.inputs, part.lengths, part.labels, strict=True):
            same = (split.inputs == own).all(axis=(1, 2)) & (split.lengths == length)
            assert split.labels[same].tolist() == [label]
    bare = CSV.replace(",kind\n", "\n").replace(",run\n", "\n").replace(",rest\n", "\n")
    found = readers.read(csv(tmp_path, bare), readers.Options(id="walk"))
    again = data.prepared(found, dataset.preparation, dataset.classes)
    np.testing.assert_array_equal(again.inputs, split.inputs)
    assert (again.labels == -1).all()


def test_irregular_times_become_dt_and_a_channel(tmp_path):
    text = CSV.replace("w7,1,", "w7,1.5,")
    dataset = data.load(csv(tmp_path, text), id="walk", label="kind")
    dts = np.concatenate([part.dt for part in dataset[2:5]])
    assert sorted({*dts.ravel()}) == [0.5, 1, 1.5]
    timed = data.timed(dataset)
    for part, before in zip(timed[2:5], dataset[2:5], strict=True):
        assert part.dt is None
        real = np.arange(5) < part.lengths[:, None]
        np.testing.assert_array_equal(part.inputs[..., 2], np.where(real, before.dt, 0))
    assert timed.notes[-1] == "dt is one more channel of the model's inputs"
    joined = data.patched(dataset, 2)
    assert joined.train.dt.shape == joined.train.inputs.shape[:2]
    np.testing.assert_allclose(joined.train.dt[:, 0], dataset.train.dt[:, :2].mean(axis=1))
    regular = data.load(csv(tmp_path), id="walk", label="kind")
    assert data.timed(regular) is regular


def test_targets(tmp_path):
    text = CSV.replace(",run\n", ",0.5\n").replace(",rest\n", ",-2\n")
    dataset = data.load(csv(tmp_path, text), id="walk", label="kind", task="regress")
    assert dataset.classes == ()
    assert {*dataset.train.labels[:, 0]} == {np.float32(0.5), np.float32(-2)}
    assert dataset.train.labels.shape == (13, 1)
    assert dataset.train.labels.dtype == np.float32
    assert [len(part.labels) for part in dataset[2:5]] == [13, 3, 4]
    with pytest.raises(ValueError, match=r"line 2, column 'kind': got the label 0\.5, expected"):
        data.load(csv(tmp_path, text), id="walk", label="kind")


def test_parts_of_files_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("TRAIN", 10), ("TEST", 6)):
        rows = [f"{i % 2},{','.join(map(str, rng.normal(size=4)))}\n" for i in range(count)]
        (tmp_path / f"A_{part}.tsv").write_text("".join(rows).replace(",", "\t"))
    dataset = data.load(str(tmp_path / "A_TRAIN.tsv"), label="1")
    assert [len(part.labels) for part in dataset[2:5]] == [8, 2, 6]
    pooled = data.load(str(tmp_path / "A_TRAIN.tsv"), label="1", pooled=True)
    assert [len(part.labels) for part in pooled[2:5]] == [12, 2, 2]


def test_splits_by_seed_are_kept_when_pooled(tmp_path):
    npz(tmp_path / "own.npz")
    found = data.load(str(tmp_path / "own.npz"), seed=7, pooled=True)
    assert [len(part.labels) for part in found[2:5]] == [5, 2, 2]


def test_a_class_without_training_series_is_said(tmp_path):
    npz(tmp_path / "own.npz", y=np.array([0, 1, 1, 1, 1, 1, 1, 1, 2]))
    assert data.load(str(tmp_path / "own.npz"), seed=7).notes == (
        "no training series has the class '0', '2'",
    )


BROKEN = {
    "overlap": (dict(val_7=np.array([0, 1])), {}, "validation and test parts overlap: they sha"),
    "a repeated index": (dict(val_7=np.array([1, 1])), {}, "validation part repeats the series"),
    "no validation": (dict(val_7=np.array([], int)), {}, "validation part has no series"),
    "no test": (dict(test_7=np.array([], int)), {}, "the test part has no series"),
    "floats": (dict(test_7=np.array([0.0])), {}, "test_7: got float64"),
    "infinite": (dict(X=np.full((9, 5, 3), np.inf)), {}, r"X\[0, 0, 0\]: got inf"),
    "complex": (dict(X=np.ones((9, 5, 3), complex)), {}, "X: got complex numbers"),
    "huge": (dict(X=np.full((9, 5, 3), 1e200)), {}, r"X\[0, 0, 0\]: got 1e\+200"),
    "fractions": (dict(y=np.arange(9) / 2), {}, r"y\[1\]: got the label 0.5, expected a class"),
    "NaN": (dict(y=np.full(9, np.nan)), {}, r"y\[0\]: got the label nan, expected a class"),
    "one class": (dict(y=np.ones(9, int)), {}, "all labels are '1', expected at least two classes"),
    "no channel 3": ({}, dict(channels=[3]), "channels: got 3, expected indices at least 0 and"),
    "no channel -1": ({}, dict(channels=[-1]), "channels: got -1, expected indices at least 0"),
    "half a channel": ({}, dict(channels=[0.5]), "channels: got 0.5, expected indices"),
    "a channel twice": ({}, dict(channels=[0, 0]), "channels: got '0', '0', expected one or more"),
    "no channels": ({}, dict(channels=[]), "channels: got none, expected one or more"),
    "no column": ({}, dict(columns=["z"]), "columns: got 'z', expected among '0', '1', '2'"),
    "an id": ({}, dict(id="z"), "id: a .npz file has no named columns"),
    "empty": (dict(X=np.full((9, 5, 3), np.nan)), {}, "columns '0', '1', '2' have no value in any"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(tmp_path, name):
    arrays, options, message = BROKEN[name]
    npz(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(str(tmp_path / "own.npz"), seed=7, **options)
    assert str(caught.value).startswith(f"data: {tmp_path / 'own.npz'}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(task="guess"), "task: got 'guess', expected 'classify' or 'regress'"),
        (dict(task="next"), "task: got 'next', expected 'classify' or 'regress'"),
        (dict(test=1.0), "test: got 1.0, expected a share between 0 and 1"),
        (
            dict(missing="guess"),
            "missing: got 'guess', expected 'interpolate', 'previous', 'mask', 'mean'",
        ),
        (dict(time="t"), "data: UnitTest: time: aeon's data sets have no named columns"),
        (dict(channels=[0], columns=["0"]), "channels: got columns as well, expected one of them"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        data.load("UnitTest", **options)


def test_a_patch_is_no_longer_than_the_series():
    dataset = toy(steps=7, count=4)
    assert data.patched(dataset, 7).train.inputs.shape[1] == 1
    with pytest.raises(ValueError, match="patch: got 8, expected at most 7, the steps of a series"):
        data.patched(dataset, 8)
