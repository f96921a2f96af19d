"""`parnl train --data FILE`: what it says of a file, and of one that is wrong, before training."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parnl.learn import readers, training
from parnl.learn.checkpoints import read_checkpoint

SMALL = ["--blocks", "1", "--width", "4", "--state", "5", "--epochs", "1", "--seed", "0"]
KINDS, MOODS = ("run", "rest"), ("bad", "good")
ROWS = "".join(
    f"w{i},{step**1.5:.3f},{i % 2 + step},{MOODS[step % 2]},{KINDS[i % 2]}\n"
    for i in range(20)
    for step in range(4 + i % 3)
)


@pytest.fixture
def train(parnl, monkeypatch, tmp_path):
    """Run `parnl train` in this process: (exit status, what it printed)."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: parnl("train", *arguments)


def test_a_table_is_trained_on(train, tmp_path):
    (tmp_path / "walks.csv").write_text("walk,t,x,mood,kind\n" + ROWS)
    options = ["--id", "walk", "--label", "kind", "--columns", "x, mood", "--missing", "mask"]
    status, text = train("--data", "walks.csv", *options, *SMALL)
    assert status == 0, text
    for line in (
        "walks: 12 series to train on, 4 to validate, 4 to test; 4 channels, 4 to 6 steps, 2 cla",
        "  a row is a step; 'walk' tells 20 series apart; values in 'x', 'mood'; labels in 'kind'",
        "  'mood' holds names, a channel of 0 and 1 each: 'bad', 'good'\n",
        "  't' holds the times, numbers\n",
        "  dt is one more channel of the model's inputs\n",
    ):
        assert line in text
    folder = tmp_path / "runs" / "walks-lrc-torch"
    config = json.loads((folder / "report.json").read_text())["config"]
    assert (config["id"], config["columns"], config["missing"]) == ("walk", ["x", "mood"], "mask")
    status, text = train("--data", "walks.csv", "--resume", "--layout", "long")
    assert (status, "layout: got 'long', the checkpoint" in text) == (1, True)
    status, text = train("--data", "walks.csv", "--resume", "--epochs", 2)
    assert status == 0, text


def test_a_checkpoint_of_before_these_options_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "read_checkpoint", without_options(training.read_checkpoint))
    config = training.Config(data="UnitTest", blocks=1, width=4, state=5, epochs=1)
    dataset = training.dataset_of(config)
    training.fit(config, dataset, tmp_path)
    longer = replace(config, epochs=2)
    assert len(training.fit(longer, dataset, tmp_path, resume=True).history) == 2


def without_options(read):
    def older(path):
        arrays, header = read(path)
        for name in ("id", "time", "label", "columns", "layout", "missing"):
            del header["config"][name]
        header.pop("data", None)
        return arrays, header

    assert read is read_checkpoint
    return older


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("walk,t,x,kind\nw0,0,1,run\nw0,1,a,run\nw0,2,3,run\n", ["--id", "walk"],
         "parnl: data: walks.csv: line 3, column 'x': got 'a', expected a number"),
        ("date,x\n2020-01-01,1\n2020-01-02,2\n", [],
         "walks.csv has no labels; a column of the table or a file of labels is named by --label"),
        ("my walk,x,kind\nw0,1,run\nw0,2,run\nw1,3,rest\n", ["--label", "kind"],
         "column 'my walk' holds text; if it tells series apart, say --id 'my walk'"),
        ("walk,t,x,kind\nw0,0,1,run\nw0,1,id=5,run\nw0,2,3,run\n", ["--id", "walk"],
         "column 'x': got 'id=5', expected a number"),
        ("walk,x\nw0,1\n", ["--id", "wolk"], "id: there is no column 'wolk'; did you mean 'walk'?"),
        ("x,0,1\nw0,1,2\n", ["--layout", "tall"], "layout: got 'tall', expected 'auto', 'long'"),
    ],
)  # fmt: skip
def test_mistakes_are_said_before_training(train, tmp_path, content, options, message):
    (tmp_path / "walks.csv").write_text(content)
    status, text = train("--data", "walks.csv", *options, *SMALL)
    assert status == 1
    assert message in text
    assert not (tmp_path / "runs").exists()


GUIDE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.skipif(not GUIDE.is_file(), reason="installed without the repository")
def test_the_guide_runs_and_tells_the_truth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "walk,t,speed,mood,kind\n" + ROWS
    (tmp_path / "walks.csv").write_text(text)
    (tmp_path / "new.csv").write_text(
        text.replace(",kind", "").replace(",run", "").replace(",rest", "")
    )
    guide = GUIDE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    exec(compile(code, str(GUIDE), "exec"), {})
    lines = text.splitlines()
    (tmp_path / "walks.csv").write_text(
        "\n".join([*lines[:9], "w9,0,'3,1',bad,run".replace("'", '"')])
    )
    with pytest.raises(ValueError, match="line 10") as caught:
        readers.read("walks.csv", readers.Options(id="walk"))
    assert f"parnl: {caught.value}".replace("line 10", "line 1204") in guide
    for suffix in readers.SUFFIXES:
        assert f"`{suffix}`" in guide


def test_a_patch_longer_than_the_series(train, tmp_path):
    np.savez(tmp_path / "a.npz", X=np.arange(120.0).reshape(20, 6), y=np.arange(20) % 2)
    status, text = train("--data", "a.npz", "--patch", 7, *SMALL)
    assert (status, "parnl: patch: got 7, expected at most 6, the steps of" in text) == (1, True)


def test_a_missing_reader_is_named_with_its_extra(train, tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, text = train("--data", "a.parquet")
    assert status == 1
    assert "parnl: pyarrow is not installed: pip install 'parnl[train]'" in text
