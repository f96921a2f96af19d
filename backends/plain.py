"""What libraries without gradients, transforms or devices in a line share.

NumPy is one, those of the array API standard are the others.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from parnl.backends.composed import input_sum, together
from parnl.graph.program import Program
from parnl.solver.newton import Plan
from parnl.stretch import one_by_one


class Plain(ABC):
    """Part of `parnl.backends.Backend`; subclasses add `name` and `xp`."""

    name: str
    xp: Any

    def line_of(self, time_axis: Any, inputs: Any, alike: str) -> Any:
        """Raise ValueError: there is no line of devices."""
        raise ValueError(
            f"time_axis: expected None, since parnl knows one device of {self.name}; "
            "use JAX or PyTorch for several"
        )

    def solve_along(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any], line: Any
    ) -> Any:
        """Raise NotImplementedError; `line_of` has refused already."""
        raise NotImplementedError(f"parnl: {self.name} has one device")

    def streams(self, arrays: Sequence[Any]) -> bool:
        """Whether a solve may be cut into stretches: always."""
        return True

    def followed(self, arrays: Sequence[Any]) -> bool:
        """Return False: there are no gradients."""
        return False

    def in_stretches(
        self, task: Any, fixed: Any, carry: Any, along: Any, length: int
    ) -> tuple[Any, Any]:
        """Solve stretch after stretch."""
        return one_by_one(self, task, fixed, carry, along, length)

    def values(self) -> AbstractContextManager[Any]:
        """Return a context that changes nothing: arrays have values."""
        return nullcontext()

    def products(self, dtype: Any, array: Any) -> AbstractContextManager[Any]:
        """Return a context that changes nothing: half precision is computed in float32."""
        return nullcontext()

    def with_products(self, cell: Any, p: Any, inputs: Any, dtype: Any) -> tuple[Any, None]:
        """Return the cell's own step and features."""
        return cell.program, None

    def input_sum(self, term: Callable[..., Any], inputs: Any, matrices: Sequence[Any]) -> Any:
        """Sum `term` over the input channels, a few at a time."""
        return input_sum(self.xp, term, inputs, matrices, together(inputs, matrices))
