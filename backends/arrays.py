"""What a compiled kernel is given of an array: the address of its first element, and strides.

These two do not tell everything. The rest is checked in two places only. Where a user's array comes
in, the backend's `take` checks it, and knows the argument's name. Before a kernel is called, `rows`
and `whole` below check it (Triton: `readable`), since features and autograd also make arrays on the
way.

Taken as they are, for kernels only read what they are given, and write to arrays of their own:

    any         read-only, memory-mapped, shared, pinned; empty; strides that are negative, overlap,
                or are 0 (broadcast, expanded)
    NumPy       subclasses that are no more than an array: memmap, matrix, recarray, a user's own.
                They are taken as plain arrays; results are plain arrays
                a MaskedArray in which nothing is masked
                longdouble: composed of NumPy's operations, C kernels are of float32 and float64
    PyTorch     parameters, buffers, tensors and views that need gradients, inference tensors,
                tensors copied on write, subclasses that are plain memory
                wrapped by torch.func: PyTorch unwraps them before a kernel sees them
                handled by their class in Python, or without values (meta, recorded graphs): the
                operator `parnl::solve` is given to the class, which says what becomes of it
    JAX         committed, sharded, of another layout: XLA hands over dense arrays, row by row

Taken by a copy:

    any         channels that are no neighbours in memory (C; Triton takes any stride)
    NumPy       misaligned; strides in bytes that are no multiple of the item size (a field of a
                structured array); the byte order of other machines
    PyTorch     negated lazily (`z.conj().imag`); zeros without memory (`_efficientzerotensor`);
                misaligned (`torch.frombuffer(..., offset=1)`)

Refused, by an error that names the argument:

    NumPy       a MaskedArray with masked values; subclasses with arithmetic of their own (units);
                types of other packages (float8 of ml_dtypes; its bfloat16 is taken)
    PyTorch     sparse, MKL-DNN's, nested, MaskedTensor, float8; whose memory was freed
    JAX         deleted, or donated
    any         integers, bool, objects, structures, quantised; complex but for `affine_scan`
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol


class Memory(NamedTuple):
    """What a kernel is given of an array.

    array: whose memory it is, to be kept until the kernel has run; address: of its first element;
    strides: in elements, one for each axis; shape: of the array.
    """

    array: Any
    address: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]


class Memories(Protocol):
    """What is asked of a framework."""

    def readable(self, array: Any) -> Any:
        """Return the array, or a copy where address and strides would not tell what it holds."""

    def contiguous(self, array: Any) -> Any:
        """Return the array in row-major order."""

    def strides(self, array: Any) -> tuple[int, ...]:
        """Return the strides in elements, of a readable array."""

    def address(self, array: Any) -> int:
        """Return the address of the first element, of a readable array."""


def rows(kernels: Memories, array: Any) -> Memory:
    """Return the memory of an array whose last axis is dense; the others have any strides."""
    array = kernels.readable(array)
    shape, strides = array.shape, kernels.strides(array)
    if strides[-1] != 1 and shape[-1] != 1:
        array = kernels.contiguous(array)
        strides = kernels.strides(array)
    return Memory(array, kernels.address(array), strides, shape)


def whole(kernels: Memories, array: Any) -> Memory:
    """Return the memory of an array in row-major order, whose strides follow from its shape."""
    array = kernels.contiguous(kernels.readable(array))
    return Memory(array, kernels.address(array), (), array.shape)
