"""The benchmark for one CUDA machine runs, so that time on such a machine is not lost to a slip."""

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import gpu

    # it has a gradient that is zero
    monkeypatch.setattr(gpu, "CELLS", {"slstm": gpu.CELLS["slstm"]})
    return gpu


@pytest.mark.long
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_the_script_checks_and_times(gpu, framework, tmp_path, monkeypatch):
    out = tmp_path / "gpu.json"
    options = ["--framework", framework, "--device", "cpu", "--quick", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    gpu.main()
    found = json.loads(out.read_text())
    assert list(found["errors"]) == ["slstm"]
    assert not any("wrong" in errors for errors in found["errors"].values())
    other = {"torch": "lstm", "jax": "lrc"}[framework]
    assert list(found["times"]) == [f"{c} B=2 D=16 T=512" for c in ("gru", other)]
    for row in found["times"].values():
        assert row["parnl"].keys() == {"forward ms", "forward + backward ms"}
        assert all(times["forward ms"] > 0 for times in row.values())


def test_the_script_finds_what_is_wrong(gpu, capsys):
    def slightly_wrong(*arguments, **how):
        return [1.001 * x for x in gpu.solved(*arguments, **how)]

    assert all("wrong" in errors for errors in gpu.check(slightly_wrong, (7,), 64).values())
    assert capsys.readouterr().out.count("NOT within rounding") == 1
