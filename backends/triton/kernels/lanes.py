"""Where lanes stand, and what they read there.

A place in memory is a pointer for the whole instance, moved along the run step by step, and an
offset for each lane.
"""

import triton
import triton.language as tl


@triton.jit
def lanes(T, L, C, D, reverse, WIDE: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """Return an instance's sequence b and its way through memory, 1 or -1; and its lanes' chunks c,
    channels d, which of these exist, the time t of the first step, and how many steps the chunk
    has: `due`, and `steps`, which is 0 for channels that do not exist.

    WIDE: places within a sequence need 64 bits.
    """
    index: tl.constexpr = tl.int64 if WIDE else tl.int32
    blocks = (D + BLOCK - 1) // BLOCK
    b = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.arange(0, CHUNKS)[:, None]
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]
    channel = d < D
    d = d.to(index)
    way = 1 - 2 * reverse
    t = reverse * (T - 1) + way * (c.to(index) * L)
    due = tl.where(c < C, tl.minimum(T - c * L, L), 0)
    steps = tl.where(channel, due, 0)
    return b, way, c, d, channel, t, due, steps


@triton.jit
def start_values(starts, b, d, channel, D):
    """Load k arrays (B, D)."""
    values = ()
    for i in tl.static_range(len(starts)):
        values = values + (tl.load(starts[i] + b * D + d, mask=channel, other=0.0),)
    return values


@triton.jit
def fixed_values(arrays, strides, b, d, channel, real: tl.constexpr, LAYOUTS: tl.constexpr):
    """Load the operands that have no axis of time: "c" one number a channel, "s" one for all."""
    values = ()
    for i in tl.static_range(len(arrays)):
        array = arrays[i] + b * strides[i][0]
        if LAYOUTS[i] == "c":
            value = tl.load(array + d * strides[i][1], mask=channel, other=0)
        else:
            value = tl.load(array + tl.full([1, 1], 0, tl.int32))
        values = values + (value.to(real),)
    return values


@triton.jit
def moving_places(arrays, strides, b, t, d, way, LAYOUTS: tl.constexpr):
    """Return pointers, offsets and strides of the operands that have an axis of time.

    "f": with an axis of channels; "t": without one.
    """
    places = ()
    for i in tl.static_range(len(arrays)):
        offset = t * strides[i][1]
        if LAYOUTS[i] == "f":
            offset += d * strides[i][2]
        stride = (way * strides[i][1]).to(tl.int64)
        places = places + ((arrays[i] + b * strides[i][0], offset, stride),)
    return places


@triton.jit
def loaded(places, at, steps, due):
    """Load what stands in these places at step `at` of the run, 0 after its last."""
    values = ()
    for i in tl.static_range(len(places)):
        pointer, offset, stride = places[i]
        # what all channels share is loaded once for each chunk
        if offset.shape[1] == 1:
            mask = at < due
        else:
            mask = at < steps
        values = values + (tl.load(pointer + at * stride + offset, mask=mask, other=0),)
    return values
