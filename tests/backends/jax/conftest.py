"""What tests of the choice of kernels share."""

import pytest
from optional import jax

from parnl.backends.c import build


@pytest.fixture
def fresh(monkeypatch):
    """The choice of kernels is made when a function is traced: here for Triton."""
    jax.clear_caches()
    build._said.clear()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("TRITON_OVERRIDE_ARCH", raising=False)
    monkeypatch.setenv("PARNL_KERNELS", "triton")
    yield monkeypatch
    jax.clear_caches()
