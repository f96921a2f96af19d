"""Tight bounds of a step or its Jacobian over boxes of states and features, by branch and bound.

Over a box an expression is enclosed twice, and both hold:

- by interval arithmetic (`enclosures.py`), which forgets that two occurrences of a variable are one
  number, and is off by the width of the box;
- by the mean value theorem, J(x) = J(c) + sum of slope * (x - c) for some slopes within the box,
  which is off by the square of the width. c is chosen for each bound: where the slope along a
  variable has one sign, it is the corner at which J is extreme, and that variable costs nothing.

The worst boxes are then halved, again and again, along the variable that matters most to them. A
goal decides which are worst: `Norm` bounds a Jacobian, `Hull` encloses a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from parnl.graph import derivatives
from parnl.graph.intervals import Interval, add, magnitude, mul, point, sub
from parnl.graph.nodes import Symbol, reachable
from parnl.graph.program import Program
from parnl.stability.enclosures import Enclosure

# A bound this close above what some point attains is not refined further.
_CLOSE = 1e-4
_BLOCK = 4096  # boxes computed at a time: their intervals stay in the cache


class _Map:
    """Expressions, those of the variables `wide` that they read, and their slopes."""

    def __init__(self, program: Program, outputs: list[Symbol], wide: Sequence[Symbol]) -> None:
        read = {node.index for node in reachable(outputs)}
        self.variables = [s for s in wide if s.index in read]
        self.enclose_outputs = Enclosure(outputs)
        self.count = len(outputs)
        zero = program.graph.constant(0.0)
        rows = derivatives.jacobian(outputs, self.variables)
        self.enclose_slopes = Enclosure([zero if s is None else s for row in rows for s in row])

    def bounds(self, given: dict[Symbol, Interval], low: Any, high: Any) -> _Bounds:
        """Enclose the outputs over M boxes; low, high: (V, M), given: parameters (M,)."""
        count, size = self.count, low.shape[1:]
        box = dict(zip(self.variables, map(Interval, low, high), strict=True))
        plain, jumps = self.enclose_outputs(given | box)
        plain = [Interval(*(np.broadcast_to(end, size) for end in a)) for a in plain]
        flat, _ = self.enclose_slopes(given | box)
        width = len(self.variables)
        slopes = [flat[i * width : (i + 1) * width] for i in range(count)]

        # for each output the point to look from for its upper bound, and for its lower one
        corners = np.empty((2 * count, width, *size))
        for i, row in enumerate(slopes):
            for j, s in enumerate(row):
                corners[2 * i, j] = _vantage(s.low, s.high, low[j], high[j])
                corners[2 * i + 1, j] = _vantage(-s.high, -s.low, low[j], high[j])
        there = {s: point(corners[:, j]) for j, s in enumerate(self.variables)}
        values, _ = self.enclose_outputs(given | there)
        values = [Interval(*(np.broadcast_to(e, (2 * count, *size)) for e in v)) for v in values]

        lows, highs = [], []
        for i, row in enumerate(slopes):
            ends = []
            for side in (0, 1):
                total = Interval(*(end[2 * i + side] for end in values[i]))
                for j, (s, variable) in enumerate(zip(row, self.variables, strict=True)):
                    away = sub(box[variable], point(corners[2 * i + side, j]))
                    total = add(total, mul(s, away))
                ends.append((total.low, total.high)[1 - side])
            unusable = jumps | np.isnan(ends[0]) | np.isnan(ends[1])
            highs.append(np.where(unusable, plain[i].high, np.minimum(plain[i].high, ends[0])))
            lows.append(np.where(unusable, plain[i].low, np.maximum(plain[i].low, ends[1])))
        change = np.zeros(low.shape)
        for row in slopes:
            for j, s in enumerate(row):
                change[j] += magnitude(s)
        change = np.where(jumps, np.inf, change) * (high - low)
        return _Bounds(
            Interval(np.array(lows), np.array(highs)),
            Interval(*(np.array([v[side] for v in values]) for side in (0, 1))),
            change,
        )


class _Bounds(NamedTuple):
    """What is known of m outputs over M boxes.

    outputs: (m, M); points: their values at 2 m points of each box, (m, 2 m, M); change: (V, M),
    how far the outputs may move along each variable, inf where that is not known.
    """

    outputs: Interval
    points: Interval
    change: Any


def _vantage(least: Any, most: Any, low: Any, high: Any) -> Any:
    """Return the c in [low, high] for which slopes in [least, most] bound J(x) - J(c) the best."""
    share = most / (most - least)  # 1 where no slope is negative, 0 where none is positive
    share = np.clip(np.where(np.isfinite(share), share, 0.5), 0.0, 1.0)
    share = np.where(least >= 0, 1.0, np.where(most <= 0, 0.0, share))
    c = np.where(share == 1, high, np.where(share == 0, low, low + share * (high - low)))
    return np.clip(c, low, high)


class Goal(Protocol):
    """What a refinement is for."""

    def keep(self, points: Interval, channel: Any) -> Any:
        """Return what to remember of the values (m, p, M) at points: an array (q, M)."""

    def excess(self, outputs: Interval, kept: Any, channel: Any) -> Any:
        """Return how much each box stands in the way, (M,); positive: worth halving."""


def refine(
    program: Program, kind: str, box: dict[Symbol, Interval], budget: int, goal: Goal
) -> None:
    """Bound the "step" or "jacobian" over the box of each channel, for `goal`.

    The boxes that it finds worst are halved until it is content or `budget` boxes were looked at.
    """
    count = len(next(iter(box.values())).low)
    wide = tuple(s for s, r in box.items() if np.any(r.low < r.high))
    task = program.cached(
        ("map", kind, tuple(s.index for s in wide)),
        lambda: _Map(program, program.signature(kind)[1], wide),
    )
    variables = task.variables
    roots = np.array([np.stack(box[s]) for s in variables]).reshape(len(variables), 2, count)
    channel = np.arange(count)
    low, high = roots[:, 0], roots[:, 1]
    root = high - low
    known = _evaluate(task, box, low, high, channel, goal)
    used = np.ones(count, int)
    while True:
        outputs, kept, change = known
        excess = goal.excess(outputs, kept, channel)
        axis = _axis(change, (high - low), root[:, channel])
        each = np.arange(len(channel))
        here = low[axis, each] if len(low) else np.zeros(len(each))
        there = high[axis, each] if len(low) else here
        middle = here + 0.5 * (there - here)
        excess = np.where((here < middle) & (middle < there), excess, -np.inf)
        counts = np.bincount(channel, minlength=count)
        order = np.lexsort((-excess, channel))
        rank = np.empty(len(channel), int)
        rank[order] = each - (np.cumsum(counts) - counts)[channel[order]]
        # the worst quarter, and all of a few
        allowed = np.minimum(np.maximum(counts // 4, 16), (budget - used) // 2)
        chosen = np.flatnonzero((rank < allowed[channel]) & (excess > 0))
        if not chosen.size:
            return
        used += 2 * np.bincount(channel[chosen], minlength=count)
        halves = np.arange(len(chosen))
        left_high, right_low = high[:, chosen].copy(), low[:, chosen].copy()
        left_high[axis[chosen], halves] = right_low[axis[chosen], halves] = middle[chosen]
        new_low = np.concatenate([low[:, chosen], right_low], axis=1)
        new_high = np.concatenate([left_high, high[:, chosen]], axis=1)
        new_channel = np.concatenate([channel[chosen]] * 2)
        new = _evaluate(task, box, new_low, new_high, new_channel, goal)

        rest = np.delete(each, chosen)
        channel = np.concatenate([channel[rest], new_channel])
        low = np.concatenate([low[:, rest], new_low], axis=1)
        high = np.concatenate([high[:, rest], new_high], axis=1)
        known = _joined([_picked(known, rest), new])


_Known = tuple[Interval, Any, Any]  # outputs (m, M), kept (q, M), change (V, M)


def _evaluate(
    task: _Map, box: dict[Symbol, Interval], low: Any, high: Any, channel: Any, goal: Goal
) -> _Known:
    parts = []
    with np.errstate(all="ignore"):
        for first in range(0, len(channel), _BLOCK):
            block = slice(first, first + _BLOCK)
            rows = channel[block]
            given = {s: Interval(r.low[rows], r.high[rows]) for s, r in box.items()}
            found = task.bounds(given, low[:, block], high[:, block])
            kept = goal.keep(found.points, rows)
            parts.append((found.outputs, kept, found.change))
    return _joined(parts)


def _joined(parts: Sequence[_Known]) -> _Known:
    outputs, kept, change = zip(*parts, strict=True)
    ends = (np.concatenate(end, axis=1) for end in zip(*outputs, strict=True))
    return Interval(*ends), np.concatenate(kept, axis=1), np.concatenate(change, axis=1)


def _picked(known: _Known, index: Any) -> _Known:
    outputs, kept, change = known
    return Interval(*(end[:, index] for end in outputs)), kept[:, index], change[:, index]


def _axis(change: Any, width: Any, root: Any) -> Any:
    """Return the variable to halve for each box: the one that moves the outputs most.

    Where that is not known, the widest one relative to the whole range.
    """
    if not len(change):
        return np.zeros(change.shape[1], int)
    with np.errstate(all="ignore"):
        relative = np.where(root > 0, width / root, 0.0)
    known = np.all(np.isfinite(change), axis=0)
    return np.argmax(np.where(known, change, relative), axis=0)


def _largest(values: Any, channel: Any, count: int) -> Any:
    """Return the maximum of values (q, M) over the boxes of each channel, (q, count)."""
    result = np.full((len(values), count), -np.inf)
    for row, v in zip(result, values, strict=True):
        np.maximum.at(row, channel, v)
    return result


class Norm:
    """Bound the norm max_i |v_i| / w_i of the Jacobian, with the best weights w of each channel.

    For weights w > 0 and S >= |J| in every entry, |J| <= max_i (S w)_i / w_i. Over all boxes the
    least such bound has w = max over boxes of S w, up to a factor: the eigenvector of a monotone
    map, found by power iteration (nonlinear Perron-Frobenius theory). Any w gives a proof.
    """

    def __init__(self, k: int, count: int, channels: Any) -> None:
        self.k, self.channels = k, channels
        self.rho, self.attained = np.full(count, np.inf), np.zeros(count)
        self.weights = np.ones((k, count))
        self._w = np.ones((k, len(channels)))

    def keep(self, points: Interval, channel: Any) -> Any:
        """Return the entries at the point of each box where their norm is largest."""
        size = np.maximum(np.maximum(points.low, -points.high), 0.0)
        size = np.where(np.isfinite(size), size, 0.0)
        best = np.argmax(self._norms(size, self._w[:, channel]), axis=0)
        return np.take_along_axis(size, best[None, None], axis=1)[:, 0]

    def excess(self, outputs: Interval, kept: Any, channel: Any) -> Any:
        """Return by how much the bound of a box is above what is attained."""
        size, count = magnitude(outputs), len(self.channels)
        if self.k > 1:
            self._improve(np.minimum(size, 1e6), channel, count)
        w = self._w[:, channel]
        norms = self._norms(size, w)
        attained = _largest(self._norms(kept, w)[None], channel, count)[0]
        self.rho[self.channels] = _largest(norms[None], channel, count)[0]
        self.attained[self.channels] = np.minimum(attained, self.rho[self.channels])
        self.weights[:, self.channels] = self._w
        return norms - (1 + _CLOSE) * attained[channel]

    def _norms(self, size: Any, w: Any) -> Any:
        """Return the norm of the entries (k * k, ..., M), rounded up."""
        if self.k == 1:
            return size[0]
        w = w.reshape(self.k, *(1,) * (size.ndim - 2), w.shape[-1])
        rows = [self._row(size, w, i) / w[i] for i in range(self.k)]
        return np.max(rows, axis=0) * (1 + self.k * 2.0**-50)

    def _row(self, size: Any, w: Any, i: int) -> Any:
        return sum(size[i * self.k + j] * w[j] for j in range(self.k))

    def _improve(self, size: Any, channel: Any, count: int) -> None:
        best, least = self._w, np.full(count, np.inf)
        w = self._w
        for _ in range(10):
            image = _largest(
                np.array([self._row(size, w[:, channel], i) for i in range(self.k)]), channel, count
            )
            ratio = np.max(image / w, axis=0)
            better = ratio < least
            best, least = np.where(better, w, best), np.where(better, ratio, least)
            w = image + 0.5 * ratio * w  # the shift keeps the iteration from going round
            top = np.max(w, axis=0)
            w = np.where(top > 0, np.maximum(w / np.where(top > 0, top, 1.0), 1e-3), 1.0)
        self._w = best


class Hull:
    """Enclose the range of each output closely."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.low: Any = None
        self.high: Any = None

    def keep(self, points: Interval, channel: Any) -> Any:
        """Return the least and the largest value of each output."""
        least, most = np.min(points.high, axis=1), np.max(points.low, axis=1)
        return np.concatenate([-least, most])

    def excess(self, outputs: Interval, kept: Any, channel: Any) -> Any:
        """Return how far the bounds of a box lie beyond what is attained."""
        ends = np.concatenate([-outputs.low, outputs.high])
        ends = np.where(np.isnan(ends), np.inf, ends)
        reached, hull = (_largest(v, channel, self.count) for v in (kept, ends))
        half = len(outputs.low)
        self.low, self.high = -hull[:half], hull[half:]
        room = 1e-3 * (reached[:half] + reached[half:])  # the width that points are known to reach
        beyond = ends - reached[:, channel] - np.concatenate([room, room])[:, channel]
        return np.max(np.where(np.isnan(beyond), np.inf, beyond), axis=0)
