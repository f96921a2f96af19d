"""Exported models of later steps answer as the run's model does, from values as a file has them."""

import json

import numpy as np
import pandas as pd
import pytest
from toy_runs import PROGRAM, SMALL, answers_in_c

from parnl.export import runs
from parnl.learn import continued, trained, training

COUNT, CONTEXT = 90, 8


def table():
    """Two columns of numbers and one of names."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "x": 100 + 5 * np.sin(np.arange(COUNT) / 3), "y": rng.normal(-3, 0.2, COUNT),
        "kind": rng.choice(["a", "b"], COUNT),
    })  # fmt: skip


@pytest.fixture(params=["forecast", "next", "text"])
def run(request, tmp_path):
    """The folder of a run, values (N, T, channels) as a file has them, and the model's answers."""
    import torch

    task, made = request.param, table()
    data = tmp_path / ("a.txt" if task == "text" else "a.csv")
    if task == "text":
        data.write_text("to be or not to be, " * 20)
    else:
        made.to_csv(data, index=False)
    changes = dict(task="next" if task == "text" else task, context=CONTEXT, epochs=1, batch=8)
    if task == "forecast":
        changes |= dict(horizon=3, target=["y", "x"], standardise=True)
    config = training.Config(**(vars(SMALL) | changes | dict(data=str(data))))
    training.fit(config, training.dataset_of(config), tmp_path / "run")
    model = trained.load_run(tmp_path / "run")
    if task == "text":
        raw = np.random.default_rng(0).integers(97, 123, (3, CONTEXT))
        return tmp_path / "run", raw, model.trainer.predict(raw, None)[0]
    codes = np.stack([made.kind == "a", made.kind == "b"], axis=1)
    raw = np.concatenate([made[["x", "y"]], codes], axis=1).astype(np.float32)
    raw = np.stack([raw[:CONTEXT], raw[40 : 40 + CONTEXT]])
    expected = []
    for begin in (0, 40):
        made.iloc[begin : begin + CONTEXT].to_csv(tmp_path / "cut.csv", index=False)
        if task == "forecast":
            found = pd.DataFrame(continued.predicted(model, str(tmp_path / "cut.csv")))
            expected.append(found[["y", "x"]].to_numpy())
            continue
        steps = []
        for end in range(begin + 1, begin + CONTEXT + 1):
            rows = made.iloc[begin:end]
            rows.to_csv(tmp_path / "cut.csv", index=False)
            if rows.kind.nunique() < 2:  # the reader knows the names by what it finds
                steps.append([np.nan, np.nan])
                continue
            found = pd.DataFrame(continued.predicted(model, str(tmp_path / "cut.csv")))
            steps.append(found[["x", "y"]].to_numpy()[0])
        expected.append(steps)
    assert torch.is_grad_enabled()
    return tmp_path / "run", raw, np.array(expected)


def close(found, expected):
    real = ~np.isnan(expected)
    assert found.shape == expected.shape
    assert real.mean() > 0.6
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], rtol=2e-5, atol=2e-5)


@pytest.mark.long
def test_torch(run, tmp_path):
    import torch

    folder, raw, expected = run
    assert runs.write(folder, "torch", tmp_path / "out") == ["model.pt2", "model.json"]
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    close(program(torch.tensor(raw)), expected)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (about["context"], about["tokens"]) == (CONTEXT, 256 if raw.ndim == 2 else 0)


@pytest.mark.long
def test_onnx(run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    folder, raw, expected = run
    runs.write(folder, "onnx", tmp_path / "out")
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    close(session.run(None, {session.get_inputs()[0].name: raw})[0], expected)


def test_jax(run, tmp_path):
    export = pytest.importorskip("jax.export")
    pytest.importorskip("flatbuffers")
    folder, raw, expected = run
    runs.write(folder, "jax", tmp_path / "out")
    program = export.deserialize(bytearray((tmp_path / "out" / "model.jax").read_bytes()))
    close(program.call(raw.astype(np.int32) if raw.ndim == 2 else raw), expected)


FORECAST = """
#include <stdio.h>
#include "forecast.h"
int main(void)
{
    float series[%d * MODEL_INPUT_SIZE], answers[MODEL_OUTPUT_SIZE];
    while (fread(series, sizeof series, 1, stdin) == 1) {
        model_forecast(series, %d, answers);
        fwrite(answers, sizeof answers, 1, stdout);
    }
    return 0;
}
"""
TOKENS = """
#include <stdio.h>
#include "tokens.h"
int main(void)
{
    float logits[TOKENS_COUNT], token;
    model_state state;
    for (int t = 0; fread(&token, sizeof token, 1, stdin) == 1; t++) {
        if (t %% %d == 0)
            model_reset(&state);
        model_token(&state, (int)token, logits);
        fwrite(logits, sizeof logits, 1, stdout);
    }
    return 0;
}
"""


def test_c(run, tmp_path):
    folder, raw, expected = run
    out = tmp_path / "out"
    files = runs.write(folder, "c", out)
    if expected.shape[1] != raw.shape[1]:
        assert files == ["model.c", "model.h", "forecast.h", "forecast.c", "model.json"]
        program, more = FORECAST % (CONTEXT, CONTEXT), ["forecast.c"]
    elif raw.ndim == 2:
        assert files == ["model.c", "model.h", "tokens.h", "tokens.c", "model.json"]
        program, more = TOKENS % CONTEXT, ["tokens.c"]
    else:
        assert files == ["model.c", "model.h", "model.json"]
        program, more = PROGRAM % CONTEXT, []
    found = answers_in_c(out, raw.astype(np.float32), program, more)
    close(found.reshape(expected.shape), expected)
