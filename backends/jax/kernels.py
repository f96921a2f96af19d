"""Which kernels run a program on which platform: C on a CPU, Pallas on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import lax

from parnl.backends.c import build
from parnl.backends.jax import ffi, pallas
from parnl.graph.program import Program


def by_platform(
    kernels: Callable, composed: Callable, program: Program, dtype: Any, *arrays: list
) -> Any:
    """Return kernels(call, *arrays) on platforms that have kernels, composed(*arrays) elsewhere.

    `call` is `ffi.call`, or `pallas.call` of the same interface.
    """
    calls = pallas.calls(program, dtype)
    if not calls and not ffi.usable(dtype):
        return composed(*arrays)
    ways = {name: partial(kernels, call) for name, call in calls.items()}
    if "cpu" not in calls and ffi.usable(dtype):
        ways["cpu"] = partial(_in_c, kernels, composed)
    return lax.platform_dependent(*arrays, **ways, default=composed)


def _in_c(kernels: Callable, composed: Callable, *arrays: list) -> Any:
    try:
        return kernels(ffi.call, *arrays)
    except build.BuildError:  # which has been said
        if build.choice() == "c":
            raise
        return composed(*arrays)
