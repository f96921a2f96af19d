"""What a solve is to JAX: what is fixed when it is traced, its types, and how XLA may divide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from parnl.backends.jax.devices import MeshLine
from parnl.backends.jax.divided import Letters, Over, Rule, summed
from parnl.backends.jax.kernels import platform
from parnl.graph.program import Program
from parnl.solver.devices import Along
from parnl.solver.newton import Plan, Stats
from parnl.solver.run import planned_anew


class Problem(NamedTuple):
    """What is fixed when a solve is traced; `backend` is JAX's, `moves` what has a tangent.

    line: the devices that share the axis of time, if several do; moves: for each operand, then for
    each array of x0.
    """

    backend: Any
    program: Program
    plan: Plan
    line: MeshLine | None = None
    moves: tuple[bool, ...] = ()

    @property
    def kernels(self) -> Any:
        """What `newton` calls."""
        return self.backend if self.line is None else Along(self.backend, self.line)

    def anew(self, arrays: Sequence[Any]) -> Problem:
        """Return the problem with the chunks of the platform exported for, where these decide.

        The chunks that a CPU chooses for its kernels pay there without kernels, too. Measured,
        2^15 steps, 1 to 16 channels: 0.45 to 0.8 of the plain loop's time, with gradient 0.6 to
        2.1.
        """
        if platform() == jax.default_backend() == "cpu":
            return self
        like = arrays[len(self.program.operands)]
        plan = planned_anew(self.backend, self.program, like, self.plan)
        return self._replace(plan=plan)

    @property
    def wanted(self) -> tuple[int, ...]:
        """Operands that have a tangent."""
        return tuple(i for i in range(len(self.program.operands)) if self.moves[i])

    def split(self, arrays: Sequence[Any]) -> list[list[Any]]:
        """Return the operands of `tangent` as operands, x0, states, and tangents of what moves."""
        n, k = len(self.program.operands), len(self.program.states)
        ends = [n, n + k, n + 2 * k, len(arrays)]
        return [list(arrays[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


# -- types -----------------------------------------------------------------------------------------


def solve_shapes(*arrays: Any, problem: Problem) -> list:
    """Return the types of states and statistics."""
    _, x0, *_ = problem.split(arrays)
    (batch, channels), dtype = x0[0].shape, x0[0].dtype
    steps = problem.plan.steps if problem.line is None else problem.line.steps
    states = [jax.ShapeDtypeStruct((batch, steps, channels), dtype) for _ in x0]
    types = Stats(jnp.int32, dtype, dtype, jnp.bool, jnp.int32)
    return [*states, *(jax.ShapeDtypeStruct((), t) for t in types)]


def tangent_shapes(*arrays: Any, problem: Problem) -> list:
    """Return the types of the states' tangents."""
    return problem.split(arrays)[2]


def gradients_shapes(*arrays: Any, problem: Problem) -> list:
    """Return the types of the gradients of what moves."""
    given = arrays[: len(problem.moves)]
    return [a for a, m in zip(given, problem.moves, strict=True) if m]


# -- how they may be divided -----------------------------------------------------------------------


def _letters(problem: Problem, arrays: Sequence[Any]) -> list[Letters]:
    """Return the axes of the arrays of `split`: sequences b, time t, channels d."""

    def axes(array: Any) -> Letters:
        return tuple(n if size != 1 else "" for n, size in zip("btd", array.shape, strict=True))

    operands, x0, states, moving = problem.split(arrays)
    moves = [a for a, m in zip([*operands, *x0], problem.moves, strict=False) if m]
    of_moving = [axes(a) if a.ndim == 3 else ("b", "d") for a in moves[: len(moving)]]
    of_states = [("b", "t", "d") for _ in states]
    return [*map(axes, operands), *(("b", "d") for _ in x0), *of_states, *of_moving]


def _local(problem: Problem, over: Over, sizes: dict[str, int]) -> Problem:
    """Return what one device has of the problem."""
    names = over.get("t")
    if names is None:
        return problem
    size = math.prod(sizes[n] for n in names)
    line = MeshLine(names if len(names) > 1 else names[0], size, problem.plan.steps // size)
    return problem._replace(line=line, plan=line.rounded(problem.plan))


def solve_rule(made: Any, *arrays: Any, problem: Problem) -> Rule:
    """Return how a solve may be divided; made: its primitive."""
    given, k = _letters(problem, arrays), len(problem.program.states)

    def local(over: Over, sizes: dict[str, int], arrays: Sequence[Any]) -> list:
        found = made.bind(*arrays, problem=_local(problem, over, sizes))
        apart = tuple(n for letter in "bd" for n in over.get(letter, ()))
        return [*found[:k], *_together(Stats(*found[k:]), apart, over.get("t", ()))]

    none: Letters = ()
    return Rule(given, [("b", "t", "d")] * k + [none] * len(Stats._fields), local)


def _together(stats: Stats, apart: tuple[str, ...], line: tuple[str, ...]) -> Stats:
    """Return the statistics of all lanes, from those of each device."""
    every = (*apart, *line)
    if not every:
        return stats
    stats = Stats(*map(lax.stop_gradient, stats))
    iterations = lax.pmax(stats.iterations, every)
    last = jnp.where(stats.iterations == iterations, stats.update, 0)
    loops = stats.sequential
    return Stats(
        iterations,
        lax.pmax(last, every),
        lax.pmax(stats.residual, every),
        lax.pmin(stats.converged.astype(jnp.int32), every) > 0,
        lax.pmax(lax.psum(loops, apart) if apart else loops, line) if line
        else lax.psum(loops, apart),
    )  # fmt: skip


def tangent_rule(made: Any, *arrays: Any, problem: Problem) -> Rule:
    """Return how its tangent may be divided."""

    def local(over: Over, sizes: dict[str, int], arrays: Sequence[Any]) -> list:
        return made.bind(*arrays, problem=_local(problem, over, sizes))

    return Rule(_letters(problem, arrays), [("b", "t", "d")] * len(problem.program.states), local)


def gradients_rule(made: Any, *arrays: Any, problem: Problem) -> Rule:
    """Return how its gradients may be divided: what all sequences or steps have is summed."""
    letters = _letters(problem, arrays[: len(arrays) - len(problem.program.states)])
    found = [a for a, m in zip(letters, problem.moves, strict=False) if m]

    def local(over: Over, sizes: dict[str, int], arrays: Sequence[Any]) -> list:
        parts = made.bind(*arrays, problem=_local(problem, over, sizes))
        return summed(parts, found, over)

    return Rule([*letters, *[("b", "t", "d")] * len(problem.program.states)], found, local)
