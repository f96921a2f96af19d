"""The benchmark of automatic chunks runs, and compares what it times with the plain loop."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def auto(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import auto

    monkeypatch.setattr(auto, "FIXED", (1, 4))
    return auto


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_row(auto, backend, gradient, capsys):
    row = auto.measure(backend, "gru", 2, 2048, repeat=2, gradient=gradient)
    assert {"1", "4"} <= set(row["ms"])
    assert all(ms > 0 for ms in row["ms"].values())
    auto.table([row])
    assert "geometric mean" in capsys.readouterr().out


def test_a_wrong_answer_is_not_timed(auto, monkeypatch):
    def wrong(backend, *arguments):
        def of(plan):
            states, stats = right(backend, *arguments)(plan)()
            return lambda: ([x * (1 + 0.01 * (plan.chunks > 1)) for x in states], stats)

        return of

    right = auto.runs
    monkeypatch.setattr(auto, "runs", wrong)
    with pytest.raises(AssertionError, match="gru, 2 lanes, T = 512, 4 chunks: error"):
        auto.measure("torch", "gru", 2, 512, repeat=2, gradient=False)


def test_the_command(auto, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(auto, "measure", lambda *arguments: ROW | {"cell": arguments[1]})
    out = tmp_path / "auto.json"
    monkeypatch.setattr(sys, "argv", ["auto.py", "--quick", "--backend", "jax", "--out", str(out)])
    auto.main()
    assert "12 shapes" in capsys.readouterr().out
    assert '"backend": "jax"' in out.read_text()


ROW = {"lanes": 1, "steps": 9, "ms": {"1": 1.0, "4": 2.0}, "auto": 1, "best": 1}
ROW |= {"of the best": 1.0, "of the loop": 1.0, "iterations": {"1": 0, "4": 1}}
