"""Large results in huge pages.

A large tensor is mostly fresh memory, for the allocator gives what is freed back to the system,
which clears every page before it is used again. In pages of 4 KiB that costs more than many a
computation. Measured, ms a MiB: 0.55; in huge pages 0.12; memory that is used again 0.07. NumPy
asks for huge pages by itself.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from parnl.backends.torch.arrays import PLAIN

# Bytes from which on it is asked for, as in NumPy: a huge page is 2 MiB.
_LARGE = 4 << 20


def matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows (N, n) @ matrix (n, hidden), in huge pages if it is large."""
    # in this order: a size looked at while compiling would make a graph for each side of it
    if torch.compiler.is_compiling() or not _plain(rows, matrix):
        return rows @ matrix
    if rows.shape[0] * matrix.shape[1] * rows.element_size() < _LARGE:
        return rows @ matrix
    out = rows.new_empty(rows.shape[0], matrix.shape[1])
    _expect(out)
    return out.addmm_(rows, matrix, beta=0.0)  # beta = 0: what stands in `out` is not read


def _plain(rows: Tensor, matrix: Tensor) -> bool:
    """Whether these are dense matrices in the processor's memory, and nothing looks on."""
    return (
        all(
            type(x) in PLAIN
            and x.device.type == "cpu"
            and x.layout is torch.strided
            and x.ndim == 2
            and not x._is_zerotensor()
            for x in (rows, matrix)
        )
        and rows.dtype == matrix.dtype
        and torch._C._functorch.maybe_current_level() is None
        and not torch.is_autocast_enabled("cpu")
        and _get_current_dispatch_mode() is None
    )


def _expect(tensor: Tensor) -> None:
    """Ask for huge pages where the system has them; it may refuse, and nothing is lost."""
    advise, page = _madvise(), mmap.PAGESIZE
    if advise is None:
        return
    address, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    first = -(-address // page) * page
    advise(first, (address + size - first) // page * page, mmap.MADV_HUGEPAGE)


@cache
def _madvise() -> Any:
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], None
    return function
