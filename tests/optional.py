"""Frameworks that a test may use: `from optional import jax, jnp, torch`.

Where one is not installed, a test that uses it is skipped, and so is a file that does at its top.
"""

import importlib

import pytest

_MODULES = {"torch": "torch", "jax": "jax", "jnp": "jax.numpy"}


class _Missing:
    def __init__(self, name):
        self._name = name

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        pytest.skip(f"{self._name} is not installed", allow_module_level=True)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(name)
    try:
        return importlib.import_module(_MODULES[name])
    except ModuleNotFoundError:
        return _Missing(_MODULES[name])
