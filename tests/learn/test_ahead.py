"""Windows of later steps, against loops over the table; texts; what is refused."""

import numpy as np
import pandas as pd
import pytest

from parnl.learn import ahead
from parnl.learn.readers import text


def table(count=60, seed=0, gaps=True):
    """One series: two columns of numbers, one with gaps, a column of names, regular times."""
    rng = np.random.default_rng(seed)
    made = pd.DataFrame({
        "date": pd.date_range("2024-03-01", periods=count, freq="h"),
        "x": rng.normal(5, 3, count).cumsum(),
        "y": rng.normal(-1, 0.1, count),
        "kind": rng.choice(["a", "b"], count),
    })  # fmt: skip
    if gaps:
        made.loc[[0, 7, 8, 30, 31, 32, 50], "y"] = np.nan
    return made


def written(tmp_path, made, name="series.csv"):
    made.to_csv(tmp_path / name, index=False)
    return str(tmp_path / name)


@pytest.mark.parametrize("targets", [None, ["y"]])
def test_forecast(targets, tmp_path):
    made = table()
    found = ahead.load(
        written(tmp_path, made), task="forecast", context=5, horizon=3, target=targets,
        validation=10, test=12,
    )  # fmt: skip
    own = targets or ["x", "y"]
    train = made.iloc[:38]  # of 60, without 10 and 12
    scaled = pd.DataFrame({c: (made[c] - train[c].mean()) / train[c].std(ddof=0) for c in "xy"})
    filled = scaled.ffill().fillna(0)  # nothing before it: the mean
    parts = {"train": (0, 38), "validation": (38, 48), "test": (48, 60)}
    for part, (begin, end) in parts.items():
        inputs, labels = [], []
        for first in range(60):  # the step after the last that is read
            if first < 5 or first < begin or first + 3 > end:
                continue
            change = scaled[own].iloc[first : first + 3] - filled[own].iloc[first - 1]
            if change.isna().all(axis=None):
                continue
            read = filled.iloc[first - 5 : first].copy()
            read[own] -= filled[own].iloc[first - 1]
            names = np.stack([made.kind == "a", made.kind == "b"], 1)[first - 5 : first]
            inputs.append(np.concatenate([read.to_numpy(), names], axis=1))
            labels.append(change.to_numpy().reshape(-1))
        split = getattr(found, part)
        assert split.lengths is None
        np.testing.assert_allclose(split.inputs[:], np.array(inputs), atol=1e-5)
        np.testing.assert_allclose(split.labels[:], np.array(labels), atol=1e-5)
        np.testing.assert_array_equal(split.labels[3], split.labels[:][3])
    assert np.isnan(found.train.labels[:]).any()
    assert (found.ahead.targets, found.ahead.answers) == (tuple(own), 3 * len(own))


def test_windows_of_which_nothing_is_known_are_left_out(tmp_path):
    made = table(gaps=False)[["x"]]
    made.loc[10:15, "x"] = np.nan
    found = ahead.load(written(tmp_path, made), task="forecast", context=4, horizon=3)
    assert not np.isnan(found.train.labels[:]).all(axis=1).any()
    # 60 steps: 12 to test, 10 to validate; the windows that begin at 10 to 13 know nothing
    assert len(found.train.inputs) == 38 - 3 - 4 + 1 - 4


def test_nothing_is_seen_before_its_time(tmp_path):
    """A value changes no input of an earlier step; means are those of the training part."""
    made = table()
    options = dict(task="forecast", context=5, horizon=2, validation=10, test=12)
    one = ahead.load(written(tmp_path, made), **options)
    made.loc[52:, ["x", "y"]] = made.loc[52:, ["x", "y"]] * 1.5 + 3
    other = ahead.load(written(tmp_path, made), **options)
    np.testing.assert_array_equal(one.train.inputs[:], other.train.inputs[:])
    np.testing.assert_array_equal(one.validation.inputs[:], other.validation.inputs[:])
    early = 52 - 48 + 1  # windows of the test part that end before step 52
    np.testing.assert_array_equal(one.test.inputs[:early], other.test.inputs[:early])
    assert (one.test.inputs[early:] != other.test.inputs[early:]).any()


def test_several_series_are_each_divided_in_time(tmp_path):
    made = pd.concat([table(30, k, False)[["x"]].assign(id=f"s{k}") for k in range(2)])
    found = ahead.load(
        written(tmp_path, made), task="forecast", context=4, horizon=1, validation=0.25, test=0.2
    )
    # 30 steps: 6 to test, a quarter of 24 to validate
    assert [len(p.inputs) for p in (found.train, found.validation, found.test)] == [28, 12, 12]
    for k in range(2):
        x = made[made.id == f"s{k}"].x.to_numpy()
        change = np.diff(x)[23:29] / found.preparation.deviation[0]
        np.testing.assert_allclose(found.test.labels[:][6 * k : 6 * k + 6, 0], change, atol=1e-5)


@pytest.mark.parametrize("task", ["forecast", "next"])
def test_a_file_to_train_on_and_one_to_test_on(task, tmp_path):
    """One series in each: the end of the first validates, the second tests."""
    train, test = table(40, 0, False)[["x"]], table(20, 1, False)[["x"]]
    written(tmp_path, test, "walk_TEST.csv")
    found = ahead.load(
        written(tmp_path, train, "walk_TRAIN.csv"), task=task, context=4, validation=10,
        horizon=1 if task == "forecast" else None,
    )  # fmt: skip
    scale = found.preparation
    assert scale.mean[0] == pytest.approx(train.x[:30].mean())
    count = {"forecast": (26, 10, 16), "next": (7, 3, 5)}[task]
    assert tuple(len(p.inputs) for p in (found.train, found.validation, found.test)) == count
    steps = ((test.x - scale.mean[0]) / scale.deviation[0]).to_numpy()
    last = found.test.labels[:][-1]
    if task == "forecast":
        np.testing.assert_allclose(last, steps[[19]] - steps[18], atol=1e-5)
    else:
        np.testing.assert_allclose(last[: found.test.lengths[-1], 0], steps[17:], atol=1e-5)


def test_next_of_numbers(tmp_path):
    """Series of unequal lengths, whole ones for each part; dt is a channel, no target."""
    rng, rows = np.random.default_rng(0), []
    for i in range(10):
        for t in np.cumsum(rng.uniform(0.5, 2, 9 + i)):
            rows.append(dict(id=i, t=t, x=rng.normal(), y=rng.normal()))
    made = pd.DataFrame(rows)
    found = ahead.load(written(tmp_path, made), task="next", context=4, validation=2, test=3)
    prepared = found.preparation
    mean, deviation = np.array(prepared.mean), np.array(prepared.deviation)
    seen, steps = {}, 0
    for part, split in (("train", found.train), ("test", found.test)):
        whole = split.lengths if split.lengths is not None else np.full(len(split.labels), 4)
        for inputs, labels, length in zip(split.inputs[:], split.labels[:], whole, strict=True):
            assert inputs.shape == (4, 3)
            assert labels.shape == (4, 2)
            np.testing.assert_array_equal(inputs[1:length, :2], labels[: length - 1])
            assert not inputs[length:].any()
            first = (inputs[0, :2] * deviation + mean).round(4).tolist()
            where = np.flatnonzero((made[["x", "y"]].round(4) == first).all(axis=1))
            assert len(where) == 1 or np.isclose(made.x[where[0]], first[0], atol=1e-3)
            seen.setdefault(part, set()).add(int(made.id[where[0]]))
            steps += length * (part == "test")
    assert len(seen["train"]) == 5
    assert len(seen["test"]) == 3
    assert not seen["train"] & seen["test"]
    assert steps == sum((made.id == i).sum() - 1 for i in seen["test"])  # none is lost to test


def test_text(tmp_path):
    words = bytes(np.random.default_rng(0).integers(32, 120, 1000, dtype=np.uint8))
    (tmp_path / "a.txt").write_bytes(words)
    found = ahead.load(str(tmp_path / "a.txt"), task="next", context=16, validation=100, test=0.2)
    assert found.ahead == ahead.Ahead(16, 1, (), 256, True)
    for split, part in ((found.train, words[:700]), (found.test, words[800:])):
        whole = np.full(len(split.labels), 16) if split.lengths is None else split.lengths
        read, told = (
            b"".join(bytes(row[:n].tolist()) for row, n in zip(rows[:], whole, strict=True))
            for rows in (split.inputs, split.labels)
        )
        assert part.startswith(read[:1])
        assert part[: len(read)] == read
        assert part[1 : len(told) + 1] == told
    assert found.train.lengths is None  # the rest of 699 steps is left out
    assert found.test.lengths.sum() == 199
    assert found.train.inputs.dtype == np.int64


@pytest.mark.parametrize("held", [True, False])
def test_tokens_of_npz(held, tmp_path):
    rng = np.random.default_rng(0)
    parts = dict(train=rng.integers(0, 1000, 300), test=rng.integers(0, 1000, 60))
    if held:
        parts["valid"] = rng.integers(0, 1000, 50)
    np.savez(tmp_path / "t.npz", **parts)
    found = ahead.load(str(tmp_path / "t.npz"), task="next", context=10)
    largest = max(int(part.max()) for part in parts.values())
    assert (found.ahead.tokens, found.ahead.bytes_) == (largest + 1, False)
    trained = parts["train"] if held else parts["train"][:240]
    np.testing.assert_array_equal(
        found.train.inputs[:].reshape(-1), trained[: found.train.inputs.shape[0] * 10]
    )
    np.testing.assert_array_equal(found.test.labels[:].reshape(-1)[:59], parts["test"][1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(missing="interpolate"), "missing: got 'interpolate', which looks at later steps"),
        (dict(target=["z"]), "target: got 'z', expected columns of numbers, each once, of 'x', "),
        (dict(target=["kind"]), "target: got 'kind', expected columns of numbers"),
        (dict(target=["x", "x"]), "target: got 'x', 'x', expected columns of numbers, each once"),
        (dict(context=50), "the train part has no 50 steps with 3 after them"),
        (dict(validation=2), "the validation part has no 5 steps with 3 after them"),
        (dict(validation=30, test=30), "got 30 steps to validate and 30 to test, expected fewer"),
        (dict(columns=["z"]), "columns: there is no column 'z'"),
        (dict(columns=["kind"]), "target: got columns of text alone, expected one of numbers"),
    ],
)
def test_what_cannot_be_forecast(options, message, tmp_path):
    usual = dict(task="forecast", context=5, horizon=3)
    with pytest.raises(ValueError, match=message):
        ahead.load(written(tmp_path, table()), **(usual | options))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (dict(train=np.zeros((3, 4), int)), r"train: got int64 of shape \(3, 4\), expected int"),
        (dict(train=np.ones(9)), "train: got float64 of shape"),
        (dict(train=-np.ones(9, int)), "train: got no tokens or negative ones"),
        (dict(train=np.zeros(0, int)), "train: got no tokens or negative ones"),
        (dict(train=np.full(9, 2**40)), "tokens: got numbers up to 1099511627776"),
        (dict(y=np.ones(9)), "'y': got arrays, expected train, valid and test alone"),
        (dict(train=np.array([1, {}], object)), "is not a file of plain arrays"),
    ],
)
def test_texts_that_are_none(arrays, message, tmp_path):
    usual = dict(train=np.arange(90), test=np.arange(90))
    np.savez(tmp_path / "t.npz", **(usual | arrays))
    with pytest.raises(ValueError, match=f"data: .*t.npz.*{message}"):
        ahead.load(str(tmp_path / "t.npz"), task="next", context=4)


@pytest.mark.parametrize(
    "option",
    [
        dict(target=["x"]), dict(id="x"), dict(time="t"), dict(columns=["x"]), dict(missing="mean"),
        dict(layout="long"), dict(standardise=False),
    ],
)  # fmt: skip
def test_options_that_a_text_has_no_use_for(option, tmp_path):
    (tmp_path / "a.txt").write_text("abc" * 99)
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}: got .*, expected none for a text"):
        ahead.load(str(tmp_path / "a.txt"), task="next", context=4, **option)


def test_an_empty_text(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"data: .*a.txt: the file: got no bytes"):
        ahead.load(str(tmp_path / "a.txt"), task="next")
    with pytest.raises(FileNotFoundError, match=r"data: there is no file .*b.txt"):
        ahead.load(str(tmp_path / "b.txt"), task="next")
    assert not text.is_text(tmp_path / "b.txt", ())


def test_a_file_from_a_stranger_names_no_other_sizes():
    held = ahead.Ahead(4, 2, ("x",))._asdict()
    assert ahead.Ahead.checked(held | {"targets": ["x"]}) == ahead.Ahead(4, 2, ("x",))
    for change in (
        dict(context=0), dict(horizon=1.5), dict(tokens=-1), dict(tokens=2**40, targets=[]),
        dict(targets=[]), dict(tokens=5), dict(bytes_=1), dict(context=True),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"context|expected"):
            ahead.Ahead.checked(held | change)
