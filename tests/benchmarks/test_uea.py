"""The harness of the experiments: what it runs and keeps, and the dense LRC of its ablation."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import parnl
from parnl.learn import training

SOURCE = Path(__file__).parents[2] / "benchmarks" / "uea.py"


@pytest.fixture
def uea(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SOURCE.parent)
    spec = importlib.util.spec_from_file_location("uea", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    for name, value in dict(WIDTH=8, STATE=16, BUDGET=(2, 2)).items():
        monkeypatch.setattr(module, name, value)
    rng = np.random.default_rng(0)
    y = np.arange(30) % 2
    x = rng.normal(size=(30, 21, 2)) + y[:, None, None]
    parts = {f"val_{s}": np.arange(4) for s in module.SEEDS}
    parts |= {f"test_{s}": np.arange(4, 10) for s in module.SEEDS}
    np.savez(tmp_path / "Toy.npz", X=x.astype(np.float32), y=y, **parts)
    return module


def test_a_run_is_kept_and_not_run_again(uea, tmp_path, monkeypatch):
    config = uea.config_of("Toy", "gru", 2345, tmp_path, 2, blocks=1, learning_rate=1e-2)
    name = uea.execute("Toy", "gru", config)
    (line,) = uea.table_of("Toy").read_text().splitlines()
    record = json.loads(line)
    assert record["name"] == name
    assert record["series"] == {"train": 20, "validation": 4, "test": 6}
    validation = json.loads((uea.RUNS / name / "validation.json").read_text())
    assert len(validation) == record["epochs"] == 2
    assert 0 <= record["test"] <= 1
    assert set(record["iterations"]["after"]) == {"T", "64", "auto"}
    assert record["config"]["data"] == "Toy.npz"
    lrc = training.build(uea.config_of("Toy", "lrc", 2345, tmp_path, 2, blocks=1), 4, 2)
    assert abs(record["parameters"] / uea.count(lrc) - 1) < 0.25
    longer = uea.config_of("Toy", "gru", 2345, tmp_path, 2, (3, 3), blocks=1, learning_rate=1e-2)
    assert uea.name_of("Toy", "gru", longer) == "Toy_gru_p2_b1_lr0.01_e3-3_2345" != name
    monkeypatch.setattr(training, "fit", None)
    assert uea.execute("Toy", "gru", config) == name
    assert uea.records() == [record]


def test_the_best_validation_is_chosen_on_the_first_split(uea, tmp_path, capsys):
    uea.RESULTS.mkdir()

    def keep(name, accuracy, blocks, rate, seed=2345, test=0.5, loss=1.0, budget=(2, 2)):
        config = dict(seed=seed, patch=1, blocks=blocks, learning_rate=rate, state=64)
        config["epochs"], config["patience"] = budget
        record = dict(
            name=name, task="Toy", model="lrc", config=config, test=test, parameters=7, epochs=3,
            seconds=60.0,
            best=dict(validation_accuracy=accuracy, validation_loss=loss),
            iterations={w: dict(T=[2], auto=[1]) for w in ("before", "after")},
        )  # fmt: skip
        with uea.table_of("Toy").open("a") as table:
            table.write(json.dumps(record) + "\n")

    keep("a", 0.8, 2, 1e-3, loss=0.9, test=0.7)
    keep("b", 0.8, 4, 1e-3, loss=0.1)
    keep("c", 0.7, 2, 1e-4)
    keep("d", 0.1, 2, 1e-3, seed=3456, test=0.9)
    keep("e", 0.9, 4, 1e-3, seed=3456)  # another split has no say
    keep("f", 0.9, 4, 1e-3, budget=(400, 200))  # nor has another budget
    assert uea.best_of("Toy", "lrc", 1, (2, 2)) == {"blocks": 2, "learning_rate": 1e-3}
    stages = uea.plan("Toy", "lrc", tmp_path, 1, [2, 4])
    assert [(c.blocks, c.learning_rate) for c in next(stages)] == [
        (2, 1e-3), (2, 1e-4), (4, 1e-3), (4, 1e-4),
    ]  # fmt: skip
    assert [(c.seed, c.blocks) for c in next(stages)] == [(s, 2) for s in uea.SEEDS[1:]]
    uea.show()
    text = capsys.readouterr().out
    assert "| Toy | 1 | lrc | 80.0 ± 14.1 |  | 2 | 2 | 0.001 | 64 | 7 | 3 | 2, 2 | 1.0 |" in text
    assert "| Toy | 1 | lrc | 50.0 ± ? |  | 1 | 4 | 0.001 | 64 | 7 | 3 | 400, 200 | 1.0 |" in text
    assert (uea.RESULTS / "figure.png").is_file()


def test_every_model_can_be_built(uea):
    for model in uea.MODELS:
        config = uea.config_of("Toy", model, 2345, None, 1, blocks=1, learning_rate=1e-3)
        assert config.pooled
        changes = {"block": uea.dense_block()} if model == "lrc dense" else {}
        trainer = training.build(config, 2, 3, **changes)
        logits, _ = trainer.predict(np.zeros((1, 6, 2), np.float32), None)
        assert logits.shape == (1, 3)


def test_dense_sweeps_equal_the_dense_loop(uea):
    torch.manual_seed(0)
    cell = parnl.get_cell("lrc", 5, 7)
    block = uea.dense_block()(cell, 5, dropout=0.0, seed=0).double()
    params = dict(block.recurrence)
    x = torch.randn(2, 40, 5, dtype=torch.float64, requires_grad=True)
    found, _ = block.mix(x, None)
    state, rows = torch.zeros(2, 7, dtype=torch.float64), []
    for t in range(x.shape[1]):
        both = torch.cat([x[:, t], state], dim=-1)
        v = torch.sigmoid(params["sigma_in"] * (both - params["mu_in"]))
        y = torch.sigmoid(params["sigma"] * (state - params["mu"]))
        leak = torch.sigmoid(params["g_leak"] + v @ params["W_f"] + params["w_f"] * y)
        drive = torch.tanh(params["g_leak"] + v @ params["W_g"] + params["w_g"] * y)
        elastance = torch.sigmoid(params["e_w"] * state + params["e_b"])
        state = state + elastance * (params["v_leak"] * drive - leak * state)
        rows.append(state)
    expected = torch.stack(rows, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # where sweeps stop
    weights = torch.randn_like(expected)
    leaves = [x, *params.values()]
    ours, theirs = (
        torch.autograd.grad((z * weights).sum(), leaves, retain_graph=True)
        for z in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()))
