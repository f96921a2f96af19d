"""JAX operations, and the two runs over chunks as `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parnl.backends.c.calls import compiled_device, processors
from parnl.backends.jax import devices, divided, features, ffi, keys, product, stretches, triton
from parnl.backends.jax.implicit import implicit_solve
from parnl.backends.jax.kernels import by_chunks, platform
from parnl.backends.jax.private import Tracer
from parnl.frameworks import loaded
from parnl.graph.flatcode import array_functions
from parnl.graph.program import Program
from parnl.solver import blocks
from parnl.solver.cost import Device
from parnl.solver.devices import ALONE
from parnl.solver.newton import Plan, Stats

# What the forms of `parnl.graph.operations` name.
_SCOPE = {"jax": jax, "jnp": jnp, "number": lambda x, like: jnp.asarray(x, like.dtype)}


class JaxBackend:
    """See `parnl.backends.Backend`."""

    name = "jax"
    xp = jnp
    line = ALONE
    functions: dict[str, Any] = {**array_functions("jax", _SCOPE), "number": _SCOPE["number"]}

    seed_of_key = staticmethod(keys.seed_of_key)

    def draw_traced(self, cell: Any, key: Any, dtype: str, device: Any) -> dict[str, jax.Array]:
        """Return the parameters that `cell` draws from a traced `key`."""
        self._check_dtype(dtype)
        return keys.draw_traced(cell, key, dtype, device)

    def asarray(self, value: Any, dtype: str, device: Any = None) -> jax.Array:
        """Return `value` as a JAX array; float64 needs JAX's own 64-bit mode."""
        self._check_dtype(dtype)
        return jnp.asarray(np.asarray(value, dtype=dtype), device=device)

    def _check_dtype(self, dtype: str) -> None:
        if np.dtype(dtype).itemsize == 8 and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                f"dtype: {dtype} needs jax.config.update('jax_enable_x64', True), which is off"
            )

    def to_numpy(self, array: jax.Array) -> np.ndarray:
        """Return the array's values."""
        return np.asarray(jax.device_get(array))

    def take(self, name: str, array: Any) -> Any:
        """Return the array; raise ValueError if it was deleted, by being donated for instance."""
        if not isinstance(array, Tracer) and array.is_deleted():
            raise ValueError(
                f"{name}: expected an array with values, got one of shape {array.shape} that was "
                "deleted, or donated to a jitted function"
            )
        return array

    def usual(self, arrays: Sequence[Any]) -> bool:
        """Return False: what JAX compiles is checked once."""
        return False

    def device(self, array: Any) -> Device:
        """Return how many lanes fill the device: a vector register of a CPU, all of a GPU.

        Without C kernels a CPU gains nothing from chunks: XLA's loop over one channel has next to
        no fixed cost (50 ns a step), and one with a Jacobian is no longer a single loop.
        """
        if triton.chosen():
            return triton.device(array)
        if platform() != "cpu":
            return Device(triton.LANES, 4.0)
        if ffi.usable(array.dtype):
            return compiled_device(array.dtype, processors(), price=300.0)
        return Device(1, 150.0)

    def concrete(self, array: jax.Array) -> np.ndarray | None:
        """Return the values, None under a transformation."""
        return None if isinstance(array, Tracer) else self.to_numpy(array)

    @contextmanager
    def lenient(self) -> Iterator[None]:
        """Lift the strict modes of JAX that forbid how cells are written, and numbers in them.

        They are for the caller's own code: a cell adds a vector to (..., T, hidden), whatever the
        rank, and outside of `jit` every number in it is a transfer to the device.
        """
        config: Any = jax.config
        with ExitStack() as stack:
            if config.jax_numpy_rank_promotion != "allow":
                stack.enter_context(jax.numpy_rank_promotion("allow"))
            if config.jax_transfer_guard_host_to_device in ("log", "disallow"):
                stack.enter_context(jax.transfer_guard_host_to_device("allow"))
            yield

    def running_max(self, x: jax.Array) -> jax.Array:
        """Return the running maximum of x along axis 1."""
        return lax.cummax(x, axis=1)

    def step(self, program: Program) -> Callable[..., tuple[Any, ...]]:
        """Return the program's step over JAX arrays."""
        return program.function("step", self)

    def step_by_kernel(
        self, program: Program, operands: Sequence[Any], states: Sequence[Any]
    ) -> list[Any] | None:
        """Return None: XLA makes one kernel of a step."""
        return None

    def remembered(self, cell: Any, input_t: Any) -> None:
        """Return None: JAX itself remembers what it has compiled."""
        return None

    def unwritten(self, write: Callable[[], Any]) -> Any:
        """Return zeros: XLA's loops carry arrays of fixed shapes."""
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(write))

    def full(self, x: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """A step may return a number, or an array that has yet to be broadcast."""
        return jnp.broadcast_to(jnp.asarray(x, dtype), shape)

    def while_loop(self, condition: Callable, body: Callable, carry: Any) -> Any:
        """Apply `body` to `carry` while `condition` holds."""
        return lax.while_loop(condition, lambda c: body(lax.optimization_barrier(c)), carry)

    def cond(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """Return then() if `condition` holds, else otherwise()."""
        return lax.cond(condition, then, otherwise)

    def advance(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run the chunks that have a start: their ends, and the products of the step Jacobians."""

        def kernel(operands: list, starts: list) -> tuple[list, list]:
            found = ffi.call(program, plan, "advance", operands, starts)
            return found[: len(starts)], found[len(starts) :]

        composed, arrays = partial(_advance, program, plan), (list(operands), list(starts))
        return by_chunks(kernel, composed, starts[0].dtype, *arrays)

    def trajectory(
        self, program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        """Run all chunks and write every state; also return the ends of all."""

        def kernel(operands: list, starts: list) -> tuple[list, list]:
            found = ffi.call(program, plan, "trajectory", operands, starts)
            return found[: len(starts)], found[len(starts) :]

        composed, arrays = partial(_trajectory, program, plan), (list(operands), list(starts))
        return by_chunks(kernel, composed, starts[0].dtype, *arrays)

    def solve(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """Solve, differentiable forward and backward, to any order."""
        operands = [a.astype(x0[0].dtype) for a in operands]
        return implicit_solve(self, program, plan, operands, x0)

    def step_of(self, states: Any, step: int) -> Any:
        """Return states[:, step]."""
        return divided.step_of(states, step)

    def line_of(self, time_axis: Any, inputs: Any, alike: str) -> devices.MeshLine:
        """See `devices.line_of`."""
        return devices.line_of(time_axis, inputs.shape[-2])

    def solve_along(
        self,
        program: Program,
        plan: Plan,
        operands: Sequence[Any],
        x0: Sequence[Any],
        line: devices.MeshLine,
    ) -> tuple[list[Any], list[Any], list[Any], Stats]:
        """Solve along a line of devices, differentiable likewise."""
        operands = [a.astype(x0[0].dtype) for a in operands]
        states, stats = implicit_solve(self, program, plan, operands, x0, line)
        before, _ = line.edges(states, x0, plan.reverse)
        return states, before, line.last(states, x0, plan.reverse), line.alike(stats)

    def streams(self, arrays: Sequence[Any]) -> bool:
        """Whether they are traced, as in `jit`: elsewhere each call would compile a scan anew."""
        return any(isinstance(a, Tracer) for a in arrays)

    def followed(self, arrays: Sequence[Any]) -> bool:
        """Return True: what is traced does not tell."""
        return True

    def in_stretches(
        self, task: Any, fixed: Any, carry: Any, along: Any, length: int
    ) -> tuple[Any, Any]:
        """See `stretches`."""
        return stretches.in_stretches(self, task, fixed, carry, along, length)

    def values(self) -> AbstractContextManager[Any]:
        """Return a context in which operations on known values are carried out, also under jit."""
        return jax.ensure_compile_time_eval()

    def products(self, dtype: Any, array: Any) -> AbstractContextManager[Any]:
        """Return a context that changes nothing: a GPU or TPU rounds float32 products by itself."""
        return nullcontext()

    def with_products(self, cell: Any, p: Any, inputs: Any, dtype: Any) -> tuple[Program, Any]:
        """Return the cell's step, which computes products of few inputs itself."""
        return features.with_products(cell, p, inputs.astype(dtype))

    def complex_numbers(self, re: Any, im: Any) -> Any:
        """Return re + i im."""
        return lax.complex(re, im)

    def small_product(self, inputs: Any, matrix: Any) -> None:
        """Return None: what is small is not known while JAX compiles."""
        return None

    def matmul(self, inputs: Any, matrix: Any) -> Any:
        """Return inputs @ matrix."""
        return product.matmul(inputs, matrix)

    def input_sum(self, term: Callable, inputs: Any, matrices: Sequence[Any]) -> Any:
        """Sum `term` over the input channels; each is computed again for its gradient."""
        return _input_sum(term, inputs, list(matrices))


backend = JaxBackend()
loaded["jax"] = backend


def _advance(program: Program, plan: Plan, operands: list, starts: list) -> tuple[list, list]:
    function = program.function("step_jacobian", backend)
    k, shape, dtype = len(starts), starts[0].shape, starts[0].dtype
    cut = [_chunked(a, plan, shape[1]) for a in operands]

    def run(carry: tuple, i: Any) -> tuple:
        states, product = carry
        results = [
            backend.full(x, shape, dtype) for x in function(*states, *(_due(a, i) for a in cut))
        ]
        after = results[:k], blocks.matmul(results[k:], product, k)
        return _unless_over(plan, shape[1], i, after, carry), None

    ones = [backend.full(p, shape, dtype) for p in blocks.identity(k)]
    (states, product), _ = lax.scan(run, (list(starts), ones), jnp.arange(plan.length))
    return states, product


def _trajectory(program: Program, plan: Plan, operands: list, starts: list) -> tuple[list, list]:
    function = program.function("step", backend)
    batch, chunks, channels = shape = starts[0].shape
    dtype = starts[0].dtype
    cut = [_chunked(a, plan, chunks) for a in operands]

    def run(states: list, i: Any) -> tuple[list, list]:
        after = [
            backend.full(x, shape, dtype) for x in function(*states, *(_due(a, i) for a in cut))
        ]
        return _unless_over(plan, chunks, i, after, states), after

    ends, written = lax.scan(run, list(starts), jnp.arange(plan.length))
    whole = [jnp.moveaxis(w, 0, 2) for w in written]  # (L, B, C, D) -> (B, C, L, D)
    whole = [w.reshape(batch, chunks * plan.length, channels)[:, : plan.steps] for w in whole]
    return _in_time(whole, plan), ends


def _unless_over(plan: Plan, chunks: int, i: Any, after: Any, before: Any) -> Any:
    """Return what chunks carry after step i: `before` where the last one run has no step i."""
    if chunks * plan.length <= plan.steps:
        return after
    going = i + jnp.arange(chunks)[None, :, None] * plan.length < plan.steps
    return jax.tree.map(lambda a, b: jnp.where(going, a, b), after, before)


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


def _due(operand: Any, i: Any) -> Any:
    if operand.ndim == 3:
        return operand
    return lax.dynamic_index_in_dim(operand, i, axis=2, keepdims=False)


@partial(jax.jit, static_argnums=0)
def _input_sum(term: Callable, inputs: Any, matrices: list) -> tuple:
    once = jax.checkpoint(term)
    arguments = (jnp.moveaxis(inputs[..., None], -2, 0), *matrices)
    first, rest = [a[0] for a in arguments], [a[1:] for a in arguments]

    def add(total: Any, row: Any) -> tuple:
        return tuple(t + n for t, n in zip(total, once(*row), strict=True)), None

    return lax.scan(add, once(*first), tuple(rest))[0]
