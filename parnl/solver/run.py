"""How a program is run: what the caller may set, and the number of chunks that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from parnl.graph.program import Program
from parnl.solver.cost import Device, auto_chunks, backward_chunks
from parnl.solver.devices import Along, Line
from parnl.solver.newton import Plan

METHODS = ("auto", "newton", "sequential")
_INTEGER, _FLOAT = (int, np.integer), (float, np.floating)


class Info(NamedTuple):
    """Statistics of a solve: arrays () of the backend, but for `chunks`.

    In a solve in stretches, `chunks` is that of each stretch; other numbers are the largest of any.

    Attributes:
        iterations: Newton updates made, 0 if sequential.
        chunks: C, the number of chunks.
        update: largest change of a chunk start in the last update.
        residual: largest gap left between the end of a chunk and the next start.
        converged: whether all gaps are small enough.
        sequential: how many lanes (channels of sequences) the plain loop has run: all with one
            chunk, else those that Newton was given up on.
    """

    iterations: Any
    chunks: int
    update: Any
    residual: Any
    converged: Any
    sequential: Any


class Settings(NamedTuple):
    """The arguments of `solve` that say how; see there. `settings` makes and checks them."""

    reverse: bool = False
    method: str = "auto"
    chunks: int | None = None
    tolerance: float | None = None
    max_iterations: int | None = None

    def chunks_of(self, program: Program, device: Device, channels: int, steps: int) -> int:
        """Return C for T = `steps`; channels: B * D."""
        if self.chunks is not None:
            return min(self.chunks, steps)  # the last one of several stretches may be short
        if self.method == "sequential":
            return 1
        free = is_free(channels) or is_free(steps)
        automatic = 1 if free else auto_chunks(program, device, channels, steps)
        return max(automatic, min(8, steps)) if self.method == "newton" else automatic


def is_free(size: Any) -> bool:
    """Whether a size is left open, in a function that is exported for all of them."""
    return not isinstance(size, _INTEGER)


def settings(
    reverse: Any = False,
    method: str = "auto",
    chunks: Any = None,
    tolerance: Any = None,
    max_iterations: Any = None,
) -> Settings:
    """Return the settings; raise ValueError or TypeError that name what is wrong with them."""
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if tolerance is not None:
        tolerance = float(checked("tolerance", tolerance, "a number", *_INTEGER, *_FLOAT))
        if not tolerance >= 0:
            raise ValueError(f"tolerance: expected a number of at least 0, got {tolerance!r}")
    if max_iterations is not None:
        max_iterations = positive("max_iterations", max_iterations)
    reverse = bool(checked("reverse", reverse, "True or False", bool, np.bool_))
    if isinstance(chunks, str) and chunks == "auto":
        chunks = None
    if chunks is not None:
        chunks = int(checked("chunks", chunks, "an integer or 'auto'", *_INTEGER))
        if method == "sequential" and chunks > 1:
            raise ValueError(f"chunks: expected 1 with method='sequential', got {chunks}")
    return Settings(reverse, method, chunks, tolerance, max_iterations)


def check_chunks(how: Settings, steps: int, name: str) -> None:
    """Raise ValueError unless there are 1 to `steps` chunks; name: of that number of steps."""
    if how.chunks is not None and not 1 <= how.chunks <= max(steps, 1):
        raise ValueError(f"chunks: expected 1 <= chunks <= {name} = {steps}, got {how.chunks}")


def positive(name: str, value: Any) -> int:
    """Return the argument `name`, an integer of at least 1."""
    value = int(checked(name, value, "an integer", *_INTEGER))
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value!r}")
    return value


def checked(name: str, value: Any, expected: str, *kinds: type) -> Any:
    """Return `value`, of one of these kinds: it decides what is computed, so no array holds it."""
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    raise TypeError(f"{name}: expected {expected}, got {value!r}")


def planned(backend: Any, program: Program, like: Any, steps: int, how: Settings) -> Plan:
    """Return how T = `steps` are solved from states like `like` (B, D)."""
    rows, channels = like.shape
    where = program, backend.device(like), rows * channels, steps
    count = how.chunks_of(*where)
    given = how.chunks is not None or how.method != "auto"
    back = None if given or count == 1 else backward_chunks(*where, count)
    epsilon = float(backend.xp.finfo(like.dtype).eps)
    count = count if rows else 1
    plan = Plan.make(steps, count, epsilon, how.tolerance, how.max_iterations, how.reverse, back)
    told = how.chunks is not None or how.method == "sequential"
    return plan._replace(automatic="" if told else how.method)


def planned_anew(backend: Any, program: Program, like: Any, plan: Plan) -> Plan:
    """Return the plan with the chunks of the backend's present device, where devices decide."""
    if not plan.automatic:
        return plan
    how = Settings(plan.reverse, plan.automatic, None, plan.tolerance, plan.max_iterations)
    return planned(backend, program, like, plan.steps, how)._replace(automatic="")


def planned_along(backend: Any, program: Program, like: Any, line: Line, how: Settings) -> Plan:
    """Return how the steps of a line of devices are solved: in as many chunks on each."""
    return line.rounded(planned(Along(backend, line), program, like, line.total(), how))


def run_along(
    backend: Any,
    program: Program,
    operands: Sequence[Any],
    x0: Sequence[Any],
    line: Line,
    how: Settings,
) -> tuple[list[Any], list[Any], list[Any], Info]:
    """Solve for the states (B, T_p, D) of the own steps, and (B, D) before them and after all."""
    plan = planned_along(backend, program, x0[0], line, how)
    states, before, ends, stats = backend.solve_along(program, plan, operands, x0, line)
    return states, before, ends, Info(chunks=plan.chunks, **stats._asdict())


def run(
    backend: Any,
    program: Program,
    operands: Sequence[Any],
    x0: Sequence[Any],
    steps: int,
    how: Settings,
) -> tuple[list[Any], Info]:
    """Solve for every state, k arrays (B, T, D)."""
    if steps == 0:
        rows, channels = x0[0].shape
        empty = [backend.xp.broadcast_to(x[:, None, :], (rows, 0, channels)) for x in x0]
        return empty, Info(0, 1, 0.0, 0.0, True, 0)
    plan = planned(backend, program, x0[0], steps, how)
    states, stats = backend.solve(program, plan, operands, x0)
    return states, Info(chunks=plan.chunks, **stats._asdict())
