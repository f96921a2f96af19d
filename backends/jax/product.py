"""Products of long, narrow matrices: the projections of a cell with few inputs."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parnl.backends.c import build
from parnl.backends.c.calls import processors
from parnl.backends.jax import ffi
from parnl.backends.jax.implicit import merging
from parnl.backends.jax.primitive import primitive
from parnl.backends.jax.private import ad
from parnl.graph.nodes import Graph
from parnl.graph.program import Program
from parnl.solver.newton import Plan

# XLA's CPU compiler packs both sides of a product, whatever their size. Measured, N = 65536, hidden
# = 64: as elementwise code it takes 0.9 ms for 2.8 ms at n = 4, 2.3 for 9 at n = 16.
SHORT = 16
# Rows that are worth a task of their own.
_ROWS = 1024


def matmul(rows: Any, matrix: Any) -> Any:
    """Return rows (N, n) @ matrix (n, hidden), as elementwise code where n is small."""
    full = rows.dtype == matrix.dtype and rows.dtype in (jnp.float32, jnp.float64)
    if full and 0 < rows.shape[1] <= SHORT and rows.shape[0]:
        return short_p.bind(rows, matrix, problem=None)[0]
    return rows @ matrix


def _short(rows: Any, matrix: Any, *, problem: None) -> list:
    if not ffi.usable(rows.dtype):
        return [_composed(rows, matrix)]
    return [lax.platform_dependent(rows, matrix, cpu=_compiled, default=_composed)]


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], *, problem: None) -> tuple:
    """Derivatives are products of XLA's: their transpose sums over N, where packing pays."""
    (rows, matrix), (d_rows, d_matrix) = primals, tangents
    parts = [] if isinstance(d_rows, ad.Zero) else [d_rows @ matrix]
    parts += [] if isinstance(d_matrix, ad.Zero) else [rows @ d_matrix]
    return short_p.bind(rows, matrix, problem=None), [sum(parts[1:], parts[0])]


def _shapes(rows: Any, matrix: Any, *, problem: None) -> list:
    return [jax.ShapeDtypeStruct((rows.shape[0], matrix.shape[1]), rows.dtype)]


short_p = primitive("parnl_short_product", _short, _shapes, _derivative)


def _composed(rows: Any, matrix: Any) -> Any:
    total = rows[:, :1] * matrix[:1]
    for j in range(1, rows.shape[1]):
        total = total + rows[:, j : j + 1] * matrix[j : j + 1]
    return total


@jax.jit
def _compiled(rows: Any, matrix: Any) -> Any:
    """The product as the run of a cell that remembers nothing.

    No quicker in itself, but XLA's code runs into a page fault for every 4 KiB of fresh memory, and
    the kernel asks for huge pages. Measured, N = 65536, hidden = 64: an LRC's forward run, of two
    such products, takes 9.5 ms for 12.6.
    """
    (count, n), hidden = rows.shape, matrix.shape[1]
    chunks = max(1, min(4 * processors(), count // _ROWS))
    plan = Plan.make(count, chunks, 0.0)

    @merging
    def run(operands: list, starts: list) -> list:
        return ffi.call(_program(n), plan, "trajectory", operands, starts)[:1]

    operands = [*(rows[None, :, j : j + 1] for j in range(n)), *matrix[:, None, None]]
    try:
        (product,) = run(operands, [jnp.zeros((1, plan.chunks, hidden), rows.dtype)])
    except build.BuildError:  # which has been said
        if build.choice() == "c":
            raise
        return _composed(rows, matrix)
    return product[0]


@cache
def _program(n: int) -> Program:
    """x' = v_0 w_0 + ... + v_{n-1} w_{n-1}."""
    graph = Graph()
    v, w = ([graph.leaf("coefficient", f"{name}{j}") for j in range(n)] for name in "vw")
    total = reduce(operator.add, (a * b for a, b in zip(v, w, strict=True)))
    return Program.shared(graph, [graph.leaf("state", "x")], [*v, *w], [total])
