"""How many chunks: a model of what a solve costs.

A run over all chunks takes L = T / C steps one after the other. A step takes as long as its
operations on an idle device, however few lanes there are (one channel of one chunk of one sequence
each); from a number of lanes on that fills the device, it takes longer in proportion:

    time(C) = passes(C) * L * cost * max(lanes that fill the device, B * D * C)

C = 1 is one pass of the step. More chunks need a pass of the step with its Jacobian and one of the
step for each Newton update. So the best C is the one that just fills the device, if it is worth its
passes, and 1 if not. The one measured constant is how many lanes fill a device: see the backends'
`lanes`.
"""

from __future__ import annotations

from parnl.program import Program

# Newton updates that a solve is expected to take. Contracting cells with long chunks take 1, most
# others 2; a linear cell takes 1.
_UPDATES = 1.5
# Chunks must promise this much. Measured on a CPU, two threads, GRU: 8 channels, which 4 chunks
# fill at 3.6 passes, take 0.7 to 1.5 times as long in 8 to 64 chunks as in one; 16 channels, 1.5
# times; 2 channels, 0.3 times.
_GAIN = 2.0
# A chunk shorter than this has forgotten little of its start, and more updates are needed.
_SHORTEST = 16


def passes(program: Program) -> float:
    """Return the cost of a solve in chunks, in runs of the plain step over all chunks."""
    updates = 1.0 if program.linear else _UPDATES
    return updates * (program.costs("step_jacobian") + program.cost) / max(1, program.cost)


def auto_chunks(program: Program, lanes: int, channels: int, steps: int) -> int:
    """Return the number of chunks of least cost; lanes: how many fill the device; channels: B * D.

    >>> import parnl
    >>> program = parnl.get_cell("gru", input_size=1, hidden_size=1).program
    >>> auto_chunks(program, lanes=1024, channels=64, steps=10_000)
    16
    >>> auto_chunks(program, lanes=1024, channels=512, steps=10_000)
    1
    """
    chunks = min(lanes // max(channels, 1), steps // _SHORTEST)
    return chunks if chunks > 1 and chunks >= _GAIN * passes(program) else 1
