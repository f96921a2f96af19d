"""The generated C kernels as XLA custom calls, for JAX on the CPU."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jax
import jaxlib
import numpy as np

from parnl.backends.c import build
from parnl.backends.c.calls import grouped, layout, processors, results, worthwhile
from parnl.backends.c.kernel import CKernel, fields
from parnl.backends.c.text import source
from parnl.graph.program import Program
from parnl.solver.newton import Plan

# The custom call that XLA knows; which kernel is meant, an attribute says. See `trampoline.c`.
TARGET = "parnl_kernel"


def usable(dtype: Any) -> bool:
    """Whether kernels can be built for arrays of `dtype`."""
    return (
        build.wanted()
        and str(dtype) in ("float32", "float64")
        and build.available()
        and _trampoline() is not None
    )


def call(
    program: Program,
    plan: Plan,
    kind: str,
    operands: Sequence[jax.Array],
    starts: Sequence[jax.Array],
    wanted: tuple[int, ...] = (),
    fixed: Mapping[str, Sequence[jax.Array]] | None = None,
) -> list[jax.Array]:
    """Call the kernel `kind` and return its results, as `calls.results` lists them.

    fixed: what a backward run reads besides: "x0", "state", and "g", the states' gradients.
    """
    like = starts[0]
    layouts = "".join(layout(a) for a in operands)
    batch, chunks, channels = like.shape
    lanes = grouped(kind, channels, batch * chunks, processors())
    kernel = CKernel(program, kind, str(like.dtype), layouts, lanes, wanted)
    arguments = {"op": operands, "start": starts, **(fixed or {})}
    numbers = {
        "opb": [0 if a.shape[0] == 1 else a.shape[1] * a.shape[2] for a in operands],
        "opt": [0 if a.shape[1] == 1 else a.shape[2] for a in operands],
        "gb": [plan.steps * channels] * len(starts),
        "gt": [channels] * len(starts),
    }
    shapes = results(kernel, plan, starts)
    sizes = [batch, chunks, channels, plan.steps, plan.length, plan.reverse]
    threads = worthwhile(kernel, plan, like.shape, processors(), waiting=True)
    table, slots = [*map(int, sizes), threads, 0], [0] * (len(sizes) + 2)
    given: list[jax.Array] = []
    taken: list[jax.ShapeDtypeStruct] = []
    for name, size in fields(kernel):
        table += numbers.get(name, [0] * size)
        if name in arguments:
            slots += range(len(given) + 1, len(given) + size + 1)
            given += arguments[name]
        elif name in shapes:
            slots += range(-len(taken) - 1, -len(taken) - size - 1, -1)
            taken += [jax.ShapeDtypeStruct(shape, like.dtype) for shape in shapes[name]]
        else:
            slots += [0] * size
    return list(
        jax.ffi.ffi_call(TARGET, taken)(
            *given,
            kernel=program.cached(("ffi", *kernel[1:]), lambda: _load(source(kernel))),
            slots=np.array(slots, np.int64),
            table=np.array(table, np.int64),
        )
    )


_lock = threading.Lock()  # a kernel, and the trampoline, are made known once


def _load(text: str) -> str:
    """Build the kernel of `text` and make it known to the trampoline; return its name there."""
    with _lock:
        return _load_once(text)


@cache
def _load_once(text: str) -> str:
    trampoline, library = _trampoline_once(), build.library(text)
    if trampoline is None or library is None:
        raise build.BuildError("the C compiler failed on a kernel; set PARNL_KERNELS=off")
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    if not trampoline.add(name.encode(), library.kernel_on_pool):
        raise MemoryError
    return name


def _trampoline() -> ctypes.CDLL | None:
    """Return what brings XLA's custom calls to kernels, None if it cannot be built."""
    with _lock:
        return _trampoline_once()


@cache
def _trampoline_once() -> ctypes.CDLL | None:
    text = files(__package__).joinpath("trampoline.c").read_text(encoding="utf-8")
    library = build.library(text, jax.ffi.include_dir(), jaxlib.__version__)
    if library is not None:
        library.add.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.handler), platform="cpu")
    return library
