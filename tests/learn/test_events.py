"""Events for TensorBoard, read back by its own reader."""

import json
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from parnl.learn import events, training

SMALL = [
    *("--data", "UnitTest", "--blocks", "2", "--width", "4", "--state", "5"),
    *("--batch", "8", "--patience", "9"),
]


def read(folder):
    """name -> epoch -> value, of the one file of events in a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    found = EventAccumulator(str(path))
    found.Reload()
    return {
        name: [(e.step, float(make_ndarray(e.tensor_proto))) for e in found.Tensors(name)]
        for name in found.Tags()["tensors"]
    }


def expected(folder):
    """The same of the report."""
    history = json.loads((folder / "report.json").read_text())["history"]
    keys = {"learning_rate": "learning_rate"}
    for name in ("loss", "accuracy", "f1", "auroc"):
        keys |= {f"{name}/train": name, f"{name}/validation": f"validation_{name}"}
    found = {tag: [(r["epoch"], r[name]) for r in history] for tag, name in keys.items()}
    for i in (0, 1):
        found[f"iterations/block_{i + 1}"] = [(r["epoch"], r["iterations"][i]) for r in history]
    return found


def assert_equal(folder, epochs):
    found, wanted = read(folder), expected(folder)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert [step for step, _ in found[name]] == list(range(1, epochs + 1))
        assert found[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in values]


@pytest.mark.long
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_every_epoch_is_there_once(parnl, backend, tmp_path):
    epochs = 2 if backend == "torch" else 1
    options = ["--backend", backend, "--epochs", epochs, "--out", tmp_path, "--warmup", epochs - 1]
    status, text = parnl("train", *SMALL, *options, "--tensorboard")
    assert status == 0, text
    assert "events.out.tfevents" in text
    assert_equal(tmp_path, epochs)
    if backend == "jax":
        return
    status, text = parnl("train", "--resume", "--out", tmp_path, "--epochs", 3)
    assert status == 0, text
    assert_equal(tmp_path, 3)


@pytest.mark.long
def test_a_run_that_had_none_gets_all_its_epochs(parnl, tmp_path, monkeypatch):
    status, text = parnl("train", *SMALL, "--epochs", 2, "--out", tmp_path)
    assert status == 0, text
    assert not list(tmp_path.glob("events*"))
    status, text = parnl("train", "--resume", "--out", tmp_path, "--tensorboard", "--width", 5)
    assert (status, "width: got 5" in text) == (1, True)
    assert not list(tmp_path.glob("events*"))  # a run that is refused
    status, text = parnl("train", "--resume", "--out", tmp_path, "--tensorboard")
    assert status == 0, text
    assert_equal(tmp_path, 2)

    # stopped between a checkpoint and its event: the epoch is not lost
    fit, more = training.fit, ("--resume", "--tensorboard", "--epochs", 4, "--out", tmp_path)

    def stop(record):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "fit", lambda *a, on_epoch, **k: fit(*a, on_epoch=stop, **k))
        assert parnl("train", *more)[0] == 1
    assert len(read(tmp_path)["loss/train"]) == 2
    status, text = parnl("train", *more)
    assert status == 0, text
    assert_equal(tmp_path, 4)


def test_an_older_record_has_no_learning_rate():
    record = dict(epoch=1, loss=1.0, validation_loss=2.0, iterations=[3], seconds=1.0, best=True)
    found = events.scalars(record)
    assert found == {"loss/train": 1.0, "loss/validation": 2.0, "iterations/block_1": 3}


def test_the_writer_needs_no_framework(tmp_path):
    code = (
        "import sys; from pathlib import Path; from parnl.learn.events import writing\n"
        f"with writing(Path({str(tmp_path)!r}), [], True) as add: add(dict(epoch=1, "
        "learning_rate=1.0))\n"
        "assert not {'torch', 'jax', 'tensorflow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read(tmp_path) == {"learning_rate": [(1, 1.0)]}
