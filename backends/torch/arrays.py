"""Tensors as parnl takes them, and as kernels read them; see `parnl.backends.arrays`."""

from __future__ import annotations

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
