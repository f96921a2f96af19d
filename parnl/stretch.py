"""Stretches of time: a solve is one of them, or many, one after the other.

For each stretch, parnl computes the features, solves for the states from the state before it, and
returns the outputs. If the features of all steps would be large, it cuts a solve into stretches
whose features fit the processor's cache. The answer is the same to rounding; cells, kernels and
solver know nothing of stretches. For a gradient the features are computed once more, stretch by
stretch, so no feature is ever in memory at full length.

That needs features which do not look along time: a convolution would see the edges of a stretch.
`parnl.locality` finds out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from parnl.cell import Cell
from parnl.dtypes import is_half
from parnl.graph.program import Program
from parnl.inputs import batched, feature_operands, features_of, last_states, time_array
from parnl.locality import cuts
from parnl.params import Values
from parnl.solver.devices import Line
from parnl.solver.newton import Stats
from parnl.solver.run import Info, Settings, planned, run, run_along

# What a stretch is made from and what it leaves behind, see `solve_stretch` and `advance`.
Along = Mapping[str, Any]
Carry = tuple[list[Any], list[Any] | None, Stats]


class Task(NamedTuple):
    """What is fixed in a solve, besides arrays.

    dt: the time step where it is a number, else None; dtype, result: as `inputs.wide_params` has
    them; at_zero: whether the initial states are zeros; line: the devices that share the axis of
    time, if several do.
    """

    cell: Cell
    how: Settings
    dt: float | None
    dtype: Any
    result: Any
    at_zero: bool
    line: Line | None = None


class Stretch(NamedTuple):
    """What is found of a stretch of T steps.

    outputs: (..., T, hidden); states: k arrays (B, T, D); ends: the last ones, k arrays (B, D);
    features: by name; program, operands, x0: what was solved; of several devices, the own part.
    """

    outputs: Any
    states: list[Any]
    ends: list[Any]
    info: Info
    features: Values
    program: Program
    operands: list[Any]
    x0: list[Any]


def solve_stretch(
    backend: Any, task: Task, fixed: Mapping[str, Any], x: Sequence[Any], along: Along
) -> Stretch:
    """Solve from the states x, k arrays (B, D).

    fixed: "params", by name; "initial", k arrays (B, D) or of packed sequences (S, D). along: what
    has a time axis, each (..., T, n) or (..., 1, n), by name: "inputs", and where there are any
    "dt", "mask" of valid steps, "begins", where the run begins anew, and "index", which of the
    packed sequences a step belongs to.
    """
    xp, cell = backend.xp, task.cell
    inputs: Any = along["inputs"]
    mask, begins, index = (along.get(n) for n in ("mask", "begins", "index"))
    *batch, steps, _ = inputs.shape
    if mask is not None:
        # what stands in the padding, NaN for instance, must not reach a gradient either
        inputs = xp.where(mask, inputs, xp.zeros_like(inputs))
    p = Values("parameter", fixed["params"])
    program, found = backend.with_products(cell, p, inputs, task.dtype)
    features, dtype = features_of(backend, cell, p, inputs, task.dtype, task.result, found)
    dt = None
    if cell.time_aware:
        given = along["dt"][..., 0] if task.dt is None else task.dt
        dt = time_array(xp, given, inputs, dtype)
        if mask is not None and task.dt is None:
            dt = xp.where(mask[..., 0], dt, xp.ones_like(dt))
    operands = feature_operands(backend, cell, p, features, dt, inputs, program)
    x0 = [xp.astype(a, dtype, copy=False) for a in x]
    if begins is not None:
        program = program.restarting
        operands.append(begins)
        initial = [xp.astype(a, dtype, copy=False) for a in fixed["initial"]]
        if task.at_zero:
            operands += [xp.zeros_like(a[:1, None, ...]) for a in initial]
        elif index is None:
            operands += [a[:, None, ...] for a in initial]
        else:
            operands += [xp.take(a, index[:, 0], axis=0)[None, ...] for a in initial]
    if mask is not None:
        program = program.masked
        operands.append(batched(xp, mask, tuple(batch)))
    if task.line is None:
        states, info = run(backend, program, operands, x0, steps, task.how)
        last = 0 if task.how.reverse else -1
        ends = [backend.step_of(s, last) for s in states] if steps else x0
    else:
        states, x0, ends, info = run_along(backend, program, operands, x0, task.line, task.how)
    whole = [xp.reshape(s, (*batch, steps, cell.hidden_size)) for s in states]
    result = task.result if is_half(task.result) else dtype
    outputs = outputs_of(backend, cell, p, whole, features, result)
    if mask is not None:
        outputs = xp.where(mask, outputs, xp.zeros_like(outputs))
    return Stretch(outputs, states, ends, info, features, program, operands, x0)


def outputs_of(
    backend: Any, cell: Cell, p: Values, states: Sequence[Any], features: Values, dtype: Any
) -> Any:
    """Return the outputs (..., T, hidden) in `dtype`."""
    last = states[-1]
    if hasattr(cell, "output"):
        with backend.products(dtype, last):
            last = cell.output(p, *states, features)
    return backend.xp.astype(last, dtype, copy=False)


def advance(
    backend: Any, task: Task, fixed: Mapping[str, Any], carry: Carry, along: Along
) -> tuple[Carry, Any]:
    """Solve a stretch of many: (what the next one needs, outputs).

    carry: the states x before it; of packed sequences, their last states so far, else None; the
    largest numbers of `Info` so far. For packed sequences, fixed also has "offsets", and along has
    "time", see `solve_stretch`.
    """
    xp, (x, ends, most), reverse = backend.xp, carry, task.how.reverse
    found = solve_stretch(backend, task, fixed, x, along)
    if ends is not None:
        first, offsets = along["time"][0, 0], fixed["offsets"]
        ends = [
            last_states(xp, offsets, first, s[0, ...], e, reverse)
            for s, e in zip(found.states, ends, strict=True)
        ]
    # copies, so that they do not keep the states of all steps in memory
    x = [xp.astype(a, a.dtype) for a in found.ends]
    info = found.info
    stats = Stats(*(getattr(info, n) for n in Stats._fields))
    return (x, ends, largest(xp, most, stats)), found.outputs


def largest(xp: Any, one: Stats, other: Stats) -> Stats:
    """Return the numbers of two stretches together."""
    pairs = zip(one._replace(converged=False), other._replace(converged=False), strict=True)
    found = [a if a is False else xp.maximum(a, b) for a, b in pairs]
    return Stats(*found)._replace(converged=one.converged & other.converged)


def streamed(
    backend: Any,
    task: Task,
    fixed: Mapping[str, Any],
    x: Sequence[Any],
    along: Along,
    length: int,
) -> tuple[Any, list[Any], list[Any] | None, Info]:
    """Solve in stretches of `length` steps: (outputs, last states x, those of sequences, info)."""
    xp, cell = backend.xp, task.cell
    zero = xp.sum(xp.zeros_like(x[0]))
    none = xp.astype(zero, xp.int32)
    before = Stats(none, zero, zero, zero == 0, none)
    ends = list(fixed["initial"]) if "offsets" in fixed else None
    carry = (list(x), ends, before)
    outputs, (after, ends, stats) = backend.in_stretches(task, fixed, carry, along, length)
    program = cell.program if "begins" not in along else cell.program.restarting
    program = program.masked if "mask" in along else program
    plan = planned(backend, program, after[0], length, task.how)
    return outputs, after, ends, Info(chunks=plan.chunks, **stats._asdict())


def part(along: Along, cut: slice) -> dict[str, Any]:
    """Return what belongs to a stretch."""
    return {n: a if a.shape[-2] == 1 else a[..., cut, :] for n, a in along.items()}


def advance_in_order(
    backend: Any, task: Task, fixed: Mapping[str, Any], carry: Carry, along: Along
) -> tuple[Carry, Any]:
    """Do what `advance` does, for frameworks in which a stretch is a view.

    Every product of matrices would copy its inputs.
    """
    along = {**along, "inputs": backend.contiguous(along["inputs"])}
    return advance(backend, task, fixed, carry, along)


def one_by_one(
    backend: Any,
    task: Task,
    fixed: Mapping[str, Any],
    carry: Carry,
    along: Along,
    length: int,
) -> tuple[Any, Carry]:
    """Return all outputs and the last carry, of frameworks whose arrays can be written to."""
    steps, outputs = along["inputs"].shape[-2], None
    for cut in cuts(steps, length, task.how.reverse):
        carry, found = advance_in_order(backend, task, fixed, carry, part(along, cut))
        if outputs is None:
            outputs = backend.empty((*found.shape[:-2], steps, found.shape[-1]), found)
        outputs[..., cut, :] = found
    return outputs, carry
