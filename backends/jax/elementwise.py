"""The elementwise operations in forms that Pallas lowers for Triton, and that keep NaN.

Triton's minimum and maximum return the other argument where one is NaN, and what JAX builds upon
them does too: the table of operations defines those by comparisons. There is no error function.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

from parnl.graph.flatcode import array_functions


def _erf(x: Any) -> Any:
    """Below 1 the Taylor series; from there 1 - exp(-x^2) q(1 / (x + 2)) with a polynomial q."""
    single, size = x.dtype == jnp.float32, jnp.abs(x)
    middle, half, q = _tail(8 if single else 17)
    scaled = (1.0 / (size + 2.0) - middle) * (1.0 / half)
    large = 1.0 - jnp.exp(-x * x) * _horner(q, scaled)
    small = x * _horner(_series(11 if single else 20), x * x)
    return jnp.where(size < 1.0, small, jnp.where(x < 0.0, -large, large))


def _horner(coefficients: list[float], x: Any) -> Any:
    *rest, total = coefficients
    for c in reversed(rest):
        total = total * x + c
    return total


@cache
def _series(count: int) -> list[float]:
    """Return the Taylor coefficients of erf(x) / x in powers of x^2."""
    scale = 2.0 / math.sqrt(math.pi)
    return [scale * (-1) ** n / (math.factorial(n) * (2 * n + 1)) for n in range(count)]


@cache
def _tail(count: int) -> tuple[float, float, list[float]]:
    """Return (middle, half width, coefficients): exp(x^2) erfc(x) for x in [1, 6], interpolated.

    It is smooth in s = 1 / (x + 2), so a few Chebyshev points do. Beyond 6, erf(x) is 1.
    """
    middle, half = (1 / 3 + 1 / 8) / 2, (1 / 3 - 1 / 8) / 2
    x = 1 / (middle + half * chebyshev.chebpts1(count)) - 2
    values = [math.erfc(v) * math.exp(v * v) for v in x]
    fit = chebyshev.chebfit(chebyshev.chebpts1(count), values, count - 1)
    return middle, half, [float(c) for c in chebyshev.cheb2poly(fit)]


# What the forms of `parnl.graph.operations` name. A number is no array of its own, which a kernel
# would have to be given.
_SCOPE = {
    "jax": jax,
    "jnp": jnp,
    "erf": _erf,
    "number": lambda x, like: np.dtype(like.dtype).type(x),
}


class Elementwise:
    """What `Program.function` asks of a backend."""

    name = "pallas"
    functions: dict[str, Any] = {**array_functions("pallas", _SCOPE), "number": _SCOPE["number"]}


elementwise = Elementwise()
