"""Checked mode: look at the answer of a solve, and name the first thing that is wrong with it.

Arrays are checked whole on their own device. Only if one fails do its values go to NumPy, to find
the place. The first fault in time is reported, because a NaN makes NaN of all that comes after it.
Finite states are compared with one step from the state before them, in one pass of the framework's
own operations, whichever kernels solved for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from parnl.graph.program import Program


class SolveError(ArithmeticError):
    """`parnl.solve(..., check=True)`: the answer is not finite, not converged or inconsistent."""


def require_values(backend: Any, arrays: Iterable[tuple[str, Any]]) -> None:
    """Raise TypeError if the values of an array are not known here."""
    for name, array in arrays:
        # in a jit nothing that is computed is known, be the array itself
        if any(backend.concrete(a) is None for a in (array, backend.xp.isfinite(array))):
            raise TypeError(
                f"check: the values of {name} are not known while a function is being traced; "
                "call parnl.solve(..., check=True) outside jit, vmap, grad or torch.compile, on "
                "the same arguments"
            )


def check_parameters(backend: Any, params: Mapping[str, Any]) -> None:
    """Raise SolveError if a parameter is not finite."""
    for name, array in params.items():
        if not bool(backend.xp.all(backend.xp.isfinite(array))):
            values = backend.to_numpy(array)
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise SolveError(
                f"parameter {name}: {values[where]} at {list(where)}; look at the optimiser's last "
                "step: its rate, and whether gradients are clipped"
            )


def check_finite(
    backend: Any,
    given: Sequence[tuple[str, Any]],
    names: Sequence[str],
    x0: Sequence[Any],
    states: Sequence[Any],
    mask: Any,
    reverse: bool,
    before: Callable[[], Sequence[Any]],
) -> None:
    """Raise SolveError about the first value of the run that is not finite, if there is one.

    given: name, array that broadcasts to (..., T, channels), what comes first named first; names:
    of the states, x0 k arrays (..., D), states k arrays (..., T, D); mask: (..., T) or None;
    before: returns the states before each step, k arrays (B, T, D).
    """
    xp = backend.xp
    named = [*given, *((f"state {n}", s) for n, s in zip(names, states, strict=True))]
    for name, x in zip(names, x0, strict=True):
        if not bool(xp.all(xp.isfinite(x))):
            values = backend.to_numpy(x)
            *sequence, channel = np.argwhere(~np.isfinite(values))[0]
            at = _place(sequence, None, channel)
            raise SolveError(f"initial_state {name}: {values[(*sequence, channel)]} at {at}")
    fine = [xp.isfinite(array) for _, array in named]
    if mask is not None:
        fine = [f | ~mask[..., None] for f in fine]
    if all(bool(xp.all(f)) for f in fine):
        return
    *batch, steps, _ = states[0].shape
    found = []
    for order, (_, array) in enumerate(named):
        values = np.broadcast_to(backend.to_numpy(array), (*batch, steps, array.shape[-1]))
        bad = ~np.isfinite(values)
        if mask is not None:
            bad &= np.asarray(backend.to_numpy(mask))[..., None]
        for *sequence, step, channel in np.argwhere(bad):
            found.append((steps - 1 - step if reverse else step, order, *sequence, channel, step))
    _, order, *sequence, channel, step = min(found)
    name, array = named[order]
    values = np.broadcast_to(backend.to_numpy(array), (*batch, steps, array.shape[-1]))
    value, at = values[(*sequence, step, channel)], _place(sequence, step, channel)
    if order < len(given):
        cause = ""
        if name.startswith("feature"):
            cause = "; the inputs there are finite, so look at what cell.features makes of them"
        raise SolveError(f"{name}: {value} at {at}{cause}")
    last = backend.to_numpy(before()[order - len(given)])
    last = last.reshape(*batch, steps, -1)[(*sequence, step, channel)]
    if np.isinf(value):
        raise SolveError(
            f"{name}: grows beyond {values.dtype} at {at}, from {last:.3g} one step before; the "
            "cell expands there, see parnl.diagnose(cell, params, inputs)"
        )
    raise SolveError(
        f"{name}: {value} at {at}, from {last:.3g} one step before and finite features; the step "
        "itself makes it, by a division by 0 or a function outside its domain"
    )


def states_before(
    backend: Any,
    program: Program,
    operands: Sequence[Any],
    x0: Sequence[Any],
    states: Sequence[Any],
    reverse: bool,
) -> list[Any]:
    """Return the states before each step, k arrays (B, T, D)."""
    xp, resets = backend.xp, program.resets(operands)
    before = [_previous(xp, x, s, reverse) for x, s in zip(x0, states, strict=True)]
    if resets is None:
        return before
    kinds = zip(program.operands, operands, strict=True)
    initial = [array for operand, array in kinds if operand.kind == "initial"]
    return [xp.where(resets, first, x) for first, x in zip(initial, before, strict=True)]


def check_residuals(
    backend: Any,
    program: Program,
    operands: Sequence[Any],
    x0: Sequence[Any],
    states: Sequence[Any],
    batch: Sequence[int],
    reverse: bool,
    info: Any,
    tolerance: float | None,
    max_iterations: int | None,
) -> None:
    """Raise SolveError if a solve has not converged, or a state is not a step of the one before.

    operands broadcast to (B, T, D); x0: k arrays (B, D); states: k arrays (B, T, D), all finite.
    """
    xp, dtype, k = backend.xp, states[0].dtype, len(states)
    # what is kept for a gradient needs no gradient of its own
    free = [[getattr(a, "detach", lambda a=a: a)() for a in g] for g in (operands, x0, states)]
    operands, x0, states = [xp.astype(a, dtype, copy=False) for a in free[0]], *free[1:]
    before = [_previous(xp, x, s, reverse) for x, s in zip(x0, states, strict=True)]
    size = [
        xp.maximum(xp.max(xp.abs(s), axis=1, keepdims=True), xp.abs(x)[:, None, ...])
        for s, x in zip(states, x0, strict=True)
    ]
    step = program.function("step", backend)
    with np.errstate(all="ignore"):
        errors = [xp.abs(s - a) for s, a in zip(states, step(*before, *operands), strict=True)]
    converged = bool(backend.to_numpy(xp.all(xp.asarray(info.converged))))
    # far above any rounding, far below what is wrong
    allowed = max(math.sqrt(float(xp.finfo(dtype).eps)), tolerance or 0.0)
    limits = [allowed * s for s in size]
    if converged:
        if not any(bool(xp.any(e > m)) for e, m in zip(errors, limits, strict=True)):
            return
        # a steep step makes more of rounding, as much more as its Jacobian is large
        with np.errstate(all="ignore"):
            slopes = program.function("jacobian", backend)(*before, *operands)
        for i in range(k):
            for j in range(k):
                limits[i] = limits[i] + allowed * size[j] * abs(slopes[i * k + j])
        if not any(bool(xp.any(e > m)) for e, m in zip(errors, limits, strict=True)):
            return
    excess = [
        backend.to_numpy(e / xp.where(m == 0, 1.0, m)) for e, m in zip(errors, limits, strict=True)
    ]
    i = int(np.argmax([x.max() for x in excess]))
    row, t, channel = np.unravel_index(int(excess[i].argmax()), excess[i].shape)
    sequence = np.unravel_index(row, tuple(batch)) if batch else ()
    error = float(backend.to_numpy(errors[i])[row, t, channel])
    what = (
        f"state {program.states[i]} is {error:.3g} away from one step of the state before it at "
        f"{_place(sequence, t, channel)}"
    )
    if not converged:
        raise SolveError(
            f"not converged in max_iterations={max_iterations}: {what}; raise max_iterations "
            f"({info.chunks}, the number of chunks, is always enough) or leave it out"
        )
    raise SolveError(
        f"{what}; this is a fault of parnl: please report it, with the results under "
        "PARNL_KERNELS=off and with method='sequential'"
    )


def _previous(xp: Any, first: Any, states: Any, reverse: bool) -> Any:
    if reverse:
        return xp.concat([states[:, 1:, ...], first[:, None, ...]], axis=1)
    return xp.concat([first[:, None, ...], states[:, :-1, ...]], axis=1)


def _place(sequence: Iterable[Any], step: Any, channel: Any) -> str:
    numbers = [int(i) for i in sequence]
    parts = []
    if numbers:
        parts.append(f"sequence {numbers[0] if len(numbers) == 1 else tuple(numbers)}")
    if step is not None:
        parts.append(f"step {int(step)}")
    return ", ".join([*parts, f"channel {int(channel)}"])
