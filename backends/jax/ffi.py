"""The generated C kernels as XLA custom calls, for JAX on the CPU."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jaxlib
import numpy as np

from parnl.backends.c import build
from parnl.backends.c.calls import grouped, layout, processors, results, worthwhile
from parnl.backends.c.text import Kernel, fields, source
from parnl.graph.program import Program
from parnl.solver.newton import Plan


def usable(dtype: Any) -> bool:
    """Whether kernels can be built for arrays of `dtype`."""
    return build.wanted() and str(dtype) in ("float32", "float64") and build.available()


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
    kernel = Kernel(program, kind, str(like.dtype), layouts, lanes, wanted)
    arguments = {"op": operands, "start": starts, **(fixed or {})}
    numbers = {
        "opb": [0 if a.shape[0] == 1 else a.shape[1] * a.shape[2] for a in operands],
        "opt": [0 if a.shape[1] == 1 else a.shape[2] for a in operands],
        "gb": [plan.steps * channels] * len(starts),
        "gt": [channels] * len(starts),
    }
    shapes = results(kind, plan, operands, starts, wanted)
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
    target = program.cached(("ffi", *kernel[1:]), lambda: _register(kernel))
    attributes = {"slots": np.array(slots, np.int64), "table": np.array(table, np.int64)}
    return list(jax.ffi.ffi_call(target, taken)(*given, **attributes))


def _register(kernel: Kernel) -> str:
    """Build the kernel's handler and make it known to XLA; return its name there."""
    text = source(kernel, ffi=True)
    name = f"parnl_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    _registered(name, text)
    return name


_registering = threading.Lock()  # XLA takes a name once


def _registered(name: str, text: str) -> None:
    with _registering:
        _register_once(name, text)


@cache
def _register_once(name: str, text: str) -> None:
    handler = build.load(text, "handler", jax.ffi.include_dir(), jaxlib.__version__)
    if handler is None:
        raise build.BuildError("the C compiler failed on a kernel; set PARNL_KERNELS=off")
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
