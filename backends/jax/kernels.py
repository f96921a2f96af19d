"""Which kernels run a program on which platform: C on a CPU, Triton on a GPU.

An exported function has none: it has JAX's own operations, and the chunks of the platform that it
is exported for, which need not be the one it is written on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
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


# While a function is exported, the platform that is traced for: "" as long as that is not known.
_exported: ContextVar[str | None] = ContextVar("_exported", default=None)


def platform() -> str:
    """Return the platform that chunks are chosen for."""
    return _exported.get() or jax.default_backend()


@contextmanager
def exported(name: str = "") -> Iterator[None]:
    """Return a context in which functions are traced to be exported, for a platform if it is named.

    Another process has no kernels.
    """
    token = _exported.set(name)
    try:
        with build.without_kernels():
            yield
    finally:
        _exported.reset(token)


def is_exported() -> bool:
    """Return whether what is traced is for another process."""
    return _exported.get() is not None


def on_each_platform(function: Callable, *arrays: Any) -> Any:
    """Return function(*arrays), which is being exported, traced for a CPU and for all else.

    JAX keeps what belongs to the platforms that are exported for.
    """

    def on(name: str) -> Callable:
        def run(*arrays: Any) -> Any:
            with exported(name):
                return function(*arrays)

        return run

    return lax.platform_dependent(*arrays, cpu=on("cpu"), default=on("gpu"))


def _in_c(kernels: Callable, composed: Callable, *arrays: list) -> Any:
    try:
        return kernels(*arrays)
    except build.BuildError:  # which has been said
        if build.choice() == "c":
            raise
        return composed(*arrays)
