"""Irregular time: the data against plain loops, and what a run leaves and draws."""

import json
import sys

import numpy as np
import pytest
import torch


@pytest.fixture
def irregular(experiment, tmp_path, monkeypatch):
    module = experiment("irregular")
    monkeypatch.setattr(module.RESULTS, "path", tmp_path / "results" / "irregular.jsonl")
    sizes = module.SIZES._replace(units=6, width=4, block_width=4)
    small = dict(SIZES=sizes, STEPS=8, BATCH=6, EPOCHS=2, ROUNDS=1, TURN=2, SEEDS=(0, 1))
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def folder(tmp_path):
    """Of ten walks of different lengths, a file such as that of the experiment."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 40, size=10)
    walks = rng.normal(3.0, 2.0, size=(lengths.sum(), 17)).astype(np.float16)
    np.savez(tmp_path / "Walker2d.npz", X=walks, lengths=lengths.astype(np.int32))
    return tmp_path


def test_dropped_steps_leave_the_time_to_the_next_kept_one(irregular):
    rng = np.random.default_rng(1)
    walk, kept = rng.normal(size=(50, 17)), rng.random(50) < 0.6
    inputs, dt, targets = irregular.dropped(walk, kept)
    at = 0
    for t in range(50):
        if not kept[t]:
            continue
        later = t + 1
        while later < 50 and not kept[later]:
            later += 1
        if later == 50:
            break  # nothing to predict
        np.testing.assert_array_equal(inputs[at], walk[t])
        np.testing.assert_array_equal(targets[at], walk[later])
        assert dt[at] == later - t
        at += 1
    assert at == len(inputs) == len(dt) == len(targets)


def test_sequences_hold_all_kept_steps_and_padding_counts_for_nothing(irregular):
    rng = np.random.default_rng(2)
    walks = [rng.normal(size=(n, 17)).astype(np.float32) for n in (30, 9)]
    part = irregular.cut(walks, np.random.default_rng(3))
    again = np.random.default_rng(3)
    known = [irregular.dropped(w, again.random(len(w)) < irregular.KEPT) for w in walks]
    assert part.inputs.shape[1:] == (8, 18)
    assert int(part.lengths.sum()) == sum(len(dt) for _, dt, _ in known)
    real = torch.arange(8) < part.lengths[:, None]
    for found, index in ((part.inputs[..., :17], 0), (part.inputs[..., 17], 1), (part.targets, 2)):
        np.testing.assert_array_equal(found[real], np.concatenate([k[index] for k in known]))
    assert (part.inputs[~real][:, :17] == 0).all()
    assert (part.inputs[~real][:, 17] == 1).all()

    x, _, y = (np.concatenate(parts) for parts in zip(*known, strict=True))
    wanted = ((x - y) ** 2).mean()
    assert irregular.error(irregular.Repeat(), part) == pytest.approx(wanted, rel=1e-5)
    part.targets[~real] = 100.0
    assert irregular.error(irregular.Repeat(), part) == pytest.approx(wanted, rel=1e-5)


def test_parts_are_those_of_different_walks_standardised_by_the_training(irregular, folder):
    one, again = irregular.load(folder), irregular.load(folder)
    assert [len(p.lengths) > 0 for p in one] == [True] * 3
    for part, same in zip(one, again, strict=True):
        assert torch.equal(part.inputs, same.inputs)
    train = one[0].inputs[torch.arange(8) < one[0].lengths[:, None]][:, :17]
    assert train.mean().abs() < 0.1
    assert (train.std() - 1).abs() < 0.1
    seen = {tuple(x.tolist()) for x in train}
    assert not seen & {tuple(x.tolist()) for p in one[1:] for x in p.targets.reshape(-1, 17)}


def test_runs_are_kept_and_drawn(irregular, folder, command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ncps", None)  # nothing here needs it
    for what in ("run", "time"):
        command(irregular, what, "--data", folder, "--models", "cfc", "nn.GRU")
    lines = [json.loads(line) for line in irregular.RESULTS.path.read_text().splitlines()]
    assert [r["kind"] for r in lines] == ["run"] * 8 + ["time"] * 2
    assert (lines[0]["model"], lines[0]["rate"], lines[0]["seed"]) == ("cfc", 3e-3, 0)
    assert lines[0]["epochs"] == 2
    assert np.isfinite([r["test"] for r in lines[:8]]).all()
    capsys.readouterr()

    command(irregular, "show")
    shown = capsys.readouterr().out
    assert "| cfc, blocks |" in shown
    assert f"The last step repeated has {lines[0]['repeated']:.4f}." in shown
