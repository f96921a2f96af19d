"""Time divided over devices: the same chunks, some on each, and the same Newton on all.

Each device of a line holds the steps of one part of the time axis and as many of the C chunks as
every other. It runs its own chunks. What Newton needs about chunk starts, arrays (B, C, D), is
gathered on all devices. So all take the same decisions, to the last bit, and nothing sent between
them grows with T. One chunk is the plain loop: then devices run one after the other.

    asked of                  own chunks are run, and what is gathered is
    advance                   their ends and their products of Jacobians
    trajectory                their ends; states stay where they are
    trajectory, one chunk     nothing: the state is passed on, device after device
    the guess                 the ends of their last steps
    the adjoint               the same, in the other direction

If T is no multiple, a device has fewer steps than the others, or none. Empty chunks, which end in
the state they start from, stand for the missing ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from parnl.solver import blocks
from parnl.solver.cost import Device


class Alone:
    """One device: all chunks are its own."""

    def part(self, plan: Any) -> Any:
        """Return the plan of the own steps and chunks; one chunk that may be empty, at least."""
        return plan

    def shortest(self, plan: Any) -> int:
        """Return how many steps a chunk has at least, on any device, before the last one of all."""
        return plan.length

    def followed(self, plan: Any) -> int:
        """Return how many of the own chunks may be followed by another one."""
        return plan.chunks - 1

    def own(self, plan: Any, x: Any) -> Any:
        """Return what belongs to the own chunks, empty ones too, of x (B, C, D)."""
        return x

    def whole(self, plan: Any, arrays: Sequence[Any]) -> list[Any]:
        """Return what all devices have, (B, C, D), of arrays (B, n, D) of n chunks of each."""
        return list(arrays)

    def kernels(self, kernels: Any) -> Any:
        """Return the kernels of this device alone."""
        return kernels


ALONE = Alone()


class Line(Alone):
    """Devices in a line, of one framework: subclasses tell where this one is, and send.

    size: P; steps: of the own part; parts: T_p of each device, in the order of the axis; place: of
    this device among them, an array where it is not known.
    """

    xp: Any
    size: int
    steps: int
    parts: tuple[int, ...]
    place: Any

    @abstractmethod
    def gather(self, x: Any) -> Any:
        """Return what all devices have in place of x, (P, *x.shape), in the order of the axis."""

    @abstractmethod
    def of(self, x: Any, place: Any) -> Any:
        """Return the x of the device at `place`, on all devices."""

    def together(self, look: Callable[[], None]) -> None:
        """Call look(); if one device raises, all do. One program for all does so by itself."""
        look()

    def total(self) -> int:
        """Return T."""
        return sum(self.parts)

    def turn(self, reverse: bool) -> Any:
        """Return this device's place in the order in which they are run."""
        return self.size - 1 - self.place if reverse else self.place

    def begins(self) -> Any:
        """Return the number of the first of the own steps."""
        return sum(self.parts[: self.place])

    def rounded(self, plan: Any) -> Any:
        """Return the plan with as many chunks on each device; one stays one."""
        counts = [plan.chunks, plan.backward_chunks or plan.chunks]
        counts = [c if c == 1 else -(-c // self.size) * self.size for c in counts]
        return plan._replace(steps=self.total(), chunks=counts[0], backward_chunks=counts[1])

    def part(self, plan: Any) -> Any:
        """See `Alone`."""
        each = self._each(plan)
        if not self.steps:
            return plan._replace(steps=0, chunks=1)
        return plan._replace(steps=self.steps, chunks=-(-self.steps // -(-self.steps // each)))

    def shortest(self, plan: Any) -> int:
        """See `Alone`."""
        each = self._each(plan)
        return min(n - (each - 1) * -(-n // each) for n in self.parts)

    def followed(self, plan: Any) -> int:
        """See `Alone`."""
        return self._each(plan)

    def own(self, plan: Any, x: Any) -> Any:
        """See `Alone`."""
        each = self._each(plan)
        return self.window(x, self.turn(plan.reverse) * each, each)

    def whole(self, plan: Any, arrays: Sequence[Any]) -> list[Any]:
        """See `Alone`; all in one message."""
        xp = self.xp
        found = self.gather(xp.stack(list(arrays)))
        found = xp.flip(found, axis=0) if plan.reverse else found
        rows, count, channels = arrays[0].shape
        shape = (rows, self.size * count, channels)
        return [xp.reshape(xp.moveaxis(found[:, i], 0, 1), shape) for i in range(len(arrays))]

    def kernels(self, kernels: Any) -> Any:
        """See `Alone`."""
        return kernels.kernels

    def window(self, x: Any, first: Any, count: int) -> Any:
        """Return `count` entries of x along axis 1."""
        return x[:, first : first + count]

    def following(self, first: Any, last: Any) -> Any:
        """Return the `first` of the next device's part, `last` where there is no next one.

        Both are (..., 1), or (..., 0) of an empty part.
        """
        xp, steps = self.xp, self.steps
        if not steps:  # it takes part all the same
            first = xp.broadcast_to(xp.any(first), (*first.shape[:-1], 1))
        found = self.gather(first)
        filled = [p for p in range(self.size) if self.parts[p]]
        if len(filled) < self.size:
            later = [p for p in filled if p > self.place]
            return found[later[0]] if later and steps else last
        return xp.concat([found, last[None]])[self.place + 1]

    def edges(
        self, states: Sequence[Any], x0: Sequence[Any], reverse: bool
    ) -> tuple[list[Any], list[Any]]:
        """Return the states (B, D) before the own steps, and those after all steps.

        states: of the own steps (B, T_p, D); x0: before all steps.
        """
        xp = self.xp
        steps = [s[:, 0 if reverse else -1] for s in states] if self.steps else x0
        found = self.gather(xp.stack(list(steps)))
        order = range(self.size - 1, -1, -1) if reverse else range(self.size)
        filled = [p for p in order if self.parts[p]]  # where there are no steps, no state is left
        turn = self.turn(reverse)
        if len(filled) < self.size:
            turn = sum(self.parts[p] > 0 for p in order[:turn])
            found = xp.stack([found[p] for p in filled]) if filled else found[:0]
        elif reverse:
            found = xp.flip(found, axis=0)
        seen = xp.concat([xp.stack(list(x0))[None], found])
        return list(seen[turn]), list(seen[-1])

    def _each(self, plan: Any) -> int:
        """Return how many chunks each device has, empty ones too."""
        return max(1, plan.chunks // self.size)


class Along:
    """The kernels of a backend along a line of devices, as `newton` wants them."""

    def __init__(self, kernels: Any, line: Line) -> None:
        self.kernels, self.line = kernels, line
        self.name, self.functions, self.xp = kernels.name, kernels.functions, kernels.xp
        self.running_max, self.unwritten = kernels.running_max, kernels.unwritten
        self.while_loop, self.cond = kernels.while_loop, kernels.cond

    def device(self, array: Any) -> Device:
        """Return what all devices together can do at once, at the price of this one."""
        one = self.kernels.device(array)
        size = self.line.size
        return one._replace(lanes=one.lanes * size, crowd=one.crowd * size)

    def advance(
        self, program: Any, plan: Any, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the own chunks; return ends and products of all but the last one."""
        xp, k = self.xp, len(starts)
        starts = [xp.concat([s, s[:, -1:]], axis=1) for s in starts]  # the last one ends nowhere

        def run(part: Any, starts: Sequence[Any]) -> tuple[list[Any], None]:
            ends, products = self.kernels.advance(program, part, operands, starts)
            return [*ends, *products], None

        def empty(starts: Sequence[Any]) -> list[Any]:
            return [*starts, *(xp.full_like(starts[0], p) for p in blocks.identity(k))]

        found, _ = self._own(plan, starts, run, empty)
        found = [x[:, :-1] for x in found]
        return found[:k], found[k:]

    def trajectory(
        self, program: Any, plan: Any, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the own chunks: (their states, the ends of all)."""

        def run(part: Any, starts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
            states, ends = self.kernels.trajectory(program, part, operands, starts)
            return ends, states

        ends, states = self.run(plan, starts, run)
        return states, ends

    def run(self, plan: Any, starts: Sequence[Any], run: Callable) -> tuple[list[Any], Any]:
        """Return (ends of all chunks, what else `run` finds) of run(own part, its starts)."""
        if plan.chunks > 1:
            return self._own(plan, starts, run, list)
        line, turn = self.line, self.line.turn(plan.reverse)
        part = line.part(plan)

        def one(carry: tuple) -> tuple:
            now, x, found = carry
            x, found = self.cond(now == turn, lambda: run(part, x), lambda: (x, found))
            at = line.size - 1 - now if plan.reverse else now
            return now + 1, [line.of(a, at) for a in x], found

        begin = (0, list(starts), self.unwritten(lambda: run(part, starts)[1]))
        _, x, found = self.while_loop(lambda carry: carry[0] < line.size, one, begin)
        return x, found

    def _own(
        self, plan: Any, starts: Sequence[Any], run: Callable, empty: Callable
    ) -> tuple[list[Any], Any]:
        """Return what `run` finds of all chunks, and what else of the own ones.

        empty(starts): the same of chunks without steps.
        """
        part = self.line.part(plan)
        mine = [self.line.own(plan, s) for s in starts]
        found, rest = run(part, [s[:, : part.chunks] for s in mine])
        if part.chunks < mine[0].shape[1]:
            more = empty([s[:, part.chunks :] for s in mine])
            found = [self.xp.concat([f, m], axis=1) for f, m in zip(found, more, strict=True)]
        return self.line.whole(plan, found), rest
