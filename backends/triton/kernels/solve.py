"""The kernel of a solve: what `newton.newton` does, for a block of channels of one sequence."""

import triton
import triton.language as tl

from .lanes import fixed_values, lanes, loaded, moving_places, start_values
from .newton import newton
from .tiles import added, each_broadcast, each_cast, each_where, identity, matmul, peak, some


@triton.jit(do_not_specialize=["T", "L", "C", "reverse", "max_iterations", "gives_up"])
def solve(
    moving,  # operands that have an axis of time
    moving_strides,  # of each, along batch, time and channels
    fixed,  # operands that have none
    fixed_strides,  # of each, along batch and channels
    starts,  # k arrays (B, D)
    states,  # k arrays (B, T, D)
    stats,  # five scalars: `newton.Stats`
    shared,  # five 64-bit integers, all 0; None for one chunk
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
    """Write the states, and when the last instance is done the statistics."""
    b, way, c, d, channel, t, due, steps = lanes(T, L, C, D, reverse, WIDE, CHUNKS, BLOCK)
    first = start_values(starts, b, d, channel, D)
    written = ()
    for i in tl.static_range(len(states)):
        written = written + (states[i] + b * T * D,)
    given = (
        moving_places(moving, moving_strides, b, t, d, way, MOVING),
        fixed_values(fixed, fixed_strides, b, d, channel, first[0].dtype, FIXED),
        written,
        t * D + d,
        (way * D).to(tl.int64),
    )
    if ADVANCE is None:  # one chunk is the plain loop
        begin = each_broadcast(first, (CHUNKS, BLOCK))
        forward(begin, given, steps, due, L, TRAJECTORY, False, True, FORM, AHEAD, RESET)
        if tl.program_id(0) == 0:
            tl.store(stats[0], 0)
            tl.store(stats[1], 0.0)
            tl.store(stats[2], 0.0)
            tl.store(stats[3], 1)
            tl.store(stats[4], tl.num_programs(0) // ((D + BLOCK - 1) // BLOCK) * D)
    else:
        _, iteration, update, residual, settled, inner, _, undone = newton(
            first, given, (c, channel, steps, due), (T, L, C),
            (tolerance, max_iterations, gives_up),
            forward, ADVANCE, TRAJECTORY, AFFINE_SCAN, FORM, LINEAR, AHEAD, RESET, CHUNKS, BLOCK,
        )  # fmt: skip
        statistics(iteration, update, residual, settled, inner, undone, stats, shared)


@triton.jit
def forward(
    x,  # k tiles: the states that chunks start from
    given,  # places and values of operands, where states are written
    steps,  # of each lane
    due,  # of each chunk, for operands that its channels share
    length,  # the most of these
    STEP: tl.constexpr,  # x, operands -> x', entries of the Jacobian
    PRODUCTS: tl.constexpr,
    WRITES: tl.constexpr,
    FORM: tl.constexpr,
    AHEAD: tl.constexpr,
    RESET: tl.constexpr,  # the step knows it
):
    """Run all chunks: return the states they end in, and the products of Jacobians on the way.

    With products it is `newton.Kernels.advance`, and where it writes the states `trajectory`.
    """
    places, w, states, lane, row = given
    k: tl.constexpr = len(x)
    products = ()
    if PRODUCTS:
        products = identity(x)
    # loads are issued some steps before their use, and before the stores of those steps
    ready = ()
    for u in tl.static_range(AHEAD):
        ready = ready + (loaded(places, u, steps, due),)
    for at in range(0, length, AHEAD):
        later = ()
        for u in tl.static_range(AHEAD):
            later = later + (loaded(places, at + (AHEAD + u), steps, due),)
        for u in tl.static_range(AHEAD):
            alive = at + u < steps
            after, jacobian = STEP(x, each_cast(ready[u], x[0].dtype), w)
            if PRODUCTS:
                products = each_where(alive, matmul(jacobian, products, FORM, k), products)
            x = each_where(alive, after, x)
            if WRITES:
                for i in tl.static_range(k):
                    tl.store(states[i] + (at + u) * row + lane, x[i], mask=alive)
        ready = later
    return x, products


@triton.jit
def statistics(iteration, update, residual, settled, inner, undone, stats, shared):
    """Join what the instances found; the last one to come finds everyone's in `shared`.

    The bits of numbers that are not negative have the order of the numbers. The update is that of
    the last iteration of all, so it stands behind the count in one integer, in single precision.
    """
    real: tl.constexpr = residual.dtype
    bits: tl.constexpr = tl.int32 if real == tl.float32 else tl.int64
    last = peak(update, inner).to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)
    tl.atomic_max(shared, (iteration.to(tl.int64) << 32) + last)
    left = peak(residual, inner & ~undone).to(bits, bitcast=True).to(tl.int64)
    tl.atomic_max(shared + 1, left)
    tl.atomic_max(shared + 2, some(~settled & ~undone).to(tl.int64))
    looped = undone.to(tl.int64)
    tl.atomic_add(shared + 4, tl.reduce(tl.reduce(looped, 1, added), 0, added))
    if tl.atomic_add(shared + 3, 1) == tl.num_programs(0) - 1:
        last = tl.atomic_max(shared, 0)
        tl.store(stats[0], (last >> 32).to(tl.int32))
        tl.store(stats[1], last.to(tl.int32).to(tl.float32, bitcast=True))
        left = tl.atomic_max(shared + 1, 0)
        tl.store(stats[2], left.to(bits).to(real, bitcast=True))
        tl.store(stats[3], tl.atomic_max(shared + 2, 0) == 0)
        tl.store(stats[4], tl.atomic_add(shared + 4, 0).to(tl.int32))
