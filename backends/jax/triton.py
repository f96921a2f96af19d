"""The Triton kernels as XLA custom calls, for JAX on NVIDIA GPUs: a whole solve in one launch.

They are the kernels that PyTorch launches; see `parnl.backends.triton`. A kernel is compiled to PTX
when a function is lowered, and jaxlib's own handler, which comes with JAX's CUDA plugin, assembles
and launches it. On a CPU, for tests, Triton's interpreter runs them.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from parnl.backends.c import build as c_build
from parnl.backends.c.calls import layout
from parnl.backends.jax.private import (
    TRITON_ABSENT,
    Primitive,
    ShapedArray,
    TritonKernel,
    TritonKernelCall,
    create_array_parameter,
    create_scalar_parameter,
    mlir,
)
from parnl.backends.triton import build
from parnl.backends.triton.build import Pointer
from parnl.backends.triton.launch import CHUNKS, FEWER, PRICE, Launch, importable, unsupported
from parnl.backends.triton.text import Kernel
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.newton import Plan, Stats

LANES = 1 << 18  # that fill a GPU
# The name of jaxlib's handler, and the version of its interface. Releases from 0.10.1 on have
# another handler besides, "triton_kernel_call_ffi".
_TARGET, _VERSION = "triton_kernel_call", 2
# Where there is no GPU to ask, as when a function is exported, its kernels are for this one. jaxlib
# runs them on the GPUs of that family alone, 8.0 to 8.9. TRITON_OVERRIDE_ARCH, which Triton itself
# reads, names another: "sm90".
_OLDEST = 80
# Each device of JAX has a thread, and Triton's interpreter serves one at a time.
_interpreter = threading.Lock()


# -- when it is used ------------------------------------------------------------------------------


def chosen() -> bool:
    """Whether Triton is to be used: on a GPU if it can be, on a CPU with PARNL_KERNELS=triton."""
    choice = c_build.choice()
    if choice == "triton":
        return True
    return choice == "" and jax.default_backend() == "gpu" and not _absent()


def platforms(program: Program, plan: Plan, like: Any) -> tuple[str, ...]:
    """Return where Triton is to solve, for initial states such as `like` (B, D).

    Where it cannot, JAX's own operations do, and why is said once. With PARNL_KERNELS=triton it is
    an error.
    """
    forced, gpu = c_build.choice() == "triton", jax.default_backend() == "gpu"
    if not forced and (c_build.choice() or not gpu):
        return ()
    if str(like.dtype) not in ("float32", "float64") or not like.size * plan.steps:
        return ()
    if plan.chunks > CHUNKS:
        if forced:
            raise ValueError(f"chunks: a Triton kernel takes at most {CHUNKS}, got {plan.chunks}")
        return ()
    # the interpreter needs no plugin
    reason = (importable() if forced and not gpu else _absent()) or unsupported(program)
    if not reason:
        return ("cpu",) * forced + ("cuda",) * (not TRITON_ABSENT)
    if forced:
        raise NotImplementedError(f"PARNL_KERNELS=triton: {reason}")
    c_build.say_once(
        f"triton in JAX: {reason}",
        "parnl solves without Triton kernels, as JAX's own operations, many times slower: "
        f"{reason}. Install triton and jax[cuda13], or set PARNL_KERNELS=off if this is intended.",
    )
    return ()


def _absent() -> str:
    """Return why there is no Triton for JAX on GPUs, "" if there is."""
    return importable() or TRITON_ABSENT


def device(like: Any) -> Device:
    """Return how many lanes fill a GPU for states like `like` (B, D), in chunks not too many."""
    return Device(min(LANES, max(1, FEWER * like.size)), PRICE)


# -- calls ----------------------------------------------------------------------------------------


def solve(
    program: Program, plan: Plan, operands: Sequence[jax.Array], x0: Sequence[jax.Array]
) -> list[jax.Array]:
    """Return what `newton.newton` does, in one list: states, then statistics."""
    launch = _launch("solve", program, plan, operands, x0[0])
    found = launch_p.bind(*(operands[i] for i in launch.order), *x0, launch=launch)
    return found[: len(x0) + len(Stats._fields)]


def gradients(
    program: Program,
    plan: Plan,
    operands: Sequence[jax.Array],
    x0: Sequence[jax.Array],
    states: Sequence[jax.Array],
    grads: Sequence[jax.Array],
    wanted: tuple[int, ...],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return what `CompiledKernels.gradients` does; `plan` is the backward run's."""
    launch = _launch("gradients", program, plan, operands, x0[0], wanted)
    read = [operands[i] for i in launch.order]
    found = launch_p.bind(*read, *x0, *states, *grads, launch=launch)
    of = dict(zip([i for i in launch.order if i in wanted], found[len(x0) :], strict=True))
    return found[: len(x0)], [of[i] for i in wanted]


def _launch(
    kind: str,
    program: Program,
    plan: Plan,
    operands: Sequence[Any],
    like: Any,
    wanted: tuple[int, ...] = (),
) -> Launch:
    layouts, wide = "".join(map(layout, operands)), plan.steps * like.shape[1] >= 1 << 31
    kernel = Kernel(program, kind, str(like.dtype), layouts, plan.chunks > 1, wide, wanted)
    return Launch(kernel, plan, device(like))


# -- the primitive --------------------------------------------------------------------------------


def _results(launch: Launch, read: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    found = []
    for shape, pointer in launch.results([a.shape for a in read]):
        dtype = np.dtype(pointer.dtype)
        if dtype == np.int64:  # without its 64-bit mode, JAX has but the halves
            shape, dtype = (2 * shape[0],), np.dtype(np.int32)
        found.append(jax.ShapeDtypeStruct(shape, dtype))
    return found


def _abstract(*read: Any, launch: Launch) -> list[Any]:
    return [ShapedArray(x.shape, x.dtype) for x in _results(launch, read)]


def _for_cuda(context: Any, *arrays: Any, launch: Launch) -> Any:
    """Lower to jaxlib's custom call, which is given the kernel and its scalars as a protobuf."""
    read = [a.shape for a in context.avals_in]
    made, (_, instances) = launch.compiled(read, _capability()), launch.tile(read)
    parameters = [
        create_array_parameter(value.zeroed, 16)  # jaxlib checks that its address is a multiple
        if isinstance(value, Pointer)
        else create_scalar_parameter(value, kind)
        for value, kind in made.taken
    ]
    # the text before PTX, which is for people, is left out
    kernel = TritonKernel(made.name, made.warps, 1, made.shared, made.ptx, "", made.capability)
    call = TritonKernelCall(kernel, instances, 1, 1, parameters)
    # bytes, which become an attribute of MLIR as a string does
    config: Any = zlib.compress(call.to_proto(f"parnl_{launch.kernel.kind}", b""))
    rule = jax.ffi.ffi_lowering(_TARGET, api_version=_VERSION, backend_config=config)
    return rule(context, *arrays)


def _capability() -> int:
    """Return the compute capability to compile for."""
    try:
        (found, *_) = jax.local_devices(backend="gpu")
    except RuntimeError:
        return _OLDEST
    return int(found.compute_capability.replace(".", ""))


def _interpreted(*arrays: Any, launch: Launch) -> list[Any]:
    """Run the kernel on a CPU, in Triton's interpreter, which takes tensors of PyTorch."""
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "PARNL_KERNELS=triton: the arrays are on cpu, which needs Triton's interpreter: set "
            "TRITON_INTERPRET=1, or run on a GPU"
        )
    try:  # not in `run`: two threads of JAX would import it at once
        import torch
    except ImportError:
        raise ImportError(
            "PARNL_KERNELS=triton, TRITON_INTERPRET=1: Triton's interpreter needs PyTorch, which "
            "is not installed: pip install 'parnl[torch]'"
        ) from None
    results, shapes = _results(launch, arrays), [a.shape for a in arrays]

    def run(*arrays: Any) -> list[np.ndarray]:
        written = [np.zeros(r.shape, r.dtype) for r in results]
        # a copy, for what JAX hands over must not be written, and PyTorch has no such tensors
        tensors = [torch.from_numpy(np.array(a)) for a in arrays]
        for (_, pointer), array in zip(launch.results(shapes), written, strict=True):
            tensors.append(torch.from_numpy(array.view(pointer.dtype)))
        tiled, instances = launch.tile(shapes)
        with _interpreter:
            function, constants = build.loaded(launch.kernel, tiled, True)
            function[(instances,)](*launch.arguments(shapes, tensors), **constants)
        return written

    return jax.pure_callback(run, results, *arrays)


launch_p = Primitive("parnl_triton")
launch_p.multiple_results = True
_jitted = jax.jit(launch_p.bind, static_argnames="launch")


@launch_p.def_impl
def _evaluated(*arrays: jax.Array, launch: Launch) -> list[jax.Array]:
    with jax.disable_jit(False):  # an operation, as JAX's own, is one even where jit is off
        return _jitted(*arrays, launch=launch)


launch_p.def_abstract_eval(_abstract)
mlir.register_lowering(launch_p, _for_cuda, platform="cuda")
interpreted = mlir.lower_fun(_interpreted, multiple_results=True)
mlir.register_lowering(launch_p, interpreted, platform="cpu")
