"""Interval arithmetic on expression graphs: bounds that hold at every point of a box.

An `Interval` encloses the exact real value of an expression wherever its leaves are taken from
theirs. Ends are float64 arrays, rounded outward in every operation, so a bound is a proof and no
sample. An infinite end means "no bound known" and is never the value itself. NaN in both ends means
that the expression may be undefined there (a division by zero, the logarithm of a negative number);
it passes through everything but the branch of a `where` that is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from parnl.graph.nodes import BOOLEAN, Symbol, reachable


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


class Enclosure:
    """Encloses `outputs`, expressions of one graph, for intervals of its leaves.

    A call takes leaf -> `Interval` and returns an interval for each output, and where an output may
    jump inside its box: a `where` whose condition is undecided there, or the sign of what may be 0,
    is taken to jump. Elsewhere the outputs are continuous, with slopes within the enclosures of
    those that `parnl.graph.derivatives` gives.
    """

    def __init__(self, outputs: Sequence[Symbol]) -> None:
        self.outputs = list(outputs)
        nodes = reachable(self.outputs)
        mixes = [_mixture(node) for node in nodes]
        last_use = {}
        for node, mix in zip(nodes, mixes, strict=True):
            last_use.update({a.index: node.index for a in (*node.args, *mix) if a is not None})
        for o in self.outputs:
            last_use.pop(o.index, None)
        over: dict[int, list[int]] = {}
        for index, last in last_use.items():
            over.setdefault(last, []).append(index)
        # each node with the mixture it is, and the values that nothing reads after it
        self._plan = [(n, m, over.get(n.index, [])) for n, m in zip(nodes, mixes, strict=True)]

    def __call__(self, leaves: Mapping[Symbol, Interval]) -> tuple[list[Interval], Any]:
        """Return (interval of each output, where one may jump)."""
        known: dict[int, Interval] = {}
        jumps: Any = np.False_
        with np.errstate(all="ignore"):
            for node, mix, over in self._plan:
                if node.op == "leaf":
                    known[node.index] = leaves[node]
                    continue
                if node.op == "constant":
                    known[node.index] = point(node.value)
                    continue
                args = [known[a.index] for a in node.args]
                result = _apply(node, args)
                if mix:
                    parts = [point(0.0) if a is None else known[a.index] for a in mix]
                    result = _narrowed(result, add(mixture(*parts[:3]), parts[3]))
                known[node.index] = result
                if node.op == "where":
                    jumps = jumps | (args[0].low != args[0].high)
                elif node.op == "sign":
                    x = args[0]
                    jumps = jumps | ~((x.low > 0) | (x.high < 0) | ((x.low == 0) & (x.high == 0)))
                for index in over:
                    del known[index]
        return [known[o.index] for o in self.outputs], jumps


def _apply(node: Symbol, args: list[Interval]) -> Interval:
    same = len(node.args) == 2 and node.args[0] is node.args[1]
    if node.op in BOOLEAN:
        return _condition(node.op, args, same)
    infinite = [a.op == "constant" and not math.isfinite(a.value) for a in node.args]
    if any(infinite):  # they bound what is clipped, and take no part in arithmetic: inf - inf
        if node.op in ("minimum", "maximum"):
            low, high = OPERATIONS[node.op](*args)
            return _defined((low < np.inf) & (high > -np.inf), low, high)
        args = [point(math.nan) if bad else a for bad, a in zip(infinite, args, strict=True)]
    if node.op == "mul" and same:
        return square(args[0])
    if node.op == "sub" and _is_square_of(node.args[1], node.args[0]):
        return _slope_of_sigmoid(args[0])
    if node.op == "pow":
        return power(args[0], node.args[1].value)
    return OPERATIONS[node.op](*args)


def _is_square_of(node: Symbol, x: Symbol) -> bool:
    return node.op == "mul" and node.args[0] is x and node.args[1] is x


def _mixture(node: Symbol) -> tuple[Symbol | None, ...]:
    """Return (a, b, z, rest) if `node` is (1 - z) a + z b + rest, a gate's work; else nothing.

    It is found as a + z (b - a), as a - z (a - b), as a - z a, and as it stands; rest may stand
    anywhere in a sum of three. What is not there, is None for 0.
    """
    if node.op not in ("add", "sub"):
        return ()
    first, second = node.args
    pairs: list[tuple[Symbol, Symbol, Symbol | None]] = [(first, second, None)]
    if node.op == "add":
        pairs.append((second, first, None))
        for one, total in ((first, second), (second, first)):
            if total.op == "add":
                for term, other in (total.args, total.args[::-1]):
                    pairs += [(one, term, other), (term, one, other)]
    for a, product, rest in pairs:
        if product.op != "mul":
            continue
        for z, change in (product.args, product.args[::-1]):
            if change is a and node.op == "sub":
                return a, None, z, rest
            if change.op == "neg" and change.args[0] is a and node.op == "add":
                return a, None, z, rest
            if change.op == "sub" and change.args[node.op == "add"] is a:
                return a, change.args[node.op == "sub"], z, rest
            for less, factor in (a.args, a.args[::-1]) if a.op == "mul" else ():
                from_one = less.op == "sub" and less.args[0].value == 1.0
                if node.op == "add" and from_one and less.args[1] is z:
                    return factor, change, z, rest
    return ()


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
    return _defined((b.low > 0) | (b.high < 0), low, high)


def square(a: Interval) -> Interval:
    """a * a, where both factors are the same number."""
    size = np.abs(a.low), np.abs(a.high)
    small, large = np.minimum(*size), np.maximum(*size)
    small = np.where((a.low <= 0) & (a.high >= 0), 0.0, small)
    return Interval(np.maximum(_down(small * small), 0.0), _up(large * large))


def mixture(a: Interval, b: Interval, z: Interval) -> Interval:
    """(1 - z) a + z b: affine in z, so extreme where z is, and there a and b occur once."""
    left, right = (
        add(mul(sub(point(1.0), point(end)), a), mul(point(end), b)) for end in (z.low, z.high)
    )
    return Interval(np.minimum(left.low, right.low), np.maximum(left.high, right.high))


def _narrowed(a: Interval, b: Interval) -> Interval:
    """Return what is in both; undefined where a is, and no narrower where b is."""
    undefined = np.isnan(a.low)
    low, high = np.fmax(a.low, b.low), np.fmin(a.high, b.high)
    return Interval(np.where(undefined, np.nan, low), np.where(undefined, np.nan, high))


def _slope_of_sigmoid(a: Interval) -> Interval:
    """s - s * s for s in `a`: a parabola, bounded by its ends and its top, 1/4."""
    one = point(1.0)
    left, right = (mul(point(end), sub(one, point(end))) for end in a)
    top = (a.low <= 0.5) & (a.high >= 0.5)
    high = np.maximum(left.high, right.high)
    # an end that is not known is -inf * inf: no bound below, and the top still bounds above
    return Interval(np.minimum(left.low, right.low), np.where(top, 0.25, high))


def sqrt(a: Interval) -> Interval:
    """Square root; undefined where a may be negative."""
    low, high = np.maximum(_down(np.sqrt(a.low)), 0.0), _up(np.sqrt(a.high))
    return _defined(a.low >= 0, low, high)


def _defined(where: Any, low: Any, high: Any) -> Interval:
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


def _increasing(
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
        return result if domain == -math.inf else _defined(a.low > domain, *result)

    return enclosure


def _sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1.0) / (1.0 + small)


def _softplus(x: Any) -> Any:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _erf(x: Any) -> Any:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), np.float64)


def _wave(function: Callable[[Any], Any], top: float) -> Callable[[Interval], Interval]:
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
        return _defined(~np.isnan(a.low), low, high)

    return enclosure


def power(a: Interval, exponent: float) -> Interval:
    """a ** exponent, a number; undefined for a negative base and a fraction."""
    if not math.isfinite(exponent):
        return _defined(np.False_, a.low, a.high)
    if exponent < 0:
        return _reciprocal(power(a, -exponent))
    if exponent % 2 == 1:  # odd: increasing
        return _increasing(lambda x: np.power(x, exponent), odd_like=True)(a)
    nonnegative = a
    if exponent % 2 == 0:  # even: a function of |a|
        nonnegative = absolute(a)
    low, high = (np.power(end, exponent) for end in nonnegative)
    return _defined(nonnegative.low >= 0, *_widened(low, high, 0.0))


def absolute(a: Interval) -> Interval:
    """|a|."""
    low = np.maximum(np.maximum(a.low, -a.high), 0.0)
    return Interval(low, np.maximum(-a.low, a.high))


# -- conditions: [0, 0] does not hold, [1, 1] holds, [0, 1] is undecided ---------------------------


def _condition(op: str, args: list[Interval], same: bool) -> Interval:
    a, b = args[0], args[-1]
    match op:
        case "logical_and":
            return Interval(np.minimum(a.low, b.low), np.minimum(a.high, b.high))
        case "logical_or":
            return Interval(np.maximum(a.low, b.low), np.maximum(a.high, b.high))
        case "logical_not":
            return Interval(1.0 - a.high, 1.0 - a.low)
        case "gt" | "ge":
            return _condition({"gt": "lt", "ge": "le"}[op], [b, a], same)
        case "ne":
            return _condition("logical_not", [_condition("eq", [a, b], same)], False)
    if same:  # one number with itself; NaN compares False and stays undecided
        surely, never = (a.low <= a.high, False) if op != "lt" else (False, a.low <= a.high)
    elif op == "lt":
        surely, never = a.high < b.low, a.low >= b.high
    elif op == "le":
        surely, never = a.high <= b.low, a.low > b.high
    else:
        surely = (a.low == b.high) & (a.high == b.low)
        never = (a.high < b.low) | (a.low > b.high)
    return Interval(np.where(surely, 1.0, 0.0), np.where(never, 0.0, 1.0))


def where(condition: Interval, a: Interval, b: Interval) -> Interval:
    """The branch taken, or the hull of both where the condition is undecided."""
    holds, fails = condition.low == 1, condition.high == 0
    low = np.where(holds, a.low, np.where(fails, b.low, np.minimum(a.low, b.low)))
    high = np.where(holds, a.high, np.where(fails, b.high, np.maximum(a.high, b.high)))
    return Interval(low, high)


def _both(function: Callable[..., Any]) -> Callable[..., Interval]:
    """Enclose an increasing function that rounds nothing."""
    return lambda *args: Interval(
        function(*(a.low for a in args)), function(*(a.high for a in args))
    )


OPERATIONS: dict[str, Callable[..., Interval]] = {
    "add": add,
    "sub": sub,
    "mul": mul,
    "div": div,
    "sqrt": sqrt,
    "abs": absolute,
    "exp": _increasing(np.exp, 0.0),
    "expm1": _increasing(np.expm1, -1.0, odd_like=True),
    "log": _increasing(np.log, domain=0.0),
    "log1p": _increasing(np.log1p, domain=-1.0, odd_like=True),
    "tanh": _increasing(np.tanh, -1.0, 1.0, odd_like=True),
    "sigmoid": _increasing(_sigmoid, 0.0, 1.0),
    "softplus": _increasing(_softplus, 0.0),
    "erf": _increasing(_erf, -1.0, 1.0, odd_like=True),
    "sin": _wave(np.sin, 0.25),
    "cos": _wave(np.cos, 0.0),
    "neg": neg,
    "where": where,
    "minimum": _both(np.minimum),
    "maximum": _both(np.maximum),
    "relu": _both(lambda x: np.maximum(x, 0.0)),
    "sign": _both(np.sign),
}
