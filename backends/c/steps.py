"""`parnl.step` once more: a call that differs from an earlier one only in its numbers.

The kernel of a step takes 1 us. To check the arguments, to make operands of them and to find the
kernel takes a hundred. So the cell remembers the result of an earlier call: names, shapes, a dtype,
and where in the kernel's table an address goes; no array. One pass over the arrays checks all of it
again. If anything has changed, `parnl.step` goes the long way, which says what is wrong, or does
what is needed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from parnl.backends.c import build
from parnl.backends.c.calls import (
    Call,
    CompiledKernels,
    dtype_name,
    function_of,
    grouped,
    worthwhile,
)
from parnl.backends.c.kernel import CHANNEL, SCALAR, CKernel
from parnl.cell import Cell
from parnl.frameworks import plain
from parnl.graph.program import Program
from parnl.solver.newton import Plan

PLAN = Plan(steps=1, chunks=1, epsilon=0.0)
# So many calls a cell remembers, of different shapes of inputs.
_MOST = 16


class CompiledSteps(CompiledKernels):
    """Steps by C, of backends that say where arrays are; see `Backend`."""

    @abstractmethod
    def unobserved(self) -> bool:
        """Whether operations on plain arrays are carried out at once, for their values alone."""

    @abstractmethod
    def streams(self, arrays: Sequence[Any]) -> bool:
        """See `Backend`."""

    @abstractmethod
    def followed(self, arrays: Sequence[Any]) -> bool:
        """See `Backend`."""

    @abstractmethod
    def addresses(
        self, arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: Any, read: int
    ) -> list[int] | None:
        """Return the addresses of the first `read` arrays, None if not all are as they should be.

        All are to be plain arrays of numbers in the processor's memory, of these shapes, of
        `dtype`, and to need no gradient; those that are read, row-major, and just what is there.
        """

    @abstractmethod
    def several_like(self, array: Any, count: int) -> tuple[list[Any], list[int]]:
        """Return small arrays to be written to, like a row-major one, and their addresses."""

    def step_by_kernel(
        self, program: Program, operands: Sequence[Any], states: Sequence[Any]
    ) -> list[Any] | None:
        """Return the next states, None if C does not serve, or a transform looks on."""
        arrays = [*operands, *states]
        if not self.unobserved() or not self.streams(arrays) or self.followed(arrays):
            return None

        def run() -> list[Any]:
            return Call(self, program, PLAN, "trajectory", operands, states).run()[0]

        return self.in_c(states[0], run, None)

    def remember(
        self, cell: Cell, shape: tuple[int, ...], dtype: Any, features: Mapping[str, Any]
    ) -> None:
        """Let the cell remember a step that a kernel has made, if the next ones gain from that.

        shape, dtype: of the inputs; features: arrays, by name.
        """
        whole = (*shape[:-1], 1)
        shapes = {n: tuple(features[n].shape) for k, n in cell.program.operands if k == "feature"}
        if all(s[:-1] == whole or math.prod(s[:-1]) == 1 for s in shapes.values()):
            ready = Ready(self, cell, shape, dtype, shapes)
            if ready.small:
                if len(cell._remembered) >= _MOST:
                    cell._remembered.clear()
                cell._remembered[self.name, shape, dtype] = ready

    def remembered(self, cell: Cell, input_t: Any) -> Ready | None:
        """Return the step that the cell remembers for such an input, if C serves now as well."""
        if not self.unobserved() or not cell._remembered or not build.wanted():
            return None
        try:
            return cell._remembered.get((self.name, input_t.shape, input_t.dtype))
        except RuntimeError:  # a nested tensor has no shape
            return None


class Ready:
    """A step of a cell, for inputs of one shape and dtype, and features of known shapes."""

    def __init__(
        self,
        kernels: CompiledSteps,
        cell: Cell,
        shape: tuple[int, ...],
        dtype: Any,
        features: Mapping[str, tuple[int, ...]],
    ) -> None:
        program, self.width = cell.program, cell.hidden_size
        self.states = tuple(cell.states)
        self.kernels, self.dtype, self.k = kernels, dtype, len(cell.states)
        self.rows = math.prod(shape[:-1])
        moving = [n for kind, n in program.operands if kind == "feature"]
        read = [n for kind, n in program.operands if kind == "parameter"]
        # what the kernel reads comes first; inputs and matrices are for features
        self.names = [*read, *(n for n in cell.parameter_shapes if n not in read)]
        self.read = self.k + len(read)
        self.shapes = [(*shape[:-1], self.width)] * self.k
        self.shapes += [*(cell.parameter_shapes[n] for n in self.names), shape]
        self.features, self.of_features = moving, [features[n] for n in moving]
        # each operand's place among the addresses of states, parameters, features and dt
        known = [*(("parameter", n) for n in read), *(("feature", n) for n in moving), ("dt", "dt")]
        self.places = [self.k + known.index((kind, n)) for kind, n in program.operands]
        sizes, self.strides = [], []
        for kind, name in program.operands:
            size = self.width if kind == "parameter" else features.get(name, (1,))[-1]
            moves = kind == "feature" and math.prod(features[name][:-1]) > 1
            sizes.append(size)
            self.strides.append(size if moves else 0)
        layouts = "".join([SCALAR if n == 1 else CHANNEL for n in sizes])
        name = dtype_name(dtype)
        lanes = grouped("trajectory", self.width, self.rows, kernels.threads())
        self.kernel = CKernel(program, "trajectory", name, layouts, lanes)
        self.function = function_of(self.kernel)
        self.real = "d" if name == "float64" else "f"

    @property
    def small(self) -> bool:
        """Whether more threads than one would not help, so that it matters what a call takes."""
        shape = (self.rows, 1, self.width)
        return worthwhile(self.kernel, PLAN, shape, 1 << 30, waiting=True) == 1

    def look(self, params: Any, input_t: Any, state: Any) -> list[int] | None:
        """Return the addresses of what the kernel reads, None if the call is of another kind."""
        given = state if isinstance(state, tuple | list) else (state,)
        if getattr(state, "_fields", self.states) != self.states:  # in another order
            return None
        if type(params) is not dict or len(params) != len(self.names) or len(given) != self.k:
            return None
        try:
            arrays = [*given, *[params[n] for n in self.names], input_t]
        except KeyError:
            return None
        return self.kernels.addresses(arrays, self.shapes, self.dtype, self.read)

    def run(
        self, looked: list[int], state: Any, features: Mapping[str, Any], dt: Any
    ) -> list[Any] | None:
        """Return the next states, and the last of them once more, an array of its own.

        None if features or dt are of another kind than they were.
        """
        try:
            arrays = [features[n] for n in self.features]
        except KeyError:
            return None
        kernels, k = self.kernels, self.k
        more = kernels.addresses(arrays, self.of_features, self.dtype, len(arrays))
        if more is None and all([type(x) in plain for x in arrays]):  # parts of one product, say
            try:
                arrays = [kernels.contiguous(x) for x in arrays]
            except RuntimeError:
                return None
            more = kernels.addresses(arrays, self.of_features, self.dtype, len(arrays))
        if more is None or not (dt is None or isinstance(dt, float)):
            return None
        number = array(self.real, [dt or 0.0])
        known = [*looked, *more, number.buffer_info()[0]]
        like = state[0] if isinstance(state, tuple | list) else state
        made, ends = kernels.several_like(like, k + 1)
        # see `kernel.fields`: operands, their strides over sequences and over time, states, results
        table = [self.rows, 1, self.width, 1, 1, 0, 1, 0]
        table += [*[known[i] for i in self.places], *self.strides, *self.strides]
        table += [*looked[:k], *ends[: k - 1], ends[k], *ends[:k]]
        numbers = array("q", table)
        self.function(numbers.buffer_info()[0])
        return made
