"""Experiments that import each other as `benchmarks.x`, as `python -m benchmarks.x` does."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def experiment(monkeypatch):
    """Import one by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def command(monkeypatch):
    """Call a module's `main` as if its command line were this."""

    def call(module, *arguments):
        monkeypatch.setattr("sys.argv", ["it", *map(str, arguments)])
        module.main()

    return call
