"""The README's code runs as it stands there."""

import re
from pathlib import Path

import pytest
from optional import torch

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.skipif(not README.is_file(), reason="installed without the repository")
def test_every_python_block_runs():
    pytest.importorskip("jax")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 7
    scope = {"inputs": torch.randn(2, 50, 6), "input_t": torch.randn(2, 6), "state": None}
    for block in blocks:
        exec(compile(block, str(README), "exec"), scope)
    assert scope["out"].outputs.shape == (2, 50, 64)
    assert scope["y"].shape == (2, 64)
    assert scope["h"].shape == (8, 96, 64)
    assert scope["proof"].rho.shape == (64,)
    assert scope["proof"].low.shape == (1, 64)
    assert scope["proof"].stable
    assert scope["report"].lyapunov.largest < 0
    assert scope["output"].shape == (8, 100, 64)
    assert scope["output_t"].shape == (8, 64)
    assert scope["every"].shape == (8, 100, 64)
    assert "test_mgu" in scope
