"""What Newton asks of the chunk starts of a lane, one after the other: sums and maxima.

A lane is one channel of one sequence, or of several that begin within it. Each sequence is then
asked by itself, so that none touches another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from parnl.solver.scan import affine_scan


def largest(xp: Any, parts: Sequence[Any]) -> Any:
    """Return the largest magnitude over the k states of a lane."""
    total = xp.abs(parts[0])
    for part in parts[1:]:
        total = xp.maximum(total, xp.abs(part))
    return total


def by_chunks(xp: Any, plan: Any, operand: Any, count: int) -> Any:
    """Return the steps of the first `count` chunks of (B, T, D), in the order of time, by chunks.

    (B, count, L, D), chunks in the order they are run, all of them full.
    """
    rows, _, width = operand.shape
    due = count * plan.length
    due = operand[:, plan.steps - due :, ...] if plan.reverse else operand[:, :due, ...]
    chunked = xp.reshape(due, (rows, count, plan.length, width))
    return xp.flip(chunked, axis=1) if plan.reverse else chunked


def last_steps(xp: Any, plan: Any, operand: Any, count: int, steps: int) -> Any:
    """Return the last `steps` of each of the first `count` chunks of (B, T, D), likewise."""
    last = slice(steps) if plan.reverse else slice(-steps, None)
    full = min(count, plan.steps // plan.length)
    found = by_chunks(xp, plan, operand, full)[:, :, last, ...]
    if full == count:
        return found
    short = operand[:, None, last, ...]  # it ends where all do
    return xp.concat([found, short], axis=1)


class Lane:
    """What is asked of the chunk starts of a lane but the first, arrays (B, C - 1, D).

    One sequence fills the lane.
    """

    def __init__(self, kernels: Any) -> None:
        self.kernels, self.xp = kernels, kernels.xp

    def kept(self, parts: list[Any]) -> list[Any]:
        """Return what the chunks before these starts hand on, 0 where it is nothing."""
        return parts

    def changes(self, products: Sequence[Any], gaps: Sequence[Any], limit: float) -> list[Any]:
        """Return the changes of the starts that follow from the gaps: see `affine_scan`."""
        return affine_scan(self.xp, products, gaps, limit)

    def running_max(self, x: Any) -> Any:
        """Return the largest x >= 0 of the sequence so far."""
        return self.kernels.running_max(x)

    def running_sum(self, x: Any) -> Any:
        """Return the sum over the sequence so far."""
        return self.xp.cumulative_sum(x, axis=1)

    def whole_max(self, x: Any) -> Any:
        """Return the largest x >= 0 of the whole sequence, for each of its starts or once."""
        return self.xp.max(x, axis=1, keepdims=True)

    def whole_sum(self, x: Any) -> Any:
        """Return the sum over the whole sequence, likewise."""
        return self.xp.sum(x, axis=1, keepdims=True)

    def sizes(self, starts: Any) -> Any:
        """Return the largest of all starts (B, C, D), >= 0, of the sequence so far."""
        return self.running_max(starts)[:, 1:, ...]

    def all_so_far(self, ok: Any) -> Any:
        """Return where `ok` holds at this and every earlier start of the sequence."""
        return self.running_max(self.xp.astype(~ok, self.xp.float32)) == 0

    def all(self, ok: Any) -> Any:
        """Return where `ok` holds at all starts of the sequence."""
        return self.whole_max(self.xp.astype(~ok, self.xp.float32)) == 0

    def mostly(self, flags: Any) -> Any:
        """Return where more than half of the flags of the sequence are set."""
        xp = self.xp
        some, every = (self.whole_sum(xp.astype(f, xp.float32)) for f in (flags, flags == flags))
        return 2 * some > every


class Beginnings(Lane):
    """The same where sequences begin within a lane: at the steps of `resets` (B, T, 1).

    A chunk start belongs to the sequence of the last step before it. Where one began in the chunk
    before, nothing is handed on, neither by a product, which is 0, nor here: 0 * NaN is NaN.
    """

    def __init__(self, kernels: Any, plan: Any, resets: Any, dtype: Any) -> None:
        super().__init__(kernels)
        xp, line = self.xp, kernels.line
        here, count = line.part(plan), line.followed(plan)
        resets = xp.astype(resets, xp.bool)
        missing = count * here.length - here.steps
        if missing > 0:
            nothing = xp.broadcast_to(resets[:, :1, ...] & False, (resets.shape[0], missing, 1))
            resets = xp.concat([nothing, resets] if plan.reverse else [resets, nothing], axis=1)
            here = here._replace(steps=resets.shape[1], chunks=count)
        new = xp.any(by_chunks(xp, here, resets, count), axis=2)
        (new,) = line.whole(plan, [xp.astype(new, dtype)])
        self.new = new[:, : plan.chunks - 1, ...] > 0
        self.old = xp.astype(~self.new, dtype)

    def kept(self, parts: list[Any]) -> list[Any]:
        """See `Lane`."""
        return [self.xp.where(self.new, 0.0, part) for part in parts]

    def changes(self, products: Sequence[Any], gaps: Sequence[Any], limit: float) -> list[Any]:
        """See `Lane`."""
        xp = self.xp
        wild = ~xp.isfinite(largest(xp, gaps))
        found = affine_scan(xp, products, [xp.where(wild, 0.0, g) for g in gaps], limit)
        reached = self.running_sum(xp.astype(wild, self.old.dtype)) > 0
        return [xp.where(reached, math.nan, d) for d in found]

    def running_sum(self, x: Any) -> Any:
        """See `Lane`."""
        return affine_scan(self.xp, [self.old], [self.xp.astype(x, self.old.dtype)], math.inf)[0]

    def running_max(self, x: Any) -> Any:
        """See `Lane`."""
        return self._running_max(x, self.old > 0)

    def whole_max(self, x: Any) -> Any:
        """See `Lane`."""
        xp = self.xp
        end = xp.zeros_like(self.old[:, :1, ...])
        following = xp.concat([self.old[:, 1:, ...], end], axis=1) > 0
        back = [xp.flip(a, axis=1) for a in (self.running_max(x), following)]
        return xp.flip(self._running_max(*back), axis=1)

    def whole_sum(self, x: Any) -> Any:
        """See `Lane`."""
        return self.whole_max(self.running_sum(x))

    def sizes(self, starts: Any) -> Any:
        """See `Lane`."""
        xp = self.xp
        first = xp.where(self.running_sum(self.new) > 0, 0.0, starts[:, :1, ...])
        return xp.maximum(self.running_max(starts[:, 1:, ...]), first)

    def _running_max(self, x: Any, goes_on: Any) -> Any:
        """Return the running maximum that begins anew where `goes_on` is false."""
        xp, reach = self.xp, 1
        while reach < x.shape[1]:
            nothing = xp.zeros_like(x[:, :reach, ...])
            before = xp.concat([nothing, x[:, :-reach, ...]], axis=1)
            x = xp.where(goes_on, xp.maximum(x, before), x)
            further = xp.concat([goes_on[:, :reach, ...] & False, goes_on[:, :-reach, ...]], axis=1)
            goes_on, reach = goes_on & further, 2 * reach
        return x
