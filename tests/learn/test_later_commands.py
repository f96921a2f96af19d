"""The command line from a table of a user's to forecasts, and from a text to more of it."""

import json

import numpy as np
import pandas as pd
import pytest
from toy_runs import BACKENDS, waves

SMALL = [
    *("--blocks", 1, "--width", 6, "--state", 5, "--batch", 16, "--epochs", 2, "--lr", 0.02),
]


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_forecast(parnl, tmp_path, backend):
    waves().to_csv(tmp_path / "waves.csv", index=False)
    folder = tmp_path / "run"
    told = ["--task", "forecast", "--data", tmp_path / "waves.csv", "--backend", backend]
    told += ["--context", 12, "--horizon", 4, "--validation", 40, "--test", 40]
    status, text = parnl("train", *told, *SMALL, "--out", folder)
    assert status == 0, text
    assert "105 windows to train on, 37 to validate, 37 to test; 2 channels, 12 steps" in text
    assert "12 steps are read, the next 4 steps of 'x', 'y' learned" in text
    assert "test mse" in text
    assert "persistence" in text
    status, text = parnl("evaluate", folder, "--data", tmp_path / "waves.csv")
    assert (status, "185 windows" in text, "persistence" in text) == (0, True, True), text
    out = tmp_path / "out.csv"
    status, text = parnl("predict", folder, "--data", tmp_path / "waves.csv", "--out", out)
    assert (status, "4 steps to" in text) == (0, True), text
    found = pd.read_csv(out)
    assert list(found) == ["series", "step", "time", "x", "y"]
    assert found.time[0] == "2024-03-09 08:00:00"
    status, text = parnl("export", folder, "--to", "onnx", "--out", tmp_path / "onnx")
    assert status == 0, text
    assert json.loads((tmp_path / "onnx" / "model.json").read_text())["horizon"] == 4
    status, text = parnl("report", folder)
    assert status == 0, text
    page = (folder / "report.html").read_text()
    assert "Error by step ahead" in page
    assert "--validation 40 --test 40 --context 12 --horizon 4" in page
    status, text = parnl("evaluate", folder, "--data", tmp_path / "waves.csv", "--label", "x")
    assert (status, "label: got 'x', expected none" in text) == (1, True)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_next(parnl, tmp_path, backend):
    (tmp_path / "a.txt").write_text("the cat sat on the mat and " * 30)
    folder = tmp_path / "run"
    told = ["--task", "next", "--data", tmp_path / "a.txt", "--backend", backend, "--context", 16]
    status, text = parnl("train", *told, *SMALL, "--out", folder)
    assert status == 0, text
    assert "a step is a byte; steps: 518 to train on, 130 to validate, 162 to test" in text
    assert "test bits" in text
    for name in BACKENDS:
        status, text = parnl(
            "generate", folder, "--prompt", "the cat", "--steps", 9, "--backend", name
        )
        assert (status, text.startswith("the cat")) == (0, True), text
    out = tmp_path / "more.txt"
    status, text = parnl("generate", folder, "--prompt", "the cat", "--steps", 9, "--out", out)
    assert (status, len(out.read_bytes())) == (0, 16), text
    status, text = parnl("evaluate", folder, "--data", tmp_path / "a.txt")
    assert (status, "51 windows" in text, "bits" in text) == (0, True, True), text
    status, text = parnl("report", folder)
    assert (status, "bits per byte" in (folder / "report.html").read_text()) == (0, True), text
    for arguments, message in (
        (["predict", folder, "--data", "a.csv", "--out", "b.csv"], "model: got a text model"),
        (["generate", folder, "--prompt", ""], "prompt: got no bytes"),
        (["generate", folder, "--steps", 0], "steps: got 0, expected at least 1"),
        (["generate", folder, "--temperature", -1], "temperature: got -1.0"),
    ):
        status, text = parnl(*arguments)
        assert (status, message in text) == (1, True), text


@pytest.mark.long
def test_series_go_on(parnl, tmp_path):
    waves().drop(columns="date").to_csv(tmp_path / "waves.csv", index=False)
    folder, out = tmp_path / "run", tmp_path / "out.parquet"
    told = ["--task", "next", "--data", tmp_path / "waves.csv", "--context", 16]
    assert parnl("train", *told, *SMALL, "--out", folder)[0] == 0
    data = ["--data", tmp_path / "waves.csv"]
    status, text = parnl("generate", folder, *data, "--steps", 3, "--out", out)
    assert (status, "3 steps to" in text) == (0, True), text
    found = pd.read_parquet(out)
    assert np.isfinite(found[["x", "y"]].to_numpy()).all()
    status, text = parnl("generate", folder, *data, "--out", out, "--prompt", "a")
    assert (status, "prompt: got 'a', expected none where --data" in text) == (1, True), text
    status, text = parnl("generate", folder, *data)
    assert (status, "out: expected a name that ends in .csv" in text) == (1, True), text
    status, text = parnl("report", folder)
    assert (status, "Next steps" in (folder / "report.html").read_text()) == (0, True), text
