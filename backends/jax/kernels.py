"""Which kernels run a program on which platform: C on a CPU, Pallas on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import lax

from parnl.backends.jax import ffi, pallas
from parnl.program import Program


def by_platform(
    kernels: Callable, composed: Callable, program: Program, dtype: Any, *arrays: list
) -> Any:
    """Return kernels(call, *arrays) on platforms that have kernels, composed(*arrays) elsewhere.

    `call` is `ffi.call`, or `pallas.call` of the same interface.
    """
    calls = pallas.calls(program, dtype)
    if "cpu" not in calls and ffi.usable(dtype):
        calls["cpu"] = ffi.call
    if not calls:
        return composed(*arrays)
    ways = {name: partial(kernels, call) for name, call in calls.items()}
    return lax.platform_dependent(*arrays, **ways, default=composed)
