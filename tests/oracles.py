"""Reference results that share no code with the solver.

`run` is every cell as a plain loop over time, written from its published equations; it works on
NumPy arrays, on torch tensors and on JAX arrays, so that a framework's own automatic
differentiation gives reference gradients. The core cells are in `oracles_core`, the others in
`oracles_cells`. `loop` and `scan_loop` do the same for any cell, by calling its `features` and
`step` one step after the other. `Problem`, `reference` and `answer` pose one task, answer it with
the loop, and answer it with parnl on a chosen backend, so that a test is one comparison.

No framework is imported before a task on it is posed: tests of one run where others are missing.

The file is long, for a task, its loops and its answers are read together.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import oracles_cells
from oracles_core import (  # also for tests, which ask this file for all of them
    CELLS,  # noqa: F401
    NUMPY,  # noqa: F401
    STATES,  # noqa: F401
    TIME_AWARE,  # noqa: F401
    VARIANTS,  # noqa: F401
    count_states,
    draw_params,
    first_state,
    is_tensor,
    is_time_aware,  # noqa: F401
    maths,
    name_per_channel,
    one_step,
    parameter_shapes,  # noqa: F401
)

import parnl
from parnl import ops
from parnl.params import matrix, vector
from parnl.testing import installed

Array = Any

BACKENDS = installed()


def run(
    name: str,
    params: Mapping[str, Array],
    inputs: Array,
    initial_state: tuple | None = None,
    *,
    dt: Array | None = None,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Array, tuple]:
    """Run cell `name` one time step after the other.

    inputs: (..., T, input); dt: (T,) or (..., T). Returns the outputs (..., T, hidden) and the
    tuple of final states (..., hidden).
    """
    m = maths(inputs)
    options = dict(options or {})
    fixed_dt = options.pop("dt", oracles_cells.DT.get(name, 1.0))
    *batch, n_steps, _ = inputs.shape
    hidden = params[name_per_channel(name)].shape[-1]
    shape = (*batch, hidden)
    state = initial_state
    if state is None:
        state = tuple(m.zeros(shape, inputs) for _ in range(count_states(name)))
    rows: list[Array] = [None] * n_steps
    for t in reversed(range(n_steps)) if reverse else range(n_steps):
        u = inputs[..., t, :]
        valid = None
        if lengths is not None:
            valid = _mask(lengths, t, inputs)
            u = m.where(valid, u, m.zeros((), inputs))  # padding may hold anything
        step_dt = fixed_dt if dt is None else dt[..., t, None]
        new, rows[t] = one_step(name, m, params, u, state, step_dt, **options)
        if valid is not None:
            new = tuple(
                m.where(valid, after, before) for after, before in zip(new, state, strict=True)
            )
            rows[t] = m.where(valid, rows[t], m.zeros((), inputs))
        state = new
    outputs = m.stack(rows, -2) if rows else m.zeros((*batch, 0, hidden), inputs)
    return outputs, state


def run_apart(task: Problem, arguments: Mapping[str, Any]) -> tuple[Array, tuple]:
    """Run what begins anew within the sequences of a task by itself, one piece after the other.

    Results as those of `run`; without an axis of the batch, or with one.
    """
    given = dict(arguments)
    inputs, start, dt = given.pop("inputs"), given.pop("initial_state"), given.pop("dt")
    m = maths(inputs)
    *batch, steps, _ = inputs.shape
    states = count_states(task.name)

    def sequence(at: tuple, cuts: list[int], starts: list[Any]) -> tuple[Array, list]:
        """Return the outputs (T, hidden), and of each piece the final state."""
        zeros = m.zeros(task.weights[0].shape[-1:], inputs)
        rows, ends = [zeros] * steps, []
        for first, last, before in zip(cuts, cuts[1:], starts, strict=False):
            times = None if dt is None else (dt if dt.ndim == 1 else dt[at])[first:last]
            before = tuple(zeros for _ in range(states)) if before is None else before
            u = inputs[at][first:last]
            out, end = run(task.name, inputs=u, initial_state=before, dt=times,
                           options=task.options, **given)  # fmt: skip
            rows[first:last] = list(out)
            ends.append(end)
        return m.stack(rows, 0) if rows else m.zeros((0, *zeros.shape), inputs), ends

    if task.cu_seqlens is not None:
        cuts = [int(i) for i in task.cu_seqlens]
        count = len(cuts) - 1
        starts = [None if start is None else tuple(s[i] for s in start) for i in range(count)]
        outputs, ends = sequence((), cuts, starts)
        return outputs, tuple(m.stack(list(part), 0) for part in zip(*ends, strict=True))
    results = []
    for at in np.ndindex(*batch):
        due = steps if task.lengths is None else int(task.lengths[at])
        inside = [int(t) for t in np.flatnonzero(task.resets[at]) if 0 < t < due]
        before = None if start is None else tuple(s[at] for s in start)
        outputs, ends = sequence(at, [0, *inside, due], [before] * (len(inside) + 1))
        results.append((outputs, *ends[0 if task.reverse else -1]))
    if not batch:
        outputs, *ends = results[0]
    else:
        outputs, *ends = [m.stack(list(part), 0) for part in zip(*results, strict=True)]
    return outputs, tuple(ends)


def _mask(lengths: np.ndarray, t: int, like: Array) -> Array:
    return maths(like).array((t < np.asarray(lengths))[..., None])


def _is_time_aware(cell: Any) -> bool:
    return list(inspect.signature(cell.step).parameters)[-1] == "dt"


def _zero_state(cell: Any, hidden: int, zeros: Callable[[tuple[int, ...]], Array], batch) -> tuple:
    return tuple(zeros((*batch, hidden)) for _ in getattr(cell, "states", ("x",)))


def loop(
    cell: Any,
    params: Mapping[str, Array],
    inputs: Array,
    initial_state: tuple | None = None,
    *,
    dt: Array | None = None,
    lengths: np.ndarray | None = None,
    reverse: bool = False,
) -> tuple[Array, tuple]:
    """Run any cell, on arrays of any framework, by calling its `step` T times."""
    m = maths(inputs)
    p = SimpleNamespace(**params)
    *batch, n_steps, _ = inputs.shape
    if lengths is not None:
        valid = np.arange(n_steps) < np.asarray(lengths)[..., None]
        inputs = m.where(m.array(valid)[..., None], inputs, m.zeros((), inputs))
    features = cell.features(p, inputs)
    hidden = next(iter(features.values())).shape[-1]
    state = initial_state
    if state is None:
        state = _zero_state(cell, hidden, lambda shape: m.zeros(shape, inputs), batch)
    rows: list[Array] = [None] * n_steps
    for t in reversed(range(n_steps)) if reverse else range(n_steps):
        now = {k: v[..., t if v.shape[-2] > 1 else 0, :] for k, v in features.items()}
        f = SimpleNamespace(**now)
        extra: tuple = ()
        if _is_time_aware(cell):
            extra = (cell.dt if dt is None else dt[..., t, None],)
        new = cell.step(p, *state, f, *extra)
        new = new if isinstance(new, tuple) else (new,)
        rows[t] = cell.output(p, *new, f) if hasattr(cell, "output") else new[-1]
        if lengths is not None:
            on = _mask(lengths, t, inputs)
            new = tuple(
                m.where(on, after, before) for after, before in zip(new, state, strict=True)
            )
            rows[t] = m.where(on, rows[t], m.zeros((), inputs))
        state = new
    outputs = m.stack(rows, -2) if rows else m.zeros((*batch, 0, hidden), inputs)
    return outputs, state


def scan_loop(cell, params, inputs, initial_state=None, *, dt=None):
    """Run any cell on JAX arrays with `jax.lax.scan`, which JAX differentiates by itself."""
    from optional import jax, jnp

    p = SimpleNamespace(**params)
    features = cell.features(p, inputs)
    *batch, n_steps, hidden = next(iter(features.values())).shape
    state = initial_state
    if state is None:
        state = _zero_state(cell, hidden, lambda shape: jnp.zeros(shape, inputs.dtype), batch)
    xs = {k: jnp.moveaxis(v, -2, 0) for k, v in features.items()}
    if dt is None:
        steps = jnp.full((n_steps, 1), getattr(cell, "dt", 1.0), inputs.dtype)
    else:
        steps = jnp.moveaxis(dt, -1, 0)[..., None]

    def body(carry, x):
        f, step_dt = x
        extra = (step_dt,) if _is_time_aware(cell) else ()
        new = cell.step(p, *carry, SimpleNamespace(**f), *extra)
        new = new if isinstance(new, tuple) else (new,)
        return new, new[-1]

    state, rows = jax.lax.scan(body, state, (xs, steps))
    return jnp.moveaxis(rows, 0, -2), state


class Problem(NamedTuple):
    """One task: a cell, everything `solve` takes, and the weights of a scalar loss."""

    name: str
    options: dict[str, Any]
    params: dict[str, np.ndarray]
    inputs: np.ndarray
    initial_state: tuple[np.ndarray, ...] | None
    dt: np.ndarray | None
    lengths: np.ndarray | None
    reverse: bool
    weights: tuple[np.ndarray, ...]  # of the outputs, then of each final state
    resets: np.ndarray | None = None
    cu_seqlens: np.ndarray | None = None

    @property
    def cell(self) -> Any:
        n_in, hidden = self.inputs.shape[-1], self.weights[0].shape[-1]
        return parnl.get_cell(self.name, input_size=n_in, hidden_size=hidden, **self.options)


def problem(
    name: str,
    *,
    steps: int = 23,
    batch: tuple[int, ...] = (3,),
    n_in: int = 3,
    hidden: int = 4,
    times: str | None = None,
    lengths: Any = None,
    reverse: bool = False,
    start: bool = True,
    dtype: str = "float64",
    seed: int = 0,
    resets: Any = None,
    cu_seqlens: Any = None,
    **options: Any,
) -> Problem:
    """Draw a task for a cell.

    `times` asks for a dt per step in place of the option `dt`: "shared" (T,) or "own" (..., T).
    """
    rng = np.random.default_rng(seed)

    def cast(x):
        return np.asarray(x).astype(dtype)

    shape = (*batch, hidden) if cu_seqlens is None else (len(cu_seqlens) - 1, hidden)
    dt_shape = {None: None, "shared": (steps,), "own": (*batch, steps)}[times]
    count = count_states(name)
    return Problem(
        name,
        options,
        {k: cast(v) for k, v in draw_params(name, n_in, hidden, rng, **options).items()},
        cast(rng.normal(size=(*batch, steps, n_in))),
        tuple(cast(first_state(name, i, rng, shape)) for i in range(count)) if start else None,
        None if dt_shape is None else cast(rng.uniform(0.2, 1.0, dt_shape)),
        None if lengths is None else np.asarray(lengths),
        reverse,
        tuple(cast(rng.normal(size=s)) for s in [(*batch, steps, hidden)] + [shape] * count),
        None if resets is None else np.asarray(resets),
        None if cu_seqlens is None else np.asarray(cu_seqlens),
    )


class Result(NamedTuple):
    """An answer as NumPy arrays; gradients are keyed params.W_f, inputs, state.0, dt."""

    outputs: np.ndarray
    final_state: tuple[np.ndarray, ...]
    gradients: dict[str, np.ndarray]


def _leaves(task: Problem) -> dict[str, np.ndarray]:
    leaves = {"params." + k: v for k, v in task.params.items()} | {"inputs": task.inputs}
    if task.initial_state is not None:
        leaves |= {f"state.{i}": v for i, v in enumerate(task.initial_state)}
    if task.dt is not None:
        leaves["dt"] = task.dt
    return leaves


def _arguments(task: Problem, leaves: Mapping[str, Array]) -> dict[str, Any]:
    state = None
    if task.initial_state is not None:
        state = tuple(leaves[f"state.{i}"] for i in range(len(task.initial_state)))
    return {
        "params": {k: leaves["params." + k] for k in task.params},
        "inputs": leaves["inputs"],
        "initial_state": state,
        "dt": leaves.get("dt"),
        "reverse": task.reverse,
    }


def to(backend: str, array: np.ndarray) -> Array:
    """Return `array` as an array of `backend`, dtype kept."""
    if backend == "torch":
        from optional import torch

        return torch.from_numpy(np.array(array))
    if backend == "jax":
        from optional import jnp

        return jnp.asarray(array)
    return array


def numpy_of(array: Array) -> np.ndarray:
    """Return any backend's array as NumPy's."""
    return array.detach().numpy() if is_tensor(array) else np.asarray(array)


def _loss(task: Problem, outputs: Array, final_state: tuple, convert: Callable) -> Array:
    parts = zip((outputs, *final_state), task.weights, strict=True)
    return sum((x * convert(w)).sum() for x, w in parts)


def _torch_result(task: Problem, leaves: dict[str, Array], outputs, final_state) -> Result:
    from optional import torch

    loss = _loss(task, outputs, final_state, lambda w: to("torch", w).to(outputs.dtype))
    found: Any = [None] * len(leaves)
    if loss.requires_grad:  # no step and no initial state: nothing to differentiate
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {
        k: np.zeros(leaf.shape) if g is None else g.numpy()
        for (k, leaf), g in zip(leaves.items(), found, strict=True)
    }
    return Result(numpy_of(outputs), tuple(numpy_of(s) for s in final_state), gradients)


def _jax_result(task: Problem, leaves: dict[str, Array], solution: Callable, jit=False) -> Result:
    from optional import jax

    def loss(leaves):
        found = solution(leaves)
        return _loss(task, *found, lambda w: to("jax", w)), found

    grad = jax.grad(loss, has_aux=True)
    leaves = {k: to("jax", v) for k, v in leaves.items()}
    found, (outputs, final_state) = (jax.jit(grad) if jit else grad)(leaves)
    return Result(
        numpy_of(outputs),
        tuple(numpy_of(s) for s in final_state),
        {k: numpy_of(v) for k, v in found.items()},
    )


def reference(task: Problem) -> Result:
    """Answer by the loop over time in float64, gradients by automatic differentiation of that loop.

    By torch's, or by JAX's where torch is not installed; without either there are no gradients.
    """

    def found(leaves: Mapping[str, Array]) -> tuple[Array, tuple]:
        arguments = _arguments(task, leaves)
        if task.resets is not None or task.cu_seqlens is not None:
            return run_apart(task, arguments)
        return run(task.name, **arguments, lengths=task.lengths, options=task.options)

    double = {k: v.astype(np.float64) for k, v in _leaves(task).items()}
    if "torch" in BACKENDS:
        leaves = {k: to("torch", v).requires_grad_() for k, v in double.items()}
        return _torch_result(task, leaves, *found(leaves))
    if "jax" in BACKENDS:
        return _jax_result(task, double, found)
    return Result(*found(double), {})


def answer(task: Problem, backend: str, *, gradients: bool = False, **how: Any) -> Result:
    """Answer with `parnl.solve` on `backend`; `how` is passed on (method, chunks, ...)."""
    told = {n: getattr(task, n) for n in ("lengths", "resets", "cu_seqlens")}
    told = {n: to(backend, v) for n, v in told.items() if v is not None}
    solve = functools.partial(parnl.solve, task.cell, **told, **how)
    leaves = {k: to(backend, v) for k, v in _leaves(task).items()}
    if not gradients:
        out = solve(**_arguments(task, leaves))
        return Result(numpy_of(out.outputs), tuple(numpy_of(s) for s in out.final_state), {})
    if backend == "torch":
        leaves = {k: v.requires_grad_() for k, v in leaves.items()}
        out = solve(**_arguments(task, leaves))
        return _torch_result(task, leaves, out.outputs, out.final_state)
    if backend != "jax":
        raise ValueError(f"{backend} has no gradients")

    def solution(leaves):
        out = solve(**_arguments(task, leaves))
        return out.outputs, out.final_state

    return _jax_result(task, leaves, solution, jit=True)


@parnl.register("test-everything")
class Everything(parnl.Cell):
    """Three states and every function there is."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
    states = ("x", "y", "z")
    options = dict(dt=0.5)

    def features(self, p, u):
        return dict(f=u @ p.W, g=(u @ p.W)[..., :1])  # g: one number a step, for all channels

    def step(self, p, x, y, z, f, dt):
        calm = (x > 0.1) & ~(y <= z) | (f.f >= 0.0) & (x < 0.4) | (x == y) & (y != z)
        x_new = ops.where(calm, ops.tanh(p.a * y + f.f), 0.3 * ops.sin(x) + 0.2 * ops.cos(z))
        root = ops.sqrt(ops.softplus(x) + 1.0) + ops.log1p(x * x) + ops.log(1.5 + abs(y))
        y_new = 0.1 * root + ops.sigmoid(p.b * z + f.g) * ops.expm1(-x * x) - ops.relu(z - 0.2)
        bounded = ops.clip(x * y, -0.5, 0.5) + ops.maximum(x, z) * ops.minimum(y, 0.2)
        z_new = z + dt * (0.3 * bounded - 0.5 * z) + 0.1 * (x * x + 1.0) ** -1.5 + 0.05 * x**3
        return x_new, y_new, 0.9 * z_new - 0.1 * ops.erf(z) + 0.01 * ops.sign(x) * ops.exp(-y * y)


def assert_close(actual: Array, expected: Array, tolerance: float, what: str = "") -> None:
    """Check max |actual - expected| <= tolerance * max |expected|, shapes and NaNs included."""
    a, e = numpy_of(actual), numpy_of(expected)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    if a.size == 0:
        return
    a, e = a.astype(np.float64), e.astype(np.float64)
    odd = ~np.isfinite(e)
    np.testing.assert_array_equal(np.where(odd, a, 0.0), np.where(odd, e, 0.0), err_msg=what)
    a, e = np.where(odd, 0.0, a), np.where(odd, 0.0, e)
    scale = np.abs(e).max()
    error = np.abs(a - e).max() / (scale if scale > 0 else 1.0)
    assert error <= tolerance, f"{what}: relative error {error:.3g}, allowed {tolerance:.3g}"


def assert_same(actual: Result, expected: Result, tolerance: float) -> None:
    """Compare outputs, final states, and whatever gradients `actual` has."""
    assert_close(actual.outputs, expected.outputs, tolerance, "outputs")
    assert len(actual.final_state) == len(expected.final_state)
    for i, (a, e) in enumerate(zip(actual.final_state, expected.final_state, strict=True)):
        assert_close(a, e, tolerance, f"final_state[{i}]")
    if actual.gradients:
        assert actual.gradients.keys() == expected.gradients.keys()
    for k, a in actual.gradients.items():
        assert_close(a, expected.gradients[k], tolerance, f"gradient of {k}")


def assert_bits(actual: Array, expected: Array, what: str = "") -> None:
    """Check equality to the last bit; NaN equals NaN."""
    np.testing.assert_array_equal(numpy_of(actual), numpy_of(expected), err_msg=what)
