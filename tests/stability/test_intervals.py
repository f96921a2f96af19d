"""Interval arithmetic against exact rational arithmetic and 60 digits of mpmath."""

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth import DOMAIN, EXACT, exactly

from parnl import ops
from parnl.graph import derivatives
from parnl.graph.intervals import (
    Interval,
    add,
    div,
    magnitude,
    mul,
    point,
    power,
    square,
    sub,
    where,
)
from parnl.graph.nodes import Graph
from parnl.graph.operations import OPERATIONS
from parnl.stability.enclosures import Enclosure, mixture
from parnl.testing.expressions import trees, value

HOSTILE = [
    *(0.0, -0.0, 1.0, 0.5, math.pi, 1e-3, 1 + 2**-52, 5e-324, 2.3e-308, 1e-160, 1e160),
    *(1.7976931348623157e308, 709.8, 745.2, 36.7, 1e15),
]
ends = st.one_of(
    st.sampled_from([*HOSTILE, *(-x for x in HOSTILE)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-4, 4),
)


@st.composite
def intervals(draw, unknown=True, low=None):
    """An interval, some of them without a known end, and a number in it."""
    a, b, share = draw(ends), draw(ends), draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))
    if low is not None:
        a, b = low + abs(a), low + abs(b)
    a, b = min(a, b), max(a, b)
    inside = min(max(a * (1 - share) + b * share, a), b)
    kind = draw(st.sampled_from(["", "point", *(["below", "above"] if unknown else [])]))
    if kind == "point":
        a = b = inside
    a = -math.inf if kind == "below" and low is None else a
    b = math.inf if kind == "above" else b
    return Interval(np.float64(a), np.float64(b)), inside


def holds(interval, exact):
    """Whether the exact number (Fraction or mpf) is in the interval; compares without rounding."""
    low, high = float(interval.low), float(interval.high)
    assert low <= high, interval  # and neither is NaN
    if isinstance(exact, Fraction):
        below = low == -math.inf or Fraction(low) <= exact
        return below and (high == math.inf or exact <= Fraction(high))
    return mpmath.mpf(low) <= exact <= mpmath.mpf(high)


def evaluated(operation, *args):
    with np.errstate(all="ignore"):
        return operation(*args)


@settings(max_examples=300)
@given(intervals(), intervals())
def test_arithmetic_encloses_the_exact_result(first, second):
    (a, x), (b, y) = first, second
    x, y = Fraction(x), Fraction(y)
    assert holds(evaluated(add, a, b), x + y)
    assert holds(evaluated(sub, a, b), x - y)
    assert holds(evaluated(mul, a, b), x * y)
    assert holds(evaluated(square, a), x * x)
    quotient = evaluated(div, a, b)
    if b.low <= 0 <= b.high:
        assert np.isnan(quotient.low)
        assert magnitude(quotient) == np.inf
    else:
        assert holds(quotient, x / y)
    for z in (Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2), Fraction(-1)):
        near = Interval(np.nextafter(float(z), -np.inf), np.nextafter(float(z), np.inf))
        assert holds(evaluated(mixture, a, b, near), (1 - z) * x + z * y)


def test_quotients_of_many_numbers():
    """A quotient is rounded twice, and only the worst pairs need all of its margin."""
    x, y = np.random.default_rng(0).uniform(1, 2, (2, 5000))
    found = evaluated(div, point(x), point(y))
    for a, b, low, high in zip(x, y, *found, strict=True):
        assert Fraction(low) <= Fraction(a) / Fraction(b) <= Fraction(high)
    assert np.all(found.high - found.low < 2e-15)


@settings(max_examples=100)
@given(intervals(unknown=False), intervals(unknown=False))
def test_arithmetic_is_rounded_by_no_more_than_it_must(first, second):
    """Each end is the exact one or a neighbour: widening by more would cost tightness."""
    (a, _), (b, _) = first, second
    for operation, exact in (
        (add, [Fraction(x) + Fraction(y) for x in a for y in b]),
        (mul, [Fraction(x) * Fraction(y) for x in a for y in b]),
    ):
        found = evaluated(operation, a, b)
        for end, best, inward in (
            (found.low, min(exact), np.inf),
            (found.high, max(exact), -np.inf),
        ):
            if abs(best) < Fraction(1.79e308):
                closer = float(np.nextafter(np.nextafter(end, inward), inward))
                passed = Fraction(closer) >= best if inward > 0 else Fraction(closer) <= best
                assert passed or Fraction(float(end)) == best


def test_sums_of_few_bits_are_exact():
    box = add(point(1.0), mul(Interval(np.float64(0), np.float64(1)), point(0.0)))
    assert box == (1.0, 1.0)
    assert sub(point(1.0), point(0.25)) == (0.75, 0.75)


FUNCTIONS = [n for n, o in OPERATIONS.items() if o.arity == 1 and not o.is_condition]


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=150)
@given(data=st.data())
def test_functions_enclose_the_exact_result(name, data):
    a, x = data.draw(intervals())
    least, there = DOMAIN.get(name, (-math.inf, True))
    found = evaluated(OPERATIONS[name].enclosure, a)
    if a.low < least or (a.low == least and not there):
        assert np.isnan(found.low)
        assert np.isnan(found.high)
        return
    if name == "exp" and x > 1e4:  # mpmath would need too many digits; float64 overflows anyway
        x = max(float(a.low), min(x, 1e4))
    if x > 1e5:
        return
    with mpmath.workprec(400 if name in ("exp", "softplus", "sigmoid", "tanh") else 2200):
        assert holds(found, EXACT[name](mpmath.mpf(x)))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0, 5.0, -1.0, -2.0, 0.5, 1.5, 0.3, -0.5, -1.7])
@settings(max_examples=60)
@given(data=st.data())
def test_powers(exponent, data):
    a, x = data.draw(intervals())
    found = evaluated(power, a, exponent)
    if (exponent % 1 and a.low < 0) or (exponent < 0 and a.low <= 0 <= a.high):
        assert np.isnan(found.low)
    elif exponent < 0 and np.isnan(found.low):
        assert min(abs(a.low), abs(a.high)) ** -exponent < 1e-300  # it may have become 0
    else:
        with mpmath.workprec(200):
            base = mpmath.mpf(x)
            assert holds(found, base ** mpmath.mpf(exponent) if x or exponent > 0 else mpmath.inf)


def test_a_power_that_is_no_number_has_no_value():
    assert np.isnan(evaluated(power, point(2.0), math.nan).low)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "erf", "exp", "softplus", "sin", "cos"])
def test_the_range_of_a_function_is_kept(name):
    least, most = {
        "sigmoid": (0, 1), "tanh": (-1, 1), "erf": (-1, 1), "sin": (-1, 1), "cos": (-1, 1),
        "exp": (0, np.inf), "softplus": (0, np.inf),
    }[name]  # fmt: skip
    everything = Interval(np.float64(-np.inf), np.float64(np.inf))
    assert evaluated(OPERATIONS[name].enclosure, everything) == (least, most)
    for x in (-1e30, -800.0, -40.0, 0.0, 40.0, 800.0, 1e30):
        found = evaluated(OPERATIONS[name].enclosure, point(x))
        assert least <= found.low <= found.high <= most


def test_waves_find_their_extremes():
    for name, tops in (("sin", (0.5, 2.5, -1.5)), ("cos", (0.0, 2.0, -2.0))):
        for turn in tops:
            x = turn * math.pi
            assert evaluated(OPERATIONS[name].enclosure, Interval(x - 0.1, x + 0.2)).high == 1
            low = evaluated(OPERATIONS[name].enclosure, Interval(x - 0.1, x + 0.2)).low
            assert math.cos(0.2) - 1e-12 < low < math.cos(0.2)
            assert evaluated(OPERATIONS[name].enclosure, Interval(x + math.pi, x + 3.2)).low == -1


def enclose(outputs, given):
    return Enclosure(outputs)(given)


def leaves(*boxes):
    graph = Graph()
    symbols = [graph.leaf("state", name) for name in "xyz"[: len(boxes)]]
    return symbols, {
        s: Interval(np.float64(low), np.float64(high))
        for s, (low, high) in zip(symbols, boxes, strict=True)
    }


@pytest.mark.parametrize(
    ("box", "x_less", "x_equal"),
    [
        (((0, 1), (2, 3)), (1, 1), (0, 0)),
        (((2, 3), (0, 1)), (0, 0), (0, 0)),
        (((0, 2), (1, 3)), (0, 1), (0, 1)),
        (((1, 1), (1, 1)), (0, 0), (1, 1)),
        (((0, 1), (1, 2)), (0, 1), (0, 1)),
        (((1, 2), (0, 1)), (0, 0), (0, 1)),
        (((np.nan, np.nan), (0, 1)), (0, 1), (0, 1)),
        (((-np.inf, 0), (1, np.inf)), (1, 1), (0, 0)),
    ],
)
def test_comparisons_are_three_valued(box, x_less, x_equal):
    (x, y), given = leaves(*box)
    flip = {(0, 0): (1, 1), (1, 1): (0, 0), (0, 1): (0, 1)}
    found, _ = enclose([x < y, y > x, x >= y, ~(x < y), x == y, x != y], given)
    expected = [x_less, x_less, flip[x_less], flip[x_less], x_equal, flip[x_equal]]
    assert found == expected
    both, either = enclose([(x < y) & (x < y), (x < y) | (x == y)], given)[0]
    assert both == x_less
    assert either == (max(x_less[0], x_equal[0]), max(x_less[1], x_equal[1]))


def test_a_number_compares_with_itself():
    (x,), given = leaves((0, 1))
    found, _ = enclose([x < x, x <= x, x == x, x != x, x > x, x >= x], given)
    assert found == [(0, 0), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)]
    (x,), given = leaves((np.nan, np.nan))
    assert enclose([x == x], given)[0] == [(0, 1)]


def test_where_is_the_hull_of_what_may_be_taken():
    (x, y), given = leaves((-1, 1), (2, 3))
    out = ops.where(x > 0.0, y, -y)
    assert enclose([out], given) == ([(-3, 3)], True)
    given[x] = Interval(np.float64(0.5), np.float64(1))
    assert enclose([out], given) == ([(2, 3)], False)
    # the branch not taken may be undefined, the one that may be taken not
    out = ops.where(x > 0.0, y, ops.log(-y))
    assert enclose([out], given)[0] == [(2, 3)]
    given[x] = Interval(np.float64(-1), np.float64(1))
    assert np.isnan(enclose([out], given)[0][0].low)


def test_jumps_are_reported_box_by_box():
    (x,), given = leaves((0, 0))
    given[x] = Interval(np.array([-1.0, 0.0, 0.5, 0.0]), np.array([1.0, 1.0, 2.0, 0.0]))
    assert enclose([ops.sign(x)], given)[1].tolist() == [True, True, False, False]
    assert not enclose([abs(x) + ops.relu(x) + ops.minimum(x, 0.3)], given)[1].any()
    assert enclose([ops.where(x < 0.7, x, 1.0)], given)[1].tolist() == [True, True, True, False]


def test_infinite_numbers_clip_and_do_nothing_else():
    (x,), given = leaves((-2, 3))
    clipped, product, total = enclose(
        [ops.clip(x, -math.inf, 1.0), x * math.inf, ops.tanh(x + math.inf)], given
    )[0]
    assert clipped == (-2, 1)
    assert np.isnan(product.low)
    assert np.isnan(total.low)


def test_undefined_passes_through_every_operation():
    (x, y), given = leaves((-1, 1), (1, 2))
    bad = y / x
    results = [
        *(bad + y, y - bad, bad * 0.0, y / bad, -bad, abs(bad), bad**2, bad**3, bad**0.5, bad**-1),
        *(OPERATIONS[name](bad) for name in FUNCTIONS),
        *(ops.minimum(bad, y), ops.maximum(y, bad), y + bad * (x - y)),
    ]
    for node, found in zip(results, enclose(results, given)[0], strict=True):
        assert np.isnan(found.low), node
        assert np.isnan(found.high), node


def test_dependency_does_not_widen_gates():
    (x, y, z), given = leaves((-3, 2), (-1, 4), (0, 1))
    s = ops.sigmoid(x)
    t = ops.tanh(x)
    narrow, slope, update, gated, kept = enclose(
        [s - s * s, 1.0 - t * t, x + z * (y - x), (1.0 - z) * x + z * y, x - z * x], given
    )[0]
    assert narrow.high == 0.25
    assert abs(narrow.low - 0.0451766597) < 1e-9  # at -3
    assert slope.high == 1.0
    assert abs(slope.low - (1 - math.tanh(3) ** 2)) < 1e-12
    for found in (update, gated):
        assert -3 >= found.low > -3 - 1e-14
        assert 4 <= found.high < 4 + 1e-14
    assert -3 >= kept.low > -3 - 1e-14
    assert 2 <= kept.high < 2 + 1e-14


@settings(max_examples=150)
@given(trees(["a", "b", "x"]), st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 1)), min_size=3))
def test_random_expressions_and_their_derivatives(tree, corners):
    graph = Graph()
    symbols = {name: graph.leaf("state", name) for name in "abx"}
    out = graph.apply("add", value(tree, symbols), 0.0)
    slopes = [s for s in derivatives.jacobian([out], list(symbols.values()))[0] if s is not None]
    outputs = [out, *slopes]
    box = {s: (low, low + w) for s, (low, w) in zip(symbols.values(), corners, strict=False)}
    found, _ = enclose(outputs, {s: Interval(*map(np.float64, ends)) for s, ends in box.items()})
    for share in (0.0, 0.25, 0.5, 1.0):
        at = {s: min(max(a + share * (b - a), a), b) for s, (a, b) in box.items()}
        with mpmath.workprec(200):
            for interval, number in zip(found, exactly(outputs, at), strict=True):
                assert holds(interval, number)


def test_where_on_arrays_picks_box_by_box():
    condition = Interval(np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.0]))
    found = where(condition, point([1.0, 2.0, 3.0]), point([-1.0, -2.0, -3.0]))
    assert found.low.tolist() == [1, -2, -3]
    assert found.high.tolist() == [1, -2, 3]
