"""The iteration of `parnl.solver.newton`, by one program instance for its own lanes.

Order and names are those of `newton.newton`, to be read side by side. It is written here once more
because a lane knows nothing of other sequences and channels: run by one instance it needs neither a
look of the host at a result nor a second launch. We considered tracing `newton.newton` itself, with
tiles that write text. But its slices and joins along the chunks have no counterpart on a tile: a
tile's rows stay in the registers of their threads, so the result would not be this kernel. And text
cannot be read, linted or stepped through.

What differs: values that belong to a gap between chunks (`before`, `after`, `settled`) stand in the
row of the chunk that ends there, and a nonlinear program's trajectory brings the products along, so
that the next update needs no run of its own. What is below the last gap is settled from the start.
Nothing is guessed beforehand, and no lane is given up on before its updates are used up; it then
goes on in the same launch, from its own last settled chunk start.
"""

import math

import triton
import triton.language as tl

from .lanes import loaded
from .tiles import (
    added,
    all_so_far,
    clamped,
    distance,
    each,
    each_broadcast,
    each_earlier,
    each_pair,
    each_where,
    finite,
    gap,
    kept,
    larger,
    largest,
    limited,
    matmul,
    product,
    running_max,
    running_sum,
    some,
    square,
    whole_max,
    zeros_like,
)

_GROWTH = tl.constexpr(math.log(100.0))  # newton.GROWTH


@triton.jit
def newton(
    first,  # k tiles (1, BLOCK): the states that the first chunk starts from
    given,  # what RUN wants to know besides
    place,  # chunks c, which channels exist, what there is to run: of each lane, of each chunk
    sizes,  # T, L, C
    control,  # tolerance, max_iterations, gives_up
    RUN: tl.constexpr,  # the loop over the steps of chunks: `forward` or `backward`
    ADVANCE: tl.constexpr,  # generated: the step of the run that gives products only
    TRAJECTORY: tl.constexpr,  # generated: the step of the run that writes the answer
    AFFINE_SCAN: tl.constexpr,  # generated: `scan.affine_scan` for blocks of k
    FORM: tl.constexpr,
    LINEAR: tl.constexpr,
    AHEAD: tl.constexpr,
    RESET: tl.constexpr,  # which operand with an axis of time says where sequences begin, or None
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the ends of all chunks, and of the iteration what statistics are made from."""
    c, channel, steps, due = place
    T, L, C = sizes
    tolerance, max_iterations, gives_up = control
    k: tl.constexpr = len(first)
    starts = each_broadcast(first, (CHUNKS, BLOCK))
    before = starts
    inner = (c < C - 1) & channel
    settled = ~inner
    iteration = tl.full([], 0, tl.int32)
    update = zeros_like(starts[0])
    residual = update
    cut = None
    if RESET is not None:
        cut = beginnings(given[0][RESET], due, L)
    ends, raw = RUN(starts, given, steps, due, L, ADVANCE, True, False, FORM, AHEAD, RESET)
    unfinished = max_iterations > 0
    while unfinished:
        raw = kept(raw, cut)
        products = each(product, raw)
        gaps = each_where(settled, each(zeros_like, ends), each_pair(gap, ends, before))
        change = changes(products, gaps, cut, AFFINE_SCAN)
        change = kept(each_earlier(change, each(zeros_like, first), c), cut)
        moved = each_pair(added, ends, matmul(products, change, None, 1))
        after = each_where(settled, before, moved)
        starts = each_earlier(after, first, c)

        size = sizes_so_far(after, first, inner, cut)
        grown = growth(raw, size, cut)
        tame = ~inner | (grown < _GROWTH)
        steepest = largest(raw)
        if LINEAR:
            ends, _ = RUN(starts, given, steps, due, L, TRAJECTORY, False, True, FORM, AHEAD, RESET)
            gaps = each_pair(distance, ends, after)
            residual = largest(gaps)
            enough = all_so_far(~inner | (tame & limited(steepest)), cut)  # False where NaN
        else:
            all_tame = whole_max((~tame).to(tl.int32), cut) == 0
            ends, raw = RUN(
                starts, given, steps, due, L, TRAJECTORY, True, True, FORM, AHEAD, RESET
            )
            gaps = each_pair(distance, ends, after)
            residual = largest(gaps)
            enough = all_tame
            for i in tl.static_range(k):
                enough = enough & (gaps[i] <= tolerance * size[i])
        settled = ~inner | all_so_far(settled | enough | (residual == 0.0), cut)
        update = largest(each_pair(gap, after, before))
        before = after
        iteration += 1
        unfinished = (iteration < max_iterations) & some(~settled)

    # give up: lanes that are not settled go on by themselves from their last settled chunk start
    exact = settled if RESET is None else all_so_far(settled, None)
    front = tl.reduce((exact & inner).to(tl.int32), 0, added)[None, :]
    undone = (front < (C - 1) * gives_up) & channel
    if some(undone):
        left = tl.where(undone & (c == front), T - c * L, 0)
        tl.debug_barrier()
        rest, _ = RUN(starts, given, left, left, T, TRAJECTORY, False, True, FORM, AHEAD, RESET)
        ends = each_where(left > 0, rest, ends)
    return ends, iteration, update, residual, settled, inner, front, undone


@triton.jit
def beginnings(place, due, length):
    """Return in which chunks (CHUNKS, 1) a sequence begins."""
    found = tl.full(due.shape, 0, tl.int32)
    for at in range(0, length):
        found = found | (loaded((place,), at, due, due)[0] != 0).to(tl.int32)
    return found > 0


@triton.jit
def changes(products, gaps, cut, AFFINE_SCAN: tl.constexpr):
    """`Lane.changes` of `parnl.solver.lanes`, or where there is a `cut` that of `Beginnings`."""
    if cut is None:
        return AFFINE_SCAN(products, gaps)
    else:
        zeros = each(zeros_like, gaps)
        wild = ~(largest(gaps) < float("inf"))
        found = AFFINE_SCAN(products, each_where(wild, zeros, gaps))
        nan = each_broadcast((zeros[0] + float("nan"),) * len(gaps), zeros[0].shape)
        return each_where(~all_so_far(~wild, cut), nan, found)


@triton.jit
def sizes_so_far(after, first, inner, cut):
    """`Lane.sizes`, or where there is a `cut` that of `Beginnings`."""
    found = ()
    for i in tl.static_range(len(after)):
        size = running_max(tl.where(inner, finite(after[i]), 0.0), cut)
        begun = finite(first[i])
        if cut is not None:
            begun = tl.where(running_max(cut.to(tl.int32), None) > 0, 0.0, begun)
        found = found + (larger(size, begun),)
    return found


@triton.jit
def growth(products, sizes, cut):
    """`newton._growth`."""
    k: tl.constexpr = len(sizes)
    steepest = largest(products)
    nan = steepest != steepest
    entries = each(product, each_where(nan, each(zeros_like, products), products))
    if k > 1:
        entries = in_proportion(entries, sizes, cut)
        entries = square(square(entries, k), k)
    grown = largest(entries)
    growth = tl.log(tl.where(grown < 1e-30, 1e-30, grown))
    if k > 1:
        growth = growth * 0.25
    (growth,) = kept((tl.where(nan, 0.0, growth),), cut)
    level = running_sum(growth, cut)
    return level + running_max(tl.where(level < 0.0, -level, 0.0), cut)


@triton.jit
def in_proportion(products, sizes, cut):
    """`newton._in_proportion`."""
    k: tl.constexpr = len(sizes)
    scaled = ()
    for i in tl.static_range(k):
        for j in tl.static_range(k):
            unit = whole_max(sizes[i], cut)
            other = whole_max(sizes[j], cut)
            ratio = clamped(tl.where(unit > 0.0, other / unit, 0.0))
            scaled = scaled + (clamped(products[i * k + j] * ratio),)
    return scaled
