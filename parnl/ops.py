"""Elementwise functions that a cell may use, on symbols and on arrays of every backend alike.

>>> import numpy as np
>>> from parnl import ops
>>> ops.sigmoid(np.zeros(3, dtype=np.float32))
array([0.5, 0.5, 0.5], dtype=float32)

Arithmetic (`+ - * / **`), `abs()` and comparisons are written as usual. NaN passes through every
function but `where`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from parnl.dtypes import Array, Value, is_half, promoted, widened
from parnl.frameworks import backend_of, get_backend, plain
from parnl.graph.nodes import StepError, Symbol

__all__ = [
    "abs", "atan", "clip", "cos", "erf", "exp", "expm1", "gelu", "input_sum", "log", "log1p",
    "logical_and", "logical_not", "logical_or", "logsigmoid", "matmul", "maximum", "minimum",
    "relu", "sigmoid", "sign", "silu", "sin", "softplus", "sqrt", "tanh", "where",
]  # fmt: skip


def _apply(op: str, *args: Any) -> Any:
    backend: Any = plain.get(type(args[0])) if len(args) == 1 else None
    if backend is not None and op in backend.functions:
        return backend.functions[op](*args)
    for a in args:
        if isinstance(a, Symbol):
            return a.graph.apply(op, *args)
    arrays = {i: a for i, a in enumerate(args, 1) if not _is_number(a)}
    if not arrays:
        return get_backend("numpy").functions[op](*map(np.float64, args))
    backend = backend_of([(f"argument {i} of ops.{op}", a) for i, a in arrays.items()])
    if op not in backend.functions:
        raise NotImplementedError(f"ops.{op}: {backend.name} has no form of {op}")
    return backend.functions[op](*args)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.generic)


def exp(x: Value) -> Value:
    """e ** x."""
    return _apply("exp", x)


def expm1(x: Value) -> Value:
    """e ** x - 1, accurate near 0."""
    return _apply("expm1", x)


def log(x: Value) -> Value:
    """Natural logarithm."""
    return _apply("log", x)


def log1p(x: Value) -> Value:
    """log(1 + x), accurate near 0."""
    return _apply("log1p", x)


def sqrt(x: Value) -> Value:
    """Square root."""
    return _apply("sqrt", x)


def sin(x: Value) -> Value:
    """Sine."""
    return _apply("sin", x)


def cos(x: Value) -> Value:
    """Cosine."""
    return _apply("cos", x)


def atan(x: Value) -> Value:
    """Arc tangent, the angle in (-pi/2, pi/2) whose tangent is x."""
    return _apply("atan", x)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent."""
    return _apply("tanh", x)


def sigmoid(x: Value) -> Value:
    """Logistic sigmoid 1 / (1 + e ** -x)."""
    return _apply("sigmoid", x)


def softplus(x: Value) -> Value:
    """log(1 + e ** x), without overflow."""
    return _apply("softplus", x)


def logsigmoid(x: Value) -> Value:
    """log(sigmoid(x)), without underflow."""
    value: Any = x
    return -softplus(-value)


def relu(x: Value) -> Value:
    """max(x, 0), with derivative 0 at 0."""
    return _apply("relu", x)


def silu(x: Value) -> Value:
    """x * sigmoid(x)."""
    value: Any = x
    return value * sigmoid(value)


def gelu(x: Value) -> Value:
    """x * Phi(x), Phi the distribution function of the standard normal."""
    value: Any = x
    return 0.5 * value * (1.0 + erf(value * 0.7071067811865476))


def erf(x: Value) -> Value:
    """Error function."""
    return _apply("erf", x)


def abs(x: Value) -> Value:
    """Magnitude, with derivative 0 at 0."""
    return _apply("abs", x)


def sign(x: Value) -> Value:
    """-1, 0 or 1; its derivative is 0 everywhere."""
    return _apply("sign", x)


def minimum(x: Value | float, y: Value | float) -> Value:
    """The smaller one; at a tie each gets half the gradient."""
    return _apply("minimum", x, y)


def maximum(x: Value | float, y: Value | float) -> Value:
    """The larger one; at a tie each gets half the gradient."""
    return _apply("maximum", x, y)


def clip(x: Value, low: Value | float, high: Value | float) -> Value:
    """x limited to [low, high]: minimum(maximum(x, low), high)."""
    return minimum(maximum(x, low), high)


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y; `condition` is a comparison.

    As in JAX and PyTorch, both branches are computed. If the branch not taken has a gradient that
    is not finite, it spoils the sum of gradients: guard the argument too. If x and y are both
    numbers, they take the dtype of the state in a step, and the framework's default on arrays.
    """
    return _apply("where", condition, x, y)


def logical_and(x: Any, y: Any) -> Any:
    """Both conditions hold; the same as x & y."""
    return _apply("logical_and", x, y)


def logical_or(x: Any, y: Any) -> Any:
    """At least one condition holds; the same as x | y."""
    return _apply("logical_or", x, y)


def logical_not(x: Any) -> Any:
    """The condition does not hold; the same as ~x."""
    return _apply("logical_not", x)


def matmul(inputs: Array, matrix: Array) -> Array:
    """Return `inputs @ matrix`, (..., T, n) @ (n, hidden), as one product; for `features` only.

    The same as `@`, and faster on JAX (measured: value and gradient of an LRC 1.4 times faster).
    With `@`, XLA's CPU compiler copies arrays to differentiate a product of three axes, and is slow
    at a product over few inputs.
    """
    known = plain.get(type(inputs))
    if known is plain.get(type(matrix)) and known is not None:
        found = known.small_product(inputs, matrix)
        if found is not None:
            return found
    if isinstance(inputs, Symbol) or isinstance(matrix, Symbol):
        raise StepError("step: ops.matmul mixes channels; call it in features()")
    backend = backend_of([("inputs", inputs), ("matrix", matrix)])
    if inputs.dtype != matrix.dtype and is_half(inputs.dtype) | is_half(matrix.dtype):
        dtype = promoted(backend.xp, [inputs.dtype, matrix.dtype])
        inputs, matrix = (widened(backend.xp, x, dtype) for x in (inputs, matrix))
    return backend.matmul(inputs, matrix)


def input_sum(
    term: Callable[..., tuple[Any, ...]], inputs: Any, matrices: Sequence[Any]
) -> tuple[Any, ...]:
    """Sum over the input channels j of term(u_j, *[m[j] for m in matrices]); for `features` only.

    inputs: (..., T, input); matrices: each (input, hidden). `term` gets u_j as (..., T, 1) and one
    row (hidden,) of each matrix, and returns a tuple of arrays (..., T, hidden), as does this sum.
    It must be elementwise: it may be given a few of the j at once, as (..., T, few, 1) and
    (few, hidden). Define it once, outside `features`: JAX compiles anew for each function object.
    The terms, an array (..., T, input, hidden) together, are never in memory at once: they are
    computed one after the other, and again for the gradient. Half precision is added up in float32.
    """
    if isinstance(inputs, Symbol):
        raise StepError("step: ops.input_sum mixes channels; call it in features()")
    pairs = [("inputs", inputs), *(("matrices", m) for m in matrices)]
    backend = backend_of(pairs)
    xp, result = backend.xp, promoted(backend.xp, [x.dtype for _, x in pairs])
    dtype = xp.float32 if is_half(result) else result
    inputs, *matrices = (widened(xp, x, dtype) for _, x in pairs)
    sums = backend.input_sum(term, inputs, matrices)
    return tuple(xp.astype(x, result) for x in sums) if is_half(result) else sums
