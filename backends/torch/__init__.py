"""The PyTorch backend."""

import warnings
from importlib import import_module
from typing import Any

from parnl.backends.torch.adaptor import backend

__all__ = ["backend"]


def __getattr__(name: str) -> Any:
    """`RNN` moved to `parnl.torch`; this name goes on working for one release."""
    if name != "RNN":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "parnl.backends.torch.RNN has moved: from parnl.torch import RNN",
        DeprecationWarning,
        stacklevel=2,
    )
    return import_module("parnl.torch").RNN
