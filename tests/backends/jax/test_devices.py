"""Devices that share the axis of time: see `along_jax.py`, which they run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "along_jax.py"


@pytest.mark.long
@pytest.mark.parametrize(
    ("case", "kernels"),
    [
        ("solves", "c"),
        ("solves", "off"),
        ("twice", "c"),
        ("meshes", "c"),
        ("hostile", "c"),
        ("jit", "c"),
        *([("jit", "off")] if "PARNL_EVERY" in os.environ else []),
        ("errors", "c"),
    ],
)
def test_along_devices(case, kernels):
    there = {**os.environ, "PARNL_KERNELS": kernels}
    run = [sys.executable, str(SCRIPT), case]
    done = subprocess.run(run, env=there, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
