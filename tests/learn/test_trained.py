"""A trained model answers for new files as it did for its own data."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from toy_runs import SMALL, toy, trained_on, walks

from parnl.learn import data, judging, tasks, trained, training

SETTINGS = [
    *("--blocks", "1", "--width", "6", "--state", "5", "--batch", "8", "--epochs", "3"),
    *("--lr", "0.02", "--patience", "9"),
]


def answers_to_all(table, tmp_path, **changes):
    """The answers to every series, by the trainer and by the model of its run, in one order."""
    dataset, trainer, model = trained_on(tmp_path, table, **changes)
    known = {}
    order = np.random.default_rng(5).permutation(len(table.columns))
    table.iloc[:, order].to_csv(tmp_path / "again.csv", index=False)  # columns in another order
    found = trained.answer(model, str(tmp_path / "again.csv"))
    assert found.ids == tuple(dict.fromkeys(table.walk))
    for part in (dataset.train, dataset.validation, dataset.test):
        own, _ = judging.evaluate(trainer, part, 16)
        for row, values in zip(np.asarray(part.inputs), own, strict=True):
            known[row.tobytes()] = values
    inputs = np.zeros((len(found.ids), *dataset.train.inputs.shape[1:]), np.float32)
    inputs[:, : found.split.inputs.shape[1]] = found.split.inputs
    return np.array([known[row.tobytes()] for row in inputs]), found, model


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"patch": 3}, {"missing": "mask"}, {"columns": ["x"]}, {"clock": "cell"}]
)
def test_new_files_are_prepared_as_the_training_data(times, changes, tmp_path):
    table = walks(times=times)
    if "clock" in changes and not times:
        with pytest.raises(ValueError, match="clock: got 'cell', but the data has no times"):
            answers_to_all(table, tmp_path, columns=["x"], **changes)
        return
    if "columns" not in changes:
        changes = {"columns": ["x", "y"], **changes}
    expected, found, _ = answers_to_all(table, tmp_path, **changes)
    np.testing.assert_allclose(found.values, expected, atol=2e-6)


def test_labels_may_be_missing_and_judge_where_they_are_not(tmp_path):
    table = walks()
    _, found, model = answers_to_all(table, tmp_path, columns=["x", "y"])
    kinds = table.groupby("walk", sort=False).kind.first()
    hits = np.mean([model.classes[k] for k in found.values.argmax(axis=1)] == kinds.to_numpy())
    assert trained.judge(model, found)["accuracy"] == pytest.approx(hits)
    table.drop(columns=["kind", "speed"]).to_csv(tmp_path / "new.csv", index=False)
    without = trained.answer(model, str(tmp_path / "new.csv"))
    np.testing.assert_array_equal(without.values, found.values)
    with pytest.raises(ValueError, match="data: expected labels to judge by"):
        trained.judge(model, without)
    shown = pd.DataFrame(trained.columns(model, without))
    assert list(shown) == ["series", "class", "probability rest", "probability run"]
    likely = shown[["probability rest", "probability run"]].to_numpy()
    np.testing.assert_allclose(likely.sum(axis=1), 1)
    assert (shown["class"] == np.array(model.classes)[likely.argmax(axis=1)]).all()


def test_numbers_come_back_on_their_own_scale(tmp_path):
    table = walks()
    expected, found, model = answers_to_all(
        table, tmp_path, task="regress", label="speed", columns=["x", "y"]
    )
    scale = tasks.Scale.of(data.load(
        str(tmp_path / "walks.csv"), id="walk", label="speed", columns=["x", "y"], task="regress",
        seed=model.config.seed,
    ).train.labels)  # fmt: skip
    np.testing.assert_allclose(found.values, expected * scale.deviation + scale.mean, rtol=1e-5)
    speeds = table.groupby("walk", sort=False).speed.first().to_numpy()
    error = np.mean(np.abs(found.values[:, 0] - speeds))
    assert trained.judge(model, found)["mae"] == pytest.approx(error, rel=1e-5)
    assert list(trained.columns(model, found)) == ["series", "value"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="x"), "'x'"),
        (lambda t: t.drop(columns="walk"), "'walk'"),
        (lambda t: t.drop(columns="t"), "'t'"),
        (lambda t: t.assign(kind="swim"), "got the label 'swim', expected one of rest, run"),
        (lambda t: t.assign(x="much"), "column 'x' holds text, expected numbers"),
    ],
)
def test_files_that_do_not_fit(change, message, tmp_path):
    *_, model = trained_on(tmp_path, walks(), columns=["x", "y"])
    change(walks()).to_csv(tmp_path / "new.csv", index=False)
    with pytest.raises(ValueError, match=message):
        trained.answer(model, str(tmp_path / "new.csv"))


@pytest.mark.parametrize("changes", [{"patch": 10**12}, {"patch": 2}])
def test_a_header_joins_no_more_steps_than_the_model_reads(changes, tmp_path):
    trained_on(tmp_path, walks(), columns=["x", "y"])
    path = tmp_path / "run" / training.MODEL
    arrays, header = training.read_checkpoint(path)
    header["config"] |= changes
    training.write_checkpoint(path, arrays, **header)
    with pytest.raises(ValueError, match=r"no model's \(3 channels, 3 prepared"):
        trained.load_model(path)


def test_a_run_without_a_preparation(tmp_path):
    training.fit(replace(SMALL, epochs=1), toy(count=8), tmp_path)
    model = trained.load_model(tmp_path / training.MODEL)
    with pytest.raises(ValueError, match="did not keep how its data was prepared"):
        trained.answer(model, "new.csv")


@pytest.mark.long
@pytest.mark.parametrize(
    ("backend", "suffix"),
    [("torch", "csv"), ("torch", "tsv"), ("torch", "parquet"), ("jax", "csv")],
)
def test_the_commands(parnl, tmp_path, backend, suffix):
    walks().to_csv(tmp_path / "walks.csv", index=False)
    told = ["--data", tmp_path / "walks.csv", "--id", "walk", "--label", "kind", "--time", "t"]
    told += ["--columns", "x,y", "--backend", backend]
    status, text = parnl("train", *told, *SETTINGS, "--out", tmp_path / "run")
    assert status == 0, text
    assert "f1" in text
    fresh = walks(seed=1)
    fresh.to_csv(tmp_path / "new.csv", index=False)
    status, text = parnl("evaluate", tmp_path / "run", "--data", tmp_path / "new.csv")
    assert status == 0, text
    assert "trained on" not in text
    shares = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    status, text = parnl("evaluate", tmp_path / "run", "--data", tmp_path / "walks.csv")
    assert "the model was trained on a part of this file" in text
    out = tmp_path / "answers" / f"out.{suffix}"
    fresh.drop(columns="kind").to_csv(tmp_path / "new.csv", index=False)
    other = "jax" if backend == "torch" else "torch"
    for framework in (backend, other) if suffix == "csv" else [backend]:
        status, text = parnl(
            "predict", tmp_path / "run", "--data", tmp_path / "new.csv", "--out", out,
            "--backend", framework,
        )  # fmt: skip
        assert status == 0, text
        assert "40 series to" in text
        read = {"csv": pd.read_csv, "parquet": pd.read_parquet}
        found = read.get(suffix, lambda f: pd.read_csv(f, sep="\t"))(out)
        assert found.series.tolist() == [f"w{i}" for i in range(40)]
        hits = np.mean(found["class"] == np.array(["rest", "run"] * 20))
        assert shares["accuracy"] == f"{hits:.1%}"


def test_mistakes_get_a_message(parnl, tmp_path):
    for arguments, message in (
        (["evaluate", tmp_path, "--data", "a.csv"], "there is no file"),
        (["predict", tmp_path, "--data", "a.csv", "--out", "a.xls"], "out: got a.xls, expected"),
        (["export", tmp_path, "--to", "c", "--out", tmp_path / "out"], "there is no file"),
    ):
        status, text = parnl(*arguments)
        assert (status, message in text, "Traceback" in text) == (1, True, False), text
