"""The implicit derivative of a solve in JAX: forward, reverse, batched, to any order.

The tangent of a solve obeys a linear recurrence, and its transpose is the adjoint one. JAX is told
so by three primitives:

    derivative of `solve_p`:    `tangent_p`(operands, x0, states; d operands, d x0) -> d states
    transpose of `tangent_p`:   `gradients_p`, the generated backward kernel where there is one
    derivatives of these two:   those of the composed formulas, `_tangent` and `_pullback`, which
                                are linear solves between operations that JAX can follow

So a solve that is differentiated once, in reverse, runs nothing but compiled kernels. In a
`shard_map` whose devices share the axis of time, each has its own part of all this; operands,
states and gradients are of its own steps, x0 is what comes before all of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from parnl.backends.c.calls import backward
from parnl.backends.jax import ffi, triton
from parnl.backends.jax.devices import MeshLine
from parnl.backends.jax.divided import explicitly
from parnl.backends.jax.kernels import at_once, by_chunks, is_exported, on_each_platform
from parnl.backends.jax.primitive import primitive
from parnl.backends.jax.private import ShapedArray, ad
from parnl.backends.jax.problem import (
    Problem,
    gradients_rule,
    gradients_shapes,
    solve_rule,
    solve_shapes,
    tangent_rule,
    tangent_shapes,
)
from parnl.graph.nodes import is_affine
from parnl.graph.program import Program, adjoint_program, affine_program
from parnl.solver.newton import Plan, Stats, newton


def implicit_solve(
    backend: Any,
    program: Program,
    plan: Plan,
    operands: Sequence[Any],
    x0: Sequence[Any],
    line: MeshLine | None = None,
) -> tuple[list[Any], Stats]:
    """Return states and statistics as `solver.newton.newton` does, differentiable in all arrays."""
    problem = Problem(backend, program, plan, line)
    arrays = [*operands, *x0]
    found = None
    if line is None:
        found = explicitly(arrays, solve_rule(solve_p, *arrays, problem=problem))
    if found is None:
        found = solve_p.bind(*arrays, problem=problem)
    return found[: len(x0)], Stats(*found[len(x0) :])


def _solve(*arrays: Any, problem: Problem) -> list:
    program, plan = problem.program, problem.plan
    operands, x0, *_ = problem.split(arrays)

    def by_newton(operands: list, x0: list) -> list:
        states, stats = newton(problem.kernels, program, plan, operands, x0)
        return [*states, *stats]

    if problem.line is not None:
        return by_newton(operands, x0)
    launched = partial(triton.solve, program, plan)
    return at_once(launched, by_newton, program, plan, x0[0], operands, x0)


def _solve_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, problem: Problem) -> tuple:
    found, k = solve_p.bind(*primals, problem=problem), len(problem.program.states)
    problem = problem._replace(moves=tuple(not isinstance(t, ad.Zero) for t in tangents))
    moving = [t for t, moves in zip(tangents, problem.moves, strict=True) if moves]
    dots = tangent_p.bind(*primals, *found[:k], *moving, problem=problem)
    still = [ad.Zero(ShapedArray(x.shape, x.dtype).to_tangent_aval()) for x in found[k:]]
    return found, [*dots, *still]


def _solve_batch(arrays: Sequence[Any], axes: Sequence[Any], *, problem: Problem) -> tuple:
    """An axis added by vmap becomes part of the batch."""
    n, k = len(problem.program.operands), len(problem.program.states)
    size, arrays, has = _leading(arrays, axes)
    rows = arrays[n].shape[1 if has[n] else 0]
    shared = [True] * n + [False] * k
    flat = [merged(x, h, size, rows, s) for x, h, s in zip(arrays, has, shared, strict=True)]
    found = solve_p.bind(*flat, problem=problem)
    states = [x.reshape(size, rows, *x.shape[1:]) for x in found[:k]]
    return [*states, *found[k:]], [0] * k + [None] * len(Stats._fields)


def _solve_transpose(cotangents: Sequence[Any], *arrays: Any, problem: Problem) -> list:
    """The pullback of a solve that is affine in what is asked for, as a scan is in b and x0."""
    program, n = problem.program, len(problem.program.operands)
    asked = tuple(ad.is_undefined_primal(a) for a in arrays)
    symbols = [s for s, u in zip(program.operand_symbols, asked[:n], strict=True) if u]
    if not is_affine(program.outputs, [*program.state_symbols, *symbols]):
        raise NotImplementedError(
            "parnl: a solve can be transposed only in arguments in which the state is linear, got "
            f"{program!r}"
        )
    # of an affine map the pullback is the same everywhere, so also at zero
    given = [
        jnp.zeros(a.aval.shape, a.aval.dtype) if u else a
        for a, u in zip(arrays, asked, strict=True)
    ]
    grads = [ad.instantiate_zeros(c) for c in cotangents[: len(program.states)]]
    states = [jnp.zeros_like(g) for g in grads]
    problem = problem._replace(moves=asked)
    found = iter(gradients_p.bind(*given, *states, *grads, problem=problem))
    return [next(found) if u else None for u in asked]


# -- the tangent and its transpose, composed of JAX's operations -----------------------------------


def _tangent(*arrays: Any, problem: Problem) -> list:
    """dx_t = J_t dx_{t-1} + (df/d operands) d operands: one linear solve."""
    _, _, states, moving = problem.split(arrays)
    wanted = problem.wanted
    jacobian, of_operands, given, resets = _linearised(problem, arrays)
    forcing = [jnp.zeros_like(s) for s in states]
    if wanted:
        _, forcing = jax.jvp(of_operands, tuple(given), tuple(moving[: len(wanted)]))
    rest, k = iter(moving[len(wanted) :]), len(states)
    pairs = zip(problem.moves[-k:], problem.split(arrays)[1], strict=True)
    x0_dot = [next(rest) if moves else jnp.zeros_like(x) for moves, x in pairs]
    program, plan = affine_program(k, bool(resets)), problem.plan._replace(max_iterations=None)
    operands = [*jacobian, *forcing, *resets]
    return implicit_solve(problem.backend, program, plan, operands, x0_dot, problem.line)[0]


def _pullback(problem: Problem, arrays: list, grads: list) -> list:
    """Return the gradients of what moves; `arrays` are operands, x0 and states.

    lambda_t = g_t + J_{t+1}^T lambda_{t+1}, then the pullback of each step.
    """
    _, x0, _, _ = problem.split(arrays)
    back, k = problem.plan.backward(), len(x0)
    jacobian, of_operands, given, resets = _linearised(problem, arrays)
    program, zeros = adjoint_program(k, bool(resets)), [jnp.zeros_like(x) for x in x0]
    operands = [*jacobian, *grads, *resets]
    pulled, _ = implicit_solve(problem.backend, program, back, operands, zeros, problem.line)
    found: list = []
    if problem.wanted:
        later = _before(problem, pulled, zeros, back.reverse)
        adjoint = [g + m for g, m in zip(grads, later, strict=True)]
        found = list(jax.vjp(of_operands, *given)[1](adjoint))
    of_x0 = [m[:, -1 if problem.plan.reverse else 0] for m in pulled]
    of_x0 = _of_the_first(problem, of_x0)
    return [*found, *(g for g, m in zip(of_x0, problem.moves[-k:], strict=True) if m)]


def _linearised(problem: Problem, arrays: Sequence[Any]) -> tuple[list, Callable, list, list]:
    """Return (Jacobian at every step, the steps as a function of what moves, that, resets)."""
    backend, program, wanted = problem.backend, problem.program, problem.wanted
    operands, x0, states, _ = problem.split(arrays)
    shape, dtype = states[0].shape, states[0].dtype
    before = _before(problem, states, x0, problem.plan.reverse)
    entries = program.function("jacobian", backend)(*before, *operands)
    step = program.function("step", backend)

    def of_operands(*values: Any) -> list:
        changed = dict(zip(wanted, values, strict=True))
        given = [changed.get(i, a) for i, a in enumerate(operands)]
        return [backend.full(x, shape, dtype) for x in step(*before, *given)]

    resets = program.resets(operands)
    jacobian = [backend.full(j, shape, dtype) for j in entries]
    given = [operands[i] for i in wanted]
    return jacobian, of_operands, given, [] if resets is None else [resets]


def _before(problem: Problem, states: list, first: list, reverse: bool) -> list:
    """Return x_{t-1} for every t (x_{t+1} if reverse); `first` (B, D) stands before them all."""
    if problem.line is not None:
        first, _ = problem.line.edges(states, first, reverse)
    pairs = zip(states, first, strict=True)
    if reverse:
        return [jnp.concatenate([s[:, 1:], x[:, None]], axis=1) for s, x in pairs]
    return [jnp.concatenate([x[:, None], s[:, :-1]], axis=1) for s, x in pairs]


def _of_the_first(problem: Problem, of_x0: Sequence[Any]) -> list:
    """Return the gradients of x0, which are summed over a line of devices: one has them."""
    if problem.line is None:
        return list(of_x0)
    first = problem.line.turn(problem.plan.reverse) == 0
    return [jnp.where(first, g, 0.0) for g in of_x0]


# -- the transpose, by kernels --------------------------------------------------------------------


def _gradients(*arrays: Any, problem: Problem) -> list:
    """What `_pullback` returns; arrays: operands, x0, states and the gradients of these."""
    program, plan = problem.program, problem.plan.backward()
    launched, in_c = partial(_fused, problem, _at_once), partial(_fused, problem, _over_chunks)
    composed, like = partial(_pullback, problem), arrays[len(program.operands)]

    def elsewhere(given: list, grads: list) -> list:
        return by_chunks(in_c, composed, like.dtype, given, grads)

    if problem.line is not None:
        return elsewhere(*_halves(arrays, problem))
    return at_once(launched, elsewhere, program, plan, like, *_halves(arrays, problem))


def _gradients_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, problem: Problem) -> tuple:
    def pullback(*arrays: Any) -> list:
        return _pullback(problem, *_halves(arrays, problem))

    return jax.jvp(pullback, tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


def _halves(arrays: Sequence[Any], problem: Problem) -> tuple[list, list]:
    count = len(arrays) - len(problem.program.states)
    return list(arrays[:count]), list(arrays[count:])


def _fused(problem: Problem, find: Callable, arrays: list, grads: list) -> list:
    """What `_pullback` returns, by a backward kernel: Jacobians are neither stored nor read.

    find(problem, operands, x0, states, grads): gradients of x0, and of the operands wanted.
    """
    program, plan, wanted = problem.program, problem.plan, problem.wanted
    operands, x0, states, _ = problem.split(arrays)
    k = len(x0)
    if problem.line is not None:
        x0, _ = problem.line.edges(states, x0, plan.reverse)

    def run(operands: list, rest: list) -> list:
        of_x0, found = find(problem, operands, rest[:k], rest[k : 2 * k], rest[2 * k :])
        return [*of_x0, *found]

    key = ("gradients", plan, problem.line, wanted, find)
    over_rows = program.cached(key, lambda: merging(run))
    found = over_rows(operands, [*x0, *states, *grads])
    summed = [_reduced(g, operands[i]) for i, g in zip(wanted, found[k:], strict=True)]
    of_x0 = _of_the_first(problem, found[:k])
    return [*summed, *(g for g, m in zip(of_x0, problem.moves[-k:], strict=True) if m)]


def _at_once(
    problem: Problem, operands: list, x0: list, states: list, grads: list
) -> tuple[list, list]:
    plan = problem.plan.backward()
    return triton.gradients(problem.program, plan, operands, x0, states, grads, problem.wanted)


def _over_chunks(
    problem: Problem, operands: list, x0: list, states: list, grads: list
) -> tuple[list, list]:
    program, k = problem.program, len(x0)
    fixed = {"x0": x0, "state": states, "g": grads}

    def over_chunks(kind: str, plan: Plan, starts: Sequence[Any]) -> tuple[list, list]:
        asked = problem.wanted if kind == "backward" else ()
        found = ffi.call(program, plan, kind, operands, starts, asked, fixed)
        return found[:k], found[k:]

    resets = problem.program.resets(operands)
    back = problem.plan.backward()
    return backward(problem.backend, over_chunks, back, x0, resets, problem.line)


# So many parts of a sum over channels are added one by one: for XLA's CPU compiler, a sum over a
# short last axis is a loop. Measured, 2 parts: 0.06 ms for 0.4.
_PARTS = 8


def _reduced(x: Any, operand: Any) -> Any:
    """Sum x (B, t, D) over the axes along which `operand` was broadcast."""
    if operand.shape[2] == 1 < x.shape[2] <= _PARTS:
        x = reduce(operator.add, jnp.split(x, x.shape[2], axis=2))
    axes = tuple(i for i in range(3) if operand.shape[i] == 1 and x.shape[i] != 1)
    return jnp.sum(x, axes, keepdims=True) if axes else x


# -- the primitives -------------------------------------------------------------------------------


def _tangent_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, problem: Problem) -> tuple:
    tangents = [ad.instantiate_zeros(t) for t in tangents]
    return jax.jvp(partial(_tangent, problem=problem), tuple(primals), tuple(tangents))


def _tangent_transpose(cotangents: Sequence[Any], *arrays: Any, problem: Problem) -> list:
    count = len(arrays) - sum(problem.moves)
    grads = [ad.instantiate_zeros(c) for c in cotangents]
    found = gradients_p.bind(*arrays[:count], *grads, problem=problem)
    linear = [ad.is_undefined_primal(a) for a in arrays[count:]]
    return [None] * count + [g if m else None for g, m in zip(found, linear, strict=True)]


def _tangent_batch(arrays: Sequence[Any], axes: Sequence[Any], *, problem: Problem) -> tuple:
    """An axis added by vmap becomes part of the batch, so that the primitive stays one."""
    size, arrays, has = _leading(arrays, axes)
    operands, count = len(problem.program.operands), len(arrays) - sum(problem.moves)
    rows = arrays[operands].shape[1 if has[operands] else 0]
    # an operand and its tangent have one shape: both get the axis if either has it
    pairs = list(zip(problem.wanted, range(count, len(arrays)), strict=False))
    for pair in pairs:
        for i in pair:
            if any(has[j] for j in pair) and not has[i]:
                arrays[i] = jnp.broadcast_to(arrays[i], (size, *arrays[i].shape))
        has[pair[0]] = has[pair[1]] = any(has[j] for j in pair)
    shared = {*range(operands), *(j for _, j in pairs)}
    flat = [
        merged(x, h, size, rows, i in shared)
        for i, (x, h) in enumerate(zip(arrays, has, strict=True))
    ]
    found = tangent_p.bind(*flat, problem=problem)
    return [x.reshape(size, rows, *x.shape[1:]) for x in found], [0] * len(found)


def _leading(arrays: Sequence[Any], axes: Sequence[Any]) -> tuple[int, list, list[bool]]:
    """Return the size of the axis that vmap adds, the arrays with it in front, and who has it."""
    pairs = list(zip(arrays, axes, strict=True))
    size = next(x.shape[axis] for x, axis in pairs if axis is not None)
    moved = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in pairs]
    return size, moved, [axis is not None for axis in axes]


def _planned(function: Callable) -> Callable:
    """Make function(*arrays, problem=...) have the chunks of the platform it is exported for."""

    def run(*arrays: Any, problem: Problem) -> list:
        differs = problem.line is None and (problem.plan.automatic or problem.plan.chunks > 1)
        if not (differs and is_exported()):
            return function(*arrays, problem=problem)
        return on_each_platform(lambda *a: function(*a, problem=problem.anew(a)), *arrays)

    return run


solve_p = primitive(
    "parnl_solve", _planned(_solve), solve_shapes, solve_rule, _solve_jvp, _solve_batch
)
tangent_p = primitive(
    "parnl_tangent", _planned(_tangent), tangent_shapes, tangent_rule, _tangent_jvp, _tangent_batch
)
gradients_p = primitive(
    "parnl_gradients", _planned(_gradients), gradients_shapes, gradients_rule, _gradients_jvp
)
ad.primitive_transposes[solve_p] = _solve_transpose
ad.primitive_transposes[tangent_p] = _tangent_transpose


# -- vmap -----------------------------------------------------------------------------------------


def merging(function: Callable) -> Callable:
    """Make an axis that vmap adds to `function` part of the batch.

    function(operands, arrays) -> results: arrays and results have the batch B as their first axis,
    operands B or 1.
    """

    @jax.custom_batching.custom_vmap
    def run(operands: list, arrays: list) -> list:
        return function(operands, arrays)

    @run.def_vmap
    def batched(size: int, is_batched: Any, operands: list, arrays: list) -> tuple:
        rows = arrays[0].shape[1 if is_batched[1][0] else 0]
        flat = [
            [merged(a, h, size, rows, shared) for a, h in zip(group, has, strict=True)]
            for group, has, shared in (
                (operands, is_batched[0], True),
                (arrays, is_batched[1], False),
            )
        ]
        results = [r.reshape(size, rows, *r.shape[1:]) for r in run(*flat)]
        return results, [True] * len(results)

    return run


def merged(array: Any, has_axis: bool, size: int, rows: int, shared: bool) -> Any:
    """(N, b, ...) -> (N * B, ...); `shared`: what neither axis enters may keep its length 1."""
    if shared and not has_axis and array.shape[0] == 1:
        return array
    array = array if has_axis else array[None]
    array = jnp.broadcast_to(array, (size, rows, *array.shape[2:]))
    return array.reshape(size * rows, *array.shape[2:])
