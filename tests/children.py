"""Python in a process of its own, with an environment of its own, as users start it."""

import os
import subprocess
import sys

# Solves two cells by compiled kernels and prints the answers.
SOLVE = """
import numpy as np, parnl
for name in ("gru", "mgu"):
    cell = parnl.get_cell(name, 2, 5)
    out = parnl.solve(cell, cell.init(0), np.ones((1, 64, 2), np.float32), chunks=4).outputs
    print(name, repr(float(out.sum())))
"""
NO_CACHE, NO_KERNELS = "cannot keep compiled kernels", "runs without compiled kernels"


def run(text, *options, without=(), cwd=None, **environment):
    """Run Python `text`. Threads but the kernels' are held at one; `without`: unset variables."""
    fixed = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PARNL_KERNELS": ""}
    inherited = {name: value for name, value in os.environ.items() if name not in without}
    return subprocess.run(
        [sys.executable, "-W", "always", *options, "-c", text],
        env={**inherited, **fixed, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )
