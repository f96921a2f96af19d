"""The NumPy backend: the reference, without gradients."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from parnl.backends.c.calls import compiled_device
from parnl.backends.c.steps import CompiledSteps
from parnl.backends.composed import COMPOSED, in_rows
from parnl.backends.plain import Plain
from parnl.dtypes import is_half
from parnl.frameworks import loaded, plain
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.newton import Plan, Stats

_FLOATS = frozenset(np.dtype(name) for name in ("float32", "float64", "float16"))


def _bfloat16() -> Any:
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "dtype: NumPy has bfloat16 from the package ml_dtypes: pip install ml_dtypes",
            name="ml_dtypes",
        ) from error
    return ml_dtypes.bfloat16


class NumpyBackend(Plain, CompiledSteps):
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
        return np.asarray(value, dtype=_bfloat16() if dtype == "bfloat16" else dtype)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return the array."""
        return np.asarray(array)

    def take(self, name: str, array: Any) -> np.ndarray:
        """Return the plain array that this is; see `parnl.backends.arrays` for what is refused."""
        if type(array) is not np.ndarray:
            array = _plain(name, array)
        return array if array.dtype in _FLOATS else _native(name, array)

    def usual(self, arrays: Sequence[Any]) -> bool:
        """Whether these are NumPy's own arrays of one type of numbers: see `Backend`."""
        dtype = arrays[0].dtype
        return dtype in _FLOATS and all(
            [type(a) is np.ndarray and a.dtype == dtype for a in arrays]
        )

    def device(self, array: Any) -> Device:
        """Return the measured number of elements at which an operation's fixed cost is small."""
        if self.compiles(array):
            return compiled_device(array.dtype, self.threads(), price=1500.0)
        return Device(1 << 15, COMPOSED)

    def readable(self, array: np.ndarray) -> np.ndarray:
        """Return the array, or a copy where address and strides would not tell what it holds."""
        # where the alignment is the item size, as it nearly always is, strides are multiples of it
        if array.flags.aligned and array.dtype.alignment == array.itemsize:
            return array
        return array.copy(order="C")

    def address(self, array: np.ndarray) -> int:
        """Return the address of the first element."""
        return array.ctypes.data

    def strides(self, array: np.ndarray) -> tuple[int, ...]:
        """Return the strides in elements."""
        size = array.itemsize
        return tuple([s // size for s in array.strides])

    def on_cpu(self, array: np.ndarray) -> bool:
        """Return True."""
        return True

    def addresses(
        self, arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: Any, read: int
    ) -> list[int] | None:
        """Return where arrays are that are no more than their numbers; see `c.steps`."""
        found: list[int] = []
        buffer: Any = ctypes.c_char
        for x, shape in zip(arrays, shapes, strict=True):
            if type(x) is not np.ndarray or x.shape != shape or x.dtype != dtype:
                return None
            if len(found) < read:
                try:  # three times as fast as `ctypes.data`; refuses what is not row-major
                    address = ctypes.addressof(buffer.from_buffer(x))
                except (TypeError, ValueError):  # or is read-only, or empty
                    address = x.ctypes.data if x.flags.c_contiguous else 0
                if not address or address & 7:
                    return None
                found.append(address)
        return found

    def unobserved(self) -> bool:
        """Return True: NumPy does what it is asked, at once."""
        return True

    def several_like(self, array: np.ndarray, count: int) -> tuple[list[Any], list[int]]:
        """Return arrays to be written to, and their addresses; see `c.steps`."""
        block = np.empty((count, *array.shape), array.dtype)
        first = block.ctypes.data
        return list(block), [first + i * array.nbytes for i in range(count)]

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
            return self.newton(program, plan, operands, x0)

    def empty(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return an array to be written to."""
        return np.empty(shape, like.dtype)

    def complex_numbers(self, re: Any, im: Any) -> Any:
        """Return re + i im."""
        found = np.empty(re.shape, np.result_type(re.dtype, np.complex64))
        found.real, found.imag = re, im
        return found

    def matmul(self, inputs: Any, matrix: Any) -> Any:
        """Return inputs @ matrix; NumPy itself would give float32 for two of bfloat16."""
        found = in_rows(operator.matmul, inputs, matrix)
        return found.astype(inputs.dtype) if is_half(inputs.dtype) else found

    def small_product(self, inputs: np.ndarray, matrix: np.ndarray) -> np.ndarray | None:
        """Return inputs @ matrix, None of half precision."""
        dtype = inputs.dtype
        if dtype.char not in "fd" or matrix.dtype != dtype:
            return None
        return in_rows(operator.matmul, inputs, matrix)


def _plain(name: str, array: Any) -> np.ndarray:
    """Return an array of a subclass as one of NumPy's own, if that is all it is."""
    kind = type(array)
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise TypeError(
                f"{name}: expected an array without a mask, got a {kind.__name__} of shape "
                f"{array.shape} with {np.ma.count_masked(array)} values masked; fill them, by "
                ".filled(value), or pass lengths"
            )
        return np.asarray(array.data)
    for method in ("__array_ufunc__", "__array_function__"):
        if getattr(kind, method) is not getattr(np.ndarray, method):
            raise TypeError(
                f"{name}: expected a NumPy array, got a {kind.__module__}.{kind.__qualname__}, "
                f"which has arithmetic of its own ({method}); pass .view(np.ndarray)"
            )
    return np.asarray(array)


def _native(name: str, array: np.ndarray) -> np.ndarray:
    """Return the array in this machine's byte order, if its dtype is NumPy's own."""
    dtype = array.dtype
    if dtype.isbuiltin == 2 and not is_half(dtype):
        raise TypeError(
            f"{name}: expected float16, float32 or float64, got dtype {dtype}, which another "
            f"package has defined ({dtype.type.__module__}); convert it by .astype(np.float32)"
        )
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


backend = NumpyBackend()
loaded["numpy"] = backend
plain[np.ndarray] = backend
