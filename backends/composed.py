"""The two runs over chunks for frameworks that execute operation by operation: NumPy and PyTorch.

All chunks advance together: one pass of the loop is one step of each of them, a few operations on
arrays (B, C, D). The time steps l, l + L, l + 2 L, ... that are due in it are a strided view of
an operand, so nothing is copied, padded or transposed.

This composed path is where a compiled rollout plugs in: whatever offers the same two methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from parnl.graph.program import Program
from parnl.solver import blocks
from parnl.solver.newton import Plan

# What asking for an operation costs, in operations of a step as `Program.cost` counts them: a step
# that counts as 60 is some 15 requests, and those on chunks are of larger arrays.
COMPOSED = 12.0


class ComposedKernels(ABC):
    """The kernels of `solver.newton`; subclasses add `xp`, `name`, `functions`, `running_max`."""

    name: str
    xp: Any
    functions: dict[str, Any]

    def advance(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the first C - 1 chunks: their ends, and the products of the step Jacobians."""
        step = program.function("step_jacobian", self)
        k, count = len(starts), plan.chunks - 1
        shape = starts[0].shape
        states, product = self._ordered(plan, starts), blocks.identity(k)
        for i in range(plan.length):
            results = step(*states, *(_due(a, plan, i, count) for a in operands))
            states = [self._full(x, shape, starts[0]) for x in results[:k]]
            product = blocks.matmul(results[k:], product, k)
        product = [self._full(p, shape, starts[0]) for p in product]
        return self._ordered(plan, states), self._ordered(plan, product)

    def trajectory(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run all chunks and write every state; also return the ends of the first C - 1."""
        step = program.function("step", self)
        batch, _, channels = starts[0].shape
        like, whole = starts[0], (batch, plan.steps, channels)
        written = [self.xp.empty(whole, dtype=like.dtype, device=like.device) for _ in starts]
        states = self._ordered(plan, starts)
        for i in range(plan.length):
            count = -(-(plan.steps - i) // plan.length)
            if count < plan.chunks:  # the short chunk, the last one run, is over
                states = [x[:, -count:] if plan.reverse else x[:, :count] for x in states]
            results = step(*states, *(_due(a, plan, i, count) for a in operands))
            shape = (batch, count, channels)
            states = [self._full(x, shape, like) for x in results]
            for array, x in zip(written, states, strict=True):
                array[:, _times(plan, i, count)] = x
        states = self._ordered(plan, states)
        return written, [x[:, : plan.chunks - 1] for x in states]

    def step(self, program: Program) -> Callable[..., tuple[Any, ...]]:
        """Return the program's step over arrays of this framework."""
        return program.function("step", self)

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

    def _ordered(self, plan: Plan, arrays: Sequence[Any]) -> list[Any]:
        """Turn the order of running into the order of time, or back."""
        return [self.xp.flip(x, axis=1) for x in arrays] if plan.reverse else list(arrays)

    def _full(self, x: Any, shape: tuple[int, ...], like: Any) -> Any:
        """A step may return a number, or an array that has yet to be broadcast."""
        if isinstance(x, float):
            return self.xp.full_like(like[:, : shape[1]], x)
        return x if x.shape == shape else self.xp.broadcast_to(x, shape)


def _times(plan: Plan, i: int, count: int) -> slice:
    """Return the times of step i of the first `count` chunks, ascending.

    Chunks are aligned where the run begins, so the one that may be short is the last one run.
    """
    if not plan.reverse:
        return slice(i, (count - 1) * plan.length + i + 1, plan.length)
    last = plan.steps - 1 - i
    return slice(last - (count - 1) * plan.length, last + 1, plan.length)


def _due(operand: Any, plan: Plan, i: int, count: int) -> Any:
    return operand if operand.shape[1] == 1 else operand[:, _times(plan, i, count)]
