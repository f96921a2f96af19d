"""DTensors: each process solves its own sequences, channels or steps, and gathers nothing.

What is between, the features and outputs of a cell, are DTensor's own operations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from parnl.graph.program import Program
from parnl.solver.newton import Plan, Stats

if TYPE_CHECKING:
    from parnl.backends.torch.adaptor import TorchBackend

# The axes of an array: sequences, time, channels; those of length 1 are "".
Letters = tuple[str, ...]


def is_divided(arrays: Sequence[Any]) -> bool:
    """Whether one of them is a DTensor."""
    # its module takes a while to import, and nobody has one before
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(a, module.DTensor) for a in arrays)


@contextmanager
def mixed() -> Iterator[None]:
    """Take plain tensors beside DTensors for what is the same in all processes."""
    from torch.distributed.tensor.experimental import implicit_replication

    with implicit_replication():
        yield


def _mesh(arrays: Sequence[Any]) -> Any:
    """Return the mesh of the DTensors; raise ValueError if there are several."""
    meshes = [a.device_mesh for a in arrays if is_divided([a])]
    if any(m != meshes[0] for m in meshes):
        raise ValueError("DTensors of one call: expected one device mesh, got several")
    return meshes[0]


class _Division:
    """Over which axis of the mesh each letter is divided; the first divided array decides."""

    def __init__(self, arrays: Sequence[Any], letters: Sequence[Letters]) -> None:
        self.mesh = _mesh(arrays)
        self.over: list[str] = [""] * self.mesh.ndim
        for array, axes in zip(arrays, letters, strict=True):
            for i, placement in enumerate(array.placements if is_divided([array]) else ()):
                if placement.is_shard() and not self.over[i]:
                    letter = axes[placement.dim]
                    if letter not in self.over:  # two axes of the mesh for one: it is gathered
                        self.over[i] = letter

    def placements(self, axes: Letters, other: Any = None) -> list[Any]:
        """Return those of an array; other: for axes of the mesh over which it is not divided."""
        from torch.distributed.tensor import Replicate, Shard

        return [
            Shard(axes.index(letter)) if letter in axes and letter
            else other if letter and other is not None else Replicate()
            for letter in self.over
        ]  # fmt: skip

    def local(self, array: Tensor, axes: Letters) -> Tensor:
        """Return the own part; its gradient is summed over the parts of what it does not have."""
        from torch.distributed.tensor import DTensor, Partial, Replicate

        if not isinstance(array, DTensor):
            same = [Replicate()] * self.mesh.ndim
            array = DTensor.from_local(array, self.mesh, same, run_check=False)
        found = array.redistribute(placements=self.placements(axes))
        return found.to_local(grad_placements=self.placements(axes, Partial()))

    def whole(self, part: Tensor, axes: Letters, shape: Sequence[int], other: Any = None) -> Tensor:
        """Return the DTensor that a part belongs to."""
        from torch.distributed.tensor import DTensor

        strides = torch.empty(tuple(shape), device="meta").stride()
        placements = self.placements(axes, other)
        return DTensor.from_local(
            part, self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides
        )

    def groups(self, letters: str) -> list[Any]:
        """Return the groups of processes that share these letters."""
        return [
            self.mesh.get_group(i) for i, o in enumerate(self.over) if o and o in letters
        ]  # fmt: skip


def matmul(inputs: Any, matrix: Any) -> Any:
    """Return inputs (..., n) @ matrix (n, h); DTensor's own product would gather the time axis."""
    from torch.distributed.tensor import Partial

    lead = tuple(f"r{i}" for i in range(inputs.ndim - 1))
    axes = (*lead, "n"), ("n", "h")
    division = _Division([inputs, matrix], axes)
    pairs = zip((inputs, matrix), axes, strict=True)
    rows, columns = (division.local(a, letters) for a, letters in pairs)
    shape = (*inputs.shape[:-1], matrix.shape[1])
    summed = Partial() if "n" in division.over else None
    return division.whole(rows @ columns, (*lead, "h"), shape, summed)


def solve(
    kernels: TorchBackend,
    program: Program,
    plan: Plan,
    operands: Sequence[Tensor],
    x0: Sequence[Tensor],
) -> tuple[list[Tensor], Stats]:
    """Return states and statistics; see `TorchBackend.solve`."""
    letters: list[Letters] = [
        tuple(n if size > 1 else "" for n, size in zip("btd", a.shape, strict=True))
        for a in operands
    ]
    letters += [("b", "d")] * len(x0)
    arrays = [*operands, *x0]
    division = _Division(arrays, letters)
    shape = (x0[0].shape[0], plan.steps, x0[0].shape[1])
    local = [division.local(a, axes) for a, axes in zip(arrays, letters, strict=True)]
    operands, x0 = local[: len(operands)], local[len(operands) :]
    line = division.groups("t")
    if line:
        along: Any = kernels.line_of(line[0], operands[_moving(letters)], program.key)
        states, _, _, stats = kernels.solve_along(program, along.rounded(plan), operands, x0, along)
    else:
        states, stats = kernels.solve(program, plan, operands, x0)
    whole = [division.whole(s, ("b", "t", "d"), shape) for s in states]
    return whole, _together(stats, division)


def _moving(letters: Sequence[Letters]) -> int:
    return next(i for i, axes in enumerate(letters) if axes[1:2] == ("t",))


def _together(stats: Stats, division: _Division) -> Stats:
    """Return the statistics of all lanes, from those of each process."""
    found = Stats(*(x.detach().to(torch.float64) for x in stats))
    most = torch.stack([found.iterations, found.residual, 1.0 - found.converged])
    count = found.sequential.clone()
    for group in division.groups("bd"):
        dist.all_reduce(most, dist.ReduceOp.MAX, group)
        dist.all_reduce(count, group=group)
    update = torch.where(found.iterations == most[0], found.update, 0.0)
    for group in division.groups("bd"):
        dist.all_reduce(update, dist.ReduceOp.MAX, group)
    values = Stats(most[0], update, most[1], most[2] == 0, count)
    return Stats(*(v.to(s.dtype) for v, s in zip(values, stats, strict=True)))


def step_of(states: Any, step: int) -> Tensor:
    """Return states[:, step] of a DTensor (B, T, D), and gather no other step."""
    from torch.distributed.tensor import Partial

    division = _Division([states], [("b", "t", "d")])
    if "t" not in division.over:
        return states[:, step]
    part = division.local(states, ("b", "t", "d"))
    axis, step = division.over.index("t"), step % states.shape[1]
    _, first = _span(states.shape[1], division.mesh.size(axis), division.mesh.get_local_rank(axis))
    here = 0 <= step - first < part.shape[1]
    found = part[:, step - first] if here else part.new_zeros(part.shape[0], part.shape[2])
    shape = (states.shape[0], states.shape[2])
    whole: Any = division.whole(found, ("b", "d"), shape, Partial())
    return whole.redistribute(placements=division.placements(("b", "d")))


def _span(steps: int, size: int, place: int) -> tuple[int, int]:
    """Return (length, first step) of a part, as `Shard` divides."""
    each = -(-steps // size)
    first = min(steps, place * each)
    return min(steps, first + each) - first, first
