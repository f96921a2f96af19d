"""JAX operations, the two runs over chunks as `lax.scan`, and the implicit derivative."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parnl import blocks
from parnl.backends.compiled import compiled_lanes, processors
from parnl.backends.jax import ffi
from parnl.newton import Plan, Stats, newton
from parnl.program import Program, adjoint_program, affine_program


class JaxBackend:
    """See `parnl.backends.Backend`."""

    name = "jax"
    xp = jnp
    functions: dict[str, Any] = {
        **{
            op: getattr(jnp, op)
            for op in (
                "exp expm1 log log1p sqrt sin cos tanh abs sign minimum maximum where "
                "logical_and logical_or logical_not"
            ).split()
        },
        "sigmoid": jax.nn.sigmoid,
        "softplus": jax.nn.softplus,
        "relu": jax.nn.relu,
        "erf": lax.erf,
        "number": lambda x, reference: jnp.asarray(x, reference.dtype),
        "pow": operator.pow,
    }

    def asarray(self, value: Any, dtype: str, device: Any = None) -> jax.Array:
        """Return `value` as a JAX array; float64 needs JAX's own 64-bit mode."""
        if np.dtype(dtype).itemsize == 8 and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                f"dtype: {dtype} needs jax.config.update('jax_enable_x64', True), which is off"
            )
        return jnp.asarray(np.asarray(value, dtype=dtype), device=device)

    def to_numpy(self, array: jax.Array) -> np.ndarray:
        """Return the array's values."""
        return np.asarray(array)

    def lanes(self, array: Any) -> int:
        """Return how many lanes fill the device: a vector register of a CPU, all of a GPU.

        A step on a CPU, compiled by XLA, has next to no fixed cost: there only a channel or two
        gain from chunks.
        """
        if jax.default_backend() != "cpu":
            return 1 << 18
        return compiled_lanes(processors()) if ffi.usable(array.dtype) else 32

    def concrete(self, array: jax.Array) -> np.ndarray | None:
        """Return the values, None under a transformation."""
        return None if isinstance(array, jax.core.Tracer) else np.asarray(array)

    def running_max(self, x: jax.Array) -> jax.Array:
        """Return the running maximum of x along axis 1."""
        return lax.cummax(x, axis=1)

    def while_loop(self, condition: Callable, body: Callable, carry: Any) -> Any:
        """Apply `body` to `carry` while `condition` holds."""
        return lax.while_loop(condition, body, carry)

    def advance(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the first C - 1 chunks: their ends, and the products of the step Jacobians."""
        return _by_platform(_advance_c, _advance, program, plan, operands, starts)

    def trajectory(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run all chunks and write every state; also return the ends of the first C - 1."""
        return _by_platform(_trajectory_c, _trajectory, program, plan, operands, starts)

    def solve(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """Solve, differentiable forward and backward, to any order."""
        return _solve((program, plan), [a.astype(x0[0].dtype) for a in operands], list(x0))

    def input_sum(self, term: Callable, inputs: Any, matrices: Sequence[Any]) -> Any:
        """Sum `term` over the input channels; each is computed again for its gradient."""
        return _input_sum(term, inputs, list(matrices))


backend = JaxBackend()


def _by_platform(
    compiled: Callable, composed: Callable, program: Program, plan: Plan, operands: Any, starts: Any
) -> Any:
    """Run in C where the computation is lowered for a CPU, else as composed of JAX's operations."""
    fixed = partial(composed, program, plan)
    if not ffi.usable(starts[0].dtype):
        return fixed(list(operands), list(starts))
    on_cpu = partial(compiled, program, plan)
    return lax.platform_dependent(list(operands), list(starts), cpu=on_cpu, default=fixed)


def _advance_c(program: Program, plan: Plan, operands: list, starts: list) -> tuple[list, list]:
    k, shape = len(starts), starts[0].shape
    results = {"end": (k, shape), "prod": (k * k, shape)}
    out = ffi.call(program, plan, "advance", operands, starts, results)
    return out[:k], out[k:]


def _trajectory_c(program: Program, plan: Plan, operands: list, starts: list) -> tuple[list, list]:
    k, (batch, chunks, channels) = len(starts), starts[0].shape
    whole = (batch, plan.steps, channels)
    results = {"out": (k, whole), "end": (k, (batch, chunks, channels))}
    out = ffi.call(program, plan, "trajectory", operands, starts, results)
    return out[:k], [x[:, : chunks - 1] for x in out[k:]]


def _advance(program: Program, plan: Plan, operands: list, starts: list) -> tuple[list, list]:
    function = program.function("step_jacobian", backend)
    k, shape, dtype = len(starts), starts[0].shape, starts[0].dtype
    cut = [_chunked(a, plan, plan.chunks - 1) for a in operands]

    def run(carry: tuple, i: Any) -> tuple:
        states, product = carry
        results = [_full(x, shape, dtype) for x in function(*states, *(_at(a, i) for a in cut))]
        return (results[:k], blocks.matmul(results[k:], product, k)), None

    ones = [_full(p, shape, dtype) for p in blocks.identity(k)]
    (states, product), _ = lax.scan(run, (list(starts), ones), jnp.arange(plan.length))
    return states, product


def _trajectory(program: Program, plan: Plan, operands: list, starts: list) -> tuple[list, list]:
    function = program.function("step", backend)
    batch, chunks, channels = shape = starts[0].shape
    dtype = starts[0].dtype
    cut = [_chunked(a, plan, chunks) for a in operands]

    def run(states: list, i: Any) -> tuple[list, list]:
        states = [_full(x, shape, dtype) for x in function(*states, *(_at(a, i) for a in cut))]
        return states, states

    ends, written = lax.scan(run, list(starts), jnp.arange(plan.length))
    whole = [jnp.moveaxis(w, 0, 2) for w in written]  # (L, B, C, D) -> (B, C, L, D)
    whole = [w.reshape(batch, chunks * plan.length, channels)[:, : plan.steps] for w in whole]
    return _in_time(whole, plan), [x[:, : chunks - 1] for x in ends]


def _in_time(arrays: Sequence[Any], plan: Plan) -> list[Any]:
    return [jnp.flip(a, axis=1) for a in arrays] if plan.reverse else list(arrays)


def _chunked(operand: Any, plan: Plan, count: int) -> Any:
    """Return (b, T, d) as (b, count, L, d), in the order of running, padded if T is too short."""
    if operand.shape[1] == 1:
        return operand
    rows, _, channels = operand.shape
    (operand,) = _in_time([operand], plan)
    operand = operand[:, : count * plan.length]
    missing = count * plan.length - operand.shape[1]
    operand = jnp.pad(operand, ((0, 0), (0, missing), (0, 0)))
    return operand.reshape(rows, count, plan.length, channels)


def _at(operand: Any, i: Any) -> Any:
    if operand.ndim == 3:
        return operand
    return lax.dynamic_index_in_dim(operand, i, axis=2, keepdims=False)


def _full(x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jnp.broadcast_to(jnp.asarray(x, dtype), shape)


@partial(jax.jit, static_argnums=0)
def _input_sum(term: Callable, inputs: Any, matrices: list) -> tuple:
    once = jax.checkpoint(term)
    arguments = (jnp.moveaxis(inputs[..., None], -2, 0), *matrices)
    first, rest = [a[0] for a in arguments], [a[1:] for a in arguments]

    def add(total: Any, row: Any) -> tuple:
        return tuple(t + n for t, n in zip(total, once(*row), strict=True)), None

    return lax.scan(add, once(*first), tuple(rest))[0]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable(fixed: tuple[Program, Plan], operands: list, x0: list) -> tuple[list, Stats]:
    return _newton(*fixed, operands, x0)


def _newton(program: Program, plan: Plan, operands: list, x0: list) -> tuple[list, Stats]:
    """Return what `parnl.newton.newton` does; an axis added by vmap becomes part of the batch."""

    def make() -> Callable:
        @jax.custom_batching.custom_vmap
        def run(operands: list, x0: list) -> tuple[list, Stats]:
            return newton(backend, program, plan, operands, x0)

        @run.def_vmap
        def batched(size: int, is_batched: Any, operands: list, x0: list) -> tuple:
            rows = x0[0].shape[1] if is_batched[1][0] else x0[0].shape[0]

            def merged(array: Any, has_axis: bool) -> Any:
                """(N, b, ...) -> (N * B, ...); what neither axis enters keeps its length 1."""
                if not has_axis and array.ndim == 3 and array.shape[0] == 1:
                    return array
                array = array if has_axis else array[None]
                array = jnp.broadcast_to(array, (size, rows, *array.shape[2:]))
                return array.reshape(size * rows, *array.shape[2:])

            flat = [
                [merged(a, b) for a, b in zip(arrays, marks, strict=True)]
                for arrays, marks in ((operands, is_batched[0]), (x0, is_batched[1]))
            ]
            states, stats = run(*flat)
            states = [s.reshape(size, rows, *s.shape[1:]) for s in states]
            return (states, stats), ([True] * len(states), Stats(*[False] * len(stats)))

        return run

    return program.cached(("newton", plan), make)(operands, x0)


_solve = jax.jit(_differentiable, static_argnums=0)


@_differentiable.defjvp
def _solve_jvp(fixed: tuple[Program, Plan], primals: tuple, tangents: tuple) -> tuple:
    """The tangent obeys dx_t = J_t dx_{t-1} + (df/d operands) d operands: one linear solve."""
    program, plan = fixed
    (operands, x0), (operands_dot, x0_dot) = primals, tangents
    states, stats = _solve(fixed, operands, x0)
    step, shape, dtype = program.function("step", backend), states[0].shape, states[0].dtype
    before = [_previous(s, x, plan.reverse) for s, x in zip(states, x0, strict=True)]
    entries = program.function("jacobian", backend)(*before, *operands)
    jacobian = [_full(j, shape, dtype) for j in entries]

    def of_operands(*values: Any) -> list:
        return [_full(x, shape, dtype) for x in step(*before, *values)]

    _, pushed = jax.jvp(of_operands, tuple(operands), tuple(operands_dot))
    zeros = jnp.zeros(shape, dtype)
    entering = [_previous(zeros, x, plan.reverse) for x in x0_dot]  # dx_0, at the first step
    forcing = [b + e for b, e in zip(pushed, blocks.matvec(jacobian, entering), strict=True)]
    states_dot = _solve_bidiagonal(plan, jacobian, forcing)
    nothing = Stats(
        np.zeros((), jax.dtypes.float0),
        jnp.zeros_like(stats.update),
        jnp.zeros_like(stats.residual),
        np.zeros((), jax.dtypes.float0),
    )
    return (states, stats), (states_dot, nothing)


def _previous(states: Any, first: Any, reverse: bool) -> Any:
    """Return x_{t-1} for every t (x_{t+1} if reverse); `first` (B, D) stands before them."""
    if reverse:
        return jnp.concatenate([states[:, 1:], first[:, None]], axis=1)
    return jnp.concatenate([first[:, None], states[:, :-1]], axis=1)


def _solve_bidiagonal(plan: Plan, jacobian: list, forcing: list) -> list:
    """Return x with x_t - J_t x_{t-1} = forcing_t, transposable and differentiable again."""
    k, zero = len(forcing), jnp.zeros_like(forcing[0][:, 0])
    plan = plan._replace(max_iterations=plan.chunks)

    # All states are one array here: JAX transposes a linear solve only if every array of its right
    # side is linear, and a state that no differentiated input drives would have one of zeros.

    def matvec(x: Any) -> Any:
        before = [_previous(s, zero, plan.reverse) for s in x]
        return x - jnp.stack(blocks.matvec(jacobian, before))

    def solve(_: Any, b: Any) -> Any:
        return jnp.stack(_newton(affine_program(k), plan, [*jacobian, *b], [zero] * k)[0])

    def solve_transposed(_: Any, g: Any) -> Any:
        back = plan._replace(reverse=not plan.reverse)
        pulled, _ = _newton(adjoint_program(k), back, [*jacobian, *g], [zero] * k)
        return g + jnp.stack([_previous(m, zero, back.reverse) for m in pulled])

    return list(lax.custom_linear_solve(matvec, jnp.stack(forcing), solve, solve_transposed))
