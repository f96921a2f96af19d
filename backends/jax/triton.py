"""The Triton kernels as XLA custom calls, for JAX on NVIDIA GPUs: a whole solve in one launch.

They are the kernels that PyTorch launches; see `parnl.backends.triton`. A kernel is compiled to PTX
when a function is lowered, and jaxlib's own handler, which comes with JAX's CUDA plugin, assembles
and launches it. On a CPU, for tests, Triton's interpreter runs them.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

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
from parnl.backends.triton.text import Kernel
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.newton import Plan, Stats

# What jaxlib calls its handler.
TARGET = "triton_kernel_call"
LANES = 1 << 18  # that fill a GPU
# Where there is no GPU to ask, as when a function is exported, its kernels are for this one. jaxlib
# runs them on the GPUs of that family alone, 8.0 to 8.9. TRITON_OVERRIDE_ARCH, which Triton itself
# reads, names another: "sm90".
OLDEST = 80
_SHARED = 5 * 8  # bytes of the five integers in which instances compare results


class Launch(NamedTuple):
    """What is fixed when a kernel is traced."""

    kernel: Kernel
    plan: Plan

    @property
    def order(self) -> list[int]:
        """The program's operands in the order in which the kernel takes them."""
        return [*self.kernel.moving(), *self.kernel.fixed()]

    def results(self, like: Any) -> list[jax.ShapeDtypeStruct]:
        """Return what the kernel writes, for initial states such as `like` (B, D)."""
        kernel, plan, real = self.kernel, self.plan, like.dtype
        k, (batch, channels) = len(kernel.program.states), like.shape
        whole, parts = (batch, plan.steps, channels), (batch, plan.chunks, channels)
        if kernel.kind == "solve":
            shapes = [(whole, real)] * k
            shapes += [((), t) for t in (np.int32, real, real, np.bool_, np.int32)]
            # as 32-bit integers, for JAX may not be in its 64-bit mode
            shapes += [((_SHARED // 4,), np.int32)] * kernel.parallel
        else:
            of = [[i for i in group if i in kernel.wanted]
                  for group in (kernel.moving(), kernel.fixed())]  # fmt: skip
            shapes = [((batch, channels), real)] * k
            shapes += [(whole, real)] * len(of[0]) + [(parts, real)] * len(of[1])
        return [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]

    def arguments(self, given: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Return what the kernel takes, but for constants.

        given: what it reads, for the shapes; arrays: what stands for that, and then for what it
        writes. They are in the order of the kernel's arguments, so that XLA's buffers are, too.
        """
        kernel, order, k = self.kernel, self.order, len(self.kernel.program.states)
        operands = dict(zip(order, arrays, strict=False))
        strides = {i: build.dense_strides(a.shape) for i, a in zip(order, given, strict=False)}
        rest = iter(arrays[len(order) :])

        def group(n: int) -> tuple[Any, ...]:
            return tuple(islice(rest, n))

        if kernel.kind == "solve":
            groups: list[Any] = [group(k), group(k), group(len(Stats._fields)), next(rest, None)]
        else:
            of_moving = sum(i in kernel.wanted for i in kernel.moving())
            groups = [group(k), group(k), group(k)]
            groups += [(build.dense_strides(given[-1].shape),) * k]
            groups += [group(k), group(of_moving), tuple(rest)]
        like = given[len(order)]
        return build.arguments(
            kernel, self.plan, like.shape, device(like), operands, strides, groups
        )

    def tile(self, given: Sequence[Any]) -> tuple[tuple[int, int, int], int]:
        """Return the tile, and how many program instances there are."""
        batch, channels = given[len(self.order)].shape
        tiled = build.tile(self.kernel, self.plan.chunks, channels)
        return tiled, build.instances(tiled, batch, channels)


# -- when it is used ------------------------------------------------------------------------------


def chosen() -> bool:
    """Whether Triton is to be used: on a GPU if it can be, on a CPU with PARNL_KERNELS=triton."""
    choice = c_build.choice()
    if choice == "triton":
        return True
    return choice == "" and jax.default_backend() == "gpu" and not _absent()


def platforms(program: Program, plan: Plan, like: Any) -> tuple[str, ...]:
    """Return where Triton is to solve, for initial states such as `like` (B, D).

    Where it cannot, Pallas does, or JAX's own operations, and why is said once. With
    PARNL_KERNELS=triton it is an error.
    """
    forced, gpu = c_build.choice() == "triton", jax.default_backend() == "gpu"
    if not forced and (c_build.choice() or not gpu):
        return ()
    if str(like.dtype) not in ("float32", "float64") or not like.size * plan.steps:
        return ()
    if plan.chunks > build.CHUNKS:
        if forced:
            raise ValueError(
                f"chunks: a Triton kernel takes at most {build.CHUNKS}, got {plan.chunks}"
            )
        return ()
    # the interpreter needs no plugin
    reason = (build.importable() if forced and not gpu else _absent()) or build.unsupported(program)
    if not reason:
        return ("cpu", "cuda")[: 1 if TRITON_ABSENT else 2] if forced else ("cuda",)
    if forced:
        raise NotImplementedError(f"PARNL_KERNELS=triton: {reason}")
    _notice(reason)
    return ()


def _absent() -> str:
    """Return why there is no Triton for JAX on GPUs, "" if there is."""
    return build.importable() or TRITON_ABSENT


@cache
def _notice(reason: str) -> None:
    warnings.warn(
        f"parnl runs without Triton kernels, several times slower: {reason}. Install triton, and "
        "JAX with its CUDA plugin, or set PARNL_KERNELS=pallas or off to say that this is meant.",
        RuntimeWarning,
        stacklevel=2,
    )


def device(like: Any) -> Device:
    """Return how many lanes fill a GPU for states like `like` (B, D), in chunks not too many."""
    return Device(min(LANES, max(1, build.FEWER * like.size)), build.PRICE)


# -- calls ----------------------------------------------------------------------------------------


def solve(
    program: Program, plan: Plan, operands: Sequence[jax.Array], x0: Sequence[jax.Array]
) -> list[jax.Array]:
    """Return what `newton.newton` does, in one list: states, then statistics."""
    launch = Launch(_kernel("solve", program, plan, operands, x0[0]), plan)
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
    launch = Launch(_kernel("gradients", program, plan, operands, x0[0], wanted), plan)
    read = [operands[i] for i in launch.order]
    found = launch_p.bind(*read, *x0, *states, *grads, launch=launch)
    of = dict(zip([i for i in launch.order if i in wanted], found[len(x0) :], strict=True))
    return found[: len(x0)], [of[i] for i in wanted]


def _kernel(
    kind: str,
    program: Program,
    plan: Plan,
    operands: Sequence[Any],
    like: Any,
    wanted: tuple[int, ...] = (),
) -> Kernel:
    layouts, wide = "".join(map(layout, operands)), plan.steps * like.shape[1] >= 1 << 31
    return Kernel(program, kind, str(like.dtype), layouts, plan.chunks > 1, wide, wanted)


# -- the primitive --------------------------------------------------------------------------------


def _abstract(*given: Any, launch: Launch) -> list[Any]:
    return [ShapedArray(x.shape, x.dtype) for x in launch.results(given[len(launch.order)])]


def _for_cuda(context: Any, *arrays: Any, launch: Launch) -> Any:
    """Lower to jaxlib's custom call, which is given the kernel and its scalars as a protobuf."""
    made, instances = compiled(launch, context.avals_in)
    parameters = [
        create_array_parameter(value.zeroed, 16)  # a buffer of XLA is as well aligned
        if isinstance(value, Pointer)
        else create_scalar_parameter(value, kind)
        for value, kind in made.taken
    ]
    kernel = TritonKernel(
        made.name, made.warps, 1, made.shared, made.ptx, made.ttir, made.capability
    )
    call = TritonKernelCall(kernel, instances, 1, 1, parameters)
    config = zlib.compress(call.to_proto(f"parnl_{launch.kernel.kind}", b""))
    rule = jax.ffi.ffi_lowering(TARGET, api_version=2, backend_config=config)
    return rule(context, *arrays)


def compiled(launch: Launch, given: Sequence[Any]) -> tuple[build.Compiled, int]:
    """Return the kernel for arrays of these shapes and dtypes, and how many instances it has."""
    tiled, instances = launch.tile(given)
    results = launch.results(given[len(launch.order)])
    pointers = [Pointer(str(np.dtype(a.dtype))) for a in (*given, *results)]
    if launch.kernel.kind == "solve" and launch.kernel.parallel:
        pointers[-1] = Pointer("int64", zeroed=_SHARED)
    arguments = launch.arguments(given, pointers)
    return build.compiled(launch.kernel, tiled, arguments, _capability()), instances


def _capability() -> int:
    """Return the compute capability to compile for."""
    try:
        (found, *_) = jax.local_devices(backend="gpu")
    except RuntimeError:
        return OLDEST
    return int(found.compute_capability.replace(".", ""))


def _interpreted(*arrays: Any, launch: Launch) -> list[Any]:
    """Run the kernel on a CPU, in Triton's interpreter, which takes tensors of PyTorch."""
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            "PARNL_KERNELS=triton: the arrays are on cpu, which needs Triton's interpreter: set "
            "TRITON_INTERPRET=1, or run on a GPU"
        )
    shapes = launch.results(arrays[len(launch.order)])

    def run(*arrays: Any) -> list[np.ndarray]:
        import torch

        results = [np.zeros(s.shape, s.dtype) for s in shapes]
        # a copy, for what JAX hands over must not be written, and PyTorch has no such tensors
        tensors = [torch.from_numpy(np.array(a)) for a in arrays]
        tensors += [torch.from_numpy(r) for r in results]
        if launch.kernel.kind == "solve" and launch.kernel.parallel:
            tensors[-1] = tensors[-1].view(torch.int64)
        tiled, instances = launch.tile(arrays)
        function, constants = build.loaded(launch.kernel, tiled, True)
        function[(instances,)](*launch.arguments(arrays, tensors), **constants)
        return results

    return jax.pure_callback(run, shapes, *arrays)


launch_p = Primitive("parnl_triton")
launch_p.multiple_results = True
launch_p.def_abstract_eval(_abstract)
launch_p.def_impl(jax.jit(launch_p.bind, static_argnames="launch"))
mlir.register_lowering(launch_p, _for_cuda, platform="cuda")
mlir.register_lowering(
    launch_p, mlir.lower_fun(_interpreted, multiple_results=True), platform="cpu"
)
