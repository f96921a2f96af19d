"""A report of a folder that is old, broken or hostile ends in a message that names the file."""

import json
import re

import numpy as np
import pytest
from report_pages import run_in

from parnl.learn import kept, report, training


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that no test changes: copies of it are."""
    folder = tmp_path_factory.mktemp("made") / "run"
    return folder, run_in(folder)


@pytest.fixture
def copy(made, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made[0].glob("*.[js]*"):  # not the page
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("lost", ["data", "versions", "model", kept.TEST])
def test_an_older_run_is_told_what_to_do(lost, copy, parnl):
    path = copy / kept.REPORT
    if lost == kept.TEST:
        (copy / lost).unlink()
    else:
        held = json.loads(path.read_text())
        del held[lost]
        path.write_text(json.dumps(held))
    status, text = parnl("report", copy)
    assert (status, "Traceback" in text) == (1, False)
    assert f"lacks {lost}" in text or f"there is no {copy / lost}" in text
    assert f"parnl train --resume --out {copy}" in text


@pytest.mark.long
def test_a_resumed_run_writes_what_an_older_one_lacks(parnl, tmp_path):
    told = ["--data", "UnitTest", "--blocks", 1, "--width", 4, "--state", 5, "--epochs", 1]
    assert parnl("train", *told, "--out", tmp_path)[0] == 0
    path, before = tmp_path / kept.REPORT, (tmp_path / training.MODEL).read_bytes()
    history = json.loads(path.read_text())["history"]
    path.write_text(json.dumps(dict(config={}, history=history, test={})))
    (tmp_path / kept.TEST).unlink()
    assert parnl("train", "--resume", "--out", tmp_path)[0] == 0
    assert json.loads(path.read_text())["history"] == history
    assert (tmp_path / training.MODEL).read_bytes() == before
    assert parnl("report", tmp_path)[0] == 0


def changed(held, way, value):
    *path, last = way
    for key in path:
        held = held[key]
    held[last] = value


@pytest.mark.parametrize(
    ("way", "value", "message"),
    [
        (["history"], [], "one of them the best"),
        (["history"], {}, "history: got an object, expected a list"),
        (["history", 0], 5, "history: got a number, expected an object"),
        (["history", 0, "loss"], "1", "history: loss: got '1', expected a finite number"),
        (["history", 0, "loss"], True, "history: loss: got True"),
        (["history", 0, "loss"], 1e300, "history: loss: got 1e+300"),
        (["history", 1, "validation_accuracy"], None, "history: validation_accuracy: got None"),
        (["history", 1, "iterations"], [1, 1], "expected epochs of 1 solves each"),
        (["history", 1, "iterations"], [1.5], "history: iterations: got 1.5, expected a whole"),
        (["test", "metrics"], [1], "metrics: got a list, expected an object"),
        (["test", "gap"], None, "gap: got None"),
        (["test"], None, "test: got nothing, expected an object"),
        (["data", "name"], 7, "name: got a number, expected text"),
        (["data", "notes"], [1], "notes: got a number, expected text"),
        (["data", "parts", "test"], None, "parts: got nothing"),
        (["data", "parts", "test", "classes"], [1], "got 2 steps and 1 classes, expected 2 and 3"),
        (["data", "parts", "train", "series"], -1, "series: got -1, expected a whole number"),
        (["versions"], [], "versions: got a list"),
        (["versions", "numpy"], 2, "versions: got a number, expected text"),
        (["model"], "other", "are of different runs"),
    ],
)
def test_a_wrong_entry_is_named(way, value, message, copy, parnl):
    path = copy / kept.REPORT
    held = json.loads(path.read_text())
    changed(held, way, value)
    path.write_text(json.dumps(held))
    status, text = parnl("report", copy)
    assert (status, "Traceback" in text) == (1, False)
    assert message in text
    assert str(path) in text
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list, expected an object"),
        ('{"a": NaN}', "got NaN, expected a finite number"),
        ('{"a": -Infinity}', "got -Infinity"),
        ("[" * 100_000, "is not JSON"),
        ("\udcff", "is not JSON"),
        ("1" * 10_000, "is not JSON"),
        (" " * (kept.HEADER + 1), f"expected at most {kept.HEADER}"),
    ],
)
def test_a_broken_report_is_named(content, message, copy):
    path = copy / kept.REPORT
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        report.write(copy)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("answers", lambda a: a[:-1], "targets: got the shape (60,), expected (59,)"),
        ("answers", lambda a: a[:, :2], "answers: got the shape (60, 2)"),
        ("answers", lambda a: a * np.nan, "answers: expected finite numbers"),
        ("answers", lambda a: a.astype(bool), "answers: expected finite numbers"),
        ("answers", lambda a: None, "answers: expected an array of this name"),
        ("targets", lambda a: a + 1, "targets: expected whole numbers at least 0 and less than 3"),
        ("targets", lambda a: a - 1, "targets: expected whole numbers at least 0"),
        ("targets", lambda a: a * 1.0, "targets: expected whole numbers"),
        ("targets", lambda a: a[:, None], "targets: got the shape (60, 1)"),
        ("inputs", lambda a: a[..., :1], "inputs: got 1 channels, expected 2"),
        ("inputs", lambda a: a[0], "inputs: got the shape"),
        ("inputs", lambda a: a[:0], "inputs: got the shape"),
        ("inputs", lambda a: a / 0, "inputs: expected finite numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_wrong_arrays_are_named(name, change, message, copy):
    path = copy / kept.TEST
    arrays, header = training.read_checkpoint(path)
    arrays[name] = change(arrays[name])
    held = {key: array for key, array in arrays.items() if array is not None}
    training.write_checkpoint(path, held, **header)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        report.write(copy)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", [kept.TEST, training.MODEL, kept.REPORT])
def test_missing_and_cut_files_are_named(name, copy, parnl):
    path = copy / name
    path.write_bytes(path.read_bytes()[:-5])
    status, text = parnl("report", copy)
    assert (status, str(path) in text, "Traceback" in text) == (1, True, False)
    path.unlink()
    status, text = parnl("report", copy)
    assert (status, str(path) in text, "Traceback" in text) == (1, True, False)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(blocks=1.5), dict(blocks=True), dict(seed=1.5), dict(cell=["lrc"]), dict(columns=5),
        dict(options=[1]), dict(options={"no": 1}), dict(options={"channels": 3}), dict(best=[]),
        dict(loops=10**9),
    ],
)  # fmt: skip
def test_a_header_with_wrong_options(wrong, copy):
    paths = copy / training.MODEL, copy / kept.TEST, copy / kept.REPORT
    arrays, header = training.read_checkpoint(paths[0])
    header["config"] |= wrong
    training.write_checkpoint(paths[0], arrays, **header)
    arrays, header = training.read_checkpoint(paths[1])
    header["model"] = kept.digest(paths[0])
    training.write_checkpoint(paths[1], arrays, **header)
    held = json.loads(paths[2].read_text()) | dict(model=header["model"])
    paths[2].write_text(json.dumps(held))
    with pytest.raises(ValueError, match=rf"{re.escape(str(copy))}.* is no(t what|  *model's)"):
        report.write(copy)
