"""Loops over arrays: what is stored where, which loops become one, and in which memory.

A value is an expression in the entries of arrays (`parnl.graph.nodes`), computed for every index of
a space such as (hidden,) or (hidden, input). It stays an expression until it has to be an array:
then a `Store` writes it, and later loops read it. So a chain of elementwise operations costs one
loop and no memory, and a product of matrices is a sum over an expression like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from parnl.graph.nodes import Graph, Symbol, reachable
from parnl.graph.operations import OPERATIONS

# What costs more than so many additions is computed once, kept, and read where it is needed again.
_CHEAP = 3


class Buffer:
    """An array in C; kind: "scratch", "constant", or who owns it: "input", "output", "state", "dt".

    size: its numbers; values: those of a constant, float32; offset: where in the scratch it begins.
    """

    def __init__(self, number: int, kind: str, name: str, size: int, values: Any = None) -> None:
        self.number, self.kind, self.name, self.size = number, kind, name, size
        self.values: np.ndarray = values
        self.offset = 0


class Place(NamedTuple):
    """Entries of an array by the indices of a space: buffer[offset + sum of strides * indices].

    shape and strides: without leading dimensions of one index; a stride of 0 repeats entries.
    """

    buffer: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, buffer: Buffer, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Place:
        """Return the place, in the one form in which equal places are equal."""
        steps = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
        left = stripped(shape)
        return cls(buffer.number, offset, left, tuple(steps[len(steps) - len(left) :]))


@dataclass(frozen=True, eq=False)
class Store:
    """One array written in a loop; combine: "" or how values along reduced dimensions become one.

    symbol: of the group's own graph.
    """

    place: Place
    symbol: Symbol
    combine: str


class _Hazard(Exception):  # noqa: N818
    """A loop would read what it writes itself, at another index."""


class Group:
    """Stores that share a loop over `space`; dimensions `reduced` of it are summed over."""

    def __init__(self, index: int, space: tuple[int, ...], reduced: tuple[int, ...]) -> None:
        self.index, self.space, self.reduced = index, space, reduced
        self.stores: list[Store] = []
        self.graph = Graph()
        self.known: dict[int, Symbol] = {}  # index in the whole graph -> symbol of this one

    def leaves(self) -> list[Symbol]:
        """Return the symbols of what is read."""
        return [n for n in reachable([s.symbol for s in self.stores]) if n.op == "leaf"]

    def reads(self) -> set[Place]:
        """Return what is read."""
        return {leaf.value[1] for leaf in self.leaves()}


class Schedule:
    """The loops of a step, in order."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.buffers: list[Buffer] = []
        self.groups: list[Group] = []
        self._closed = True
        self._written: dict[int, int] = {}  # number of a buffer -> index of its group
        self._stored: dict[int, Symbol] = {}  # index of a symbol -> the leaf that reads it
        self._origin: dict[int, Symbol] = {}  # index of such a leaf -> the symbol
        self._weights: list[int] = []

    def buffer(self, kind: str, size: int, name: str = "", values: Any = None) -> Buffer:
        """Return a new array."""
        number = len(self.buffers)
        self.buffers.append(Buffer(number, kind, name or f"t{number}", size, values))
        return self.buffers[-1]

    def read(self, place: Place) -> Symbol:
        """Return the symbol of what stands there."""
        return self.graph.leaf("read", place)  # type: ignore[arg-type]  # any key will do

    def close(self) -> None:
        """Let what is stored from now on share no loop with what is stored already."""
        self._closed = True

    def store(
        self,
        place: Place,
        symbol: Symbol,
        space: tuple[int, ...],
        reduced: tuple[int, ...] = (),
        combine: str = "",
    ) -> Symbol:
        """Write `symbol`, or what `combine` makes of it, to `place`; return what reads it.

        space: its dimensions, without leading ones of a single index; reduced: those that are
        combined, along which the strides of `place` are 0.
        """
        leaf = self.read(place)
        group = self._open(space, reduced)
        try:
            own = self._rebuilt(symbol, group)
        except _Hazard:
            self.close()
            group = self._open(space, reduced)
            own = self._rebuilt(symbol, group)
        group.stores.append(Store(place, own, combine))
        self._written[place.buffer] = group.index
        if not combine:
            self._origin[leaf.index] = symbol
            if symbol.op not in ("leaf", "constant"):
                self._stored.setdefault(symbol.index, leaf)
        return leaf

    def _open(self, space: tuple[int, ...], reduced: tuple[int, ...]) -> Group:
        """Return the last loop if it is over `space`, else a new one."""
        last = self.groups[-1] if self.groups else None
        if self._closed or last is None or (last.space, last.reduced) != (space, reduced):
            self.groups.append(Group(len(self.groups), space, reduced))
            self._closed = False
        return self.groups[-1]

    def _rebuilt(self, symbol: Symbol, group: Group) -> Symbol:
        """Return a symbol in the graph of a group; what stands in an array already is read."""
        sources: dict[int, tuple[Symbol, ...]] = {}
        stack = [symbol]
        while stack:
            node = stack.pop()
            if node.index not in sources and node.index not in group.known:
                sources[node.index] = self._sources(node, group)
                stack.extend(sources[node.index])
        # what is read first: an array is younger than what is written to it
        for index in sorted(sources, key=lambda i: (bool(sources[i]), i)):
            node, args = self.graph.nodes[index], sources[index]
            own = [group.known[a.index] for a in args]
            if args and args is node.args:
                group.known[index] = group.graph.apply(node.op, *own)
            elif args:  # another symbol of the same value
                group.known[index] = own[0]
            elif node.op == "leaf":
                group.known[index] = group.graph.leaf(*node.value)
            else:
                group.known[index] = group.graph.constant(node.value)
        return group.known[symbol.index]

    def _sources(self, node: Symbol, group: Group) -> tuple[Symbol, ...]:
        """Return what `node` is computed from in a group."""
        if node.op == "leaf":
            if self._written.get(node.value[1].buffer) != group.index:
                return ()
            if node.index not in self._origin:
                raise _Hazard
            return (self._origin[node.index],)
        if node.op == "constant":
            return ()
        if node.index not in self._stored and self._weight(node) > _CHEAP:
            self._keep(node, group)
        leaf = self._stored.get(node.index)
        if leaf is not None and self._written[leaf.value[1].buffer] < group.index:
            return (leaf,)
        return node.args

    def _weight(self, node: Symbol) -> int:
        """Return what computing `node` from arrays costs, up to what counts as dear."""
        for n in self.graph.nodes[len(self._weights) :]:
            below = sum(self._weights[a.index] for a in n.args)
            own = OPERATIONS[n.op].cost if n.op in OPERATIONS else 0
            self._weights.append(min(own + below, _CHEAP + 1))
        return self._weights[node.index]

    def _keep(self, node: Symbol, group: Group) -> None:
        """If an earlier loop over the same space has computed `node`, let it write it down."""
        for earlier in self.groups[: group.index]:
            own = earlier.known.get(node.index)
            if own is None or own.op in ("leaf", "constant") or earlier.space != group.space:
                continue
            buffer = self.buffer("scratch", math.prod(group.space))
            place = Place.of(buffer, 0, group.space, contiguous(group.space))
            earlier.stores.append(Store(place, own, ""))
            self._written[buffer.number] = earlier.index
            self._stored[node.index] = self.read(place)
            return

    # -- when all is stored ------------------------------------------------------------------------

    def finish(self) -> int:
        """Leave out needless copies and what nobody reads; return the size of the scratch."""
        self._forward()
        live: set[int] = set()
        for group in reversed(self.groups):
            group.stores = [
                s
                for s in group.stores
                if s.place.buffer in live or self.buffers[s.place.buffer].kind != "scratch"
            ]
            live |= {place.buffer for place in group.reads()}
        self.groups = [group for group in self.groups if group.stores]
        return self._allocate()

    def _forward(self) -> None:
        """Let a value that is copied to the caller's array be written there at once, if it can."""
        for copies in self.groups:
            for copy in list(copies.stores):
                target, source = copy.place, copy.symbol
                if self.buffers[target.buffer].kind == "scratch" or source.op != "leaf":
                    continue
                writer = self._early(target, source.value[1])
                if writer is None:
                    continue
                number = source.value[1].buffer
                (value,) = (s for s in writer.stores if s.place.buffer == number)
                if self.buffers[number].kind == "scratch":
                    self._rename(number, target.buffer)
                elif value.combine:  # it would be added up twice
                    continue
                else:
                    writer.stores.append(
                        Store(replaced(value.place, target.buffer), value.symbol, "")
                    )
                copies.stores.remove(copy)

    def _early(self, target: Place, source: Place) -> Group | None:
        """Return the loop that writes all of `source` and may write `target` in its place."""
        buffer = self.buffers[source.buffer]
        whole = Place.of(buffer, 0, (buffer.size,), (1,))
        as_target = replaced(whole, target.buffer)
        if flat(source) != whole or flat(target) != as_target:
            return None
        writers = [g for g in self.groups for s in g.stores if s.place.buffer == buffer.number]
        if len(writers) != 1:
            return None
        (writer,) = writers
        read = [p for p in writer.reads() if p.buffer == target.buffer]
        if read and (writer.reduced or any(flat(p) != as_target for p in read)):
            return None
        later = self.groups[self.groups.index(writer) + 1 :]
        others = [g for g in later if any(p.buffer == target.buffer for p in g.reads())]
        return None if others else writer

    def _rename(self, old: int, new: int) -> None:
        for group in self.groups:
            group.stores = [
                replace(s, place=replaced(s.place, new)) if s.place.buffer == old else s
                for s in group.stores
            ]
            for node in group.graph.nodes:
                if node.op == "leaf" and node.value[1].buffer == old:
                    node.value = (node.value[0], replaced(node.value[1], new))

    def _allocate(self) -> int:
        """Give every scratch array its place: the first where no other one lives at that time."""
        spans: dict[int, list[int]] = {}
        for time, group in enumerate(self.groups):
            for place in [*(s.place for s in group.stores), *group.reads()]:
                if self.buffers[place.buffer].kind == "scratch":
                    spans.setdefault(place.buffer, [time, time])[1] = time
        placed: list[tuple[int, int, int, int]] = []  # first time, last time, offset, end
        for number, (first, last) in spans.items():
            buffer = self.buffers[number]
            neighbours = sorted((o, e) for f, t, o, e in placed if f <= last and first <= t)
            for begin, end in neighbours:
                if buffer.offset + buffer.size <= begin:
                    break
                buffer.offset = max(buffer.offset, end)
            placed.append((first, last, buffer.offset, buffer.offset + buffer.size))
        return max((end for *_, end in placed), default=0)

    def used(self, kind: str) -> Iterator[Buffer]:
        """Yield the arrays of a kind that a loop reads or writes."""
        places = [p for g in self.groups for p in [*(s.place for s in g.stores), *g.reads()]]
        touched = {place.buffer for place in places}
        yield from (b for b in self.buffers if b.kind == kind and b.number in touched)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of an array in row-major order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def stripped(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape without its leading dimensions of a single index."""
    first = next((d for d, n in enumerate(shape) if n != 1), len(shape))
    return tuple(shape[first:])


def replaced(place: Place, buffer: int) -> Place:
    """Return the same entries of another array."""
    return place._replace(buffer=buffer)


def flat(place: Place) -> Place:
    """Return the same entries in the same order as one dimension, if they stand in a row."""
    size = math.prod(place.shape)
    in_row = tuple(
        0 if n == 1 else s for n, s in zip(place.shape, contiguous(place.shape), strict=True)
    )
    if place.strides != in_row:
        return place
    return place._replace(shape=stripped((size,)), strides=(1,) if size > 1 else ())
