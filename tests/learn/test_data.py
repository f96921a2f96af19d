"""Data sets: splits, padding, statistics, and files that are none."""

import aeon.datasets
import numpy as np
import pytest
from toy_runs import toy

from parnl.learn import data, splits


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
