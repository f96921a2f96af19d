"""The recipes of examples/ run from end to end, on tiny sizes."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from c_programs import missing
from optional import torch

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "examples").is_dir():
    pytest.skip("installed without the repository", allow_module_level=True)


@pytest.fixture
def main(monkeypatch):
    """Return the function that gives an example's main; processes find it by the same path."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"examples.{name}").main


def test_policy(main):
    _ = torch.Tensor
    # it asserts that log-probabilities of rollout and update are equal
    returns = main("policy")(updates=25, games=48, steps=12, hidden=8, longest=3)
    assert abs(returns[0]) < 0.5
    assert np.mean(returns[-2:]) > 0.6


@pytest.mark.long
def test_irregular_time(main):
    _ = torch.Tensor
    found = main("irregular_time")(("cfc",), count=32, steps=32, hidden=16, updates=250)
    told, untold = found["cfc"]
    assert told < 0.5 * untold


def test_packed_language(main):
    _ = torch.Tensor
    bits, line = main("packed_language")(hidden=32, epochs=80, documents=3)
    assert bits[0] > 7
    assert bits[-1] < 2
    assert line.startswith(b"\nThe ")


@pytest.mark.long
def test_ensemble(main):
    for name in ("equinox", "optax"):
        pytest.importorskip(name)
    losses, near, far = main("ensemble")(members=3, samples=24, steps=4, hidden=8, updates=120)
    assert losses.shape == (3,)
    assert losses.max() < 0.1
    assert far > 2 * near


@pytest.mark.long
def test_distributed(main):
    _ = torch.Tensor
    # it asserts that the processes learn the same parameters as one
    losses, _ = main("distributed")(hidden=8, batch=8, steps=8, updates=10)
    assert losses[-1] < losses[0]


@pytest.mark.skipif(bool(missing("cc")), reason="no C compiler")
def test_deploy_to_c(main):
    _ = torch.Tensor
    # it asserts that the answers of C and of PyTorch are equal
    losses, accuracy, gap = main("deploy_to_c")(
        hidden=8, count=8, steps=100, updates=100, heard=1000
    )
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy > 0.85
    assert gap < 1e-5


@pytest.mark.long
def test_lorenz(main):
    _ = torch.Tensor
    (first, last), (found, still), exponent = main("lorenz")(
        hidden=24, count=16, steps=48, updates=300, horizon=10
    )
    assert last < 0.5 * first
    assert found < 0.7 * still
    assert exponent < 0
