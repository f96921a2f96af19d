"""The NumPy backend: the reference, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from parnl.backends.c.calls import CompiledKernels, compiled_device
from parnl.backends.composed import COMPOSED
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.newton import Plan, Stats, newton


class NumpyBackend(CompiledKernels):
    """See `parnl.backends.Backend`."""

    name = "numpy"
    xp = xp
    functions: dict[str, Any] = {
        **{name: o.numpy for name, o in OPERATIONS.items() if not o.inline},
        "number": lambda x, like: like.dtype.type(x),
    }

    def asarray(self, value: Any, dtype: str, device: Any = None) -> np.ndarray:
        """Return `value` as a NumPy array."""
        if device is not None:
            raise ValueError(f"device: NumPy has none to choose, got {device!r}")
        return np.asarray(value, dtype=dtype)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return the array."""
        return np.asarray(array)

    def device(self, array: Any) -> Device:
        """Return the measured number of elements at which an operation's fixed cost is small."""
        if self.compiles(array):
            return compiled_device(array.dtype, self.threads(), price=1500.0)
        return Device(1 << 15, COMPOSED)

    def address(self, array: np.ndarray) -> int:
        """Return the address of the first element."""
        return array.ctypes.data

    def strides(self, array: np.ndarray) -> tuple[int, ...]:
        """Return the strides in elements."""
        return tuple(s // array.itemsize for s in array.strides)

    def on_cpu(self, array: np.ndarray) -> bool:
        """Return True."""
        return True

    def contiguous(self, array: np.ndarray) -> np.ndarray:
        """Return the array in row-major order."""
        return np.ascontiguousarray(array)

    def concrete(self, array: Any) -> np.ndarray:
        """Return the array's values."""
        return np.asarray(array)

    def running_max(self, x: np.ndarray) -> np.ndarray:
        """Return the running maximum of x along axis 1."""
        return np.maximum.accumulate(x, axis=1)

    def solve(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """Solve; overflow and NaN are answers here, not warnings."""
        with np.errstate(all="ignore"):
            operands = [a.astype(x0[0].dtype, copy=False) for a in operands]
            return newton(self, program, plan, operands, x0)

    def matmul(self, rows: Any, matrix: Any) -> Any:
        """Return rows @ matrix."""
        return rows @ matrix

    def input_sum(self, term: Callable[..., Any], inputs: Any, matrices: Sequence[Any]) -> Any:
        """Sum `term` over the input channels, one at a time."""
        total: Any = None
        for j in range(inputs.shape[-1]):
            new = term(inputs[..., j : j + 1], *(m[j] for m in matrices))
            total = new if total is None else tuple(t + n for t, n in zip(total, new, strict=True))
        return total


backend = NumpyBackend()
