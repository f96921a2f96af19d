"""Checkpoints of runs and the models that are read from them."""

from dataclasses import replace

import numpy as np
import pytest
from toy_runs import SMALL, toy

from parnl.learn import trained, training


def test_a_trained_model_is_read_by_either_framework(tmp_path):
    dataset = toy(count=8)
    trainer = training.fit(replace(SMALL, epochs=1), dataset, tmp_path).trainer
    expected, _ = trainer.predict(*dataset.test[::2])
    for changes, tolerance in (({}, 0), ({"backend": "jax"}, 5e-6)):
        model = trained.load_model(tmp_path / training.MODEL, **changes)
        found, _ = model.trainer.predict(*dataset.test[::2])
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        assert model.classes == ("0", "1", "2")
    with pytest.raises(ValueError, match=f"expected the {training.MODEL} of a run"):
        trained.load_model(tmp_path / training.CHECKPOINT)
    with pytest.raises(ValueError, match="the model expects float32"):
        trained.load_model(tmp_path / training.MODEL, state=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(config=dict(width=10**6)), "too few for the model"),
        (dict(config=dict(state=10**9)), "too few for the model"),
        (dict(config=dict(blocks=10**6)), "too few for the model"),
        (dict(channels=10**12), "too few for the model"),
        (dict(channels=0), "too few for the model"),
        (dict(channels=None), "no model's"),
        (dict(config=dict(command="rm")), "no model's"),
        (dict(config=[1]), "no model's"),
        (dict(classes=7), "no model's"),
        (dict(classes=[], scale=[[0.0] * 10**6, [1.0] * 10**6]), "too few for the model"),
        (dict(scale=[[0.0], [0.0]]), "no model's"),
        (dict(scale=[[0.0, 1.0], [1.0]]), "no model's"),
        (dict(scale=None), "no model's"),
        (dict(preparation={"channels": ["a"]}), "no model's"),
        (dict(preparation=3), "no model's"),
        (dict(reading={"command": "rm"}), "no model's"),
    ],
)
def test_a_header_builds_nothing_the_file_does_not_hold(tmp_path, changes, message):
    training.fit(replace(SMALL, epochs=1), toy(count=8), tmp_path)
    arrays, header = training.read_checkpoint(tmp_path / training.MODEL)
    if isinstance(changes.get("config"), dict):
        changes = {"config": header["config"] | changes["config"]}
    training.write_checkpoint(tmp_path / "other", arrays, **(header | changes))
    with pytest.raises(ValueError, match=message):
        trained.load_model(tmp_path / "other")


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    arrays = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3).T, "n": np.array(7)}
    training.write_checkpoint(tmp_path / "deep" / "c", arrays, history=[{"loss": 0.5}])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c"]
    found, header = training.read_checkpoint(tmp_path / "deep" / "c")
    assert header == {"history": [{"loss": 0.5}]}
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c"
    training.write_checkpoint(path, {"a": np.zeros(2)}, epoch=1)

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        training.write_checkpoint(path, {"a": np.ones(2)}, epoch=2)
    arrays, header = training.read_checkpoint(path)
    assert header == {"epoch": 1}
    assert (arrays["a"] == 0).all()


def test_files_that_are_no_checkpoint(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(FileNotFoundError, match="there is no file"):
        training.read_checkpoint(tmp_path / "none")
    training.write_checkpoint(tmp_path / "cut", {"a": np.zeros(100)})
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-8])
    save_file({"a": np.zeros(2)}, tmp_path / "foreign")
    for name in ("cut", "foreign"):
        with pytest.raises(ValueError, match=f"{name} is not a parnl checkpoint"):
            training.read_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(2)}, "checkpoint: lacks b"),
        ({"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(1)}, "checkpoint: has unknown c"),
        (
            {"a": np.zeros(2), "b": np.zeros((3, 1))},
            r"b is float64 \(3, 1\), the model expects float64 \(3,\)",
        ),
        (
            {"a": np.zeros(2, np.float32), "b": np.zeros(3)},
            r"a is float32 \(2,\), the model expects float64 \(2,\)",
        ),
    ],
)
def test_arrays_that_do_not_fit(arrays, message):
    with pytest.raises(ValueError, match=message):
        training.check_arrays(arrays, {"a": np.zeros(2), "b": np.zeros(3)})
