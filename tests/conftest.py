"""Set-up shared by all tests: double precision, CPU, one thread a worker, repeatable examples."""

import os
import sys
from pathlib import Path

# Read by JAX when it is first imported, so these come before any test module is.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_ENABLE_X64"] = "1"

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import oracles` under --import-mode=importlib

hypothesis.settings.register_profile(
    "parnl", deadline=None, derandomize=True, max_examples=40, print_blob=True
)
hypothesis.settings.register_profile("search", parent=None, deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "parnl"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Keep xdist workers from fighting over the cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def quick_compile():
    """Let XLA compile without most optimisations: what a test of many shapes spends its time on."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def pytest_terminal_summary(terminalreporter):
    """Say how many random cells tests/test_fuzz.py has drawn, by the path that was tested."""
    drawn: dict[str, int] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties:
                if name == "cells":
                    way, count = value.split()
                    drawn[way] = drawn.get(way, 0) + int(count)
    if drawn:
        counts = ", ".join(f"{way} {count}" for way, count in drawn.items())
        terminalreporter.write_line(f"random cells drawn: {counts}")
