"""Features that are products of few inputs: the step computes them itself.

Of n inputs, a feature u W is n numbers a step before the product, and D after it. With few inputs,
most of the time goes into writing and reading what comes after. So the kernel reads u and
multiplies.

Only under a transformation, as `jit`. There JAX traces the cell's features, and the trace shows
which of them are such products, perhaps with a bias. Whatever else a cell does stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from parnl.backends.jax import ffi
from parnl.backends.jax.kernels import is_exported, platform
from parnl.backends.jax.private import Tracer, Var, rest_of_trace
from parnl.backends.jax.product import product_p
from parnl.cell import Cell
from parnl.graph.program import Product, Program
from parnl.params import Values
from parnl.solver.run import is_free

# Measured, B = 4, D = 64, T = 16384, two threads, time with the products in the step over that with
# them before, forward and with gradient: 1 input, GRU 0.3 and 0.3, LRC 0.5 and 0.6; 4 inputs, GRU
# 0.3 and 0.4, LSTM 0.4 and 0.5, LRC 0.6 and 0.7; 8 inputs, LRC 0.6 and 0.9; 16, LRC 0.6 and 1.1.
FEW = 8
# Numbers of a feature, from which on it is worth a kernel that is compiled for these inputs.
LEAST = 1 << 20


def with_products(cell: Cell, p: Values, inputs: Any) -> tuple[Program, Mapping[str, Any] | None]:
    """Return the cell's step, which may compute features itself, and all features that it reads.

    None in their place: the cell's own, which are still to be computed.
    """
    usual = cell.program, None
    if any(map(is_free, inputs.shape)) or not 0 < inputs.shape[-1] <= FEW:
        return usual
    small = math.prod(inputs.shape[:-1]) * cell.hidden_size < LEAST
    if small or hasattr(cell, "output") or is_exported() or platform() != "cpu":
        return usual
    values = {n: a for n, a in vars(p).items() if n != "_kind"}
    traced = {n: a for n, a in {**values, "": inputs}.items() if isinstance(a, Tracer)}
    if not traced or not ffi.usable(inputs.dtype):
        return usual

    def features(traced: Mapping[str, Any]) -> Any:
        given = Values("parameter", {n: traced.get(n, a) for n, a in values.items()})
        return cell.features(given, traced.get("", inputs))

    try:
        trace, shapes = jax.make_jaxpr(features, return_shape=True)(traced)
    except Exception:  # they may hold what only the caller's own trace may change, as Flax's Rngs
        return usual  # if they are wrong, they raise where they are called next
    if not isinstance(shapes, dict) or len(shapes) != len(trace.jaxpr.outvars):
        return usual  # what is wrong with them will be said
    found = dict(zip(sorted(shapes), trace.jaxpr.outvars, strict=True))
    made = {v: e for e in trace.jaxpr.eqns for v in e.outvars}
    whole = (*inputs.shape[:-1], cell.hidden_size)
    products = {n: product for n, v in found.items() if (product := _product(made, v, whole))}
    if not products:
        return usual

    kept = {n: v for n, v in found.items() if n not in products}
    # by the axis along which they are cut: inputs, rows of the matrix; the offset is not
    factors = {p: [*zip((-1, 0, None), v, strict=False)] for p, v in products.items()}
    each = dict.fromkeys(factor for several in factors.values() for factor in several)
    wanted = [*kept.values(), *(v for _, v in each)]
    arrays = rest_of_trace(trace, wanted, jax.tree.leaves(traced))
    read, named = dict(zip(kept, arrays, strict=False)), {}
    for i, (factor, array) in enumerate(zip(each, arrays[len(kept) :], strict=True)):
        axis, _ = factor
        pieces = [array] if axis is None else jnp.split(array, array.shape[axis], axis)
        named[factor] = tuple(f"factor {i} {j}" for j in range(len(pieces)))
        read |= dict(zip(named[factor], pieces, strict=True))
    parts = tuple(Product(n, *(named[f] for f in several)) for n, several in factors.items())
    return cell.program.multiplying(parts), read


def _product(made: Mapping[Var, Any], found: Any, whole: tuple[int, ...]) -> tuple[Var, ...] | None:
    """Return what `found` is a product of: inputs (..., T, n), matrix (n, hidden), perhaps offset.

    made: the equation that makes each variable; whole: (..., T, hidden). offset: (1, ..., hidden).
    """
    equation = made.get(found) if isinstance(found, Var) else None
    if equation is None or not all(isinstance(v, Var) for v in equation.invars):
        return None
    if equation.primitive is lax.add_p:
        for one, other in (equation.invars, equation.invars[::-1]):
            product, shape = _product(made, one, whole), other.aval.shape
            if product and len(product) == 2 and shape == (*[1] * (len(whole) - 1), whole[-1]):
                return *product, other
        return None
    if equation.primitive is not product_p and not _is_product(equation):
        return None
    inputs, matrix = (v.aval.shape for v in equation.invars)
    fits = inputs[:-1] == whole[:-1] and matrix[1:] == whole[-1:] and 0 < matrix[0] <= FEW
    return tuple(equation.invars) if fits else None


def _is_product(equation: Any) -> bool:
    """Whether it is inputs (..., T, n) @ matrix (n, hidden) of one type."""
    if equation.primitive is not lax.dot_general_p:
        return False
    inputs, matrix = (v.aval for v in equation.invars)
    (of_inputs, of_matrix), batched = equation.params["dimension_numbers"]
    last = [*of_inputs, *of_matrix] == [inputs.ndim - 1, 0] and not any(batched)
    alike = inputs.dtype == matrix.dtype == equation.outvars[0].aval.dtype
    return last and alike and matrix.ndim == 2
