"""Tensors as parnl takes them, and as kernels read them; see `parnl.backends.arrays`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.masked import MaskedTensor

PLAIN = (Tensor, torch.nn.Parameter)  # by far the most, and sooner told by their type
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def take(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor, which is dense and has memory; raise TypeError, naming it, if not."""
    if not torch.compiler.is_compiling():
        try:  # nearly all: one that is sparse, or wrapped by torch.func, has no address to tell
            known = type(tensor) in PLAIN and tensor.dtype in _FLOATS and not tensor.is_nested
            if known and tensor.data_ptr():
                return tensor
        except RuntimeError:
            pass
    return _taken(name, tensor)


def usual(tensors: Sequence[Any]) -> bool:
    """Whether these are what nearly all are: `take` returns them, and dtype and device are one."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    dtype, device = tensors[0].dtype, tensors[0].device
    try:  # as in `take`
        for x in tensors:
            same = type(x) in PLAIN and x.dtype is dtype and x.device == device
            if not same or x.is_nested or not x.data_ptr():
                return False
    except RuntimeError:
        return False
    return dtype in _FLOATS


def _taken(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_nested:
        nested = tensor.is_nested
        raise TypeError(
            f"{name}: expected a dense tensor, got "
            + ("a nested one" if nested else f"one of layout {tensor.layout}")
            + ("; pad it, and pass lengths" if nested else "; convert it by .to_dense()")
        )
    kind, dtype = type(tensor), tensor.dtype
    if dtype not in _FLOATS and dtype.is_floating_point:
        raise TypeError(
            f"{name}: expected one of {', '.join(map(str, _FLOATS))}, got {dtype}; "
            "convert it by .to(torch.float32)"
        )
    if kind not in PLAIN:
        if isinstance(tensor, MaskedTensor):
            raise TypeError(
                f"{name}: expected a tensor without a mask, got a {kind.__name__}; fill what is "
                "masked, by .to_tensor(value), or pass lengths"
            )
        return tensor
    if tensor.is_meta:  # shapes alone: see `operators.recorded`
        return tensor
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return tensor
    if not tensor.data_ptr() and tensor.numel() and not tensor._is_zerotensor():
        raise TypeError(
            f"{name}: expected a tensor with values, got one of shape {tuple(tensor.shape)} on "
            f"{tensor.device} whose memory was freed, or that never had any"
        )
    return tensor


def addresses(
    arrays: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, read: int
) -> list[int] | None:
    """Return where tensors are that are no more than their numbers; see `c.steps`."""
    graph = torch.is_grad_enabled()
    found: list[int] = []
    try:  # as in `take`
        for x, shape in zip(arrays, shapes, strict=True):
            if type(x) not in PLAIN or x.shape != shape or x.dtype is not dtype:
                return None
            address = x.data_ptr()
            if not address or not x.is_cpu or (graph and x.requires_grad):
                return None
            if len(found) < read:
                if address & 7 or not x.is_contiguous() or x.is_neg():
                    return None
                found.append(address)
    except RuntimeError:
        return None
    return found


def several_like(array: Tensor, count: int) -> tuple[list[Any], list[int]]:
    """Return tensors to be written to, and their addresses; see `c.steps`."""
    made = [torch.empty_like(array) for _ in range(count)]
    return made, [x.data_ptr() for x in made]


def readable(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where address and strides would not tell what it holds."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    address = tensor.data_ptr()
    # the allocator's addresses are multiples of 8
    if address & 7 and address % tensor.element_size():
        return tensor.clone()
    if not address and tensor._is_zerotensor():
        return tensor.clone()
    return tensor
