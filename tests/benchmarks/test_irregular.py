"""Irregular time: the data against plain loops, and what a run leaves and draws."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

SOURCE = Path(__file__).parents[2] / "benchmarks" / "irregular.py"


@pytest.fixture
def irregular(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("irregular", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = dict(RESULTS=tmp_path / "results" / "irregular.jsonl", STEPS=8, BATCH=6, EPOCHS=2)
    small |= dict(UNITS=6, WIDTH=4, BLOCK_WIDTH=4, ROUNDS=1, TURN=2, SEEDS=(0, 1))
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


def test_models_have_as_many_parameters(irregular, monkeypatch):
    for name, value in dict(UNITS=64, WIDTH=64, BLOCK_WIDTH=32).items():
        monkeypatch.setattr(irregular, name, value)
    for name, (kind, _) in irregular.MODELS.items():
        if kind is irregular.Ncps:
            continue
        found = irregular.count(irregular.build(name, irregular.matched_state(name), 0))
        assert abs(found / irregular.wanted() - 1) <= 0.02, name


def test_models_of_ncps_have_those_parameters_and_a_dt_for_each_sequence(irregular):
    pytest.importorskip("ncps")
    model = irregular.build("ncps cfc", irregular.UNITS, 0)
    assert irregular.count(model) == irregular.wanted()
    # as many sequences as units: here ncps would take one for the other
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(irregular.UNITS, 5, 18, generator=generator, dtype=torch.float64)
    inputs[..., -1] = inputs[..., -1].abs()  # time does not run backward
    for name in ("ncps cfc", "ncps ltc"):
        # in float64: products of one sequence and of many are rounded differently
        model = irregular.build(name, irregular.UNITS, 0).double()
        whole = model(inputs)
        alone = torch.cat([model(row[None]) for row in inputs])
        torch.testing.assert_close(whole, alone)


def test_no_model_sees_what_it_predicts(irregular):
    for name, (kind, _) in irregular.MODELS.items():
        if kind is irregular.Ncps:
            continue
        model = irregular.build(name, 5, 0)
        inputs = torch.randn(2, 8, 18, generator=torch.Generator().manual_seed(0))
        inputs[..., -1] = 1.0
        changed = inputs.clone()
        changed[:, 5] += 1.0
        same, other = model(inputs), model(changed)
        torch.testing.assert_close(same[:, :5], other[:, :5])
        assert (same[:, 5:] - other[:, 5:]).abs().max() > 0


def test_without_ncps_the_script_says_what_to_install(irregular, monkeypatch):
    monkeypatch.setitem(sys.modules, "ncps", None)
    monkeypatch.setitem(sys.modules, "ncps.torch", None)
    with pytest.raises(SystemExit, match="pip install ncps=="):
        irregular.build("ncps cfc", 6, 0)


def test_runs_are_kept_not_run_again_and_drawn(irregular, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ncps", None)  # nothing here needs it
    models = ["cfc", "nn.GRU"]
    for command in ("run", "time"):
        given = ["irregular", command, "--data", str(folder), "--models", *models]
        monkeypatch.setattr(sys, "argv", given)
        irregular.main()
    lines = [json.loads(line) for line in irregular.RESULTS.read_text().splitlines()]
    assert [r["kind"] for r in lines] == ["run"] * 8 + ["time"] * 2
    assert (lines[0]["model"], lines[0]["rate"], lines[0]["seed"]) == ("cfc", 3e-3, 0)
    assert lines[0]["epochs"] == 2
    assert np.isfinite([r["test"] for r in lines[:8]]).all()
    capsys.readouterr()

    monkeypatch.setattr(irregular, "execute", None)
    monkeypatch.setattr(sys, "argv", ["irregular", "show"])
    irregular.main()
    assert "| cfc, blocks |" in capsys.readouterr().out


def test_finished_runs_are_not_run_again(irregular, monkeypatch):
    irregular.add(kind="run", model="cfc", rate=1e-2, seed=0, validation=0.5)
    monkeypatch.setattr(irregular, "build", None)
    irregular.execute("cfc", 1e-2, 0, ())
    assert len(irregular.records()) == 1


def test_the_table_is_drawn_from_the_lines(irregular):
    def keep(model, rate, seed, validation, test):
        irregular.add(
            kind="run", model=model, rate=rate, seed=seed, state=3, parameters=7, epochs=4,
            best_epoch=4, validation=validation, test=test, repeated=0.25, seconds=36.0,
        )  # fmt: skip

    keep("cfc", 1e-2, 0, 0.2, 0.1)
    keep("cfc", 3e-3, 0, 0.3, 0.05)
    keep("cfc", 1e-2, 1, 0.9, 0.3)
    irregular.add(kind="time", model="ncps cfc", epoch=4.0, turns=3)
    irregular.add(kind="time", model="cfc", epoch=9.0, turns=3)
    irregular.add(kind="time", model="cfc", epoch=1.0, turns=3)  # the last one counts
    _, _, first, second, *rest = irregular.table()
    assert first == "| ncps CfC, dense |  |  |  |  |  |  | 4.00 | 1.00 |  |"
    wanted = "| cfc, blocks | 0.2000 ± 0.1414 | 2 | 0.01 | 3 | 7 | 4 | 1.00 | 0.25 | 0.6 |"
    assert second == wanted
    assert "0.2500. 3 runs" in " ".join(rest)
