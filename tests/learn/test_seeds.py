"""Several seeds in one command."""

import json

import numpy as np
import pytest

from parnl.learn import seeds, training

SMALL = [
    *("--data", "UnitTest", "--blocks", "1", "--width", "4", "--state", "5"),
    *("--batch", "8", "--patience", "9", "--epochs", "2"),
]
FILES = (training.CHECKPOINT, training.MODEL)


def assert_same_runs(one, other):
    for name in FILES:
        expected, _ = training.read_checkpoint(one / name)
        found, _ = training.read_checkpoint(other / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def results(folder):
    return json.loads((folder / "seeds.json").read_text())


@pytest.fixture
def trained(monkeypatch):
    """Which seeds were trained, and how: `fails` may raise at the end of an epoch of a seed."""
    seen, fit = [], training.fit

    def watched(config, *arguments, on_epoch, **keywords):
        seen.append((config.seed, keywords["resume"]))

        def after(record):
            on_epoch(record)
            watched.fails(config.seed, record["epoch"])

        return fit(config, *arguments, on_epoch=after, **keywords)

    watched.fails, watched.seen = lambda seed, epoch: None, seen
    monkeypatch.setattr(training, "fit", watched)
    return watched


@pytest.mark.long
def test_each_seed_is_a_run_as_it_is_alone(parnl, tmp_path):
    out = tmp_path / "runs"
    status, text = parnl("train", *SMALL, "--seed", "3,1", "--out", out)
    assert status == 0, text
    status, alone = parnl("train", *SMALL, "--seed", 1, "--out", tmp_path / "alone")
    assert status == 0, alone
    assert_same_runs(tmp_path / "alone", out / "seed-1")

    found = results(out)
    assert list(found["seeds"]) == ["3", "1"]
    assert found["config"]["width"] == 4
    reports = [json.loads((out / f"seed-{k}" / "report.json").read_text()) for k in (3, 1)]
    for name in ("accuracy", "f1"):
        values = [report["test"]["metrics"][name] for report in reports]
        assert [found["seeds"][k]["metrics"][name] for k in ("3", "1")] == values
        assert found["mean"][name] == pytest.approx(np.mean(values))
        assert found["deviation"][name] == pytest.approx(np.std(values, ddof=1))
    rows = [line.split() for line in text.splitlines()]
    assert [row[0] for row in rows[-6:]] == ["seed", "3", "1", "mean", "deviation", "written"]
    assert rows[-3][1] == f"{found['mean']['accuracy']:.1%}"

    status, text = parnl("train", *SMALL, "--seed", "1,2", "--out", out)
    assert (status, "holds runs of several seeds; give --resume" in text) == (1, True)


@pytest.mark.long
def test_a_stopped_command_goes_on_with_what_is_not_done(parnl, trained, tmp_path):
    def stop(seed, epoch):
        if (seed, epoch) == (1, 1):
            raise KeyboardInterrupt

    trained.fails = stop
    status, text = parnl("train", *SMALL, "--seed", "0,1,2", "--out", tmp_path / "parts")
    assert (status, "parnl: stopped; with --resume it goes on" in text) == (1, True)
    assert trained.seen == [(0, False), (1, False)]
    assert results(tmp_path / "parts")["seeds"]["2"] is None

    trained.fails = lambda seed, epoch: None
    trained.seen.clear()
    status, text = parnl("train", "--resume", "--out", tmp_path / "parts")
    assert status == 0, text
    assert trained.seen == [(1, True), (2, False)]
    assert "seed 0 is finished" in text
    status, text = parnl("train", *SMALL, "--seed", "0,1,2", "--out", tmp_path / "whole")
    assert status == 0, text
    for seed in (0, 1, 2):
        assert_same_runs(tmp_path / "whole" / f"seed-{seed}", tmp_path / "parts" / f"seed-{seed}")
    for key in ("seeds", "mean", "deviation", "config"):
        assert results(tmp_path / "whole")[key] == results(tmp_path / "parts")[key]

    trained.seen.clear()
    status, text = parnl("train", "--resume", "--width", 5, "--out", tmp_path / "parts")
    assert (status, "width: got 5, each run in" in text) == (1, True)
    status, text = parnl("train", "--resume", "--seed", "0,4", "--out", tmp_path / "parts")
    assert status == 0, text
    assert trained.seen == [(4, False)]
    assert list(results(tmp_path / "parts")["seeds"]) == ["0", "1", "2", "4"]
    trained.seen.clear()
    status, text = parnl("train", "--resume", "--epochs", 3, "--out", tmp_path / "parts")
    assert status == 0, text
    assert trained.seen == [(seed, True) for seed in (0, 1, 2, 4)]


@pytest.mark.long
@pytest.mark.parametrize("kind", [FloatingPointError, RuntimeError])
def test_a_seed_that_fails_does_not_lose_the_others(parnl, trained, kind, tmp_path):
    def fail(seed, epoch):
        if seed == 0:
            raise kind("loss: got nan")

    trained.fails = fail
    status, text = parnl("train", *SMALL, "--seed", "0,1", "--out", tmp_path)
    assert status == 1
    assert "parnl: no result for seed 0; the others are kept" in text
    found = results(tmp_path)
    assert found["seeds"]["0"] == {"error": "loss: got nan"}
    assert found["mean"] == found["seeds"]["1"]["metrics"]
    assert found["deviation"] == {}
    trained.fails = lambda seed, epoch: None
    trained.seen.clear()
    status, text = parnl("train", "--resume", "--out", tmp_path)
    assert status == 0, text
    assert trained.seen == [(0, True)]
    assert "metrics" in results(tmp_path)["seeds"]["0"]


@pytest.mark.long
def test_runs_that_are_overwritten_are_not_gone_on_with(parnl, trained, tmp_path):
    status, text = parnl("train", *SMALL, "--seed", "0,1", "--out", tmp_path)
    assert status == 0, text

    def stop(seed, epoch):
        raise KeyboardInterrupt

    trained.fails = stop
    arguments = ("--seed", "0,1", "--out", tmp_path, "--lr", 0.1)
    assert parnl("train", *SMALL, *arguments, "--overwrite")[0] == 1
    trained.fails = lambda seed, epoch: None
    trained.seen.clear()
    status, text = parnl("train", "--resume", "--out", tmp_path)
    assert status == 0, text
    assert trained.seen == [(0, True), (1, False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "seed: got 'a', expected a whole number, or several as in 0,1,2"),
        ("0,", "seed: got '0,', expected a whole number, or several"),
        ("0,-1", "seed: got -1, expected at least 0"),
        ("2,1,2", "seed: got 2 twice, expected each seed once"),
    ],
)
def test_wrong_seeds(parnl, tmp_path, text, message):
    status, found = parnl("train", *SMALL, "--seed", text, "--out", tmp_path)
    assert (status, message in found) == (1, True)
    assert not list(tmp_path.iterdir())


def test_a_file_of_seeds_that_is_none(parnl, tmp_path):
    status, text = parnl("train", "--resume", "--seed", "0,1", "--out", tmp_path)
    assert (status, "has no seeds.json" in text) == (1, True)
    for content in ("[]", "{", '{"seeds": {"a": 1}}', '{"seeds": {}, "config": {"x": 1}}'):
        (tmp_path / "seeds.json").write_text(content)
        status, text = parnl("train", "--resume", "--out", tmp_path)
        assert (status, "is not what parnl writes" in text) == (1, True)


def test_the_table():
    found = {
        0: dict(epoch=3, metrics=dict(accuracy=0.5, f1=0.25)),
        1: dict(epoch=11, metrics=dict(accuracy=1.0, f1=0.75)),
        2: dict(error="loss"),
        3: None,
    }
    assert seeds.table(found).splitlines() == [
        "seed           epoch  accuracy        f1",
        "0                  3     50.0%      0.25",
        "1                 11    100.0%      0.75",
        "2             failed",
        "3           not done",
        "mean                     75.0%       0.5",
        "deviation                35.4%    0.3536",
    ]
