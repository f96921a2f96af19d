"""The generated C kernels as XLA custom calls, for JAX on the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jaxlib
import numpy as np

from parnl.backends import cbuild
from parnl.backends.ccode import Kernel, fields, source
from parnl.backends.compiled import layout, processors, width
from parnl.newton import Plan
from parnl.program import Program


def usable(dtype: Any) -> bool:
    """Whether kernels can be built for arrays of `dtype`."""
    return cbuild.wanted() and str(dtype) in ("float32", "float64") and cbuild.available()


def call(
    program: Program,
    plan: Plan,
    kind: str,
    operands: Sequence[jax.Array],
    starts: Sequence[jax.Array],
    results: Mapping[str, tuple[int, tuple[int, ...]]],
) -> list[jax.Array]:
    """Call the kernel `kind`; `results` gives number and shape of each group of them."""
    like = starts[0]
    layouts = "".join(layout(a) for a in operands)
    batch, chunks, channels = like.shape
    lanes = width(channels, batch * chunks)
    kernel = Kernel(program, kind, str(like.dtype), layouts, lanes)
    arguments = {"op": list(operands), "start": list(starts)}
    numbers = {
        "opb": [0 if a.shape[0] == 1 else a.shape[1] * a.shape[2] for a in operands],
        "opt": [0 if a.shape[1] == 1 else a.shape[2] for a in operands],
    }
    sizes = [batch, chunks, channels, plan.steps, plan.length, plan.reverse]
    table, slots = [*map(int, sizes), processors()], [0] * (len(sizes) + 1)
    given, taken = 0, 0
    for name, size in fields(kernel):
        if name in numbers:
            table, slots = table + numbers[name], slots + [0] * size
            continue
        table = table + [0] * size
        if name in arguments:
            slots = slots + [given + i + 1 for i in range(size)]
            given += size
        else:
            slots = slots + [-(taken + i + 1) for i in range(size)]
            taken += size
    shapes = [
        jax.ShapeDtypeStruct(shape, like.dtype)
        for count, shape in results.values()
        for _ in range(count)
    ]
    target = program.cached(("ffi", *kernel[1:]), lambda: _register(kernel))
    attributes = {"slots": np.array(slots, np.int64), "table": np.array(table, np.int64)}
    return list(jax.ffi.ffi_call(target, shapes)(*operands, *starts, **attributes))


def _register(kernel: Kernel) -> str:
    """Build the kernel's handler and make it known to XLA; return its name there."""
    text = source(kernel, ffi=True)
    name = f"parnl_{hashlib.sha256(text.encode()).hexdigest()[:24]}"
    _registered(name, text)
    return name


@cache
def _registered(name: str, text: str) -> None:
    handler = cbuild.load(text, "handler", jax.ffi.include_dir(), jaxlib.__version__)
    if handler is None:
        raise cbuild.BuildError("the C compiler failed on a kernel; set PARNL_KERNELS=off")
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
