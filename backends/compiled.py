"""The two runs over chunks, and the backward run, in generated C on the CPU.

Serves NumPy and PyTorch: arrays are passed as addresses and strides, nothing is copied. What C
cannot do (another device or dtype, no compiler) is left to the composed path of `EagerKernels`.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from parnl.backends import cbuild
from parnl.backends.ccode import CHANNEL, FULL, SCALAR, TIME, Kernel, fields, source
from parnl.backends.eager import EagerKernels
from parnl.newton import Plan, newton
from parnl.program import Program, adjoint_program


class CompiledKernels(EagerKernels):
    """`EagerKernels` with C in their place where it serves; subclasses add `address`, `threads`."""

    @abstractmethod
    def address(self, array: Any) -> int:
        """Return the address of the first element."""

    @abstractmethod
    def strides(self, array: Any) -> tuple[int, ...]:
        """Return the strides in elements."""

    @abstractmethod
    def on_cpu(self, array: Any) -> bool:
        """Return whether the array's memory is the processor's."""

    @abstractmethod
    def contiguous(self, array: Any) -> Any:
        """Return the array in row-major order."""

    def threads(self) -> int:
        """Return how many threads a kernel may use."""
        return processors()

    def compiles(self, array: Any) -> bool:
        """Whether C serves arrays like this one."""
        return (
            cbuild.wanted()
            and self.on_cpu(array)
            and str(array.dtype).removeprefix("torch.") in ("float32", "float64")
            and cbuild.available()
        )

    def advance(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the first C - 1 chunks: their ends, and the products of the step Jacobians."""
        if not self.compiles(starts[0]):
            return super().advance(program, plan, operands, starts)
        call = _Call(self, program, plan, "advance", operands, starts)
        ends, products = call.blocks(len(starts)), call.blocks(len(starts) ** 2)
        call.run(start=call.starts, end=ends, prod=products)
        return ends, products

    def trajectory(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run all chunks and write every state; also return the ends of the first C - 1."""
        if not self.compiles(starts[0]):
            return super().trajectory(program, plan, operands, starts)
        call = _Call(self, program, plan, "trajectory", operands, starts)
        states, ends = call.sequences(len(starts)), call.blocks(len(starts))
        call.run(start=call.starts, out=states, end=ends)
        return states, [x[:, : plan.chunks - 1] for x in ends]

    def gradients(
        self,
        program: Program,
        plan: Plan,
        operands: Sequence[Any],
        x0: Sequence[Any],
        states: Sequence[Any],
        grads: Sequence[Any],
        wanted: Sequence[int],
    ) -> tuple[list[Any], dict[int, Any]]:
        """Return the gradients of x0, and of the operands `wanted`, before they are summed.

        `plan` is the backward run's, from the last step of the forward run to its first. The step's
        Jacobian is computed again on the way, which costs less than to store and read it. The one
        of an operand is (B, T, D), or (B, C, D) where the operand does not depend on time.
        """
        run = _Backward(self, program, operands, x0, states, grads, wanted)
        zeros = [self.xp.zeros_like(x) for x in x0]
        newton(run, adjoint_program(len(x0)), plan, [], zeros)
        return [e[:, -1] for e in run.ends], run.results


class _Backward:
    """The adjoint recurrence as `newton` wants it, with the gradients written by the last run."""

    def __init__(self, kernels: CompiledKernels, program: Program, operands: Sequence[Any],
                 x0: Sequence[Any], states: Sequence[Any], grads: Sequence[Any],
                 wanted: Sequence[int]) -> None:  # fmt: skip
        self.kernels, self.program, self.operands = kernels, program, operands
        self.name, self.functions, self.xp = kernels.name, kernels.functions, kernels.xp
        self.running_max, self.while_loop = kernels.running_max, kernels.while_loop
        self.fixed = (x0, states, grads)
        self.wanted = tuple(wanted)
        self.results: dict[int, Any] = {}
        self.ends: list[Any] = []

    def call(self, plan: Plan, kind: str, starts: Sequence[Any]) -> _Call:
        wanted = self.wanted if kind == "backward" else ()
        call = _Call(self.kernels, self.program, plan, kind, self.operands, starts, wanted)
        x0, states, grads = self.fixed
        call.fixed = {
            "x0": [self.kernels.contiguous(x) for x in x0],
            "state": [self.kernels.contiguous(s) for s in states],
        }
        call.gradients([g if self.kernels.strides(g)[2] == 1 or g.shape[2] == 1
                        else self.kernels.contiguous(g) for g in grads])  # fmt: skip
        return call

    def advance(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        call = self.call(plan, "adjoint", starts)
        ends, products = call.blocks(len(starts)), call.blocks(len(starts) ** 2)
        call.run(start=call.starts, end=ends, prod=products)
        return ends, products

    def trajectory(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        call = self.call(plan, "backward", starts)
        summed = [call.layouts[i] in (CHANNEL, SCALAR) for i in self.wanted]
        found = [(call.blocks(1) if s else call.sequences(1))[0] for s in summed]
        self.ends = call.blocks(len(starts))
        call.run(start=call.starts, end=self.ends, grad=found)
        self.results = dict(zip(self.wanted, found, strict=True))
        # the algorithm looks at ends alone
        return list(starts), [x[:, : plan.chunks - 1] for x in self.ends]


class _Call:
    """One call of a kernel: its arrays, and the table of numbers it reads them from."""

    def __init__(
        self,
        kernels: CompiledKernels,
        program: Program,
        plan: Plan,
        kind: str,
        operands: Sequence[Any],
        starts: Sequence[Any],
        wanted: tuple[int, ...] = (),
    ) -> None:
        self.kernels, self.plan = kernels, plan
        self.like = starts[0]
        self.batch, self.count, self.channels = self.like.shape
        self.layouts = "".join(layout(a) for a in operands)
        self.operands = [
            a if a.shape[2] == 1 or kernels.strides(a)[2] == 1 else kernels.contiguous(a)
            for a in operands
        ]
        self.starts = [kernels.contiguous(s) for s in starts]
        self.fixed: dict[str, list[Any]] = {}
        self.numbers: dict[str, list[int]] = {
            "opb": [0 if a.shape[0] == 1 else kernels.strides(a)[0] for a in self.operands],
            "opt": [0 if a.shape[1] == 1 else kernels.strides(a)[1] for a in self.operands],
        }
        dtype = str(self.like.dtype).removeprefix("torch.")
        lanes = width(self.channels, self.batch * self.count)
        self.kernel = Kernel(program, kind, dtype, self.layouts, lanes, wanted)

    def gradients(self, grads: list[Any]) -> None:
        """Add the gradients of the states, (B, T, D) with any strides but along D."""
        self.fixed["g"] = grads
        self.numbers["gb"] = [self.kernels.strides(g)[0] for g in grads]
        self.numbers["gt"] = [self.kernels.strides(g)[1] for g in grads]

    def blocks(self, count: int) -> list[Any]:
        """Return new arrays, one number for each chunk and channel: (B, C, D)."""
        return self._new(count, (self.batch, self.count, self.channels))

    def sequences(self, count: int) -> list[Any]:
        """Return new arrays (B, T, D)."""
        return self._new(count, (self.batch, self.plan.steps, self.channels))

    def _new(self, count: int, shape: tuple[int, ...]) -> list[Any]:
        like = self.like
        empty = self.kernels.xp.empty
        return [empty(shape, dtype=like.dtype, device=like.device) for _ in range(count)]

    def run(self, **arrays: list[Any]) -> None:
        """Call the kernel; `arrays` by the names of `ccode.fields`."""
        given = {"op": self.operands, **self.fixed, **arrays}
        plan = self.plan
        sizes = [self.batch, self.count, self.channels, plan.steps, plan.length, plan.reverse]
        table = [*map(int, sizes), self.kernels.threads()]
        for name, size in fields(self.kernel):
            if name in self.numbers:
                entries = self.numbers[name]
            else:
                entries = [self.kernels.address(x) for x in given[name]]
            assert len(entries) == size, name
            table += entries
        numbers = np.array(table, np.int64)
        function = self.kernel.program.cached(("c", *self.kernel[1:]), self._load)
        function(numbers.ctypes.data)

    def _load(self) -> Any:
        function = cbuild.load(source(self.kernel))
        if function is None:
            raise cbuild.BuildError("the C compiler failed on a kernel; set PARNL_KERNELS=off")
        return function


def compiled_lanes(threads: int) -> int:
    """Return how many lanes keep the processor busy: one vector of float32 for each thread.

    Measured on two threads: with 8 channels and more, the plain loop beats chunks, whose Jacobians
    and second run cost about twice what idle lanes would give.
    """
    return 16 * threads


def processors() -> int:
    """Return how many threads may run at once: OMP_NUM_THREADS, else the processors allowed."""
    if "OMP_NUM_THREADS" in os.environ:
        return max(1, int(os.environ["OMP_NUM_THREADS"].split(",")[0]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def layout(operand: Any) -> str:
    """Return the letter of `ccode` for the axes that the operand has."""
    if operand.shape[1] == 1:
        return SCALAR if operand.shape[2] == 1 else CHANNEL
    return TIME if operand.shape[2] == 1 else FULL


def width(channels: int, rows: int) -> int:
    """Return W for `rows` sequences and chunks of `channels` each.

    A whole row of channels where that makes full vectors; else 64, a few of them in flight, or what
    little there is.
    """
    if channels % 16 == 0 and channels <= 128:
        return channels
    return next(w for w in (16, 32, 64) if w >= min(channels * rows, 64))
