"""What `parnl export` writes answers as the run's model does, from values as a file has them."""

import json

import numpy as np
import pytest
from toy_runs import answers_in_c, trained_on, walks

from parnl.export import runs
from parnl.learn import trained, training

KINDS = {
    "classes": {},
    "numbers": {"task": "regress", "label": "speed"},
    "names": {"columns": ["x", "mood"]},
    "raw": {"standardise": False},
    "clock": {"cell": "ltc", "clock": "cell"},
}


def series():
    """Tables of whole series: of one length, without gaps, at irregular times."""
    table = walks(steps=(9, 10)).fillna(0.5)
    return table.assign(mood=np.where(table.x > 1, "good", "bad"))


@pytest.fixture(params=KINDS)
def run(request, tmp_path):
    """The folder of a run, what the file holds as numbers (N, T, channels), and the answers."""
    table = series()
    changes = {"columns": ["x", "y"], **KINDS[request.param]}
    *_, model = trained_on(tmp_path, table, **changes)
    found = trained.answer(model, str(tmp_path / "walks.csv"))
    columns = [table.x]
    if "mood" in changes["columns"]:
        columns += [table.mood == "bad", table.mood == "good"]
    else:
        columns += [table.y]
    raw = np.stack(columns, axis=1).astype(np.float32).reshape(40, 9, -1)
    times = table.t.to_numpy().reshape(40, 9)
    dt = np.diff(times, axis=1, prepend=np.nan) / model.preparation.time_step
    dt[:, 0] = 1
    return (
        tmp_path / "run",
        np.concatenate([raw, dt[..., None].astype(np.float32)], 2),
        found.values,
    )


def test_torch(run, tmp_path):
    torch = pytest.importorskip("torch")
    folder, raw, expected = run
    assert runs.write(folder, "torch", tmp_path / "out") == ["model.pt2", "model.json"]
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    np.testing.assert_allclose(program(torch.tensor(raw)), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.long
def test_onnx(run, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    folder, raw, expected = run
    runs.write(folder, "onnx", tmp_path / "out")
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: raw})
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.long
def test_jax(run, tmp_path):
    export = pytest.importorskip("jax.export")
    pytest.importorskip("flatbuffers")
    folder, raw, expected = run
    runs.write(folder, "jax", tmp_path / "out")
    program = export.deserialize(bytearray((tmp_path / "out" / "model.jax").read_bytes()))
    np.testing.assert_allclose(program.call(raw), expected, rtol=2e-5, atol=2e-5)


def test_c(run, tmp_path):
    folder, raw, expected = run
    runs.write(folder, "c", tmp_path / "out")
    found = answers_in_c(tmp_path / "out", raw)[:, -1]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_what_is_read_is_told(run, tmp_path):
    folder, raw, _ = run
    runs.write(folder, "c", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert len(about["channels"]) == raw.shape[2]
    assert about["channels"][0] == "x"
    assert about["channels"][-1].startswith("dt in ")
    assert about["classes"] == (["rest", "run"] if about["task"] == "classify" else [])
    assert about["answers"] == ("logits" if about["task"] == "classify" else "numbers")
    # dt as a reader of model.json makes it from the file's times
    times = series().t.to_numpy().reshape(40, 9)
    dt = np.diff(times, axis=1, prepend=0.0) / about["dt"]["unit"]
    dt[:, 0] = about["dt"]["first"]
    np.testing.assert_allclose(raw[..., -1], dt, rtol=1e-6)


@pytest.mark.parametrize(
    ("to", "message"), [("c", "patch: the model reads 3 steps"), ("xls", "to: got 'xls'")]
)
def test_mistakes(tmp_path, to, message):
    trained_on(tmp_path, series(), columns=["x", "y"], patch=3)
    with pytest.raises(ValueError, match=message):
        runs.write(tmp_path / "run", to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "run" / training.MODEL).exists()
