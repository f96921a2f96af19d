"""`affine_scan`: the linear recurrence by itself, real or complex, for single numbers or blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from parnl.dtypes import Array, is_floating, is_half, promoted
from parnl.frameworks import backend_of, lenient
from parnl.graph.program import affine_program, complex_affine_program
from parnl.inputs import batched, check_devices
from parnl.solver.run import run, settings


@lenient(1, "b")
def affine_scan(a: Array, b: Array, x0: Array | None = None, reverse: bool = False) -> Array:
    """Return all x_t of x_t = a_t x_{t-1} + b_t, in parallel over time; differentiable.

    Args:
        a: (..., T, D), or blocks (..., T, D, k, k).
        b: (..., T, D), or blocks (..., T, D, k).
        x0: b without its axis T; zeros if None.
        reverse: x_t = a_t x_{t+1} + b_t, where x0 comes after the last step.

    All three broadcast as in NumPy: an `a` of shape (T, D) or (D,) serves every sequence of a `b`
    of (B, T, D). They are blocks if `a` has one axis more than `b`, `a` ends in (k, k), and `b`
    ends in (k,). So arrays of blocks broadcast only over axes of length 1.

    Numbers are real or complex. The result has the type that NumPy promotes them to. Half
    precision is added up in float32, and only the result is rounded. JAX can transpose this
    function in b and x0 (`jax.linear_transpose`).

    Returns:
        x, of the shape of b.

    Raises:
        ValueError: names the argument, what came, and what was expected.
        TypeError: likewise.

    >>> import numpy as np, parnl
    >>> parnl.affine_scan(np.full((3, 1), 0.5), np.ones((3, 1)))[:, 0]
    array([1.  , 1.5 , 1.75])
    """
    given = [("a", a), ("b", b)] + ([] if x0 is None else [("x0", x0)])
    backend = backend_of(given)
    given = [(name, backend.take(name, array)) for name, array in given]
    check_devices(backend, dict(given))
    arrays: list[Any] = [*(array for _, array in given), None]
    a, b, x0 = arrays[:3]
    xp = backend.xp
    for name, array in given:
        if not (is_floating(xp, array.dtype) or xp.isdtype(array.dtype, "complex floating")):
            raise TypeError(f"{name}: expected floating or complex numbers, got {array.dtype}")
    result = promoted(xp, [array.dtype for _, array in given])
    dtype = xp.float32 if is_half(result) else result
    shapes = [tuple(array.shape) for _, array in given]
    k = _block(*shapes[:2])
    *batch, steps, channels = _common_shape(k, *shapes)
    if x0 is None:
        zeros = (channels,) if k is None else (channels, k)
        x0 = xp.zeros(zeros, dtype=dtype, device=getattr(b, "device", None))
    a, b, x0 = (xp.astype(array, dtype, copy=False) for array in (a, b, x0))
    if k is None:  # blocks of one number
        a, b, x0 = a[..., None, None], b[..., None], x0[..., None]

    is_complex = bool(xp.isdtype(dtype, "complex floating"))

    def parts(array: Any) -> list[Any]:
        return [xp.real(array), xp.imag(array)] if is_complex else [array]

    def operand(array: Any) -> Any:
        return batched(xp, array[None, ...] if array.ndim < 2 else array, tuple(batch))

    def start(array: Any) -> Any:
        shape = math.prod(batch), channels
        return xp.reshape(xp.broadcast_to(array, (*batch, channels)), shape)

    size = 1 if k is None else k
    cells = [(i, j) for i in range(size) for j in range(size)]
    # in the order of the program's operands and states: all real parts, then all imaginary ones
    of_a = list(zip(*(parts(a[..., i, j]) for i, j in cells), strict=True))
    of_b = list(zip(*(parts(b[..., i]) for i in range(size)), strict=True))
    of_x = list(zip(*(parts(x0[..., i]) for i in range(size)), strict=True))
    program = complex_affine_program(size) if is_complex else affine_program(size)
    operands = [operand(x) for group in (of_a, of_b) for part in group for x in part]
    starts = [start(x) for part in of_x for x in part]
    states, _ = run(backend, program, operands, starts, steps, settings(reverse))
    states = [xp.reshape(s, (*batch, steps, channels)) for s in states]
    if is_complex:
        pairs = zip(states[:size], states[size:], strict=True)
        states = [backend.complex_numbers(re, im) for re, im in pairs]
    found = states[0] if k is None else xp.stack(states, axis=-1)
    return xp.astype(found, result, copy=False)


def _block(a: tuple[int, ...], b: tuple[int, ...]) -> int | None:
    """Return k if these are shapes of blocks, None if they are of single numbers."""
    blocks = len(a) == len(b) + 1 and len(b) >= 3 and a[-2:] == (b[-1], b[-1])
    return b[-1] if blocks else None


def _common_shape(
    k: int | None, a: tuple[int, ...], b: tuple[int, ...], x0: tuple[int, ...] | None = None
) -> Sequence[int]:
    """Return (..., T, D), what the arrays of these shapes broadcast to without their blocks."""
    try:
        common = np.broadcast_shapes(a, b) if k is None else np.broadcast_shapes(a[:-2], b[:-1])
        if len(common) < 2:
            raise ValueError
    except ValueError:
        raise ValueError(
            "a, b: expected shapes (..., T, D) and (..., T, D), or (..., T, D, k, k) and "
            f"(..., T, D, k), got {a} and {b}"
        ) from None
    if x0 is None:
        return common
    expected = (*common[:-2], common[-1]) if k is None else (*common[:-2], common[-1], k)
    single = x0 if k is None else x0[:-1]
    try:
        if k is not None and x0[-1:] != (k,):
            raise ValueError
        whole = np.broadcast_shapes(common, (*single[:-1], 1, *single[-1:]))
        if whole[-2:] != common[-2:]:  # x0 must not lengthen time or channels
            raise ValueError
    except ValueError:
        raise ValueError(f"x0: expected shape {expected}, got {x0}") from None
    return whole
