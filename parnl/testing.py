"""Property tests that parallel equals sequential, for your cells as for parnl's own.

    from parnl.testing import check_cell

    def test_my_cell():
        check_cell(MyCell)

`check_cell` draws random problems (shapes, chunk counts, lengths, direction, dtype, backend) and
compares `parnl.solve` with an independent reference: `loop`, a plain Python loop that calls the
cell's own `features` and `step` on arrays, differentiated by the framework's own autodiff, in
float64. Needs hypothesis: pip install 'parnl[testing]'.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parnl.backends import NAMES, get_backend
from parnl.cell import Cell
from parnl.params import Values
from parnl.registry import get_class
from parnl.solve import solve, step

# Largest error relative to the largest reference value.
TOLERANCES = {"float64": 1e-10, "float32": 2e-5}


class Problem(NamedTuple):
    """One solve to be checked; all arrays are NumPy's, in float64.

    dt, lengths and initial_state may be None; weights are those of the loss whose gradients are
    compared, one array for the outputs and one for each final state.
    """

    cell: Cell
    backend: str
    dtype: str
    chunks: int
    reverse: bool
    params: dict[str, np.ndarray]
    inputs: np.ndarray
    initial_state: tuple[np.ndarray, ...] | None
    dt: np.ndarray | None
    lengths: np.ndarray | None
    weights: tuple[np.ndarray, ...]

    def __repr__(self) -> str:
        size = f"{self.cell.input_size}, {self.cell.hidden_size}"
        lengths = None if self.lengths is None else self.lengths.tolist()
        return (
            f"{type(self.cell).__name__}({size}, {self.cell.chosen}) on {self.backend} in "
            f"{self.dtype}: inputs {self.inputs.shape}, chunks={self.chunks}, "
            f"reverse={self.reverse}, lengths={lengths}, "
            f"initial_state={self.initial_state is not None}, dt={self.dt is not None}"
        )


def installed() -> tuple[str, ...]:
    """Return the backends whose framework is installed."""
    return tuple(n for n in NAMES if importlib.util.find_spec(n) is not None)


@st.composite
def problems(
    draw: Callable[..., Any],
    cell: Any,
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float64", "float32"),
    max_steps: int = 24,
) -> Problem:
    """Hypothesis strategy: random problems for `cell`, a name, a class, or an instance."""
    if not isinstance(cell, Cell):
        kind = get_class(cell) if isinstance(cell, str) else cell
        cell = kind(input_size=draw(st.integers(1, 3)), hidden_size=draw(st.integers(1, 4)))
    backend = draw(st.sampled_from(tuple(backends or installed())))
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    steps = draw(st.integers(1, max_steps))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (*batch, cell.hidden_size)
    given_state = draw(st.booleans())
    given_dt = cell.time_aware and draw(st.booleans())
    return Problem(
        cell,
        backend,
        draw(st.sampled_from(tuple(dtypes))),
        draw(st.integers(1, steps)),
        draw(st.booleans()),
        cell.init(int(rng.integers(2**31)), dtype="float64"),
        rng.normal(size=(*batch, steps, cell.input_size)),
        tuple(rng.normal(size=shape) for _ in cell.states) if given_state else None,
        rng.uniform(0.1, 1.0, size=(*batch, steps)) if given_dt else None,
        rng.integers(0, steps + 1, size=batch) if draw(st.booleans()) else None,
        (
            rng.normal(size=(*batch, steps, cell.hidden_size)),
            *(rng.normal(size=shape) for _ in cell.states),
        ),
    )


def loop(
    cell: Cell,
    params: Mapping[str, Any],
    inputs: Any,
    initial_state: Sequence[Any],
    *,
    dt: Any = None,
    lengths: Any = None,
    reverse: bool = False,
) -> tuple[Any, tuple[Any, ...]]:
    """Return (outputs, final state) by a plain loop over `cell.step`, on arrays of any backend.

    Arguments and results as those of `parnl.solve`; it shares none of its code: no trace, no
    chunks, no derivative rules.
    """
    from parnl.backends import backend_of

    xp = backend_of([("inputs", inputs)]).xp
    steps = inputs.shape[-2]
    if lengths is not None:
        valid = xp.arange(steps) < lengths[..., None]
        inputs = xp.where(valid[..., None], inputs, xp.zeros_like(inputs))
    p = Values("parameter", params)
    named = dict(cell.features(p, inputs))
    features = Values("feature", named)
    state: tuple[Any, ...] = tuple(initial_state)
    history: list[Any] = [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
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
    whole = [xp.stack([h[i] for h in history], axis=-2) for i in range(len(state))]
    outputs = cell.output(p, *whole, features) if hasattr(cell, "output") else whole[-1]
    if lengths is not None:
        outputs = xp.where(valid[..., None], outputs, xp.zeros_like(outputs))
    return outputs, state


def check_cell(
    cell: Any, *, backends: Sequence[str] | None = None, examples: int = 10, max_steps: int = 24
) -> None:
    """Check on random problems that `cell` (a name, class or instance) is solved right.

    On each backend (all that are installed, by default), `examples` times: outputs, final state
    and every gradient of a parallel solve against `loop`, the step's Jacobian against the full
    Jacobian by the framework's autodiff, and streaming against the whole sequence. Raises
    AssertionError, with the smallest failing problem hypothesis can find. In JAX, float64 needs
    `jax_enable_x64`; without it the comparison there is as coarse as float32.
    """
    for backend in backends or installed():
        steps = min(max_steps, 10) if backend == "jax" else max_steps  # its reference is unrolled

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,  # one AssertionError, of the smallest problem
        )
        @given(problems(cell, [backend], max_steps=steps))
        def check(problem: Problem) -> None:
            check_problem(problem)

        check()


def check_problem(problem: Problem) -> None:
    """Raise AssertionError if anything about this problem is solved wrong."""
    dtype = problem.dtype
    if problem.backend == "jax" and not _jax_has_float64():
        # the reference, too, is float32 then: half of the error is its own
        problem = problem._replace(dtype="float32")
    reference = _evaluate(problem, "float64", _by_loop)
    found = _evaluate(problem, problem.dtype, _by_solve)
    rounding = _evaluate(problem, problem.dtype, _by_loop) if dtype == "float32" else reference
    for name, expected in reference.items():
        _compare(problem, name, found[name], expected, rounding[name])
    if problem.backend != "numpy":
        _check_jacobian(problem)
    _check_streaming(problem)


def _compare(
    problem: Problem, name: str, found: np.ndarray, expected: np.ndarray, rounded: np.ndarray
) -> None:
    """`rounded` is the loop's own result in the dtype checked: its error is nobody's fault."""
    error, excused = _relative_error(found, expected), _relative_error(rounded, expected)
    allowed = TOLERANCES[problem.dtype] + 4.0 * excused
    assert error <= allowed, f"{name}: relative error {error:.3g} > {allowed:.3g} for {problem!r}"


def _relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference over the largest value; inf if NaN or inf are elsewhere."""
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(found), finite):
        return np.inf
    scale = float(np.max(np.abs(expected[finite]), initial=1e-30))
    return float(np.max(np.abs(found[finite] - expected[finite]), initial=0.0)) / scale


Solver = Callable[..., tuple[Any, Sequence[Any]]]


def _by_solve(problem: Problem, p: Any, u: Any, x: Any, dt: Any, n: Any) -> tuple:
    out = solve(
        problem.cell, p, u, x, dt=dt, lengths=n, reverse=problem.reverse, chunks=problem.chunks
    )
    return out.outputs, out.final_state


def _by_loop(problem: Problem, p: Any, u: Any, x: Any, dt: Any, n: Any) -> tuple:
    return loop(problem.cell, p, u, x, dt=dt, lengths=n, reverse=problem.reverse)


def _evaluate(problem: Problem, dtype: str, solver: Solver) -> dict[str, np.ndarray]:
    """Return outputs, final state and, where the framework has them, gradients, by name."""
    arrays = _arrays(problem, dtype)
    lengths = problem.lengths
    if problem.backend == "numpy":
        with np.errstate(all="ignore"):
            return _named(problem, *solver(problem, *arrays, lengths), {})
    if problem.backend == "torch":
        return _evaluate_torch(problem, arrays, solver)
    return _evaluate_jax(problem, arrays, solver)


def _arrays(problem: Problem, dtype: str) -> tuple[dict[str, Any], Any, list[Any], Any]:
    backend = get_backend(problem.backend)
    if problem.backend == "jax" and not _jax_has_float64():
        dtype = "float32"
    zeros = np.zeros((*problem.inputs.shape[:-2], problem.cell.hidden_size))
    states = problem.initial_state or tuple(zeros for _ in problem.cell.states)
    return (
        {n: backend.asarray(v, dtype) for n, v in problem.params.items()},
        backend.asarray(problem.inputs, dtype),
        [backend.asarray(x, dtype) for x in states],
        None if problem.dt is None else backend.asarray(problem.dt, dtype),
    )


def _named(problem: Problem, outputs: Any, final: Sequence[Any], grads: dict) -> dict[str, Any]:
    backend = get_backend(problem.backend)
    named = {"outputs": outputs}
    named |= {f"final state {n}": x for n, x in zip(problem.cell.states, final, strict=True)}
    named |= {f"gradient of {n}": g for n, g in grads.items()}
    return {n: np.asarray(backend.to_numpy(x), np.float64) for n, x in named.items()}


def _loss(problem: Problem, outputs: Any, final: Sequence[Any]) -> Any:
    backend = get_backend(problem.backend)
    total: Any = 0.0
    for x, w in zip([outputs, *final], problem.weights, strict=True):
        dtype = str(x.dtype).removeprefix("torch.")
        total = total + (x * backend.asarray(w, dtype)).sum()
    return total


def _evaluate_torch(problem: Problem, arrays: tuple, solver: Solver) -> dict[str, np.ndarray]:
    import torch

    p, u, x, dt = arrays
    lengths = None if problem.lengths is None else torch.asarray(problem.lengths)
    leaves = _leaves(problem, p, u, x, dt)
    for leaf in leaves.values():
        leaf.requires_grad_()
    outputs, final = solver(problem, p, u, x, dt, lengths)
    found = torch.autograd.grad(
        _loss(problem, outputs, final), list(leaves.values()), materialize_grads=True
    )
    return _named(problem, outputs, final, dict(zip(leaves, found, strict=True)))


def _evaluate_jax(problem: Problem, arrays: tuple, solver: Solver) -> dict[str, np.ndarray]:
    import jax

    lengths = None if problem.lengths is None else jax.numpy.asarray(problem.lengths)

    def loss(arrays: tuple) -> Any:
        outputs, final = solver(problem, *arrays, lengths)
        return _loss(problem, outputs, final), (outputs, final)

    (_, (outputs, final)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return _named(problem, outputs, final, _leaves(problem, *grads))


def _leaves(problem: Problem, p: Any, u: Any, x: Any, dt: Any) -> dict[str, Any]:
    leaves = {**p, "inputs": u}
    leaves |= {f"initial {n}": s for n, s in zip(problem.cell.states, x, strict=True)}
    return leaves if dt is None else {**leaves, "dt": dt}


def _check_jacobian(problem: Problem) -> None:
    """The traced blocks are the whole Jacobian of a step: equal on the diagonal, zero off it."""
    cell, backend = problem.cell, get_backend(problem.backend)
    p, u, x, dt = _arrays(problem, "float64")
    k, d = len(cell.states), cell.hidden_size
    values = Values("parameter", p)
    first = tuple(0 for _ in problem.inputs.shape[:-2])
    features = {
        n: a[first][0] if a.ndim == u.ndim else a[0] for n, a in cell.features(values, u).items()
    }
    given = backend.asarray(getattr(cell, "dt", 1.0), "float64")
    now: Any = given if dt is None else dt[(*first, 0)]
    start = backend.xp.stack([s[first] for s in x])

    def whole(s: Any) -> Any:
        time = {"dt": now} if cell.time_aware else {}
        new = cell.step(values, *(s[i] for i in range(k)), Values("feature", features), **time)
        new = new if isinstance(new, tuple | list) else (new,)
        return backend.xp.stack([n + backend.xp.zeros_like(s[0]) for n in new])

    if problem.backend == "torch":
        import torch

        full = torch.func.jacrev(whole)(start)
    else:
        import jax

        full = jax.jacrev(whole)(start)
    full = np.asarray(backend.to_numpy(full))  # (k, D, k, D)
    sources = {"parameter": p, "feature": features, "dt": {"dt": now}}
    operands = [sources[kind][name] for kind, name in cell.program.operands]
    blocks = cell.program.function("jacobian", backend)(*start, *operands)
    expected = np.zeros_like(full)
    for entry, block in enumerate(blocks):
        value = block if isinstance(block, float) else backend.to_numpy(block)
        expected[entry // k, np.arange(d), entry % k, np.arange(d)] = value
    tolerance = TOLERANCES["float64" if full.dtype == np.float64 else "float32"]
    np.testing.assert_allclose(
        expected, full, rtol=tolerance, atol=tolerance, err_msg=f"Jacobian of {problem!r}"
    )


def _check_streaming(problem: Problem) -> None:
    """Step by step equals the whole sequence."""
    cell, backend = problem.cell, get_backend(problem.backend)
    p, u, x, dt = _arrays(problem, problem.dtype)
    whole = solve(cell, p, u, x, dt=dt, method="sequential")
    state: Any = x
    for t in range(u.shape[-2]):
        y, state = step(cell, p, u[..., t, :], state, dt=None if dt is None else dt[..., t])
        expected = np.asarray(backend.to_numpy(whole.outputs[..., t, :]), np.float64)
        found = np.asarray(backend.to_numpy(y), np.float64)
        error = _relative_error(found, expected)
        assert error <= 10 * TOLERANCES[problem.dtype], (
            f"streaming: relative error {error:.3g} at step {t} for {problem!r}"
        )


def _jax_has_float64() -> bool:
    import jax

    return bool(jax.config.read("jax_enable_x64"))
