"""Interval arithmetic: bounds that hold at every point of a box.

An `Interval` encloses the exact real value of an expression wherever its arguments are taken from
theirs. Ends are float64 arrays, rounded outward in every operation, so a bound is a proof, not a
sample. An infinite end means "no bound known" and is never the value itself. NaN in both ends means
that the expression may be undefined there (a division by zero, the logarithm of a negative number);
it passes through everything but the branch of a `where` that is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """All numbers from `low` to `high`, arrays that broadcast; conditions use 0 and 1."""

    low: Any
    high: Any


def point(value: Any) -> Interval:
    """Return the interval of one number (or array of numbers)."""
    value = np.asarray(value, np.float64)
    return Interval(value, value)


def magnitude(a: Interval) -> Any:
    """Return the largest |x| in `a`; inf where it may be undefined."""
    size = np.maximum(np.abs(a.low), np.abs(a.high))
    return np.where(np.isnan(size), np.inf, size)


# -- arithmetic: IEEE rounds + - * / sqrt to the nearest number, so the next one is a bound --------


def _down(x: Any) -> Any:
    return np.nextafter(x, -np.inf)


def _up(x: Any) -> Any:
    return np.nextafter(x, np.inf)


def _rounding(a: Any, b: Any, total: Any) -> Any:
    """Return the exact a + b - total (Knuth's two-sum), NaN on overflow: sums of few bits stay."""
    part = total - a
    return (a - (total - part)) + (b - part)


def add(a: Interval, b: Interval) -> Interval:
    """a + b."""
    low, high = a.low + b.low, a.high + b.high
    return Interval(
        np.where(_rounding(a.low, b.low, low) >= 0, low, _down(low)),
        np.where(_rounding(a.high, b.high, high) <= 0, high, _up(high)),
    )


def neg(a: Interval) -> Interval:
    """-a."""
    return Interval(-a.high, -a.low)


def sub(a: Interval, b: Interval) -> Interval:
    """a - b."""
    return add(a, neg(b))


def mul(a: Interval, b: Interval) -> Interval:
    """a * b."""
    p, q, r, s = a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high
    low = np.minimum(np.minimum(p, q), np.minimum(r, s))
    high = np.maximum(np.maximum(p, q), np.maximum(r, s))
    if np.isnan(low).any():  # 0 times an end that is not known is 0: the factor itself is finite
        unknown = np.where(np.isnan(a.low) | np.isnan(b.low), np.nan, 0.0)
        ends = [np.where(np.isnan(x), unknown, x) for x in (p, q, r, s)]
        low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    down, up = _down(low), _up(high)
    # zeros must survive: a negative bound from rounding alone would leave the domain of sqrt
    if (zero := low == 0).any():
        negative = ((a.low < 0) & (b.high > 0)) | ((a.high > 0) & (b.low < 0))
        down = np.where(zero & ~negative, 0.0, down)
    if (zero := high == 0).any():
        positive = ((a.low < 0) & (b.low < 0)) | ((a.high > 0) & (b.high > 0))
        up = np.where(zero & ~positive, 0.0, up)
    return Interval(down, up)


def div(a: Interval, b: Interval) -> Interval:
    """a / b; undefined where b may be 0."""
    return mul(a, _reciprocal(b))


def _reciprocal(b: Interval) -> Interval:
    low, high = _down(1.0 / b.high), _up(1.0 / b.low)
    low = np.where(b.low > 0, np.maximum(low, 0.0), low)
    high = np.where(b.high < 0, np.minimum(high, 0.0), high)
    return defined((b.low > 0) | (b.high < 0), low, high)


def square(a: Interval) -> Interval:
    """a * a, where both factors are the same number."""
    size = np.abs(a.low), np.abs(a.high)
    small, large = np.minimum(*size), np.maximum(*size)
    small = np.where((a.low <= 0) & (a.high >= 0), 0.0, small)
    return Interval(np.maximum(_down(small * small), 0.0), _up(large * large))


def sqrt(a: Interval) -> Interval:
    """Square root; undefined where a may be negative."""
    low, high = np.maximum(_down(np.sqrt(a.low)), 0.0), _up(np.sqrt(a.high))
    return defined(a.low >= 0, low, high)


def defined(where: Any, low: Any, high: Any) -> Interval:
    """[low, high] where something holds, else undefined."""
    return Interval(np.where(where, low, np.nan), np.where(where, high, np.nan))


# -- elementary functions --------------------------------------------------------------------------

# NumPy holds its float64 functions to 4 ulp in its own tests, but guarantees no bound. Assumed
# here: 2^-48 relative (16 to 32 ulp), and that results below the smallest normal may become 0.
_RELATIVE = 2.0**-48
_ABSOLUTE = float(np.finfo(np.float64).smallest_normal)
_LARGEST = float(np.finfo(np.float64).max)


def _widened(low: Any, high: Any, least: Any = -np.inf, most: Any = np.inf) -> Interval:
    """Return computed values with room for their error, clamped to the function's true range."""
    low, high = np.minimum(low, _LARGEST), np.maximum(high, -_LARGEST)
    low = low - (np.abs(low) * _RELATIVE + _ABSOLUTE)
    high = high + (np.abs(high) * _RELATIVE + _ABSOLUTE)
    return Interval(np.clip(low, least, most), np.clip(high, least, most))


def increasing(
    function: Callable[[Any], Any],
    least: float = -math.inf,
    most: float = math.inf,
    domain: float = -math.inf,
    odd_like: bool = False,
) -> Callable[[Interval], Interval]:
    """Enclose an increasing function of range [least, most], defined above `domain`.

    odd_like: f(0) = 0, so that the sign of f(x) is that of x.
    """

    def enclosure(a: Interval) -> Interval:
        result = _widened(function(a.low), function(a.high), least, most)
        if odd_like:
            low = np.where(a.low >= 0, np.maximum(result.low, 0.0), result.low)
            high = np.where(a.high <= 0, np.minimum(result.high, 0.0), result.high)
            result = Interval(low, high)
        return result if domain == -math.inf else defined(a.low > domain, *result)

    return enclosure


def wave(function: Callable[[Any], Any], top: float) -> Callable[[Interval], Interval]:
    """Enclose sin or cos, which is 1 at (top + n) turns and -1 half a turn later."""

    def reaches(a: Interval, turn: float) -> Any:
        first, last = a.low / (2 * math.pi) - turn, a.high / (2 * math.pi) - turn
        room = 1e-14 * (1.0 + np.abs(first) + np.abs(last))
        return ~(np.floor(last + room) < np.ceil(first - room))  # True for NaN: no end is known

    def enclosure(a: Interval) -> Interval:
        ends = function(a.low), function(a.high)
        # near a zero of the function its error is absolute
        low, high = np.minimum(*ends) - _RELATIVE, np.maximum(*ends) + _RELATIVE
        low = np.where(reaches(a, top + 0.5), -1.0, np.maximum(low, -1.0))
        high = np.where(reaches(a, top), 1.0, np.minimum(high, 1.0))
        return defined(~np.isnan(a.low), low, high)

    return enclosure


def power(a: Interval, exponent: float) -> Interval:
    """a ** exponent, a number; undefined for a negative base and a fraction."""
    if not math.isfinite(exponent):
        return defined(np.False_, a.low, a.high)
    if exponent < 0:
        return _reciprocal(power(a, -exponent))
    if exponent % 2 == 1:  # odd: increasing
        return increasing(lambda x: np.power(x, exponent), odd_like=True)(a)
    nonnegative = a
    if exponent % 2 == 0:  # even: a function of |a|
        nonnegative = absolute(a)
    low, high = (np.power(end, exponent) for end in nonnegative)
    return defined(nonnegative.low >= 0, *_widened(low, high, 0.0))


def absolute(a: Interval) -> Interval:
    """|a|."""
    low = np.maximum(np.maximum(a.low, -a.high), 0.0)
    return Interval(low, np.maximum(-a.low, a.high))


# -- conditions: [0, 0] does not hold, [1, 1] holds, [0, 1] is undecided ---------------------------
# same: both are one number, which need not be known to be equal to itself. NaN stays undecided.


def less(a: Interval, b: Interval, same: bool = False) -> Interval:
    """a < b."""
    if same:
        return _decided(False, a.low <= a.high)
    return _decided(a.high < b.low, a.low >= b.high)


def less_equal(a: Interval, b: Interval, same: bool = False) -> Interval:
    """a <= b."""
    if same:
        return _decided(a.low <= a.high, False)
    return _decided(a.high <= b.low, a.low > b.high)


def equal(a: Interval, b: Interval, same: bool = False) -> Interval:
    """a == b."""
    if same:
        return _decided(a.low <= a.high, False)
    surely = (a.low == b.high) & (a.high == b.low)
    return _decided(surely, (a.high < b.low) | (a.low > b.high))


def logical_not(a: Interval) -> Interval:
    """Not a."""
    return Interval(1.0 - a.high, 1.0 - a.low)


def _decided(surely: Any, never: Any) -> Interval:
    return Interval(np.where(surely, 1.0, 0.0), np.where(never, 0.0, 1.0))


def where(condition: Interval, a: Interval, b: Interval) -> Interval:
    """The branch taken, or the hull of both where the condition is undecided."""
    holds, fails = condition.low == 1, condition.high == 0
    low = np.where(holds, a.low, np.where(fails, b.low, np.minimum(a.low, b.low)))
    high = np.where(holds, a.high, np.where(fails, b.high, np.maximum(a.high, b.high)))
    return Interval(low, high)


def monotone(function: Callable[..., Any]) -> Callable[..., Interval]:
    """Enclose a function that increases in every argument and rounds nothing."""
    return lambda *args: Interval(
        function(*(a.low for a in args)), function(*(a.high for a in args))
    )
