"""A framework is imported only when it is used."""

import subprocess
import sys

import pytest

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
    "solve on jax": (
        "import jax.numpy as np, parnl; c = parnl.get_cell('gru', input_size=1, hidden_size=1);"
        "parnl.solve(c, c.init(backend='jax'), np.zeros((3, 1), 'float32'))",
        {"torch"},
    ),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_a_framework_is_imported_only_when_used(case):
    code, absent = IMPORTS[case]
    code += f"; import sys; print(sorted(set(sys.modules) & {absent!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
