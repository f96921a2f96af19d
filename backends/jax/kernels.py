"""Which kernels run a program on which platform: C on a CPU, Triton on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import lax

from parnl.backends.c import build
from parnl.backends.jax import ffi, triton
from parnl.graph.program import Program
from parnl.solver.newton import Plan


def at_once(
    kernel: Callable, other: Callable, program: Program, plan: Plan, like: Any, *arrays: list
) -> Any:
    """Return kernel(*arrays) where Triton solves in one launch, other(*arrays) elsewhere.

    like: (B, D), an array of x0.
    """
    platforms = triton.platforms(program, plan, like)
    if not platforms:
        return other(*arrays)
    return lax.platform_dependent(*arrays, **dict.fromkeys(platforms, kernel), default=other)


def by_chunks(kernels: Callable, composed: Callable, dtype: Any, *arrays: list) -> Any:
    """Return kernels(*arrays), which calls `ffi.call`, on CPUs, composed(*arrays) elsewhere."""
    if not ffi.usable(dtype):
        return composed(*arrays)
    in_c = partial(_in_c, kernels, composed)
    return lax.platform_dependent(*arrays, cpu=in_c, default=composed)


def _in_c(kernels: Callable, composed: Callable, *arrays: list) -> Any:
    try:
        return kernels(*arrays)
    except build.BuildError:  # which has been said
        if build.choice() == "c":
            raise
        return composed(*arrays)
