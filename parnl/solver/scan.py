"""Prefix scan of affine maps along axis 1: O(n) work, O(log n) depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parnl.solver import blocks


def affine_scan(xp: Any, a: Sequence[Any], b: Sequence[Any], limit: float) -> list[Any]:
    """Return d with d_0 = b_0 and d_c = a_c d_{c-1} + b_c, for k x k blocks.

    a: k * k arrays (B, n, D), row by row; b: k arrays (B, n, D). Products of the a are clamped to
    [-limit, limit], so that they stay finite and an exact zero in b stays one. `xp` is the arrays'
    namespace.

    Neighbouring maps are composed in pairs, the scan of the pairs gives every second value, and
    the values between follow with one more step each.
    """
    n, k = b[0].shape[1], len(b)
    if n == 1:
        return list(b)
    even_a, even_b = ([x[:, 0 : n - 1 : 2, ...] for x in y] for y in (a, b))
    odd_a, odd_b = ([x[:, 1::2, ...] for x in y] for y in (a, b))
    pair_a = [xp.clip(p, -limit, limit) for p in blocks.matmul(odd_a, even_a, k)]
    pair_b = [p + q for p, q in zip(odd_b, blocks.matvec(odd_a, even_b), strict=True)]
    odd = affine_scan(xp, pair_a, pair_b, limit)
    if n == 2:
        even = [x[:, :1, ...] for x in b]
    else:
        before = [x[:, : (n - 1) // 2, ...] for x in odd]
        carried = blocks.matvec([x[:, 2::2, ...] for x in a], before)
        even = [
            xp.concat([x[:, :1, ...], x[:, 2::2, ...] + y], axis=1)
            for x, y in zip(b, carried, strict=True)
        ]
    return [_interleave(xp, e, o) for e, o in zip(even, odd, strict=True)]


def _interleave(xp: Any, even: Any, odd: Any) -> Any:
    pairs, tail = odd.shape[1], even[:, odd.shape[1] :, ...]
    mixed = xp.stack([even[:, :pairs, ...], odd], axis=2)
    mixed = xp.reshape(mixed, (odd.shape[0], 2 * pairs, odd.shape[2]))
    return xp.concat([mixed, tail], axis=1) if tail.shape[1] else mixed
