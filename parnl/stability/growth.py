"""Lyapunov exponents on a framework's arrays, with gradients: to be terms of a loss.

A loss may keep exponents near 0, where gradients neither fade nor explode, or below it, where a
model forgets and a solve takes few iterations (gradient flossing, arXiv 2312.17306).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from parnl.cell import Cell
from parnl.graph.nodes import Graph
from parnl.graph.program import Program
from parnl.inputs import (
    check_params,
    computed_features,
    feature_operands,
    initial_states,
    time_step,
)
from parnl.solver.run import run, settings

# The logarithm of a slope of 0 is none: what is smaller than this counts as this.
_TINY = 1e-30


def growth(
    cell: Cell, params: Mapping[str, Any], inputs: Any, initial_state: Any, dt: Any
) -> tuple[Any, Any]:
    """Return exponents (..., hidden) and the largest norm of a step's Jacobian (hidden,).

    For a cell with one state, an exponent is that of `lyapunov`. For several states, it is the
    growth of an equal change of all of them; over many steps that is the same. The direction of
    the change is a recurrence of its own, solved in parallel over time like any other.
    """
    backend, params, inputs = check_params(cell, params, inputs)
    xp = backend.xp
    *batch, steps, _ = inputs.shape
    if steps == 0 or 0 in batch:
        raise ValueError(f"inputs: expected at least one step, got shape {tuple(inputs.shape)}")
    p, features, dtype, _ = computed_features(backend, cell, params, inputs)
    dt = time_step(backend, cell, dt, inputs, dtype)
    operands = feature_operands(backend, cell, p, features, dt, inputs)
    rows, channels, k = math.prod(batch), cell.hidden_size, len(cell.states)
    given = initial_states(backend, cell, initial_state, inputs, dtype, tuple(batch))
    x0 = [xp.astype(xp.reshape(x, (rows, channels)), dtype) for x in given]
    how = settings()
    states, _ = run(backend, cell.program, operands, x0, steps, how)
    before = [xp.concat([x[:, None], s[:, :-1]], axis=1) for x, s in zip(x0, states, strict=True)]
    operands = [xp.astype(a, dtype) for a in operands]
    found = cell.program.function("jacobian", backend)(*before, *operands)
    # an entry may be a number, or may not depend on time
    entries = [xp.zeros_like(states[0]) + e for e in found]
    if k == 1:
        size = xp.abs(entries[0])
    else:
        even = xp.full_like(x0[0], 1.0 / math.sqrt(k))
        turned, _ = run(backend, _direction(k), entries, [even] * k, steps, how)
        old = [xp.concat([even[:, None], v[:, :-1]], axis=1) for v in turned]
        new = [sum(entries[i * k + j] * old[j] for j in range(k)) for i in range(k)]
        size = xp.sqrt(sum(v * v for v in new) + _TINY**2)
    logs = xp.log(xp.where(size > _TINY, size, xp.full_like(size, _TINY)))
    exponents = xp.reshape(xp.mean(logs, axis=1), (*batch, channels))
    norms = [sum(xp.abs(e) for e in entries[i * k : (i + 1) * k]) for i in range(k)]
    largest = norms[0]
    for norm in norms[1:]:
        largest = xp.maximum(largest, norm)
    return exponents, xp.max(largest, axis=(0, 1))


@cache
def _direction(k: int) -> Program:
    """v' = J v / |J v|; operands: the k * k entries of J, row by row."""
    g = Graph()
    v = [g.leaf("state", f"v{i}") for i in range(k)]
    jacobian = [g.leaf("coefficient", f"j{i}") for i in range(k * k)]
    moved = []
    for i in range(k):
        total = jacobian[i * k] * v[0]
        for j in range(1, k):
            total = total + jacobian[i * k + j] * v[j]
        moved.append(total)
    square = moved[0] * moved[0]
    for x in moved[1:]:
        square = square + x * x
    # a change that is lost stays lost: 0 by something is 0
    size = g.apply("sqrt", g.apply("where", square > 0.0, square, 1.0))
    return Program.shared(g, v, jacobian, [x / size for x in moved])
