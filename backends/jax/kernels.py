"""Which kernels run a program on which platform: C on a CPU, Triton on a GPU, or else Pallas."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from jax import lax

from parnl.backends.c import build
from parnl.backends.jax import ffi, pallas, triton
from parnl.graph.program import Program
from parnl.solver.newton import Plan

# Whether what is traced is for platforms other than CUDA.
_elsewhere: ContextVar[bool] = ContextVar("parnl_elsewhere", default=False)


def at_once(
    kernel: Callable, other: Callable, program: Program, plan: Plan, like: Any, *arrays: list
) -> Any:
    """Return kernel(*arrays) where Triton solves in one launch, other(*arrays) elsewhere.

    like: (B, D), an array of x0.
    """
    platforms = triton.platforms(program, plan, like)
    if not platforms:
        return other(*arrays)

    def traced(*arrays: list) -> Any:
        token = _elsewhere.set(True)
        try:
            return other(*arrays)
        finally:
            _elsewhere.reset(token)

    ways = dict.fromkeys(platforms, kernel)
    return lax.platform_dependent(*arrays, **ways, default=traced)


def by_platform(
    kernels: Callable, composed: Callable, program: Program, dtype: Any, *arrays: list
) -> Any:
    """Return kernels(call, *arrays) on platforms that have kernels, composed(*arrays) elsewhere.

    `call` is `ffi.call`, or `pallas.call` of the same interface.
    """
    calls = {} if _elsewhere.get() else pallas.calls(program, dtype)
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
