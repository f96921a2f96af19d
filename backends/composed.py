"""The two runs over chunks for what executes operation by operation: NumPy, PyTorch, array API.

All chunks advance together: one pass of the loop is one step of each of them, a few operations on
arrays (B, C, D). The time steps l, l + L, l + 2 L, ... that are due in it are a strided view of
an operand, so nothing is copied, padded or transposed.

A compiled rollout plugs in here: anything that offers the same two methods.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from parnl.graph.program import Program
from parnl.solver import blocks
from parnl.solver.devices import ALONE
from parnl.solver.newton import Plan

# What asking for an operation costs, in operations of a step as `Program.cost` counts them: a step
# that counts as 60 is some 15 requests, and those on chunks are of larger arrays.
COMPOSED = 12.0
# The terms of a sum are computed together up to so many numbers: asking for an operation on fewer
# takes as long. Measured, LTC with 64 inputs, one term at a time and this: PyTorch, 448 steps of 32
# channels, forward and backward 34 and 15 ms; NumPy, one step of 64 channels 1.5 and 0.2 ms.
_TOGETHER = 1 << 16


class ComposedKernels(ABC):
    """The kernels of `solver.newton`; subclasses add `xp`, `name`, `functions`, `running_max`."""

    name: str
    xp: Any
    functions: dict[str, Any]
    line = ALONE

    def advance(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the chunks that have a start: their ends, and the products of the step Jacobians."""
        step, k = program.function("step_jacobian", self), len(starts)
        running = _Running(self, plan, starts, blocks.identity(k))
        for i in range(plan.length):
            count = running.due(i)
            results = step(*running.arrays[:k], *(_due(a, plan, i, count) for a in operands))
            products = blocks.matmul(results[k:], running.arrays[k:], k)
            running.arrays = [*running.full(results[:k]), *products]
        found = running.ends()
        return found[:k], found[k:]

    def trajectory(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run all chunks and write every state; also return the ends of all."""
        step, like = program.function("step", self), starts[0]
        whole = (like.shape[0], plan.steps, like.shape[2])
        written = [self.xp.empty(whole, dtype=like.dtype, device=like.device) for _ in starts]
        running = _Running(self, plan, starts)
        for i in range(plan.length):
            count = running.due(i)
            results = step(*running.arrays, *(_due(a, plan, i, count) for a in operands))
            running.arrays = running.full(results)
            for array, x in zip(written, running.arrays, strict=True):
                array[:, _times(plan, i, count), ...] = x
        return written, running.ends()

    def step(self, program: Program) -> Callable[..., tuple[Any, ...]]:
        """Return the program's step over arrays of this framework."""
        return program.function("step", self)

    def step_of(self, states: Any, step: int) -> Any:
        """Return states[:, step]."""
        return states[:, step, ...]

    def unwritten(self, write: Callable[[], Any]) -> Any:
        """Return None: an eager loop may carry whatever it likes."""
        return None

    @abstractmethod
    def running_max(self, x: Any) -> Any:
        """Return the running maximum of x along axis 1."""

    def while_loop(
        self, condition: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any
    ) -> Any:
        """Apply `body` to `carry` while `condition` holds."""
        while bool(condition(carry)):
            carry = body(carry)
        return carry

    def cond(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """Return then() if `condition` holds, else otherwise()."""
        return then() if bool(condition) else otherwise()


def in_rows(product: Callable[[Any, Any], Any], inputs: Any, matrix: Any) -> Any:
    """Return product(inputs, matrix) of inputs (..., n) as rows (N, n)."""
    rows = inputs.reshape(math.prod(inputs.shape[:-1]), inputs.shape[-1])
    return product(rows, matrix).reshape(*inputs.shape[:-1], matrix.shape[-1])


def together(inputs: Any, matrices: Sequence[Any]) -> int:
    """Return how many terms of a sum over the input channels are computed at once."""
    size = math.prod(inputs.shape[:-1]) * max([1, *(m.shape[1] for m in matrices)])
    return max(1, _TOGETHER // max(1, size))


def input_sum(
    xp: Any,
    term: Callable[..., Any],
    inputs: Any,
    matrices: Sequence[Any],
    few: int,
    call: Callable[..., Any] = lambda function, *arguments: function(*arguments),
) -> Any:
    """Sum `term` over the input channels, `few` at a time; `call` is how a few are computed."""

    def terms(u: Any, *rows: Any) -> tuple[Any, ...]:
        if few == 1:
            return term(u, *(r[0, ...] for r in rows))
        return tuple(xp.sum(x, axis=-2) for x in term(u[..., None], *rows))

    total: Any = None
    count = inputs.shape[-1]
    for j in range(0, count, few):
        end = min(j + few, count)  # the standard knows no slices beyond it
        new = call(terms, inputs[..., j:end], *(m[j:end, ...] for m in matrices))
        total = new if total is None else tuple(t + n for t, n in zip(total, new, strict=True))
    return total


class _Running:
    """What chunks carry from step to step, arrays (B, n, D) in the order of time.

    `others` may be numbers, or have yet to be broadcast.
    """

    def __init__(
        self,
        kernels: ComposedKernels,
        plan: Plan,
        starts: Sequence[Any],
        others: Sequence[Any] = (),
    ) -> None:
        self.xp, self.plan, self.like = kernels.xp, plan, starts[0]
        self.count = starts[0].shape[1]
        self.arrays = [*self._ordered(starts), *others]
        self.over: list[Any] = []

    def due(self, i: int) -> int:
        """Return how many chunks have a step i; keep the end of the short one, which is run last.

        The chunks that have one are the first in the order of running.
        """
        plan, count = self.plan, min(self.count, -(-(self.plan.steps - i) // self.plan.length))
        if count < self.count:
            arrays = self.full(self.arrays)
            last, rest = slice(count, None), slice(count)
            if plan.reverse:
                last, rest = slice(-count), slice(-count, None)
            self.over = [x[:, last, ...] for x in arrays]
            self.arrays, self.count = [x[:, rest, ...] for x in arrays], count
        return count

    def full(self, results: Sequence[Any]) -> list[Any]:
        """A step may return a number, or an array that has yet to be broadcast."""
        like = self.like[:, : self.count, ...]
        return [
            self.xp.full_like(like, x)
            if isinstance(x, float)
            else x
            if x.shape == like.shape
            else self.xp.broadcast_to(x, like.shape)
            for x in results
        ]

    def ends(self) -> list[Any]:
        """Return what all chunks ended in, in the order of running."""
        found = self._ordered(self.full(self.arrays))
        if not self.over:
            return found
        return [self.xp.concat([x, o], axis=1) for x, o in zip(found, self.over, strict=True)]

    def _ordered(self, arrays: Sequence[Any]) -> list[Any]:
        """Turn the order of running into the order of time, or back."""
        return [self.xp.flip(x, axis=1) for x in arrays] if self.plan.reverse else list(arrays)


def _times(plan: Plan, i: int, count: int) -> slice:
    """Return the times of step i of the first `count` chunks, ascending.

    Chunks are aligned where the run begins, so the one that may be short is the last one run.
    """
    if not plan.reverse:
        return slice(i, (count - 1) * plan.length + i + 1, plan.length)
    last = plan.steps - 1 - i
    return slice(last - (count - 1) * plan.length, last + 1, plan.length)


def _due(operand: Any, plan: Plan, i: int, count: int) -> Any:
    return operand if operand.shape[1] == 1 else operand[:, _times(plan, i, count), ...]
