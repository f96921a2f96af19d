"""Arrays of unusual memory that hold the same values: `unusual` makes one of them at random.

`parnl.backends.arrays` tells what each of them is for a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np


def unusual(backend: str, array: Any, rng: np.random.Generator) -> Any:
    """Return the array itself, or one of its values of one of the backend's `kinds`."""
    found = [lambda x: x, *kinds(backend).values()]
    return found[rng.integers(len(found))](array)


def kinds(backend: str) -> Mapping[str, Callable[[Any], Any]]:
    """Return name -> function that makes an array of the same values."""
    if backend == "torch":
        return _torch()
    return NUMPY if backend == "numpy" else {}


class Own(np.ndarray):
    """A subclass that is no more than an array."""


def field(v: np.ndarray) -> np.ndarray:
    """A number lies seven or eleven bytes after the one before it, and so does the first."""
    records = np.zeros(v.shape, [("flag", "u1"), ("value", v.dtype), ("rest", "u2")])
    records["value"] = v
    return records["value"]


def packed(v: np.ndarray) -> np.ndarray:
    """As `field`, but aligned where it begins."""
    records = np.zeros(v.shape, [("value", v.dtype), ("flag", "u1")])
    records["value"] = v
    return records["value"]


def misaligned(v: np.ndarray) -> np.ndarray:
    """At an odd address."""
    array = np.zeros(v.nbytes + 1, np.uint8)[1:].view(v.dtype).reshape(v.shape)
    array[...] = v
    return array


def read_only(v: np.ndarray) -> np.ndarray:
    """Not to be written."""
    v = v.copy()
    v.flags.writeable = False
    return v


def backward(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """Along `axis`, from the last to the first."""
    return lambda v: np.flip(np.flip(v, axis).copy(), axis) if v.ndim else v


def spread(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    """Along `axis`, every second number from the last to the first."""

    def kind(v: np.ndarray) -> np.ndarray:
        if v.ndim < abs(axis):
            return v
        at = axis % v.ndim
        wide = np.ones([2 * n if i == at else n for i, n in enumerate(v.shape)], v.dtype)
        view = wide[tuple([slice(None)] * at + [slice(None, None, -2)])]
        view[...] = v
        return view

    return kind


NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "field": field,
    "packed": packed,
    "misaligned": misaligned,
    "byte order": lambda v: v.astype(v.dtype.newbyteorder()),
    "read-only": read_only,
    "Fortran": lambda v: np.asfortranarray(v),
    "first axis backward": backward(0),
    "last axis backward": backward(-1),
    "last axis spread": spread(-1),
    "second to last spread": spread(-2),
    "subclass": lambda v: v.view(Own),
    "recarray": lambda v: np.rec.array(v),
    "nothing masked": lambda v: np.ma.masked_array(v, np.zeros(v.shape, bool)),
    "no mask": lambda v: np.ma.masked_array(v),
}


@cache
def _torch() -> Mapping[str, Callable[[Any], Any]]:
    import torch

    class Tagged(torch.Tensor):
        """A subclass that is plain memory."""

    def negated(v: torch.Tensor) -> torch.Tensor:
        """Negated when it is read; numbers lie two apart."""
        if v.dtype in (torch.float32, torch.float64):
            return torch.complex(torch.zeros(v.shape, dtype=v.dtype), -v).conj().imag
        return torch._neg_view(torch.stack([-v, torch.full_like(v, torch.nan)], -1)[..., 0])

    def misaligned(v: torch.Tensor) -> torch.Tensor:
        """At an odd address."""
        if not v.numel():
            return v
        dense = torch.empty(v.numel(), dtype=v.dtype).copy_(v.flatten())
        memory = bytearray(1) + bytearray(dense.view(torch.uint8).numpy())
        return torch.frombuffer(memory, dtype=v.dtype, offset=1).reshape(v.shape)

    def turned(v: torch.Tensor) -> torch.Tensor:
        """In the memory of its transpose."""
        axes = list(reversed(range(v.ndim)))
        return v.permute(axes).contiguous().permute(axes)

    return {
        "negated": negated,
        "negated, dense": lambda v: torch._neg_view(-v),
        "negated, turned": lambda v: turned(torch._neg_view(-v)),
        "misaligned": misaligned,
        "misaligned, negated": lambda v: torch._neg_view(misaligned(-v)),
        "turned": turned,
        "spread": lambda v: torch.stack([v, torch.full_like(v, torch.nan)], -1)[..., 0],
        "part": lambda v: torch.cat([torch.full_like(v, torch.nan), v])[len(v) :],
        "subclass": lambda v: v.as_subclass(Tagged),
        "copied on write": lambda v: torch._lazy_clone(v.clone()),
        "shared": lambda v: v.clone().share_memory_(),
    }
