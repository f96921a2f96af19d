"""Types of numbers: which are floating, which are half precision, what several promote to.

Arrays may be stored in half precision, float16 or bfloat16; sums are made and states are carried
in float32. A type is known by its name: NumPy knows bfloat16 only through ml_dtypes, whose type is
none of NumPy's kinds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import numpy as np


class _Array(Protocol):
    """What arrays of every framework have, as far as type checkers need to know."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...


# For type checkers: an array of any framework. What comes out is of the kind that went in.
Array = TypeVar("Array", bound=_Array)
# The same of functions that take symbols and numbers, too.
Value = TypeVar("Value")

HALF = ("float16", "bfloat16")


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of any framework, "float32" for instance."""
    return str(dtype).rpartition(".")[2]


def is_half(dtype: Any) -> bool:
    """Return whether `dtype` is float16 or bfloat16."""
    if isinstance(dtype, np.dtype):  # whose name takes 4 us to make
        return dtype.type.__name__ in HALF
    return dtype_name(dtype) in HALF


def is_floating(xp: Any, dtype: Any) -> bool:
    """Return whether `dtype` is a real floating type, bfloat16 included."""
    return is_half(dtype) or bool(xp.isdtype(dtype, "real floating"))


def promoted(xp: Any, dtypes: Iterable[Any]) -> Any:
    """Return the type that NumPy promotes these floating or complex types to.

    float16 with bfloat16 gives float32, which holds both, as in JAX and PyTorch.
    """
    different = set(dtypes)
    if len(different) == 1:
        return different.pop()
    wide = [d for d in different if not is_half(d)]
    if not wide:
        return xp.float32
    return wide[0] if len(wide) == 1 else xp.result_type(*wide)


def widened(xp: Any, array: Any, dtype: Any) -> Any:
    """Return an array of half precision in `dtype`, any other as it is."""
    return xp.astype(array, dtype) if is_half(array.dtype) else array
