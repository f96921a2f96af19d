"""Any other library of the array API standard (2023.12 or newer): CuPy, array-api-strict, ...

There is one backend for each namespace, as array-api-compat finds it. A solve is composed of the
library's own operations, a few for each step of all chunks, and there are no gradients: JAX and
PyTorch have them, and arrays go there by DLPack.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np

from parnl.backends.composed import COMPOSED, ComposedKernels
from parnl.backends.plain import Plain
from parnl.frameworks import NAMES, Backend, get_backend, name_of
from parnl.graph.flatcode import array_functions
from parnl.graph.operation import DEFINED
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.newton import Plan, Stats, newton


class ArrayApiBackend(Plain, ComposedKernels):
    """See `parnl.backends.Backend`; `xp` is the library's namespace, `name` its module."""

    def __init__(self, xp: Any, name: str) -> None:
        self.xp, self.name = xp, name
        scope = {"xp": xp, "where": self._where, "number": self._number}
        try:
            found = array_functions("array_api", scope)
        except AttributeError as error:
            raise TypeError(
                f"{name}: expected the array API standard of 2023.12 or newer, but {error}"
            ) from error
        # a library that computes by NumPy warns of an overflow where the limit is meant
        quiet = np.errstate(over="ignore")
        defined = [n for n in found if OPERATIONS[n].form("array_api") == DEFINED]
        functions = {**found, **{n: quiet(found[n]) for n in defined}}
        self.functions = {**functions, "number": self._number}

    def asarray(self, value: Any, dtype: str, device: Any = None) -> Any:
        """Return `value` as an array of the library; device: one of its own."""
        kind = getattr(self.xp, dtype, None)
        if kind is None:
            raise TypeError(f"dtype: {self.name} has no {dtype}")
        return self.xp.asarray(np.asarray(value), dtype=kind, device=device)

    def to_numpy(self, array: Any) -> np.ndarray:
        """Return the array's values, by way of the processor's memory."""
        if array_api_compat.is_cupy_array(array):  # its DLPack stays on the GPU
            return array_api_compat.to_device(array, "cpu")
        return np.from_dlpack(array)

    def concrete(self, array: Any) -> np.ndarray:
        """Return the array's values."""
        return self.to_numpy(array)

    def take(self, name: str, array: Any) -> Any:
        """Return the array, if it is dense."""
        if array_api_compat.is_pydata_sparse_array(array):
            kind = f"{type(array).__module__}.{type(array).__name__}"
            raise TypeError(f"{name}: expected a dense array, got a {kind}")
        return array

    def usual(self, arrays: Sequence[Any]) -> bool:
        """Return False: each array is looked at."""
        return False

    def step_by_kernel(self, program: Program, operands: Any, states: Any) -> None:
        """Return None: there are no kernels."""
        return None

    def remembered(self, cell: Any, input_t: Any) -> None:
        """Return None: there are no kernels."""
        return None

    def small_product(self, inputs: Any, matrix: Any) -> None:
        """Return None: there is no quicker product."""
        return None

    def device(self, array: Any) -> Device:
        """Return how many elements an operation wants: as NumPy's, on a GPU as PyTorch's."""
        gpu = array_api_compat.is_cupy_namespace(self.xp)
        return Device(1 << 20 if gpu else 1 << 15, COMPOSED)

    def solve(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """Solve; overflow and NaN are answers here, not warnings of a library that has NumPy's."""
        with np.errstate(all="ignore"):
            operands = [self.xp.astype(a, x0[0].dtype, copy=False) for a in operands]
            return newton(self, program, plan, operands, x0)

    def running_max(self, x: Any) -> Any:
        """Return the running maximum of x along axis 1: the standard has none, so by doubling."""
        reach = 1
        while reach < x.shape[1]:
            later = self.xp.maximum(x[:, reach:, ...], x[:, :-reach, ...])
            x = self.xp.concat([x[:, :reach, ...], later], axis=1)
            reach *= 2
        return x

    def empty(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return an array to be written to."""
        return self.xp.empty(shape, dtype=like.dtype, device=like.device)

    def contiguous(self, array: Any) -> Any:
        """Return the array: the standard does not speak of its memory."""
        return array

    def complex_numbers(self, re: Any, im: Any) -> Any:
        """Return re + i im, with i inf and i NaN as constants: i * inf would have a real part."""
        xp = self.xp
        dtype = xp.result_type(re.dtype, xp.complex64)

        def constant(im: float) -> Any:
            return xp.asarray(complex(0.0, im), dtype=dtype, device=re.device)

        finite = xp.isfinite(im)
        wild = xp.where(xp.isnan(im), constant(math.nan), constant(math.inf))
        wild = xp.where(im == -math.inf, constant(-math.inf), wild)
        turned = xp.astype(xp.where(finite, im, 0.0), dtype) * constant(1.0)
        return xp.astype(re, dtype) + xp.where(finite, turned, wild)

    def matmul(self, inputs: Any, matrix: Any) -> Any:
        """Return inputs @ matrix."""
        return inputs @ matrix

    def _where(self, condition: Any, x: Any, y: Any) -> Any:
        """Of two numbers the standard has no `where`; they take the library's default dtype."""
        if isinstance(x, int | float) and isinstance(y, int | float):
            x = self.xp.asarray(float(x), device=condition.device)
        return self.xp.where(condition, x, y)

    def _number(self, x: float, like: Any) -> Any:
        """Return the number x of the dtype of `like`."""
        return self.xp.asarray(x, dtype=like.dtype, device=like.device)


_made: dict[int, ArrayApiBackend] = {}  # by the identity of a namespace, which is kept alive


def backend_for(xp: Any) -> ArrayApiBackend:
    """Return the backend of a namespace."""
    if id(xp) not in _made:
        kind = type(xp)
        name = getattr(xp, "__name__", f"{kind.__module__}.{kind.__qualname__}")
        name = name.removeprefix("array_api_compat.")
        if any(other.name == name for other in _made.values()):
            name = f"{name} ({len(_made)})"  # what tells namespaces apart is this name
        _made[id(xp)] = ArrayApiBackend(xp, name)
    return _made[id(xp)]


def named(name: str) -> Backend:
    """Return the backend of the module `name`, as `import` knows it."""
    for made in _made.values():
        if made.name == name:
            return made
    try:
        library = name_of(importlib.import_module(name).empty((0,)))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(_unknown(name, str(error))) from error
    if library is None:
        raise ValueError(_unknown(name, "its arrays are not of the standard"))
    return get_backend(library)


def _unknown(name: Any, why: str) -> str:
    return (
        f"backend: expected {', '.join(NAMES)}, or the name of a module of the array API standard, "
        f"got {name!r}: {why}"
    )
