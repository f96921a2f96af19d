"""The README's code runs as it stands there, and what it shows and links to is there."""

import re
from pathlib import Path

import pytest
from optional import jax, torch

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="installed without the repository")


def test_every_python_block_runs():
    pytest.importorskip("flax")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 4
    scope = {"inputs": torch.randn(2, 50, 6), "input_t": torch.randn(2, 6)}
    scope["sequences"] = jax.random.normal(jax.random.key(0), (2, 50, 6))
    for block in blocks:
        exec(compile(block, str(README), "exec"), scope)
    assert scope["out"].outputs.shape == (2, 50, 64)
    assert scope["y"].shape == (2, 64)
    assert scope["proof"].rho.shape == (64,)
    assert scope["output"].shape == (2, 50, 64)
    assert scope["hidden"].shape == (2, 50, 64)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text())
    own = [link for link in links if "://" not in link]
    assert len(own) > 20
    assert not [link for link in own if not (README.parent / link).exists()]


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 900
