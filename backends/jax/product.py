"""Products of long, narrow matrices: the projections of a cell with few inputs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parnl.backends.c import build
from parnl.backends.c.calls import processors
from parnl.backends.jax import ffi
from parnl.backends.jax.divided import Letters, Over, Rule, explicitly, summed
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


def matmul(inputs: Any, matrix: Any) -> Any:
    """Return inputs (..., n) @ matrix (n, hidden), as elementwise code where n is small."""
    dtype = jnp.promote_types(inputs.dtype, matrix.dtype)
    arrays = [inputs.astype(dtype), matrix.astype(dtype)]
    found = explicitly(arrays, _product_rule(product_p, *arrays))
    return (found or product_p.bind(*arrays, problem=None))[0]


# The product, and its pullback to the matrix: the transpose of either is one of the two.


def _product(inputs: Any, matrix: Any, *, problem: None = None) -> list:
    """As a product of two axes: XLA's CPU compiler copies what has three."""
    n, hidden = matrix.shape
    rows = _rows(inputs)
    # wide to narrow, as back to the inputs, is no code for vectors
    short = 0 < n <= min(SHORT, hidden) and ffi.usable(rows.dtype) and rows.shape[0]
    if not short:
        found = rows @ matrix
    else:
        found = lax.platform_dependent(rows, matrix, cpu=_compiled, default=_composed)
    return [found.reshape(*inputs.shape[:-1], hidden)]


def _sums(inputs: Any, grads: Any, *, problem: None = None) -> list:
    """Return the sum over all rows of inputs (..., n) times grads (..., h)."""
    return [_rows(inputs).T @ _rows(grads)]


def _rows(x: Any) -> Any:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _product_shapes(inputs: Any, matrix: Any, *, problem: None) -> list:
    return [jax.ShapeDtypeStruct((*inputs.shape[:-1], matrix.shape[1]), inputs.dtype)]


def _sums_shapes(inputs: Any, grads: Any, *, problem: None) -> list:
    return [jax.ShapeDtypeStruct((inputs.shape[-1], grads.shape[-1]), inputs.dtype)]


def _product_rule(made: Any, inputs: Any, matrix: Any, *, problem: None = None) -> Rule:
    lead = _lead(inputs)
    return _bilinear([(*lead, "n"), ("n", "h")], (*lead, "h"), made)


def _sums_rule(made: Any, inputs: Any, grads: Any, *, problem: None = None) -> Rule:
    lead = _lead(inputs)
    return _bilinear([(*lead, "n"), (*lead, "h")], ("n", "h"), made)


def _lead(inputs: Any) -> Letters:
    return tuple(f"r{i}" for i in range(inputs.ndim - 1))


def _bilinear(given: list[Letters], found: Letters, made: Any) -> Rule:
    def local(over: Over, sizes: dict[str, int], arrays: Sequence[Any]) -> list:
        return summed(made.bind(*arrays, problem=None), [found], over)

    return Rule(given, [found], local)


def _derivative(made: Callable, arrays: Sequence[Any], dots: Sequence[Any], **fixed: Any) -> tuple:
    (a, b), (da, db) = arrays, dots
    parts = [] if isinstance(da, ad.Zero) else made(da, b)
    parts = parts if isinstance(db, ad.Zero) else [*parts, *made(a, db)]
    return made(a, b), [sum(parts[1:], parts[0])]


def _of_product(given: Sequence[Any], inputs: Any, matrix: Any, *, problem: None) -> list:
    (g,) = given
    if isinstance(g, ad.Zero):
        return [None, None]
    if ad.is_undefined_primal(matrix):
        return [None, *sums_p.bind(inputs, g, problem=None)]
    return [*product_p.bind(g, matrix.T, problem=None), None]


def _of_sums(given: Sequence[Any], inputs: Any, grads: Any, *, problem: None) -> list:
    (g,) = given
    if isinstance(g, ad.Zero):
        return [None, None]
    if ad.is_undefined_primal(grads):
        return [None, *product_p.bind(inputs, g, problem=None)]
    return [*product_p.bind(grads, g.T, problem=None), None]


def _product_batch(arrays: Sequence[Any], axes: Sequence[Any], *, problem: None) -> tuple:
    inputs, matrix = _in_front(arrays, axes)
    if axes[1] is None:
        return product_p.bind(inputs, matrix, problem=None), [0]
    shared = "" if axes[0] is None else "z"
    return [jnp.einsum(f"{shared}...n,znh->z...h", inputs, matrix)], [0]


def _sums_batch(arrays: Sequence[Any], axes: Sequence[Any], *, problem: None) -> tuple:
    of = ["" if axis is None else "z" for axis in axes]
    flat = [
        x.reshape(*x.shape[: len(z)], math.prod(x.shape[len(z) : -1]), x.shape[-1])
        for x, z in zip(_in_front(arrays, axes), of, strict=True)
    ]
    return [jnp.einsum(f"{of[0]}rn,{of[1]}rh->znh", *flat)], [0]


def _in_front(arrays: Sequence[Any], axes: Sequence[Any]) -> list:
    pairs = zip(arrays, axes, strict=True)
    return [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in pairs]


def _linear_in_each(
    name: str, function: Callable, shapes: Callable, rule: Callable, batch: Callable
) -> Any:
    """Return a primitive of two arrays that is linear in each."""

    def run(*arrays: Any) -> list:
        return made.bind(*arrays, problem=None)

    made = primitive(name, function, shapes, rule, partial(_derivative, run), batch)
    return made


product_p = _linear_in_each(
    "parnl_product", _product, _product_shapes, _product_rule, _product_batch
)
sums_p = _linear_in_each("parnl_sums", _sums, _sums_shapes, _sums_rule, _sums_batch)
ad.primitive_transposes[product_p] = _of_product
ad.primitive_transposes[sums_p] = _of_sums


# -- few inputs ------------------------------------------------------------------------------------


def _composed(rows: Any, matrix: Any) -> Any:
    total = rows[:, :1] * matrix[:1]
    for j in range(1, rows.shape[1]):
        total = total + rows[:, j : j + 1] * matrix[j : j + 1]
    return total


@jax.jit
def _compiled(rows: Any, matrix: Any) -> Any:
    """The product as the run of a cell that remembers nothing.

    No quicker in itself, but XLA's code runs into a page fault for every 4 KiB of fresh memory, and
    the kernel asks for huge pages. Measured, N = 65536, hidden = 64: an LRC's forward run, with two
    such products, takes 9.5 ms instead of 12.6.
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
