"""Triton kernels called on tensors: a solve, and a backward run, each in one launch.

Nothing here looks at a value on the device, so a solve takes part in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from parnl.backends.c import build
from parnl.backends.c.calls import dtype_name, layout
from parnl.backends.triton.build import loaded, options, tile
from parnl.backends.triton.launch import CHUNKS, FEWER, PRICE, arguments, importable, instances
from parnl.backends.triton.text import Kernel
from parnl.frameworks import constant
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.newton import Plan, Stats

LANES = 512  # that keep one multiprocessor busy


def serves(array: Tensor, chunks: int = 1) -> bool:
    """Whether Triton kernels are to solve for states like `array`, in so many chunks.

    They serve CUDA tensors; with PARNL_KERNELS=triton and Triton's interpreter, any. More chunks
    than one program instance can hold are left to the composed path, or an error if forced.
    """
    if array.dtype not in (torch.float32, torch.float64) or not _chosen(array.device.type):
        return False
    if chunks > CHUNKS and build.choice() == "triton":
        raise ValueError(f"chunks: a Triton kernel takes at most {CHUNKS}, got {chunks}")
    return chunks <= CHUNKS


@constant
def _chosen(device: str) -> bool:
    """Whether Triton is to be used on tensors of `device`."""
    choice = build.choice()
    if choice == "triton":
        if reason := importable():
            raise NotImplementedError(f"PARNL_KERNELS=triton: {reason}")
        import triton

        if device != "cuda" and not triton.knobs.runtime.interpret:
            raise RuntimeError(
                f"PARNL_KERNELS=triton: the tensors are on {device}, which needs Triton's "
                "interpreter: set TRITON_INTERPRET=1, or move them to cuda"
            )
        return True
    # of the two kinds of GPU that torch calls cuda, the one that is compiled for
    return choice == "" and device == "cuda" and bool(torch.version.cuda) and _available()


def device(array: Tensor) -> Device:
    """Return how many lanes fill the device of `array` (rows, channels), in chunks not too many."""
    most = max(1, FEWER * array.numel())
    return Device(min(LANES * _multiprocessors(array.device), most), PRICE)


def solve(
    program: Program, plan: Plan, operands: Sequence[Tensor], x0: Sequence[Tensor]
) -> tuple[list[Tensor], Stats]:
    """Return what `newton.newton` does; operands may be of any floating dtype, or bool."""
    batch, channels = x0[0].shape
    like = x0[0]
    states = [like.new_empty(batch, plan.steps, channels) for _ in x0]
    if like.numel() == 0:
        nothing = like.new_zeros(())
        none = nothing.to(torch.int32)
        return states, Stats(none, nothing, nothing, nothing == 0, none)
    types = (torch.int32, like.dtype, like.dtype, torch.bool, torch.int32)
    stats = tuple(torch.empty((), dtype=t, device=like.device) for t in types)
    # where instances compare results; one chunk needs none
    shared = like.new_zeros(5, dtype=torch.int64) if plan.chunks > 1 else None
    starts = tuple(x.contiguous() for x in x0)
    kernel = _kernel("solve", program, plan, operands, like)
    _launch(kernel, plan, operands, like, (starts, tuple(states), stats, shared))
    return states, Stats(*stats)


def gradients(
    program: Program,
    plan: Plan,
    operands: Sequence[Tensor],
    x0: Sequence[Tensor],
    states: Sequence[Tensor],
    grads: Sequence[Tensor],
    wanted: Sequence[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what `CompiledKernels.gradients` does; `plan` is the backward run's."""
    batch, channels = x0[0].shape
    like = x0[0]
    of_x0 = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in x0]
    kernel = _kernel("gradients", program, plan, [*operands, *grads], like, wanted)
    found = {}
    for i in wanted:
        summed = i in kernel.fixed()
        # what is a whole answer takes its operand's dtype; what is still to be summed does not
        shape = (batch, plan.chunks if summed else plan.steps, channels)
        dtype = operands[i].dtype if operands[i].shape == shape and not summed else like.dtype
        found[i] = torch.empty(shape, dtype=dtype, device=like.device)
    if like.numel() > 0:
        arrays = (
            tuple(x.contiguous() for x in x0),
            tuple(s.contiguous() for s in states),
            tuple(grads),
            tuple(g.stride() for g in grads),
            tuple(of_x0),
            tuple(found[i] for i in kernel.moving() if i in found),
            tuple(found[i] for i in kernel.fixed() if i in found),
        )
        _launch(kernel, plan, operands, like, arrays)
    return of_x0, [found[i] for i in wanted]


def _kernel(
    kind: str,
    program: Program,
    plan: Plan,
    arrays: Sequence[Tensor],
    like: Tensor,
    wanted: Sequence[int] = (),
) -> Kernel:
    """Return the kernel for these arrays, the program's operands first."""
    layouts = "".join(layout(a) for a in arrays[: len(program.operands)])
    wide = plan.steps * like.shape[1] >= 1 << 31 or any(map(_wide, arrays))
    parallel = plan.chunks > 1
    return Kernel(program, kind, dtype_name(like.dtype), layouts, parallel, wide, tuple(wanted))


def _launch(
    kernel: Kernel, plan: Plan, operands: Sequence[Tensor], like: Tensor, arrays: Sequence[Any]
) -> None:
    """Call the kernel; arrays: what it takes between operands and sizes."""
    import triton

    tiled = tile(kernel, plan.chunks, like.shape[1])
    function, constants = loaded(kernel, tiled, triton.knobs.runtime.interpret)
    strides = [_strides(a) for a in operands]
    given = arguments(kernel, plan, like.shape, device(like), operands, strides, arrays)
    with torch.cuda.device(like.device) if like.device.type == "cuda" else nullcontext():
        grid = (instances(tiled, *like.shape),)
        function[grid](*given, **constants, **options(tiled[2]))


def _strides(operand: Tensor) -> tuple[int, ...]:
    pairs = zip(operand.shape, operand.stride(), strict=True)
    return tuple(stride if size > 1 else 0 for size, stride in pairs)


def _wide(array: Tensor) -> bool:
    sizes = zip(array.shape[1:], array.stride()[1:], strict=True)
    return sum((n - 1) * abs(stride) for n, stride in sizes) >= 1 << 31


@constant
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _available() -> bool:
    """Whether Triton can be imported; if not, that is said once."""
    reason = importable()
    if reason:
        build.notice(reason, "Install triton")
    return not reason
