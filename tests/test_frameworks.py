"""A framework is imported only when it is used; the tests of one run where another is missing."""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import parnl

IMPORTS = {
    "parnl": ("import parnl", {"torch", "jax"}),
    "get_cell and init": (
        "import parnl; parnl.get_cell('gru', input_size=1, hidden_size=1).init(backend='numpy')",
        {"torch", "jax"},
    ),
    "solve on numpy": (
        "import numpy as np, parnl; c = parnl.get_cell('lstm', input_size=1, hidden_size=1);"
        "parnl.solve(c, c.init(backend='numpy'), np.zeros((3, 1), 'float32'))",
        {"torch", "jax"},
    ),
    "solve on torch": (
        "import torch, parnl; c = parnl.get_cell('lstm', input_size=1, hidden_size=1);"
        "parnl.solve(c, c.init(backend='torch'), torch.zeros(3, 1))",
        {"jax"},
    ),
    "its compiler, to solve on torch": (
        "import torch, parnl; from parnl.torch import RNN; torch.set_grad_enabled(False);"
        "RNN('gru', 1, 1)(torch.zeros(3, 1))",
        {"torch._dynamo"},
    ),
    "solve on jax": (
        "import jax.numpy as np, parnl; c = parnl.get_cell('gru', input_size=1, hidden_size=1);"
        "parnl.solve(c, c.init(backend='jax'), np.zeros((3, 1), 'float32'))",
        {"torch"},
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("case", IMPORTS)
def test_a_framework_is_imported_only_when_used(case):
    pytest.importorskip(case.rpartition(" ")[2] if "solve" in case else "numpy")
    code, absent = IMPORTS[case]
    code += f"; import sys; print(sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_solves_while_another_thread_imports_a_framework(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # as far as it has come
    cell = parnl.get_cell("gru", 2, 3)
    seed = type("Seed", (int,), {})(0)  # what a type is may be known from before: of none of this
    assert parnl.solve(cell, cell.init(seed), np.ones((5, 2))).outputs.shape == (5, 3)


def without(missing, *arguments):
    """Run pytest as if these frameworks were not installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        cwd=Path(__file__).parents[1], env={**os.environ, "PARNL_WITHOUT": missing},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("missing", ["torch", "jax", "torch,jax"])
def test_what_is_installed_is_tested_where_a_framework_is_missing(missing):
    """Every file is collected; of these, a few tests run."""
    for name in ("torch", "jax", "aeon", "typer"):
        pytest.importorskip(name)
    chosen = "lrc-own or test_dtype_and_device or test_averages or same_pytree"
    done = without(missing, "tests", "-vv", "-k", chosen)
    assert done.returncode == 0, done.stdout
    for name in ("numpy", "torch", "jax"):
        there = name not in missing.split(",")
        ran = f"test_dt_per_step[{name}-lrc-own] PASSED" in done.stdout
        assert ran == there, done.stdout
        assert (f"backends/{name}/" in done.stdout) == (there and name != "numpy"), done.stdout
