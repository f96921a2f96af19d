"""Triton kernels from text to code, for any framework, and without a GPU."""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from parnl.backends.triton.text import Kernel, source

REGISTERS = 65536  # of a multiprocessor

# Triton's names of what lies in memory.
_TYPES = {"float32": "fp32", "float64": "fp64", "int32": "i32", "int64": "i64", "bool": "u1"}


class Pointer(NamedTuple):
    """Stands for an array when a kernel is compiled.

    zeroed: how many of its bytes are to be 0 before each launch. Its address is a multiple of 16.
    """

    dtype: str
    zeroed: int = 0


class Compiled(NamedTuple):
    """What Triton has made of a kernel.

    shared: bytes of memory that the threads of an instance share; capability: the GPU it is for, 90
    for instance; taken: the arguments that the PTX has left, in its order, each with its type. Two
    addresses of memory follow that these kernels do not use.
    """

    name: str
    ptx: str
    cubin: bytes
    warps: int
    shared: int
    capability: int
    taken: list[tuple[Any, str]]


def tile(kernel: Kernel, chunks: int, channels: int) -> tuple[int, int, int]:
    """Return (CHUNKS, BLOCK, warps): the lanes of a program instance, and their threads.

    One lane for each thread, and as many threads as leave each the registers that the built-in
    cells need. A block of 32 channels is read as whole cache lines; many chunks leave room for
    fewer.
    """
    lanes = 512 if kernel.light else 256
    rows = 1 << (chunks - 1).bit_length()
    block = min(32, 1 << (channels - 1).bit_length(), max(1, lanes // rows))
    return rows, block, max(1, min(lanes, rows * block) // 32)


def options(warps: int) -> dict[str, Any]:
    """Return how a kernel is compiled.

    A step must give the same bits in every kernel: what is fused is written as fma, and nothing
    else is. Loads are issued ahead by the text itself. Without the limit, which is the hardware's,
    ptxas spills registers to run more instances at once.
    """
    limit = min(255, REGISTERS // (32 * warps))
    return {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": limit}


def loaded(
    kernel: Kernel, tiled: tuple[int, int, int], interpreted: bool
) -> tuple[Any, dict[str, Any]]:
    """Return what `load` does, kept with the program."""
    how = ("triton", interpreted, *kernel[1:], *tiled)
    return kernel.program.cached(how, lambda: load(kernel, tiled, interpreted))


def load(
    kernel: Kernel, tiled: tuple[int, int, int], interpreted: bool
) -> tuple[Any, dict[str, Any]]:
    """Return the Triton function of a kernel, and the constants that it takes.

    Triton reads the text of a function again; `linecache` has that of the generated ones from
    memory, so no file is written that another could change. What is compiled, Triton keeps in its
    own cache.
    """
    fixed = kernels(interpreted)
    text = source(kernel)
    name = f"<parnl triton {hashlib.sha256(text.encode()).hexdigest()}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    scope: dict[str, Any] = {
        "__name__": "parnl.backends.triton_generated",
        "composed": fixed["tiles"].composed,
    }
    exec(compile(text, name, "exec"), scope)
    advance, trajectory = kernel.functions()
    constants = {
        "ADVANCE": scope[advance] if kernel.parallel else None,
        "TRAJECTORY": scope[trajectory],
        "AFFINE_SCAN": scope["affine_scan"],
        "FORM": kernel.form(),
        "LINEAR": kernel.linear,
        "MOVING": "".join(kernel.layouts[i] for i in kernel.moving()),
        "FIXED": "".join(kernel.layouts[i] for i in kernel.fixed()),
        "WIDE": kernel.wide,
        "AHEAD": kernel.ahead,
        "RESET": kernel.reset(),
        "CHUNKS": tiled[0],
        "BLOCK": tiled[1],
    }
    return getattr(fixed[kernel.kind], kernel.kind), constants


@cache
def kernels(interpreted: bool) -> dict[str, ModuleType]:
    """Return the modules of the folder `kernels`, by their names.

    `triton.jit` decides for the compiler or for the interpreter where it stands, so the folder is
    imported once for each, under a name of its own: a process may use both, as tests do.
    """
    folder = f"parnl.backends.triton.{'interpreted' if interpreted else 'compiled'}"
    package = ModuleType(folder)
    package.__path__ = [str(Path(__file__).parent / "kernels")]
    sys.modules[folder] = package
    names = ("tiles", "solve", "gradients")
    return {name: import_module(f"{folder}.{name}") for name in names}


def compiled(
    kernel: Kernel, tiled: tuple[int, int, int], given: Sequence[Any], capability: int
) -> Compiled:
    """Compile a kernel for a GPU of that compute capability, which need not be there.

    given: `launch.arguments`, with a `Pointer` for each array. They are specialised as Triton does
    when it launches a kernel itself: a 1 becomes part of the code, and so does that a number is a
    multiple of 16. So tensors of these strides have the same code. TRITON_OVERRIDE_ARCH, Triton's
    own variable, is stronger than `capability`: it may be "sm90".
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if triton.knobs.runtime.interpret:
        raise RuntimeError(
            "TRITON_INTERPRET is set, so Triton compiles nothing for a GPU: unset it"
        )
    if override := triton.knobs.runtime.override_arch:
        capability = int(override.removeprefix("sm"))
    function, constants = loaded(kernel, tiled, False)
    types: dict[str, Any] = {}
    values: dict[tuple[int, ...], Any] = {}
    known: dict[tuple[int, ...], Any] = {}
    taken: list[tuple[Any, str]] = []

    def typed(argument: Any, path: tuple[int, ...], specialised: bool) -> Any:
        if isinstance(argument, tuple) and not isinstance(argument, Pointer):
            return tuple(typed(a, (*path, i), specialised) for i, a in enumerate(argument))
        kind, aligned = _type(argument, specialised)
        if kind == "constexpr":
            values[path] = argument
        else:
            taken.append((argument, kind))
        if aligned:
            known[path] = [["tt.divisibility", 16]]
        return kind

    for i, argument in enumerate(given):
        parameter = function.params[i]
        types[parameter.name] = typed(argument, (i,), not parameter.do_not_specialize)
    for name, value in constants.items():
        types[name], values[(function.arg_names.index(name),)] = "constexpr", value
    made = triton.compile(
        ASTSource(function, types, constexprs=values, attrs=known),
        target=GPUTarget("cuda", capability, 32),
        options={**options(tiled[2]), "ptx_version": _ptx_version(capability)},
    )
    about = made.metadata
    assert not about.global_scratch_size, "memory that nobody hands over"
    ptx, cubin = made.asm["ptx"], made.asm["cubin"]
    return Compiled(about.name, ptx, cubin, about.num_warps, about.shared, capability, taken)


def _type(argument: Any, specialised: bool) -> tuple[str, bool]:
    """Return the type of an argument, and whether it is known to be a multiple of 16."""
    if isinstance(argument, Pointer):
        return f"*{_TYPES[argument.dtype]}", True
    if isinstance(argument, float):
        return "fp32", False
    if argument is None or (specialised and argument == 1):
        return "constexpr", False
    kind = "i32" if -(1 << 31) <= argument < 1 << 31 else "i64"
    return kind, specialised and argument % 16 == 0


def _ptx_version(capability: int) -> int:
    """Return the oldest version of PTX with that GPU, since any assembler may have to read it.

    XLA's is that of the CUDA it was installed with; the one Triton brings is newer, and so is the
    version it would write.
    """
    return 80 if capability < 100 else 88
