"""Products of k x k blocks whose entries are arrays, kept row by row in a flat list.

Each channel has its own small block. An entry may be a plain 0.0 or 1.0 (a structural zero or
one): it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def identity(k: int) -> list[Any]:
    """Return the k x k identity, as numbers."""
    return [1.0 if i == j else 0.0 for i in range(k) for j in range(k)]


def matmul(a: Sequence[Any], b: Sequence[Any], k: int) -> list[Any]:
    """Return the block product a @ b."""
    return [
        _dot([a[i * k + m] for m in range(k)], [b[m * k + j] for m in range(k)])
        for i in range(k)
        for j in range(k)
    ]


def matvec(a: Sequence[Any], x: Sequence[Any]) -> list[Any]:
    """Return the block-vector product a @ x."""
    k = len(x)
    return [_dot(a[i * k : (i + 1) * k], x) for i in range(k)]


def _dot(row: Sequence[Any], column: Sequence[Any]) -> Any:
    total: Any = 0.0
    for a, b in zip(row, column, strict=True):
        if _is(a, 0.0) or _is(b, 0.0):
            continue
        term = b if _is(a, 1.0) else a if _is(b, 1.0) else a * b
        total = term if _is(total, 0.0) else total + term
    return total


def _is(entry: Any, number: float) -> bool:
    return isinstance(entry, float) and entry == number
