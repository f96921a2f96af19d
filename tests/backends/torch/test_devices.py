"""Processes that share the axis of time: see `along_torch.py`, which they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "along_torch.py"


@pytest.mark.long
@pytest.mark.parametrize(
    ("cases", "parts", "kernels"),
    [
        ("solves", "20,20", ""),
        *([("solves", "17,0,23", "")] if "PARNL_EVERY" in os.environ else []),
        ("solves", "0,3,37", "off"),
        ("bits", "16,16,16", ""),
        ("hostile", "8,8", ""),
        ("modules,errors", "20,20,11", ""),
        ("dtensors,parallel", "1,1", ""),
    ],
)
def test_along_processes(cases, parts, kernels):
    there = {**os.environ, "PARNL_KERNELS": kernels}
    run = [sys.executable, str(SCRIPT), cases, parts]
    done = subprocess.run(run, env=there, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
