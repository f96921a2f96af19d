"""What is true: a plain loop over a cell's own functions; and how a solve is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from parnl.dtypes import is_half, widened
from parnl.frameworks import backend_of, get_backend
from parnl.params import Values
from parnl.solve import solve
from parnl.testing.kinds import unusual
from parnl.testing.problems import Problem

# Largest error relative to the largest reference value.
TOLERANCES = {"float64": 1e-10, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def loop(
    cell: Any,
    params: Mapping[str, Any],
    inputs: Any,
    initial_state: Sequence[Any],
    *,
    dt: Any = None,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
) -> tuple[Any, tuple[Any, ...]]:
    """Return (outputs, final state) by a plain loop over `cell.step`, on arrays of any backend.

    Arguments and results as those of `parnl.solve`; it shares none of its code: no trace, no
    chunks, no derivative rules. Half precision is computed with in float32: only the outputs are
    rounded, and products of matrices where the backend takes them in it.
    """
    backend = backend_of([("inputs", inputs)])
    xp = backend.xp
    steps = inputs.shape[-2]
    if lengths is not None:
        valid = xp.arange(steps) < lengths[..., None]
        inputs = xp.where(valid[..., None], inputs, xp.zeros_like(inputs))
    dtype = inputs.dtype
    if is_half(dtype):
        inputs, params = xp.astype(inputs, xp.float32), _single(xp, params)
        initial_state, dt = _single(xp, initial_state), None if dt is None else _single(xp, [dt])[0]
    p = Values("parameter", params)
    with backend.products(dtype, inputs):
        named = dict(cell.features(p, inputs))
    features = Values("feature", named)
    first: tuple[Any, ...] = tuple(initial_state)
    state = first
    history: list[Any] = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        begins = t + 1 if reverse else t  # or what comes after it in time has begun there
        if resets is not None and begins < steps:
            anew = resets[..., begins, None]
            if lengths is not None:
                anew = anew & valid[..., begins, None]
            state = tuple(xp.where(anew, i, x) for i, x in zip(first, state, strict=True))
        now = {n: a[..., t if a.shape[-2] > 1 else 0, :] for n, a in named.items()}
        time: dict[str, Any] = {}
        if cell.time_aware:
            time["dt"] = getattr(cell, "dt", 1.0) if dt is None else dt[..., t, None]
        new = cell.step(p, *state, Values("feature", now), **time)
        new = tuple(new) if isinstance(new, tuple | list) else (new,)
        if lengths is not None:
            going = valid[..., t, None]
            new = tuple(xp.where(going, n, x) for n, x in zip(new, state, strict=True))
        state = tuple(xp.zeros_like(x) + n for n, x in zip(new, state, strict=True))
        history[t] = state
    if not steps:
        return xp.zeros((*inputs.shape[:-1], cell.hidden_size), dtype=dtype), state
    whole = [xp.stack([h[i] for h in history], axis=-2) for i in range(len(state))]
    outputs = cell.output(p, *whole, features) if hasattr(cell, "output") else whole[-1]
    if lengths is not None:
        outputs = xp.where(valid[..., None], outputs, xp.zeros_like(outputs))
    return (xp.astype(outputs, dtype) if is_half(dtype) else outputs), state


def _single(xp: Any, arrays: Any) -> Any:
    if isinstance(arrays, Mapping):
        return {n: xp.astype(a, xp.float32) for n, a in arrays.items()}
    return [xp.astype(a, xp.float32) for a in arrays]


# -- running a problem ----------------------------------------------------------------------------

Results = dict[str, np.ndarray]


def looped(problem: Problem, dtype: str = "float64") -> Results:
    """Return outputs and final state by `loop`, name -> array in float64."""
    p, u, x, dt, told = arrays(problem, dtype)
    with np.errstate(all="ignore"), no_gradient(problem):
        out = loop(problem.cell, p, u, x, dt=dt, reverse=problem.reverse, **told)
        return named(problem, *out)


def solved(problem: Problem, **how: Any) -> Results:
    """Return outputs and final state by `parnl.solve`, name -> array in float64."""
    return named(problem, *solution(problem, **how)[:2])


def solution(problem: Problem, **how: Any) -> Any:
    """Return what `parnl.solve` returns."""
    p, u, x, dt, told = arrays(problem, problem.dtype, plain=False)
    how = {"chunks": problem.chunks, **told, **how}
    if how["chunks"] is not None:  # Newton is to do all of it, however many updates it takes
        how.setdefault("max_iterations", how["chunks"])
    with np.errstate(all="ignore"), no_gradient(problem):
        return solve(problem.cell, p, u, x, dt=dt, reverse=problem.reverse, **how)


def looped_gradients(problem: Problem, dtype: str = "float64") -> Results:
    """Return what `looped` does, and every gradient, by the framework's autodiff of the loop."""
    return _with_gradients(problem, dtype, _by_loop, False)


def solved_gradients(problem: Problem) -> Results:
    """Return what `solved` does, and every gradient, those of the solve."""
    return _with_gradients(problem, problem.dtype, _by_solve, True)


def differentiable(problem: Problem) -> bool:
    """Whether the framework has gradients."""
    return problem.backend != "numpy"


def real_dtype(problem: Problem, dtype: str) -> str:
    """Return the dtype that arrays of `dtype` come in: JAX has float64 only if told so."""
    if problem.backend == "jax" and dtype == "float64":
        import jax

        if not jax.config.read("jax_enable_x64"):
            return "float32"
    return dtype


def no_gradient(problem: Problem) -> Any:
    """Return a context in which torch does not record."""
    if problem.backend == "torch":
        import torch

        return torch.no_grad()
    return np.errstate()


def arrays(
    problem: Problem, dtype: str, *, plain: bool = True
) -> tuple[dict[str, Any], Any, list[Any], Any, dict[str, Any]]:
    """Return the problem's parameters, inputs, initial state, dt, and the others on its backend.

    The others are lengths and resets, by these names, where there are any.

    Unless `plain`, what enters no matrix product is of unusual memory: a product may round
    differently, and some properties compare bits.
    """
    backend, dtype = get_backend(problem.backend), real_dtype(problem, dtype)
    rng = np.random.default_rng(problem.seed)

    def made(values: np.ndarray) -> Any:
        array = backend.asarray(values, dtype)
        return array if plain or values.ndim == 0 else unusual(problem.backend, array, rng)

    others = {"lengths": problem.lengths, "resets": problem.resets}
    with np.errstate(over="ignore"):
        return (
            {
                n: made(v) if problem.cell.specs[n].per_channel else backend.asarray(v, dtype)
                for n, v in problem.params.items()
            },
            backend.asarray(problem.inputs, dtype),
            [made(x) for x in problem.start],
            None if problem.dt is None else made(problem.dt),
            {n: backend.xp.asarray(v) for n, v in others.items() if v is not None},
        )


def named(problem: Problem, outputs: Any, final: Sequence[Any]) -> Results:
    """Return results by name, as NumPy arrays in float64."""
    found = {"outputs": outputs}
    found |= {f"final state {n}": x for n, x in zip(problem.cell.states, final, strict=True)}
    return {n: numbers(problem, x) for n, x in found.items()}


def numbers(problem: Problem, array: Any) -> np.ndarray:
    """Return an array of the backend as float64 numbers."""
    backend = get_backend(problem.backend)
    array = widened(backend.xp, array, backend.xp.float32)  # NumPy may not know the type
    return np.asarray(backend.to_numpy(array), np.float64)


Solver = Callable[..., tuple[Any, Sequence[Any]]]


def _by_solve(problem: Problem, p: Any, u: Any, x: Any, dt: Any, told: dict) -> tuple:
    out = solve(
        problem.cell, p, u, x, dt=dt, reverse=problem.reverse,
        chunks=problem.chunks, max_iterations=problem.chunks, **told,
    )  # fmt: skip
    return out.outputs, out.final_state


def _by_loop(problem: Problem, p: Any, u: Any, x: Any, dt: Any, told: dict) -> tuple:
    return loop(problem.cell, p, u, x, dt=dt, reverse=problem.reverse, **told)


def _with_gradients(problem: Problem, dtype: str, solver: Solver, jit: bool) -> Results:
    p, u, x, dt, told = arrays(problem, dtype, plain=solver is not _by_solve)
    if problem.backend == "torch":
        return _evaluate_torch(problem, p, u, x, dt, told, solver)
    return _evaluate_jax(problem, (p, u, x, dt), told, solver, jit)


def _loss(problem: Problem, outputs: Any, final: Sequence[Any]) -> Any:
    backend = get_backend(problem.backend)
    total: Any = 0.0
    for x, w in zip([outputs, *final], problem.weights, strict=True):
        dtype = str(x.dtype).removeprefix("torch.")
        total = total + (x * backend.asarray(w, dtype)).sum()
    return total


def _evaluate_torch(
    problem: Problem, p: Any, u: Any, x: Any, dt: Any, told: dict, solver: Solver
) -> Results:
    import torch

    leaves = _leaves(problem, p, u, x, dt)
    for leaf in leaves.values():
        leaf.requires_grad_()
    outputs, final = solver(problem, p, u, x, dt, told)
    found = torch.autograd.grad(
        _loss(problem, outputs, final), list(leaves.values()), materialize_grads=True
    )
    grads = {f"gradient of {n}": numbers(problem, g) for n, g in zip(leaves, found, strict=True)}
    return named(problem, outputs, final) | grads


def _evaluate_jax(problem: Problem, given: tuple, told: dict, solver: Solver, jit: bool) -> Results:
    import jax

    def loss(given: tuple) -> Any:
        outputs, final = solver(problem, *given, told)
        return _loss(problem, outputs, final), (outputs, final)

    # The loop runs operation by operation: unrolled, XLA would take seconds to compile it.
    function = jax.value_and_grad(loss, has_aux=True)
    (_, (outputs, final)), found = (jax.jit(function) if jit else function)(given)
    leaves = _leaves(problem, *found)
    return named(problem, outputs, final) | {
        f"gradient of {n}": numbers(problem, g) for n, g in leaves.items()
    }


def _leaves(problem: Problem, p: Any, u: Any, x: Any, dt: Any) -> dict[str, Any]:
    leaves = {**p, "inputs": u}
    leaves |= {f"initial {n}": s for n, s in zip(problem.cell.states, x, strict=True)}
    return leaves if dt is None else {**leaves, "dt": dt}


# -- comparing ------------------------------------------------------------------------------------


def agree(
    problem: Problem,
    found: Results,
    expected: Results,
    rounded: Results | None = None,
    dtype: str | None = None,
    least: float = 1e-30,
) -> None:
    """Assert that results are equal to what `dtype`, by default the problem's, can tell apart.

    `rounded` are the loop's own results in that dtype: its error is nobody's fault. Errors are
    relative to the largest value of a result, taken as at least `least`.
    """
    dtype = dtype or tolerated(problem)
    for name, e in expected.items():
        error = relative_error(found[name], e, least)
        excused = 0.0 if rounded is None else relative_error(rounded[name], e)
        allowed = TOLERANCES[dtype] + 4.0 * excused
        assert error <= allowed, (
            f"{name}: relative error {error:.3g} > {allowed:.3g} for {problem!r}"
        )


def tolerated(problem: Problem) -> str:
    """Return the dtype whose tolerance holds for results of the problem."""
    return real_dtype(problem, problem.dtype)


def relative_error(found: np.ndarray, expected: np.ndarray, least: float = 1e-30) -> float:
    """Return the largest difference over the largest value, which is taken as at least `least`.

    It is inf if NaN or inf are elsewhere.
    """
    if not same_pattern(found, expected):
        return np.inf
    finite, scale = np.isfinite(expected), max(least, largest(expected))
    return float(np.max(np.abs(found[finite] - expected[finite]), initial=0.0)) / scale


def largest(array: np.ndarray) -> float:
    """Return the largest finite magnitude, 1e-30 if there is none."""
    return float(np.max(np.abs(array[np.isfinite(array)]), initial=1e-30))


def same_pattern(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether NaN, inf and -inf stand in the same places."""
    if found.shape != expected.shape:
        return False
    special = ~np.isfinite(expected)
    return bool(
        np.array_equal(~np.isfinite(found), special)
        and np.array_equal(found[special], expected[special], equal_nan=True)
    )


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether all numbers are equal, NaN to NaN."""
    return bool(np.array_equal(found, expected, equal_nan=True))
