"""A time axis divided over processes: the solve, and its gradient, along a line of them.

Collectives are torch.distributed's, so a process that dies or falls silent ends the others as its
process group does: gloo at once or after the group's timeout, NCCL by its watchdog.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import array_api_compat.torch as xp
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from parnl.backends.torch.implicit import followed, implicit_gradients, transformed
from parnl.backends.torch.operators import recorded
from parnl.check import SolveError
from parnl.graph.program import Program
from parnl.solver.devices import Line
from parnl.solver.newton import Plan, Stats

if TYPE_CHECKING:
    from parnl.backends.torch.adaptor import TorchBackend

_FAILED = -1  # in place of a number of steps: this process has refused its arguments


class ProcessLine(Line):
    """The processes of a group, in the order of their ranks in it; each tells its T_p."""

    xp = xp

    def __init__(self, group: dist.ProcessGroup, steps: int, alike: str) -> None:
        self.group, self.steps = group, steps
        self.size, self.place = dist.get_world_size(group), dist.get_rank(group)
        told = _meet(group, steps, alike)
        self.parts = tuple(n for n, _ in told)
        failed = [rank for rank, n in enumerate(self.parts) if n == _FAILED]
        if failed:
            raise RuntimeError(
                f"time_axis: the process of rank {failed[0]} of the group has failed"
            )
        others = [rank for rank, (_, key) in enumerate(told) if key != told[self.place][1]]
        if others:
            raise ValueError(
                "time_axis: expected the same cell, batch, dtype and arguments on all processes; "
                f"those of rank {others[0]} differ from those of rank {self.place}"
            )

    def gather(self, x: Tensor) -> Tensor:
        """See `Line`."""
        sent = x.detach().to(torch.uint8 if x.dtype == torch.bool else x.dtype).contiguous()
        found = [torch.empty_like(sent) for _ in self.parts]
        dist.all_gather(found, sent, group=self.group)
        return torch.stack(found).to(x.dtype)

    def of(self, x: Tensor, place: int) -> Tensor:
        """See `Line`."""
        found = x.clone(memory_format=torch.contiguous_format)
        dist.broadcast(found, group=self.group, group_src=place)
        return found

    def together(self, look: Callable[[], None]) -> None:
        """Call look(); what one process raises, all do."""
        error: Exception | None = None
        try:
            look()
        except SolveError as found:
            error = found
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, None if error is None else str(error), group=self.group)
        if error is not None:
            raise error
        failed = [rank for rank, text in enumerate(said) if text is not None]
        if failed:
            raise SolveError(f"rank {failed[0]} of time_axis: {said[failed[0]]}")

    def summed(self, arrays: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over all processes."""
        total = torch.stack(list(arrays))
        dist.all_reduce(total, group=self.group)
        return list(total)


def line_of(time_axis: Any, inputs: Tensor, alike: str) -> ProcessLine:
    """Return the line of processes of a group; `alike`: what is to be the same on all of them.

    Raises RuntimeError where one of them has refused its arguments, see `refuse`.
    """
    group = _group(time_axis)
    if group is None:
        mesh = ""
        if isinstance(time_axis, DeviceMesh):
            mesh = f" of {time_axis.ndim} dimensions; take one by mesh['name']"
        raise TypeError(
            "time_axis: expected a torch.distributed.ProcessGroup that this process is in, or a "
            f"DeviceMesh of one dimension, got {type(time_axis).__name__}{mesh}"
        )
    if recorded([inputs]):
        raise NotImplementedError(
            "time_axis: a solve along several processes cannot be exported or recorded"
        )
    if transformed():
        raise NotImplementedError(
            "time_axis: a solve along several processes has gradients by backward() only, not by "
            "torch.func or forward mode"
        )
    return ProcessLine(group, inputs.shape[-2], f"{alike} {torch.is_grad_enabled()}")


def refuse(time_axis: Any) -> None:
    """Tell the other processes, which wait in `line_of`, that this one has failed."""
    group = _group(time_axis)
    if group is not None:
        _meet(group, _FAILED, "")


def _group(time_axis: Any) -> dist.ProcessGroup | None:
    if isinstance(time_axis, DeviceMesh):
        return time_axis.get_group() if time_axis.ndim == 1 else None
    if isinstance(time_axis, dist.ProcessGroup) and dist.get_rank(time_axis) >= 0:
        return time_axis
    return None


def _meet(group: dist.ProcessGroup, steps: int, alike: str) -> list[tuple[int, int]]:
    """Exchange two numbers: the steps, and one that stands for what is to be the same."""
    key = int.from_bytes(hashlib.sha256(alike.encode()).digest()[:7], "little")
    on_cpu = "gloo" in dist.get_backend(group) or "mpi" in dist.get_backend(group)
    device = "cpu" if on_cpu else torch.device("cuda", torch.cuda.current_device())
    told = torch.tensor([steps, key], dtype=torch.int64, device=device)
    found = [torch.empty_like(told) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, told, group=group)
    return [(int(n), int(k)) for n, k in (f.tolist() for f in found)]


def solve_along(
    kernels: TorchBackend,
    program: Program,
    plan: Plan,
    operands: Sequence[Tensor],
    x0: Sequence[Tensor],
    line: ProcessLine,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], Stats]:
    """Return the states of the own steps, before them, after all, and the statistics."""
    k = len(x0)
    if not followed([*x0, *operands]):
        states, stats = kernels.run(program, plan, operands, x0, line)
        return states, *line.edges(states, x0, plan.reverse), stats
    out = _SolveAlong.apply(kernels, program, plan, line, *x0, *operands)
    states, before, ends = (list(out[i * k : (i + 1) * k]) for i in range(3))
    return states, before, ends, Stats(*out[3 * k :])


class _SolveAlong(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernels: TorchBackend,
        program: Program,
        plan: Plan,
        line: ProcessLine,
        *arrays: Tensor,
    ) -> tuple:
        k = len(program.states)
        x0, operands = arrays[:k], arrays[k:]
        states, stats = kernels.run(program, plan, operands, x0, line)
        before, ends = line.edges(states, x0, plan.reverse)
        ctx.kernels, ctx.program, ctx.plan, ctx.line = kernels, program, plan, line
        ctx.save_for_backward(*before, *operands, *states)
        ctx.mark_non_differentiable(*before, *stats)
        return (*states, *before, *ends, *stats)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        program, plan, line = ctx.program, ctx.plan, ctx.line
        k, saved = len(program.states), ctx.saved_tensors
        before, operands, states = saved[:k], saved[k:-k], saved[-k:]
        grads, last = list(cotangents[:k]), line.summed(cotangents[2 * k : 3 * k])
        wanted = [i for i in range(len(operands)) if ctx.needs_input_grad[4 + k + i]]
        of_x0, found = implicit_gradients(
            ctx.kernels, program, plan, operands, before, states, grads, wanted, line, last
        )
        if line.turn(plan.reverse):  # they are summed over processes: the first has them
            of_x0 = [torch.zeros_like(x) for x in of_x0]
        of_x0 = [x.contiguous() for x in of_x0]  # as collectives want them
        return (
            None, None, None, None, *of_x0, *(found.get(i) for i in range(len(operands))),
        )  # fmt: skip
