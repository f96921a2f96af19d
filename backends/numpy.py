"""The NumPy backend: the reference, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from parnl.backends.c.calls import CompiledKernels, compiled_device
from parnl.backends.composed import COMPOSED
from parnl.dtypes import is_half
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.newton import Plan, Stats, newton

_erf = np.frompyfunc(math.erf, 1, 1)


@np.errstate(over="ignore")  # an overflow of exp is the limit 0
def _sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def _softplus(x: Any) -> Any:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _erf_of(x: Any) -> Any:
    return np.asarray(_erf(x)).astype(np.result_type(x))[()]  # a number's is a number


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "dtype: NumPy has bfloat16 from the package ml_dtypes: pip install ml_dtypes",
            name="ml_dtypes",
        ) from error
    return ml_dtypes.bfloat16


class NumpyBackend(CompiledKernels):
    """See `parnl.backends.Backend`."""

    name = "numpy"
    xp = xp
    functions: dict[str, Any] = {
        **{
            op: getattr(np, op)
            for op in (
                "exp expm1 log log1p sqrt sin cos tanh abs sign minimum maximum where "
                "logical_and logical_or logical_not"
            ).split()
        },
        "sigmoid": _sigmoid,
        "softplus": _softplus,
        "relu": lambda x: np.maximum(x, 0.0),
        "erf": _erf_of,
        "number": lambda x, reference: reference.dtype.type(x),
    }

    def asarray(self, value: Any, dtype: str, device: Any = None) -> np.ndarray:
        """Return `value` as a NumPy array."""
        if device is not None:
            raise ValueError(f"device: NumPy has none to choose, got {device!r}")
        return np.asarray(value, dtype=_bfloat16() if dtype == "bfloat16" else dtype)

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

    def products(self, dtype: Any, array: Any) -> AbstractContextManager[Any]:
        """Return a context that changes nothing: float32 is no slower here."""
        return nullcontext()

    def complex_numbers(self, re: Any, im: Any) -> Any:
        """Return re + i im."""
        found = np.empty(re.shape, np.result_type(re.dtype, np.complex64))
        found.real, found.imag = re, im
        return found

    def matmul(self, rows: Any, matrix: Any) -> Any:
        """Return rows @ matrix; NumPy itself would give float32 for two of bfloat16."""
        found = rows @ matrix
        return found.astype(rows.dtype) if is_half(rows.dtype) else found

    def input_sum(self, term: Callable[..., Any], inputs: Any, matrices: Sequence[Any]) -> Any:
        """Sum `term` over the input channels, one at a time."""
        total: Any = None
        for j in range(inputs.shape[-1]):
            new = term(inputs[..., j : j + 1], *(m[j] for m in matrices))
            total = new if total is None else tuple(t + n for t, n in zip(total, new, strict=True))
        return total


backend = NumpyBackend()
