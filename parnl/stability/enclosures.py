"""Enclosures of expression graphs: intervals that hold wherever the leaves are in theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from parnl.graph.intervals import Interval, add, defined, mul, point, square, sub
from parnl.graph.nodes import Symbol, reachable
from parnl.graph.operations import COMPARISONS, OPERATIONS


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
                if may_jump := OPERATIONS[node.op].jumps:
                    jumps = jumps | may_jump(*args)
                for index in over:
                    del known[index]
        return [known[o.index] for o in self.outputs], jumps


def _apply(node: Symbol, args: list[Interval]) -> Interval:
    same = len(node.args) == 2 and node.args[0] is node.args[1]
    enclosure = OPERATIONS[node.op].enclosure
    if node.op in COMPARISONS:
        return enclosure(*args, same)
    infinite = [a.op == "constant" and not math.isfinite(a.value) for a in node.args]
    if any(infinite):  # they bound what is clipped, and take no part in arithmetic: inf - inf
        if node.op in ("minimum", "maximum"):
            low, high = enclosure(*args)
            return defined((low < np.inf) & (high > -np.inf), low, high)
        args = [point(math.nan) if bad else a for bad, a in zip(infinite, args, strict=True)]
    if node.op == "mul" and same:
        return square(args[0])
    if node.op == "sub" and _is_square_of(node.args[1], node.args[0]):
        return _slope_of_sigmoid(args[0])
    return enclosure(*args)


def _is_square_of(node: Symbol, x: Symbol) -> bool:
    return node.op == "mul" and node.args[0] is x and node.args[1] is x


def _mixture(node: Symbol) -> tuple[Symbol | None, ...]:
    """Return (a, b, z, rest) if `node` is (1 - z) a + z b + rest, a gate's work; else nothing.

    It is found as a + z (b - a), as a - z (a - b), as a - z a, and as it stands; rest may stand
    anywhere in a sum of three. A part that is missing is None, for 0.
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
