"""Streamed solves: each stretch is a checkpoint, whose features are computed again for a gradient.

Its states are kept, so the recurrence is not run again. PyTorch's checkpoint follows whatever
features close over, to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from parnl.backends.torch.implicit import followed, implicit_solve
from parnl.graph.program import Program
from parnl.locality import cuts
from parnl.solver.newton import Plan, Stats
from parnl.stretch import advance_in_order, one_by_one, part

if TYPE_CHECKING:
    from parnl.backends.torch.adaptor import TorchBackend


def in_stretches(
    backend: TorchBackend,
    task: Any,
    fixed: Any,
    carry: Any,
    along: dict[str, Tensor],
    length: int,
    *,
    recompute: bool,
) -> tuple[Tensor, Any]:
    """See `parnl.frameworks.Backend`; recompute: whether features are, for a gradient."""
    given = [*fixed["params"].values(), *fixed["initial"], *along.values()]
    if not torch.is_grad_enabled() and not followed([*along.values()]):
        return one_by_one(backend, task, fixed, carry, along, length)
    if recompute and not followed(given):  # only what features close over may be
        (x, _, _), piece = advance_in_order(backend, task, fixed, carry, part(along, slice(1)))
        if not followed([piece, *x]):
            return one_by_one(backend, task, fixed, carry, along, length)
    steps = along["inputs"].shape[-2]
    in_order = cuts(steps, length, task.how.reverse)
    # one node of the graph for all cuts, whose gradient is made at once
    pieces = {n: a.split(length, -2) for n, a in along.items() if a.shape[-2] != 1}
    still = {n: a for n, a in along.items() if n not in pieces}
    states, outputs, found = Whole(backend, steps, 1), Whole(backend, steps, -2), []
    versions = Versions(given if recompute else [])
    for cut in in_order:
        here = still | {n: p[cut.start // length] for n, p in pieces.items()}
        if not recompute:
            carry, piece = advance_in_order(backend, task, fixed, carry, here)
            found.append(piece)
            continue
        run = Kept(backend, states, cut, versions)
        carry, piece = checkpoint(
            advance_in_order, run, task, fixed, carry, here, use_reentrant=False
        )
        found.append(_Moved.apply(piece, outputs, cut))
    if recompute:
        return _Joined.apply(outputs, in_order, *found), carry
    return torch.cat(found[::-1] if task.how.reverse else found, -2), carry


class Whole:
    """Memory for arrays of all steps, to which stretches are written one after the other.

    Blocks of a stretch each would leave the heap in pieces that nothing else fits.
    """

    def __init__(self, backend: TorchBackend, steps: int, axis: int) -> None:
        self._backend, self._steps, self._axis = backend, steps, axis
        self.arrays: list[Tensor] = []

    def write(self, cut: slice, parts: Sequence[Tensor]) -> None:
        """Put the steps `cut` of every array where they belong."""
        for piece in parts if not self.arrays else ():
            shape = list(piece.shape)
            shape[self._axis] = self._steps
            self.arrays.append(self._backend.empty(tuple(shape), piece))
        for there, piece in zip(self.read(cut), parts, strict=True):
            there.copy_(piece)

    def read(self, cut: slice) -> list[Tensor]:
        """Return the steps `cut`."""
        size = cut.stop - cut.start
        return [x.narrow(self._axis, cut.start, size) for x in self.arrays]


class _Moved(torch.autograd.Function):
    """A stretch of outputs that has been moved: what is left here has no memory."""

    @staticmethod
    def forward(ctx: Any, piece: Tensor, outputs: Whole, cut: slice) -> Tensor:
        outputs.write(cut, [piece])
        return piece.new_empty(()).expand(piece.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return *grads, None, None


class _Joined(torch.autograd.Function):
    """All outputs, of the stretches that `_Moved` has left."""

    @staticmethod
    def forward(ctx: Any, outputs: Whole, in_order: list[slice], *_: Tensor) -> Tensor:
        ctx.cuts = in_order
        return outputs.arrays.pop()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        return None, None, *(grads[0][..., cut, :] for cut in ctx.cuts)


class Versions:
    """What features are computed from, which must be the same when they are computed again.

    Autograd checks what it saves; a checkpoint does not check what it is given.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._known = [(t, t._version) for t in tensors if not t.is_inference()]

    def check(self) -> None:
        """Raise RuntimeError, as autograd does, if one of them has been written to."""
        for tensor, version in self._known:
            if tensor._version != version:
                raise RuntimeError(
                    "parnl.solve: inputs, parameters or states that the gradient needs have been "
                    "modified by an inplace operation after the solve, a tensor of shape "
                    f"{tuple(tensor.shape)}; write to a copy, or pass a `stretch` of all steps"
                )


class Kept:
    """The backend, but for the states of a stretch's solve, which are found only once."""

    def __init__(
        self, backend: TorchBackend, states: Whole, cut: slice, versions: Versions
    ) -> None:
        self._backend, self._states, self._cut = backend, states, cut
        self._versions = versions
        self._solved: tuple[Program, Stats] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def solve(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """See `TorchBackend`; nothing is recorded here."""
        return implicit_solve(cast("TorchBackend", self), program, plan, operands, x0)

    def run(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """Return what the backend finds, or has found; a gradient solves other programs."""
        if self._solved is None:
            states, stats = self._backend.run(program, plan, operands, x0)
            self._states.write(self._cut, states)
            self._solved = program, Stats(*(s.detach() for s in stats))
            return states, stats
        if program is not self._solved[0]:
            return self._backend.run(program, plan, operands, x0)
        self._versions.check()
        return self._states.read(self._cut), self._solved[1]
