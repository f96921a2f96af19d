"""The kernel of a backward run: the adjoint recurrence, and the gradients of operands.

The adjoint x is what later steps hand to the state after a step: with y = x + g, g the gradient
that comes from outside, J^T y is what this step hands on. It is solved as `newton.newton` solves
any linear recurrence, the other way through time.
"""

import triton
import triton.language as tl

from .lanes import fixed_values, lanes, loaded, moving_places, start_values
from .newton import newton
from .tiles import (
    added,
    each,
    each_broadcast,
    each_cast,
    each_pair,
    each_two_sum,
    each_where,
    identity,
    matmul,
    some,
    transposed,
    zeros_like,
)


@triton.jit(do_not_specialize=["T", "L", "C", "reverse", "max_iterations", "gives_up"])
def gradients(
    moving,  # operands that have an axis of time
    moving_strides,  # of each, along batch, time and channels
    fixed,  # operands that have none
    fixed_strides,  # of each, along batch and channels
    starts,  # k arrays (B, D)
    states,  # k arrays (B, T, D): the answer of the solve
    grads,  # k arrays (B, T, D): the gradients of these
    grads_strides,
    of_starts,  # k arrays (B, D): the gradients of `starts`
    of_moving,  # arrays (B, T, D): the gradients of the wanted operands that have an axis of time
    of_fixed,  # arrays (B, C, D): of those that have none, a sum for each chunk
    T,
    L,
    C,
    D,
    reverse,
    tolerance,
    max_iterations,
    gives_up,
    # generated functions (see `text.source`), and what is known of them
    ADVANCE: tl.constexpr,
    TRAJECTORY: tl.constexpr,
    AFFINE_SCAN: tl.constexpr,
    FORM: tl.constexpr,
    LINEAR: tl.constexpr,
    # layouts of operands, as in `lanes`, and the tile
    MOVING: tl.constexpr,
    FIXED: tl.constexpr,
    WIDE: tl.constexpr,
    AHEAD: tl.constexpr,
    RESET: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write all gradients; `reverse` and chunks are those of the backward run."""
    b, way, c, d, channel, t, due, steps = lanes(T, L, C, D, reverse, WIDE, CHUNKS, BLOCK)
    k: tl.constexpr = len(starts)
    real: tl.constexpr = starts[0].dtype.element_ty
    row = (way * D).to(tl.int64)
    edges = start_values(starts, b, d, channel, D)
    past = tl.where(channel, T - 1 - c * L, 0)
    # the state before the step: one step earlier in the forward run, which goes the other way
    befores = ()
    coming = ()
    first = ()
    for i in tl.static_range(k):
        befores = befores + (states[i] + b * T * D + row,)
        batch, time, channels = grads_strides[i]
        stride = (way * time).to(tl.int64)
        coming = coming + ((grads[i] + b * batch, t * time + d * channels, stride),)
        first = first + (tl.full([1, BLOCK], 0.0, real),)
    results = ()
    for s in tl.static_range(len(of_moving)):
        results = results + (of_moving[s] + b * T * D,)
    totals = ()
    for s in tl.static_range(len(of_fixed)):
        totals = totals + (of_fixed[s] + b * C * D + (c * D + d),)
    given = (
        moving_places(moving, moving_strides, b, t, d, way, MOVING),
        fixed_values(fixed, fixed_strides, b, d, channel, real, FIXED),
        befores,
        edges,
        past,
        coming,
        results,
        totals,
        t * D + d,
        row,
    )
    if ADVANCE is None:  # one chunk is the plain loop
        begin = each_broadcast(first, (CHUNKS, BLOCK))
        ends, _ = backward(begin, given, steps, due, L, TRAJECTORY, False, True, FORM, AHEAD, RESET)
        final = C - 1
    else:
        ends, _, _, residual, _, _, front, undone = newton(
            first, given, (c, channel, steps, due), (T, L, C),
            (tolerance, max_iterations, gives_up),
            backward, ADVANCE, TRAJECTORY, AFFINE_SCAN, FORM, LINEAR, AHEAD, RESET, CHUNKS, BLOCK,
        )  # fmt: skip
        # lanes that went on by themselves have summed what is behind there
        final = tl.where(undone, front, C - 1)
        if some(undone):
            for s in tl.static_range(len(totals)):
                tl.store(totals[s], residual * 0.0, mask=undone & (c > front) & (c < C))
    for i in tl.static_range(k):
        last = (c == final) & channel
        tl.store(of_starts[i] + b * D + d + c * 0, ends[i], mask=last)


@triton.jit
def backward(
    x,  # k tiles: the adjoints that chunks start from
    given,  # places and values of operands, states and gradients; where results are written
    steps,  # of each lane
    due,  # of each chunk, for operands that its channels share
    length,  # the most of these
    STEP: tl.constexpr,  # states, y, operands -> where WRITES, x' and gradients; else J
    PRODUCTS: tl.constexpr,
    WRITES: tl.constexpr,
    FORM: tl.constexpr,  # of J transposed
    AHEAD: tl.constexpr,
    RESET: tl.constexpr,
):
    """Run all chunks of the adjoint, as `solve.forward` runs those of the step."""
    _, w, _, _, _, _, results, totals, lane, row = given
    k: tl.constexpr = len(x)
    real: tl.constexpr = x[0].dtype
    products = ()
    sums = ()
    lost = ()
    if PRODUCTS:
        products = identity(x)
    if WRITES:
        for _ in tl.static_range(len(totals)):
            sums = sums + (zeros_like(x[0]),)
        lost = sums
    # loads are issued some steps before their use, and before the stores of those steps
    ready = ()
    for u in tl.static_range(AHEAD):
        ready = ready + (loaded_step(given, u, steps, due),)
    for at in range(0, length, AHEAD):
        later = ()
        for u in tl.static_range(AHEAD):
            later = later + (loaded_step(given, at + (AHEAD + u), steps, due),)
        parts = ()
        for u in tl.static_range(AHEAD):
            alive = at + u < steps
            operands, states, g = ready[u]
            operands = each_cast(operands, real)
            y = each_pair(added, x, each_cast(g, real))
            if WRITES:
                after, of_moving, of_fixed = STEP(each_cast(states, real), y, operands, w)
                x = each_where(alive, after, x)
                for s in tl.static_range(len(results)):
                    tl.store(results[s] + (at + u) * row + lane, of_moving[s], mask=alive)
                part = each_where(alive, of_fixed, each(zeros_like, sums))
                parts = part if u == 0 else each_pair(added, parts, part)
            else:
                jacobian = transposed(STEP(each_cast(states, real), y, operands, w), k)
                after = matmul(jacobian, y, FORM, 1)
                if RESET is not None:  # 0 times NaN would be NaN
                    after = each_where(operands[RESET] != 0, each(zeros_like, after), after)
                products = each_where(alive, matmul(jacobian, products, FORM, k), products)
                x = each_where(alive, after, x)
        if WRITES:  # thousands of steps in one float32 sum would round
            sums, lost = each_two_sum(sums, lost, parts)
        ready = later
    if WRITES:
        for s in tl.static_range(len(totals)):
            whole = tl.where(tl.abs(sums[s]) < float("inf"), sums[s] + lost[s], sums[s])
            tl.store(totals[s], whole, mask=steps > 0)
    return x, products


@triton.jit
def loaded_step(given, at, steps, due):
    """Load operands, states before the step, and gradients of those after it."""
    places, _, befores, edges, past, coming, _, _, lane, row = given
    states = ()
    for i in tl.static_range(len(befores)):
        pointer = befores[i] + at * row + lane
        states = states + (tl.load(pointer, mask=at < past, other=edges[i]),)
    return loaded(places, at, steps, due), states, loaded(coming, at, steps, due)
