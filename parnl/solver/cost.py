"""How many chunks, and how many updates: a model of what a solve costs.

A run over all chunks takes L = T / C steps one after the other. A lane is one channel of one chunk
of one sequence. While lanes do not fill the device, a step takes as long as its operations, however
few lanes there are. From then on it takes longer in proportion:

    time of a run(C) = L * cost * max(1, B * D * C / lanes that fill the device)

C = 1 is one run of the step. More chunks need one run, and a short one before it, where chunk
starts can be guessed (see `newton`). Elsewhere they need, for each Newton update, a run of the step
with its Jacobian, one of the step, and some array operations on the chunk starts between them,
whose price is the fixed cost of a call. So the best C is one that fills the device, if that is
worth its runs, and 1 if not. How many lanes fill a device, and the price, are measured constants:
see the backends' `device`.
"""

from __future__ import annotations

from typing import NamedTuple

from parnl.graph.program import Program

# Newton updates that a solve is expected to take. Contracting cells with long chunks take 1, most
# others 2; a linear cell takes 1.
_UPDATES = 1.5
# Chunks must promise this much. Measured on a CPU, two threads, GRU: 8 channels, which 4 chunks
# fill at 3.6 passes, take 0.7 to 1.5 times as long in 8 to 64 chunks as in one; 16 channels, 1.5
# times; 2 channels, 0.3 times.
_GAIN = 2.0
# A chunk shorter than this has forgotten little of its start, and more updates are needed.
_SHORTEST = 16
# A step of chunks takes longer than its operations say, next to one of the plain loop: chunks lie
# apart in memory, and the operations of a Jacobian are cheap but many. Measured: 1.5 to 3 times.
_APART = 2.0
# Updates may cost as much as one plain loop before it is run after all. By the model, that is; by
# the clock it is to stay within 2.5 loops. Two updates are made in any case: who asks for chunks on
# a full device gets them.
_BUDGET = 1.0
_FEWEST = 2
# A chunk start is guessed from so many steps before it, if a chunk is this many times as long.
# Measured on ten cells at their initial scale: eight have forgotten their start, to the last bit,
# after 128 steps, some after 32.
GUESSED_FROM, _WORTH = 256, 4
# Guessed chunks take at least this share of the loop's time: _NARROW below _VECTOR channels, where
# chunks fill the processor's vectors, else _WIDE, where a row fills them by itself and only threads
# are gained. Measured on two processors: 0.15 to 0.3 of 1 and 2 channels, 0.43 to 0.75 of 8 to 32.
_NARROW, _WIDE, _VECTOR = 0.2, 0.7, 8
# What waking a thread costs, in operations of a step. Measured: it takes 0.05 to 0.3 ms.
_WAKING = 6e4
# Array operations of an update that are not products of blocks, for each state.
_OPERATIONS = 150

# Features of so many numbers are made in stretches; fewer take longer so, for there is more to ask
# for, and a gradient makes them twice. Measured, 2^28 numbers of GRU, LSTM and LRC, forward and
# with gradient, stretches over whole: PyTorch 0.9 to 1.3 and 1.0 to 1.7, JAX 0.7 to 1.3 and 0.4
# to 0.7, in a third of the memory. Where nobody asks for a gradient, stretches pay as soon as the
# features do not fit the cache. Measured, PyTorch, stretches over whole: with 32 MiB of cache, 0.55
# to 0.85 from 2^23 numbers on; with 480 MiB, 1.3 to 1.9 at 2^24, 0.83 to 1.05 from 2^26 on.
_LARGE, _LARGE_ALONE = 1 << 27, 1 << 23
# A stretch makes so many numbers of a feature, few enough for the cache, or what pays for asking
# for the operations of a stretch; at least so many steps. Without a gradient they take a sixteenth
# of the cache. Measured with 480 MiB: 2^21 numbers take 0.7 to 0.8 of the time of 2^19.
_CACHED, _CACHED_ALONE, _MOST_ALONE = 1 << 18, 1 << 19, 1 << 21
_ASKED, _ASKED_ALONE, _LEAST = 400, 200, 64


class Device(NamedTuple):
    """What decides the time of a run.

    lanes: elements that make an operation on arrays worth its cost; price: of one array operation
    on few elements, however cheap it is, counted in operations of a step on as few. crowd: number
    of lanes beyond which more gain nothing, 0 where chunk starts are not guessed. cache: bytes of
    the processor's last level of cache.
    """

    lanes: int
    price: float
    crowd: int = 0
    cache: int = 1 << 25


def guesses(program: Program, length: int) -> bool:
    """Return whether chunk starts are guessed first, for chunks of `length` steps."""
    return not program.linear and length >= _WORTH * GUESSED_FROM


def loop_cost(program: Program, device: Device, channels: int, steps: int) -> float:
    """Return what the plain loop costs; channels: B * D."""
    return steps * program.cost * max(1.0, channels / device.lanes)


def update_cost(program: Program, device: Device, channels: int, steps: int, chunks: int) -> float:
    """Return what a Newton update costs, in the same unit."""
    length, k = -(-steps // chunks), len(program.states)
    filled = max(1.0, channels * chunks / device.lanes)
    runs = length * (program.costs("step_jacobian") + program.cost) * filled
    # of a scan over the chunks, some six levels; of the rest, three products of k x k blocks
    between = _OPERATIONS * k + 9 * k * k * (2 * k - 1)
    return _APART * runs + device.price * between


def auto_chunks(program: Program, device: Device, channels: int, steps: int) -> int:
    """Return the number of chunks of least cost; channels: B * D.

    >>> import parnl
    >>> program = parnl.get_cell("gru", input_size=1, hidden_size=1).program
    >>> device = Device(lanes=1024, price=4.0)
    >>> auto_chunks(program, device, channels=64, steps=10_000)
    16
    >>> auto_chunks(program, device, channels=512, steps=10_000)
    1
    """
    loop = loop_cost(program, device, channels, steps)
    chunks = min(device.crowd // max(channels, 1), steps // (_WORTH * GUESSED_FROM))
    if chunks > 1 and not program.linear:
        # the run and the short one before it, and what stands between them at its price, doubled:
        # of a loop below a millisecond nothing is to be gained (measured)
        asked = _GAIN * device.price * _OPERATIONS * len(program.states) + _WAKING
        least = _NARROW if channels < _VECTOR else _WIDE
        if loop >= max(1.2 / chunks, least) * loop + asked:
            return chunks
    chunks = min(device.lanes // max(channels, 1), steps // _SHORTEST)
    if chunks < 2:
        return 1
    updates = 1.0 if program.linear else _UPDATES
    parallel = updates * update_cost(program, device, channels, steps, chunks)
    return chunks if loop >= _GAIN * parallel else 1


def backward_chunks(
    program: Program, device: Device, channels: int, steps: int, chunks: int
) -> int:
    """Return the number of chunks for the adjoint of a solve in `chunks` of them: as many, or 1.

    It is linear, so its starts are never guessed: a run with Jacobians and their products comes
    before the one that writes gradients, whose step costs about twice that of the solve.

    >>> import parnl
    >>> program = parnl.get_cell("gru", input_size=1, hidden_size=1).program
    >>> device = Device(lanes=32, price=300.0, crowd=64)
    >>> [backward_chunks(program, device, n, 10_000, 64 // n) for n in (1, 2, 8)]
    [64, 32, 1]
    """
    loop = 2.0 * loop_cost(program, device, channels, steps)
    parallel = update_cost(program, device, channels, steps, chunks)
    parallel += _APART * loop_cost(program, device, channels * chunks, -(-steps // chunks))
    return chunks if loop >= _GAIN * parallel else 1


def updates_worth(program: Program, device: Device, channels: int, steps: int, chunks: int) -> int:
    """Return after how many updates it is time to give up and run the plain loop.

    >>> import parnl
    >>> program = parnl.get_cell("gru", input_size=1, hidden_size=1).program
    >>> updates_worth(program, Device(lanes=1024, price=4.0), 64, 10_000, chunks=16)
    3
    """
    loop = loop_cost(program, device, channels, steps)
    worth = _BUDGET * loop / update_cost(program, device, channels, steps, chunks)
    return min(chunks, max(_FEWEST, int(worth)))


def shortest_streamed(program: Program, channels: int) -> int:
    """Return from how many steps on stretches may be taken unasked; channels: B * D."""
    return -(-_LARGE_ALONE // max(1, _features(program) * channels))


def _features(program: Program) -> int:
    return sum(o.kind == "feature" for o in program.operands)


def stretch_length(
    program: Program, device: Device, channels: int, steps: int, followed: bool
) -> int:
    """Return the number of steps of a stretch, `steps` where all are solved at once.

    channels: B * D; followed: whether a gradient may be asked for.

    >>> import parnl
    >>> program = parnl.get_cell("gru", input_size=1, hidden_size=1).program
    >>> device = Device(lanes=32, price=2500.0, crowd=64)
    >>> [stretch_length(program, device, 64, 2**n, followed=True) for n in (14, 16, 20, 24)]
    [16384, 65536, 16384, 16384]
    >>> [stretch_length(program, device, 64, 2**n, followed=False) for n in (14, 16, 20, 24)]
    [16384, 8192, 8192, 8192]
    >>> stretch_length(program, device._replace(cache=1 << 29), 64, 2**16, followed=False)
    65536
    """
    large, cached, asked = _LARGE, _CACHED, _ASKED
    if not followed:
        numbers = device.cache // 4
        large, asked = min(_LARGE, max(_LARGE_ALONE, numbers)), _ASKED_ALONE
        cached = min(_MOST_ALONE, max(_CACHED_ALONE, numbers // 16))
    if not device.crowd or _features(program) * channels * steps < large:
        return steps
    length = max(_LEAST, int(max(cached, asked * device.price)) // channels)
    count = max(1, steps // length)
    # all equally long if that can be: then compilers see one length only
    equal = (c for c in range(count, count // 2, -1) if steps % c == 0)
    return -(-steps // next(equal, count))
