"""The kernels of a program in Pallas, compiled by Triton, for JAX on NVIDIA GPUs.

A lane is one channel of one chunk of one sequence, and belongs to one thread. Lanes are numbered
along channels first, so neighbouring threads read neighbouring addresses, however many channels
there are. The body of a kernel is the program's own functions over one block of lanes.

What each kernel reads and returns is told in `parnl.backends.c.kernel`, whose four kinds these are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from parnl.backends.c import build
from parnl.backends.c.calls import results
from parnl.backends.jax.elementwise import elementwise
from parnl.backends.jax.private import PALLAS_ABSENT, CompilerParams, store, typed
from parnl.backends.jax.private import pallas as pl
from parnl.graph.flatcode import absent
from parnl.graph.program import Program
from parnl.solver import blocks
from parnl.solver.newton import Plan

# Operands of a few steps are loaded before the first of these is computed: one wait for memory
# instead of one for each. Fewer of steps that take long themselves, and long to compile.
_AHEAD, _OPERATIONS = 4, 300
# Steps whose gradients are summed by themselves: thousands in one float32 sum would round.
_STRETCH = 64


def calls(program: Program, dtype: Any) -> dict[str, Callable]:
    """Return platform -> `call`, for the platforms where Pallas is to run `program`.

    That is the GPU, if there is one and every operation has a form that Triton takes: if not, it is
    said once. With PARNL_KERNELS=pallas it is an error, and a CPU runs Pallas's interpreter.
    """
    choice = build.choice()
    forced = choice == "pallas"
    if not forced and (choice or jax.default_backend() != "gpu"):
        return {}
    reason = PALLAS_ABSENT or _unsupported(program, str(dtype))
    if not reason:
        return {"cuda": call} | ({"cpu": _interpreted} if forced else {})
    if forced:
        raise NotImplementedError(f"PARNL_KERNELS=pallas: {reason}")
    _notice(reason)
    return {}


def _unsupported(program: Program, dtype: str) -> str:
    """Return why Pallas cannot run the program, "" if it can."""
    if dtype not in ("float32", "float64"):
        return f"there are no kernels for {dtype}"
    missing = absent([*program.outputs, *program.jacobian], elementwise.functions)
    return f"Triton has no form of {', '.join(missing)}" if missing else ""


@cache
def _notice(reason: str) -> None:
    warnings.warn(
        f"parnl runs without Pallas kernels, as JAX's own operations: {reason}. "
        "Set PARNL_KERNELS=off to say that this is meant.",
        RuntimeWarning,
        stacklevel=2,
    )


def call(
    program: Program,
    plan: Plan,
    kind: str,
    operands: Sequence[jax.Array],
    starts: Sequence[jax.Array],
    wanted: tuple[int, ...] = (),
    fixed: Mapping[str, Sequence[jax.Array]] | None = None,
    interpret: bool = False,
) -> list[jax.Array]:
    """Call the kernel `kind` and return its results.

    operands: each broadcasts to (B, T, D) by axes of length 1; starts: k arrays (B, C', D), of the
    first C' chunks in the order they are run. "adjoint" and "backward" read from `fixed` what the
    forward run left: "x0", k arrays (B, D), "state" and "g", k arrays (B, T, D) each, the latter
    the gradients of the former. Results:

        "trajectory":  k states (B, T, D), k ends (B, C', D)
        "advance":     k ends, k * k products of step Jacobians, (B, C', D) each
        "adjoint":     the same of the adjoint recurrence
        "backward":    k ends; a gradient for each operand in `wanted`: (B, T, D) where it has an
                       axis of time, else its sum over the chunk's steps, (B, C', D)
    """
    like = starts[0]
    groups = results(kind, plan, operands, starts, wanted).values()
    axes = typed(like)
    shapes = [jax.ShapeDtypeStruct(x, like.dtype, **axes) for group in groups for x in group]
    if not like.size:
        return [jnp.zeros(s.shape, s.dtype) for s in shapes]
    if like.size >= 1 << 30:
        raise ValueError(f"chunks: B * C * D = {like.size} is too much for a GPU, choose fewer")
    # blocks of one warp where there are few, so that all processors have some
    width = 128 if like.size >= 1 << 15 else 32
    given = {"op": operands, "start": starts, **(fixed or {})}

    def kernel(*refs: Any) -> None:
        left = list(refs)
        named = {name: [left.pop(0) for _ in group] for name, group in given.items()}
        _KINDS[kind](_Lanes(program, plan, like, width), program, named, left, wanted)

    run = pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=(pl.cdiv(like.size, width),),
        interpret=interpret,
        compiler_params=CompilerParams(num_warps=width // 32),
        name=f"parnl_{kind}",
    )
    return list(run(*(array for group in given.values() for array in group)))


_interpreted = partial(call, interpret=True)


class _Lanes:
    """The lanes of one block: where each reads and writes, and how it goes through its steps."""

    def __init__(self, program: Program, plan: Plan, like: jax.Array, width: int) -> None:
        self.plan, self.width, self.dtype = plan, width, like.dtype
        _, chunks, channels = like.shape
        lane = pl.program_id(0) * width + lax.iota(np.int32, width)
        # lanes past the last one repeat it, and write what it writes
        lane = lax.min(lane, np.int32(like.size - 1))
        row, self.d = lax.div(lane, np.int32(channels)), lax.rem(lane, np.int32(channels))
        self.b, self.c = lax.div(row, np.int32(chunks)), lax.rem(row, np.int32(chunks))
        self.ahead = min(_AHEAD, plan.length, max(1, _OPERATIONS // max(1, program.cost)))
        # some lanes have fewer steps: of a short last chunk, or of the last few loaded at once
        self.ragged = chunks * plan.length > plan.steps or plan.length % self.ahead > 0

    def full(self, x: Any) -> Any:
        """A function of the program may return a number, or one value for all lanes."""
        return jnp.broadcast_to(jnp.asarray(x, self.dtype), (self.width,))

    def load(self, refs: Sequence[Any], position: Any) -> list:
        """Read at (b, position, d) from arrays that broadcast to (B, T, D), or (B, C, D)."""
        index = (self.b, position, self.d)
        return [
            self.full(ref[tuple(0 if n == 1 else i for n, i in zip(ref.shape, index, strict=True))])
            for ref in refs
        ]

    def store(self, refs: Sequence[Any], position: Any, values: Sequence[Any], alive: Any) -> None:
        for ref, x in zip(refs, values, strict=True):
            store(ref.at[self.b, position, self.d], self.full(x), mask=alive)

    def operands(self, refs: Sequence[Any]) -> Callable[[Any], list]:
        """Return what loads the operands of time t; what has no axis of time is loaded here."""
        still = [self.load([ref], 0)[0] if ref.shape[1] == 1 else None for ref in refs]

        def load(t: Any) -> list:
            pairs = zip(refs, still, strict=True)
            return [self.load([ref], t)[0] if x is None else x for ref, x in pairs]

        return load

    def time(self, step: Any) -> tuple[Any, Any]:
        """Return (time, whether it is there) of a chunk's step; of its last one if it is not."""
        length, steps = np.int32(self.plan.length), np.int32(self.plan.steps)
        first, alive = self.c * length, None
        if self.ragged:
            own = lax.min(length, steps - first)
            step, alive = lax.min(step, own - 1), step < own
        t = first + step
        return (steps - 1 - t if self.plan.reverse else t), alive

    def run(
        self, load: Callable, step: Callable, carry: Any, settle: Callable | None = None
    ) -> Any:
        """Take `carry` through all steps of a chunk: step(carry, load(t), t, alive).

        settle(carry, whether a stretch of steps is over) is called now and then.
        """
        count = -(-self.plan.length // self.ahead)
        stretch = np.int32(-(-_STRETCH // self.ahead))

        def several(i: Any, carry: Any) -> Any:
            i = lax.convert_element_type(i, np.int32)
            times = [self.time(i * np.int32(self.ahead) + np.int32(j)) for j in range(self.ahead)]
            loaded = [load(t) for t, _ in times]
            for (t, alive), values in zip(times, loaded, strict=True):
                carry = jax.tree.map(
                    lambda new, old, alive=alive: (
                        self.full(new) if alive is None else jnp.where(alive, new, old)
                    ),
                    step(carry, values, t, alive),
                    carry,
                )
            return settle(carry, lax.rem(i, stretch) == stretch - 1) if settle else carry

        return lax.fori_loop(np.int32(0), np.int32(count), several, carry)


def _trajectory(
    lanes: _Lanes, program: Program, refs: Mapping, written: Sequence[Any], _: Sequence[int]
) -> None:
    function, k = program.function("step", elementwise), len(refs["start"])

    def step(states: list, operands: list, t: Any, alive: Any) -> list:
        states = list(function(*states, *operands))
        lanes.store(written[:k], t, states, alive)
        return states

    starts = lanes.load(refs["start"], lanes.c)
    ends = lanes.run(lanes.operands(refs["op"]), step, starts)
    lanes.store(written[k:], lanes.c, ends, None)


def _advance(
    lanes: _Lanes, program: Program, refs: Mapping, written: Sequence[Any], _: Sequence[int]
) -> None:
    function, k = program.function("step_jacobian", elementwise), len(refs["start"])

    def step(carry: tuple, operands: list, t: Any, alive: Any) -> tuple:
        states, product = carry
        found = function(*states, *operands)
        return list(found[:k]), blocks.matmul(found[k:], product, k)

    starts = lanes.load(refs["start"], lanes.c)
    ones = [lanes.full(x) for x in blocks.identity(k)]
    ends, product = lanes.run(lanes.operands(refs["op"]), step, (starts, ones))
    lanes.store(written, lanes.c, [*ends, *product], None)


def _adjoint(
    lanes: _Lanes, program: Program, refs: Mapping, written: Sequence[Any], _: Sequence[int]
) -> None:
    function, k = program.function("jacobian", elementwise), len(refs["start"])

    def step(carry: tuple, values: tuple, t: Any, alive: Any) -> tuple:
        (m, product), (operands, before, g) = carry, values
        turned = _transposed(function(*before, *operands), k)
        lam = [x + y for x, y in zip(m, g, strict=True)]
        return blocks.matvec(turned, lam), blocks.matmul(turned, product, k)

    starts = lanes.load(refs["start"], lanes.c)
    ones = [lanes.full(x) for x in blocks.identity(k)]
    ends, product = lanes.run(_backward_loads(lanes, refs), step, (starts, ones))
    lanes.store(written, lanes.c, [*ends, *product], None)


def _backward(
    lanes: _Lanes, program: Program, refs: Mapping, written: Sequence[Any], wanted: Sequence[int]
) -> None:
    jacobian, k = program.function("jacobian", elementwise), len(refs["start"])
    pull = program.function("vjp", elementwise, tuple(wanted))
    summed = [refs["op"][i].shape[1] == 1 for i in wanted]
    ends, found = written[:k], written[k:]
    sums = [ref for ref, s in zip(found, summed, strict=True) if s]
    rows = [ref for ref, s in zip(found, summed, strict=True) if not s]

    def step(carry: tuple, values: tuple, t: Any, alive: Any) -> tuple:
        (m, some, total), (operands, before, g) = carry, values
        turned = _transposed(jacobian(*before, *operands), k)
        lam = [x + y for x, y in zip(m, g, strict=True)]
        pulled = pull(*before, *operands, *lam)
        lanes.store(rows, t, [x for x, s in zip(pulled, summed, strict=True) if not s], alive)
        parts = [x for x, s in zip(pulled, summed, strict=True) if s]
        some = [x + y for x, y in zip(some, parts, strict=True)]
        return blocks.matvec(turned, lam), some, total

    def settle(carry: tuple, over: Any) -> tuple:
        m, some, total = carry
        total = [jnp.where(over, y + x, y) for x, y in zip(some, total, strict=True)]
        return m, [jnp.where(over, 0.0, x) for x in some], total

    starts = lanes.load(refs["start"], lanes.c)
    zeros = [lanes.full(0.0) for _ in sums]
    m, some, total = lanes.run(_backward_loads(lanes, refs), step, (starts, zeros, zeros), settle)
    lanes.store(ends, lanes.c, m, None)
    lanes.store(sums, lanes.c, [x + y for x, y in zip(some, total, strict=True)], None)


_KINDS = {
    "trajectory": _trajectory,
    "advance": _advance,
    "adjoint": _adjoint,
    "backward": _backward,
}


def _transposed(entries: Sequence[Any], k: int) -> list:
    return [entries[j * k + i] for i in range(k) for j in range(k)]


def _backward_loads(lanes: _Lanes, refs: Mapping) -> Callable[[Any], tuple]:
    """Return what loads, of time t, the operands, the state before the step, and the gradient."""
    operands, reverse, steps = lanes.operands(refs["op"]), lanes.plan.reverse, lanes.plan.steps
    first = [lanes.full(ref[lanes.b, lanes.d]) for ref in refs["x0"]]

    def load(t: Any) -> tuple:
        # the forward run went the other way; its first step started from x0
        edge = t == np.int32(0 if reverse else steps - 1)
        before = lax.clamp(np.int32(0), t + np.int32(-1 if reverse else 1), np.int32(steps - 1))
        states = lanes.load(refs["state"], before)
        states = [jnp.where(edge, x, s) for x, s in zip(first, states, strict=True)]
        return operands(t), states, lanes.load(refs["g"], t)

    return load
