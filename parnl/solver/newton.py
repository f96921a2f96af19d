"""The solver: Newton's method on chunk-start states, with an affine scan over the chunks.

The T steps are cut into C chunks of L steps. The unknowns are the chunk-start states s_c; F_c(s)
is the state after running chunk c from s, P_c the product of the step Jacobians on the way. The
iteration solves s_{c+1} = F_c(s_c):

    all chunks in parallel:  guess s_{c+1} from the last steps of chunk c alone
    all chunks in parallel:  P_c along the run from s_c                                   (advance)
    over the chunks:         s_{c+1} <- F_c(s_c) + P_c (change of s_c)                 (affine scan)
    all chunks in parallel:  run from s_c, writing every state, ending in F_c(s_c)     (trajectory)

until the gaps F_c(s_c) - s_{c+1} are at rounding level. C = 1 is the sequential loop, C = T is
Newton over all time steps (DEER). Since the run that writes the answer also measures the gaps, no
pass is spent on confirming convergence, and nothing is assumed about its order.

Why it ends, and where: s_1 is known. Once s_c is exact, the run writes the exact F_c(s_c), the
next change of s_c is an exact zero, and P_c is kept finite: so s_{c+1} becomes F_c(s_c) to the last
bit. Hence each iteration makes at least one more chunk start exact, for any cell whatever.

Every lane (one channel of one sequence) converges by itself, and a chunk start is settled, and
from then on untouched, once all gaps up to it are small: in each state, compared with that state's
own size so far, so that units do not matter. A value depends on nothing but the earlier steps of
its own lane, so a NaN can disturb neither other sequences nor earlier steps, not even through the
number of iterations. One thing looks ahead: whether the lane amplifies what is left at a chunk
start (see `_growth`), and so whether its starts are right to rounding or to the last bit.

Nor does it take long. If Newton stalls, on a chaotic, expanding or discontinuous cell, it is given
up once its updates have cost about a plain loop (see `cost.py`). In long chunks, products depend on
the cell and not on the guess. There Newton is given up after the first update which shows that a
rounding error reaches full size by most of the lane's chunk starts. The plain loop then runs the
lanes that are not settled, from their own operands: no lane sees another's.
Damping does not pay there: with products clamped to anything from 100 down to 0, the cells of
`benchmarks/hostile.py` took as many updates, one for each chunk, or at best a tenth fewer.

Often the guess is enough. If two short runs from different states end in the same bits, the cell
has forgotten its start. If the chunks then end in the guesses, to the last bit, their run is the
plain loop's own answer, and nothing is left to update (see `_guess`).

A linear program needs one update, and its gaps are not looked at, unless it amplifies rounding.

Where sequences begin anew within a lane, what is said here of a lane holds for each of them: none
touches another, by its size, its growth or a NaN (see `lanes.Beginnings`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from parnl.graph.program import Functions, Program
from parnl.solver import blocks
from parnl.solver.cost import GUESSED_FROM, Device, guesses, updates_worth
from parnl.solver.devices import Alone
from parnl.solver.lanes import Beginnings, Lane, largest, last_steps

# A lane whose products of Jacobians grow by more than this over some stretch amplifies what is
# left at a chunk start: there, only exact chunk starts count as settled.
GROWTH = math.log(100.0)


class Plan(NamedTuple):
    """How to solve: all that is fixed before the arrays are looked at.

    steps: T; chunks: C; epsilon: the machine epsilon of the arrays' dtype; tolerance: as given, see
    `allowed`; max_iterations: as given, None for as many updates as are worth it; reverse: run from
    the last step to the first; backward_chunks: C of the adjoint; automatic: the method, where the
    device has decided C, else "".
    """

    steps: int
    chunks: int
    epsilon: float
    tolerance: float | None = None
    max_iterations: int | None = None
    reverse: bool = False
    backward_chunks: int | None = None
    automatic: str = ""

    @property
    def length(self) -> int:
        """L, the number of steps of a chunk (the last one run may be shorter)."""
        return -(-self.steps // self.chunks)

    @property
    def allowed(self) -> float:
        """Largest gap accepted in a state at a chunk boundary, relative to that state's size.

        Its size is its largest magnitude at the lane's chunk starts so far.

        0: bit-equal. By default, each of the L steps of a chunk is allowed a rounding error of its
        own. A property, for in a compiled graph L may be unknown until it is run.
        """
        if self.tolerance is not None:
            return self.tolerance
        return 8.0 * self.epsilon * math.sqrt(self.length)

    @classmethod
    def make(
        cls,
        steps: int,
        chunks: int,
        epsilon: float,
        tolerance: float | None = None,
        max_iterations: int | None = None,
        reverse: bool = False,
        backward_chunks: int | None = None,
    ) -> Plan:
        """Return the plan with the number of chunks of ceil(T / C) steps that T steps fill.

        backward_chunks: None for as many as of the solve.
        """
        filled = [-(-steps // -(-steps // c)) for c in (chunks, backward_chunks or chunks)]
        return cls(steps, filled[0], epsilon, tolerance, max_iterations, reverse, filled[1])

    def backward(self) -> Plan:
        """Return the plan of the adjoint: exact, however far the solve itself has come."""
        chunks = self.backward_chunks or self.chunks
        return self._replace(chunks=chunks, reverse=not self.reverse, max_iterations=None)


class Stats(NamedTuple):
    """What a solver finds out, as scalars: `parnl.Info` says what each is."""

    iterations: Any
    update: Any
    residual: Any
    converged: Any
    sequential: Any


class Kernels(Functions, Protocol):
    """What the algorithm asks of a backend.

    States are lists of k arrays; chunk starts are (B, C, D), chunks in the order they are run.
    An index names all axes of an array, or ends in `...`: the array API knows no shorter form.
    `line` tells which chunks are this device's: what has an axis of time is of those only.
    """

    line: Alone

    @property
    def xp(self) -> Any:
        """The arrays' namespace, as the array API names its functions."""

    def device(self, array: Any) -> Device:
        """Return what the device of `array` can do at once, and what it costs to ask it."""

    def advance(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the first n chunks from `starts` (B, n, D): (ends, products), k and k * k."""

    def trajectory(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run all chunks: (states (B, T, D) in the order of time, ends (B, C, D))."""

    def unwritten(self, write: Callable[[], Any]) -> Any:
        """Return what stands for the result of `write` before it was called; it is never read."""

    def running_max(self, x: Any) -> Any:
        """Return the running maximum of x along axis 1."""

    def while_loop(
        self, condition: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any
    ) -> Any:
        """Apply `body` to `carry` while `condition` holds."""

    def cond(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """Return then() if `condition` holds, else otherwise(); the other is not run."""


def newton(
    kernels: Kernels, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
) -> tuple[list[Any], Stats]:
    """Return every state, k arrays (B, T, D), and the statistics of the solve.

    operands: arrays that broadcast to (B, T, D); x0: k arrays (B, D). Nothing here is
    differentiated: gradients are implicit, and each backend states them in terms of this function.
    """
    xp = kernels.xp
    chunks = plan.chunks
    batch, channels = x0[0].shape
    shape = (batch, chunks, channels)
    resets = program.resets(operands)
    starts = [x[:, None, :] for x in x0]
    zero = xp.sum(xp.zeros_like(x0[0]))
    none = xp.astype(zero, xp.int32)
    if chunks == 1:
        states, _ = kernels.trajectory(program, plan, operands, starts)
        return states, Stats(none, zero, zero, zero == 0, none + batch * channels)
    starts = [xp.broadcast_to(x, shape) for x in starts]

    info = xp.finfo(x0[0].dtype)
    limit = math.sqrt(float(info.max)) / 100
    most = plan.max_iterations
    if most is None:
        device = kernels.device(x0[0])
        most = updates_worth(program, device, batch * channels, plan.steps, chunks)
    gives_up = plan.max_iterations is None and most < chunks
    guessed = guesses(program, plan.length) and kernels.line.shortest(plan) >= GUESSED_FROM
    lane = Lane(kernels) if resets is None else Beginnings(kernels, plan, resets, x0[0].dtype)

    def run(starts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        states, ends = kernels.trajectory(program, plan, operands, starts)
        return states, [x[:, :-1, ...] for x in ends]

    def body(carry: tuple) -> tuple:
        iteration, starts, _, ends, settled, lost, *_ = carry
        before = [s[:, 1:, ...] for s in starts]
        run_ends, raw = kernels.advance(program, plan, operands, [s[:, :-1, ...] for s in starts])
        raw = lane.kept(raw)
        # the trajectory's own ends once there are some: exactness is then in terms of its bits
        ends = [xp.where(iteration == 0, r, e) for r, e in zip(run_ends, ends, strict=True)]
        products = [xp.clip(xp.where(xp.isnan(p), 0.0, p), -limit, limit) for p in raw]

        gaps = [xp.where(settled, 0.0, _gap(xp, e, s)) for e, s in zip(ends, before, strict=True)]
        change = lane.changes(products, gaps, limit)
        earlier = [
            xp.concat([xp.zeros_like(d[:, :1, ...]), d[:, :-1, ...]], axis=1) for d in change
        ]
        earlier = lane.kept(earlier)
        moved = [e + d for e, d in zip(ends, blocks.matvec(products, earlier), strict=True)]
        after = [xp.where(settled, s, m) for s, m in zip(before, moved, strict=True)]
        starts = [xp.concat([s[:, :1, ...], a], axis=1) for s, a in zip(starts, after, strict=True)]

        sizes = [lane.sizes(xp.where(xp.isfinite(s), xp.abs(s), 0.0)) for s in starts]
        grown = _growth(lane, raw, sizes, limit)
        tame = grown < GROWTH
        all_tame = lane.all(tame)
        states, ends = run(starts)
        gaps = [xp.abs(_gap(xp, e, a)) for e, a in zip(ends, after, strict=True)]
        gap = largest(xp, gaps)
        if program.linear:
            enough = lane.all_so_far(tame & (largest(xp, raw) < limit))  # False where NaN
        else:
            enough = all_tame
            for g, s in zip(gaps, sizes, strict=True):
                enough = enough & (g <= plan.allowed * s)
        settled = lane.all_so_far(settled | enough | (gap == 0))
        update = largest(xp, [_gap(xp, a, s) for a, s in zip(after, before, strict=True)])
        stats = (_largest_of_all(xp, update), gap)
        if gives_up and guessed:
            chaotic = lane.mostly(grown > -math.log(plan.epsilon))
            # for good, or it would depend on other lanes' updates which way the answer comes
            lost = lost | (chaotic & ~lane.all(settled))
        return iteration + 1, starts, states, ends, settled, lost, all_tame, stats

    def unfinished(carry: tuple) -> Any:
        return (carry[0] < most) & ~xp.all(carry[4] | carry[5])

    flat = xp.zeros_like(starts[0][:, 1:, ...])
    if guessed:
        starts, forgotten = _guess(kernels, program, plan, operands, x0)

    def nothing() -> tuple:
        return kernels.unwritten(lambda: run(starts)[0]), flat > 0

    def verify() -> tuple:
        states, ends = run(starts)
        gaps = [_gap(xp, e, s[:, 1:, ...]) for e, s in zip(ends, starts, strict=True)]
        met = forgotten & (largest(xp, gaps) == 0)
        return states, lane.all_so_far(met)

    if guessed:
        # any lane that seems to have forgotten its start calls for it, so none depends on another
        states, settled = kernels.cond(xp.any(forgotten[:, 0, ...]), verify, nothing)
    else:
        states, settled = nothing()
    first = [s[:, 1:, ...] for s in starts]
    lost = ~lane.all(flat == 0)
    carry = (none, starts, states, first, settled, lost, ~lost, (zero, flat))
    iterations, _, states, _, settled, lost, tame, (update, gap) = kernels.while_loop(
        unfinished, body, carry
    )
    if not gives_up:
        return states, Stats(iterations, update, _largest_of_all(xp, gap), xp.all(settled), none)

    done = lane.all(settled) & ~lost

    def give_up(carry: tuple) -> tuple:
        # x0 comes through the carry: a compiler runs ahead of a loop what depends on none of it
        states, x0, finished = carry
        alone = [x[:, None, :] for x in x0]
        loop, _ = kernels.trajectory(program, plan._replace(chunks=1), operands, alone)
        # The framework may round differently over one chunk: so a lane that amplifies what differs
        # is taken from the loop from its first step on.
        kept = settled & (done | tame)
        return _spliced(kernels, plan, kept, finished, states, loop), x0, finished == finished

    finished = xp.all(done, axis=1, keepdims=True)
    states, *_ = kernels.while_loop(
        lambda carry: ~xp.all(carry[2]), give_up, (states, list(x0), finished)
    )
    residual = _largest_of_all(xp, xp.where(done, gap, 0.0))
    taken = xp.sum(xp.astype(~finished, xp.int32), dtype=xp.int32)
    return states, Stats(iterations, update, residual, zero == 0, taken)


def _guess(
    kernels: Kernels, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
) -> tuple[list[Any], Any]:
    """Return guessed chunk starts (B, C, D), and where the cell has forgotten what was before.

    The last steps before each chunk are run twice, from x0 and from x0 + 1, all chunks and both
    runs side by side as sequences of their own. forgotten: (B, C - 1, D), whether both end in the
    same bits: from there on they would be the same for ever.
    """
    xp, line = kernels.xp, kernels.line
    here = line.part(plan)
    count = line.followed(plan)
    batch, channels = x0[0].shape
    several = (2, batch, count)

    def due(operand: Any) -> Any:
        rows, steps, _ = operand.shape
        if rows == steps == 1:
            return operand
        if steps == 1:
            chunked = operand[:, None, ...]
        else:
            chunked = last_steps(xp, here, operand, count, GUESSED_FROM)
        wide = xp.broadcast_to(chunked[None, ...], (*several, *chunked.shape[2:]))
        return xp.reshape(wide, (2 * batch * count, *chunked.shape[2:]))

    begin = [xp.stack([x, x + 1.0]) for x in x0]
    begin = [xp.broadcast_to(x[:, :, None, ...], (*several, channels)) for x in begin]
    begin = [xp.reshape(x, (2 * batch * count, 1, channels)) for x in begin]
    short = plan._replace(steps=GUESSED_FROM, chunks=1)
    states, _ = line.kernels(kernels).trajectory(program, short, [due(a) for a in operands], begin)
    ends = [xp.reshape(x[:, 0 if plan.reverse else -1, ...], (*several, channels)) for x in states]
    forgotten = largest(xp, [_gap(xp, e[0, ...], e[1, ...]) for e in ends]) == 0
    once = [e[0, ...] for e in ends]
    guesses = [xp.where(xp.isfinite(e), e, x[:, None, ...]) for e, x in zip(once, x0, strict=True)]
    *guesses, forgotten = line.whole(plan, [*guesses, xp.astype(forgotten, x0[0].dtype)])
    starts = [xp.concat([x[:, None, ...], g], axis=1) for x, g in zip(x0, guesses, strict=True)]
    return [s[:, : plan.chunks, ...] for s in starts], forgotten[:, : plan.chunks - 1, ...] > 0


def _spliced(
    kernels: Kernels, plan: Plan, kept: Any, done: Any, chunked: Sequence[Any], loop: Sequence[Any]
) -> list[Any]:
    """Return the results of the chunks to be kept, and of the loop after them.

    kept: (B, C - 1, D), whether the chunk's start is; done: (B, 1, D), whether all are.
    """
    xp, here = kernels.xp, kernels.line.part(plan)
    kept = kernels.line.own(plan, xp.concat([done | kept[:, :1, ...], kept], axis=1))
    batch, count, channels = kept.shape
    shape = (batch, count, here.length, channels)
    whole = (batch, count * here.length, channels)
    kept = xp.reshape(xp.broadcast_to(kept[:, :, None, :], shape), whole)[:, : here.steps, ...]
    kept = xp.flip(kept, axis=1) if plan.reverse else kept
    results = []
    for a, b in zip(chunked, loop, strict=True):
        if b.shape[1] == 1:  # a gradient: of x0, or a sum over all time in place of one a chunk
            rest = xp.zeros_like(a[:, 1:, ...])
            results.append(xp.where(done, a, xp.concat([b, rest], axis=1)))
        elif b.shape[2] != channels:  # a sum over channels: of a row of lanes, all or none
            results.append(xp.where(xp.all(kept, axis=2, keepdims=True), a, b))
        else:
            results.append(xp.where(kept, a, b))
    return results


def _gap(xp: Any, a: Any, b: Any) -> Any:
    """Return a - b, an exact 0 where both are the same inf or both NaN."""
    same = (a == b) | (xp.isnan(a) & xp.isnan(b))
    return xp.where(same, 0.0, a - b)


def _largest_of_all(xp: Any, x: Any) -> Any:
    return xp.max(xp.where(xp.isnan(x), math.inf, x))


def _growth(lane: Lane, products: Sequence[Any], sizes: Sequence[Any], limit: float) -> Any:
    """Return a log: the most that a gap left at a chunk start has grown up to this one.

    Below `GROWTH` the lane is tame so far. Nonlinear: small gaps settle a chunk start, if the lane
    stays tame further on. Linear: one update is the answer, whatever the gaps say, until rounding
    has been amplified. From there on only a zero gap tells. `sizes`: of each state at the chunk
    starts, never falling; the last ones are the units that growth is measured in. In the units
    that states come in, an oscillator (position, speed) would seem to grow at every chunk.
    """
    xp, k = lane.xp, math.isqrt(len(products))
    nan = xp.isnan(largest(xp, products))
    entries = [xp.clip(xp.where(nan, 0.0, p), -limit, limit) for p in products]
    if k > 1:
        entries = _in_proportion(xp, entries, [lane.whole_max(s) for s in sizes], limit)
    power = 1
    while k > 1 and power < 4:  # the norm of a power nears the spectral radius, which is what grows
        entries = [xp.clip(p, -limit, limit) for p in blocks.matmul(entries, entries, k)]
        power *= 2
    # 1e-30 stands for zero: what is forgotten there does not hide growth that comes later
    growth = xp.log(xp.clip(largest(xp, entries), 1e-30, None)) / power
    level = lane.running_sum(xp.where(nan, 0.0, lane.kept([growth])[0]))
    return level + lane.running_max(xp.clip(-level, 0.0, None))


def _in_proportion(
    xp: Any, products: Sequence[Any], sizes: Sequence[Any], limit: float
) -> list[Any]:
    """Return blocks (B, C - 1, D) for states each in units of its own size.

    One similarity for all chunks, so that growth is that of their product. A state that is 0 all
    along has no size; its gaps must be 0, so there is nothing to amplify.
    """
    scaled: list[Any] = []
    for i in sizes:
        for j in sizes:
            ratio = xp.clip(xp.where(i > 0, j / i, 0.0), 0.0, limit)
            scaled.append(xp.clip(products[len(scaled)] * ratio, -limit, limit))
    return scaled
