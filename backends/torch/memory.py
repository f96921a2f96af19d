"""Large results in NumPy's memory.

A large tensor is mostly fresh memory: the allocator gives freed memory back to the system, which
clears every page before it is used again. In pages of 4 KiB that costs more than many a
computation. Measured, ms a MiB: 0.55; in huge pages, which NumPy asks for, 0.12; memory that is
used again 0.07. Also, glibc before release 2.38 cannot reuse what PyTorch has freed for a tensor of
the same size, since PyTorch asks for aligned memory: a solve in stretches grows by each.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from parnl.backends.torch.arrays import PLAIN

# Bytes from which on it matters.
_LARGE = 1 << 20


def small_product(inputs: Tensor, matrix: Tensor) -> Tensor | None:
    """Return inputs (..., n) @ matrix (n, hidden); None if it is large, or PyTorch refuses it.

    The check for size is this short because it takes longer than many a product.
    """
    # in this order: see `matmul`
    if torch.compiler.is_compiling():
        return None
    size = matrix.shape
    if len(size) != 2 or inputs.nbytes * size[1] >= _LARGE * size[0]:
        return None
    # of what is not contiguous PyTorch may make a product for each sequence, which rounds otherwise
    try:
        return inputs @ matrix if inputs.is_contiguous() else None
    except RuntimeError:  # dtypes that differ, for one
        return None


def matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows (N, n) @ matrix (n, hidden)."""
    # in this order: a size looked at while compiling would make a graph for each side of it
    if torch.compiler.is_compiling() or not _plain(rows, matrix):
        return rows @ matrix
    if rows.shape[0] * matrix.shape[1] * rows.element_size() < _LARGE:
        return rows @ matrix
    out = empty((rows.shape[0], matrix.shape[1]), rows)
    return out.addmm_(rows, matrix, beta=0.0)  # beta = 0: what stands in `out` is not read


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor to be written to, of the dtype of `like` and on its device."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or size < _LARGE:
        return torch.empty(shape, dtype=like.dtype, device=like.device)
    storage = torch.from_numpy(np.empty(size, np.uint8)).untyped_storage()
    out = torch.empty(0, dtype=like.dtype)
    return out.set_(storage, 0, shape)  # type: ignore[call-overload]  # autograd sees no view


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
