"""What decides a kernel in C, and the array of numbers that it is given."""

from __future__ import annotations

from typing import NamedTuple

from parnl.graph.program import Program

# Operand layouts by the axes of (B, T, D) that they really have: time and channel.
FULL, TIME, CHANNEL, SCALAR = "f", "t", "c", "s"


class Lanes(NamedTuple):
    """How lanes are grouped: W, V, and which kinds of groups there are: only they are compiled.

    span: V divides the number of channels. apart: whether a near group is less than its row, so
    that what it reads next lies apart.
    """

    group: int
    span: int
    near: bool
    staged: bool
    apart: bool = False

    def parts(self, channels: int) -> int:
        """Return in how many parts a sum over the channels of a row is written: PARTS of lanes.h.

        The number of rows does not matter: XLA wants results of one shape from all chunks and one.
        """
        groups = channels // self.group if self.near else 0
        return groups + (channels - groups * self.group) // self.span


class CKernel(NamedTuple):
    """What decides a kernel: `kind` is "trajectory", "advance", "adjoint" or "backward".

    dtype: "float32" or "float64"; layouts: one letter for each operand; wanted: operands whose
    gradient "backward" computes.
    """

    program: Program
    kind: str
    dtype: str
    layouts: str
    lanes: Lanes
    wanted: tuple[int, ...] = ()


# What stands in the argument array, in this order: sizes, then one entry per name and index.
# `team`: the address of OpenMP's GOMP_parallel, or 0.
SIZES = ("batch", "chunks", "channels", "steps", "length", "reverse", "threads", "team")


def fields(kernel: CKernel) -> list[tuple[str, int]]:
    """Return the groups of entries that follow the sizes: (name, how many)."""
    k, n = len(kernel.program.states), len(kernel.program.operands)
    groups = [("op", n), ("opb", n), ("opt", n)]  # operand pointers, strides over batch and time
    match kernel.kind:
        case "trajectory":
            return [*groups, ("start", k), ("out", k), ("end", k)]
        case "advance":
            return [*groups, ("start", k), ("end", k), ("prod", k * k)]
    # states and the initial state; gradients of the states, with strides
    groups += [("state", k), ("x0", k), ("g", k), ("gb", k), ("gt", k)]
    groups += [("start", k)]
    if kernel.kind == "adjoint":
        return [*groups, ("end", k), ("prod", k * k)]
    return [*groups, ("end", k), ("grad", len(kernel.wanted))]
