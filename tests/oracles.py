"""Reference results that share no code with the solver.

`run` is every cell as a plain loop over time, written from its published equations; it works on
NumPy arrays and on torch tensors, so torch's own autograd gives reference gradients. The core cells
are here, the others in `oracles_cells`.
`loop` and `scan_loop` do the same for any cell, by calling its `features` and `step` one step after
the other. `Problem`, `reference` and `solve` pose one task, answer it with the loop, and answer it
with parnl on a chosen backend, so that a test is one comparison.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import oracles_cells
import torch
from oracles_cells import ORACLES

import parnl
from parnl import ops
from parnl.params import matrix, vector

Array = Any
BACKENDS = ("numpy", "torch", "jax")
CELLS = ("lrc", "gru", "lstm", "ltc")
STATES = {"lrc": 1, "gru": 1, "lstm": 2, "ltc": 1}
TIME_AWARE = ("lrc", "ltc")

# Every option of every core cell, under a short name.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lrc": ("lrc", {}),
    "lrc-dt": ("lrc", {"dt": 0.3}),
    "lrc-symmetric": ("lrc", {"symmetric": True}),
    "lrc-symmetric-dt": ("lrc", {"symmetric": True, "dt": 1.7}),
    "lrc-input-elastance": ("lrc", {"input_elastance": True}),
    "lrc-input-elastance-symmetric": ("lrc", {"input_elastance": True, "symmetric": True}),
    "lrc-leak-of-input": ("lrc", {"leak_of_state": False}),
    "lrc-drive-of-input": ("lrc", {"drive_of_state": False}),
    "lrc-of-input": ("lrc", {"leak_of_state": False, "drive_of_state": False}),
    "gru": ("gru", {}),
    "lstm": ("lstm", {}),
    "lstm-peephole": ("lstm", {"peephole": True}),
    "lstm-coupled": ("lstm", {"coupled": True}),
    "lstm-coupled-peephole": ("lstm", {"coupled": True, "peephole": True}),
    "ltc": ("ltc", {}),
    "ltc-dt": ("ltc", {"dt": 0.4}),
    "ltc-unfolds": ("ltc", {"unfolds": 2}),
    "ltc-clip": ("ltc", {"positive": "clip"}),
    "ltc-clip-unfolds-dt": ("ltc", {"positive": "clip", "unfolds": 1, "dt": 2.5}),
}


# -- the core cells, one step each ---------------------------------------------------------------


class Maths(NamedTuple):
    """The functions a loop needs, for one kind of array."""

    sigmoid: Callable[[Array], Array]
    tanh: Callable[[Array], Array]
    softplus: Callable[[Array], Array]
    relu: Callable[[Array], Array]
    exp: Callable[[Array], Array]
    log: Callable[[Array], Array]
    maximum: Callable[[Array, Array], Array]
    where: Callable[[Array, Array, Array], Array]
    stack: Callable[[list[Array], int], Array]
    zeros: Callable[[tuple[int, ...], Array], Array]


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


NUMPY = Maths(
    sigmoid=_sigmoid,
    tanh=np.tanh,
    softplus=lambda x: np.logaddexp(0.0, x),
    relu=lambda x: np.maximum(x, 0.0),
    exp=np.exp,
    log=np.log,
    maximum=np.maximum,
    where=np.where,
    stack=lambda arrays, axis: np.stack(arrays, axis),
    zeros=lambda shape, like: np.zeros(shape, like.dtype),
)
TORCH = Maths(
    sigmoid=torch.sigmoid,
    tanh=torch.tanh,
    softplus=lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    relu=lambda x: torch.clamp(x, min=0.0),
    exp=torch.exp,
    log=torch.log,
    maximum=torch.maximum,
    where=torch.where,
    stack=lambda arrays, axis: torch.stack(arrays, axis),
    zeros=lambda shape, like: torch.zeros(shape, dtype=like.dtype),
)


def _lrc(
    m: Maths,
    p: Mapping[str, Array],
    u: Array,
    state: tuple,
    dt: Array,
    *,
    symmetric=False,
    input_elastance=False,
    leak_of_state=True,
    drive_of_state=True,
):
    (x,) = state
    absent = [k for k, kept in (("w_f", leak_of_state), ("w_g", drive_of_state)) if not kept]
    if len(absent) == 2:
        absent += ["sigma", "mu"]
    assert not set(absent) & p.keys()
    p = {**p, **{k: p["g_leak"] * 0.0 for k in absent}}
    v = m.sigmoid(p["sigma_in"] * (u - p["mu_in"]))
    a = v @ p["W_f"]
    g = v @ p["W_g"]
    y = m.sigmoid(p["sigma"] * (x - p["mu"]))
    big_f = m.sigmoid(p["g_leak"] + a + p["w_f"] * y)
    big_z = m.tanh(p["g_leak"] + g + p["w_g"] * y)
    k = p["e_w"] * x + p["e_b"]
    if input_elastance:
        k = k + v @ p["W_e"]
    if symmetric:
        e = dt * (m.sigmoid(k + p["e_shift"]) - m.sigmoid(k - p["e_shift"]))
    else:
        e = dt * m.sigmoid(k)
    return (x + e * (-big_f * x + p["v_leak"] * big_z),)


def _gru(m: Maths, p: Mapping[str, Array], u: Array, state: tuple, dt: Array):
    (h,) = state
    r = m.sigmoid(u @ p["W_r"] + p["b_r"] + p["a_r"] * h)
    z = m.sigmoid(u @ p["W_z"] + p["b_z"] + p["a_z"] * h)
    n = m.tanh(u @ p["W_n"] + p["b_n"] + r * (p["a_n"] * h + p["c_n"]))
    return ((1.0 - z) * n + z * h,)


def _lstm(
    m: Maths,
    p: Mapping[str, Array],
    u: Array,
    state: tuple,
    dt: Array,
    *,
    peephole=False,
    coupled=False,
):
    c, h = state

    def before(gate):
        return u @ p["W_" + gate] + p["b_" + gate] + p["a_" + gate] * h

    f = m.sigmoid(before("f") + p["p_f"] * c if peephole else before("f"))
    if not coupled:
        i = m.sigmoid(before("i") + p["p_i"] * c if peephole else before("i"))
    else:
        i = 1.0 - f
    g = m.tanh(before("g"))
    c = f * c + i * g
    o = m.sigmoid(before("o") + p["p_o"] * c if peephole else before("o"))
    return c, o * m.tanh(c)


def _ltc(
    m: Maths,
    p: Mapping[str, Array],
    u: Array,
    state: tuple,
    dt: Array,
    *,
    unfolds=6,
    positive="softplus",
):
    (x,) = state
    keep = {"softplus": m.softplus, "clip": m.relu}[positive]
    w, w_in, c_m, g_leak = (keep(p[name]) for name in ("w", "w_in", "c_m", "g_leak"))
    synapse = w_in * m.sigmoid(p["sigma_in"] * (u[..., :, None] - p["mu_in"]))
    n = (synapse * p["e_in"]).sum(-2)
    d = synapse.sum(-2)
    h = dt / unfolds
    for _ in range(unfolds):
        y = w * m.sigmoid(p["sigma"] * (x - p["mu"]))
        top = c_m / h * x + g_leak * p["v_leak"] + y * p["e"] + n
        x = top / (c_m / h + g_leak + y + d + 1e-8)
    return (x,)


_STEPS: dict[str, Callable] = {"lrc": _lrc, "gru": _gru, "lstm": _lstm, "ltc": _ltc}
_HIDDEN = {"lrc": "g_leak", "gru": "a_r", "lstm": "a_f", "ltc": "sigma"}


def _step(name: str, *arguments: Any, **options: Any) -> tuple[tuple, Array]:
    """Return the new states and the output of one step of any cell."""
    if name in ORACLES:
        return ORACLES[name].step(*arguments, **options)
    state = _STEPS[name](*arguments, **options)
    return state, state[-1]


def count_states(name: str) -> int:
    return ORACLES[name].states if name in ORACLES else STATES[name]


def is_time_aware(name: str) -> bool:
    return ORACLES[name].time_aware if name in ORACLES else name in TIME_AWARE


def _per_channel(name: str) -> str:
    return ORACLES[name].hidden if name in ORACLES else _HIDDEN[name]


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
    m = TORCH if isinstance(inputs, torch.Tensor) else NUMPY
    options = dict(options or {})
    fixed_dt = options.pop("dt", oracles_cells.DT.get(name, 1.0))
    *batch, n_steps, _ = inputs.shape
    hidden = params[_per_channel(name)].shape[-1]
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
        new, rows[t] = _step(name, m, params, u, state, step_dt, **options)
        if valid is not None:
            new = tuple(
                m.where(valid, after, before) for after, before in zip(new, state, strict=True)
            )
            rows[t] = m.where(valid, rows[t], m.zeros((), inputs))
        state = new
    outputs = m.stack(rows, -2) if rows else m.zeros((*batch, 0, hidden), inputs)
    return outputs, state


def _mask(lengths: np.ndarray, t: int, like: Array) -> Array:
    valid = (t < np.asarray(lengths))[..., None]
    return torch.from_numpy(valid) if isinstance(like, torch.Tensor) else valid


# -- any cell, by its own features and step ------------------------------------------------------


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
    """Run any cell on NumPy arrays or torch tensors by calling its `step` T times."""
    m = TORCH if isinstance(inputs, torch.Tensor) else NUMPY
    p = SimpleNamespace(**params)
    *batch, n_steps, _ = inputs.shape
    if lengths is not None:
        valid = np.arange(n_steps) < np.asarray(lengths)[..., None]
        keep = torch.from_numpy(valid) if m is TORCH else valid
        inputs = m.where(keep[..., None], inputs, m.zeros((), inputs))
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
    import jax
    import jax.numpy as jnp

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


# -- tasks ---------------------------------------------------------------------------------------


def parameter_shapes(name: str, n_in: int, n: int, **options: Any) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a cell's parameters: they are part of the interface."""
    shapes: dict[str, tuple[int, ...]] = {}
    options.pop("dt", None)
    if name in ORACLES:
        shapes = ORACLES[name].shapes(n_in, n, **options)
    elif name == "lrc":
        shapes = {"W_f": (n_in, n), "W_g": (n_in, n), "sigma_in": (n_in,), "mu_in": (n_in,)}
        names = ["sigma", "mu", "g_leak", "w_f", "w_g", "e_w", "e_b", "v_leak"]
        names += ["e_shift"] if options.get("symmetric") else []
        leak, drive = options.get("leak_of_state", True), options.get("drive_of_state", True)
        for name, used in {"w_f": leak, "w_g": drive, "sigma": leak or drive}.items():
            if not used:
                names.remove(name)
        if "sigma" not in names:
            names.remove("mu")
        shapes |= {k: (n,) for k in names}
        shapes |= {"W_e": (n_in, n)} if options.get("input_elastance") else {}
    elif name == "gru":
        for gate in "rzn":
            shapes |= {"W_" + gate: (n_in, n), "b_" + gate: (n,), "a_" + gate: (n,)}
        shapes["c_n"] = (n,)
    elif name == "lstm":
        for gate in "fog" if options.get("coupled") else "ifog":
            shapes |= {"W_" + gate: (n_in, n), "b_" + gate: (n,), "a_" + gate: (n,)}
            if options.get("peephole") and gate != "g":
                shapes["p_" + gate] = (n,)
    elif name == "ltc":
        shapes = {k: (n,) for k in ["w", "sigma", "mu", "e", "c_m", "g_leak", "v_leak"]}
        shapes |= {k: (n_in, n) for k in ["w_in", "sigma_in", "mu_in", "e_in"]}
    return shapes


def draw_params(
    name: str, n_in: int, n: int, rng: np.random.Generator, **options: Any
) -> dict[str, np.ndarray]:
    """Draw parameters of order one, with signs on both sides of every clip."""
    shapes = parameter_shapes(name, n_in, n, **options)
    if name in ORACLES:
        return oracles_cells.draw(name, shapes, rng)
    params = {k: rng.uniform(-1.2, 1.2, shape) for k, shape in shapes.items()}
    if name == "ltc":
        params["c_m"] = rng.uniform(0.3, 1.5, n)  # a clipped capacitance of 0 leaves no memory
        params["g_leak"][0] = 0.6  # with all conductances clipped, c_m / c_m has no derivative
        for k in ("sigma", "sigma_in"):
            params[k] = rng.uniform(0.5, 3.0, shapes[k])
    return params


def first_state(
    name: str, index: int, rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    """Draw the state number `index`."""
    drawn = rng.uniform(-0.9, 0.9, shape)
    return 0.1 + np.abs(drawn) if (name, index) == ("slstm", 1) else drawn  # a sum of exponentials


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
    **options: Any,
) -> Problem:
    """Draw a task for a cell.

    `times` asks for a dt per step in place of the option `dt`: "shared" (T,) or "own" (..., T).
    """
    rng = np.random.default_rng(seed)

    def cast(x):
        return np.asarray(x).astype(dtype)

    shape = (*batch, hidden)
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
        return torch.from_numpy(np.array(array))
    if backend == "jax":
        import jax.numpy as jnp

        return jnp.asarray(array)
    return array


def numpy_of(array: Array) -> np.ndarray:
    """Return any backend's array as NumPy's."""
    return array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def _loss(task: Problem, outputs: Array, final_state: tuple, convert: Callable) -> Array:
    parts = zip((outputs, *final_state), task.weights, strict=True)
    return sum((x * convert(w)).sum() for x, w in parts)


def _torch_result(task: Problem, leaves: dict[str, torch.Tensor], outputs, final_state) -> Result:
    loss = _loss(task, outputs, final_state, lambda w: to("torch", w).to(outputs.dtype))
    found: Any = [None] * len(leaves)
    if loss.requires_grad:  # no step and no initial state: nothing to differentiate
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {
        k: np.zeros(leaf.shape) if g is None else g.numpy()
        for (k, leaf), g in zip(leaves.items(), found, strict=True)
    }
    return Result(numpy_of(outputs), tuple(numpy_of(s) for s in final_state), gradients)


def reference(task: Problem) -> Result:
    """Answer by the loop over time in float64, gradients by torch's autograd through that loop."""
    leaves = {k: to("torch", v).double().requires_grad_() for k, v in _leaves(task).items()}
    found = run(task.name, **_arguments(task, leaves), lengths=task.lengths, options=task.options)
    return _torch_result(task, leaves, *found)


def answer(task: Problem, backend: str, *, gradients: bool = False, **how: Any) -> Result:
    """Answer with `parnl.solve` on `backend`; `how` is passed on (method, chunks, ...)."""
    lengths = None if task.lengths is None else to(backend, task.lengths)
    solve = functools.partial(parnl.solve, task.cell, lengths=lengths, **how)
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
    import jax

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def grad(leaves):
        out = solve(**_arguments(task, leaves))
        loss = _loss(task, out.outputs, out.final_state, lambda w: to("jax", w))
        return loss, (out.outputs, out.final_state)

    found, (outputs, final_state) = grad(leaves)
    return Result(
        numpy_of(outputs),
        tuple(numpy_of(s) for s in final_state),
        {k: numpy_of(v) for k, v in found.items()},
    )


# -- one more cell ------------------------------------------------------------------------------


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


# -- comparison ----------------------------------------------------------------------------------


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


# -- torch.nn.GRU and torch.nn.LSTM whose channels do not mix ------------------------------------

GATES = {"gru": "rzn", "lstm": "ifgo"}


@torch.no_grad()
def make_diagonal(module: torch.nn.RNNBase) -> torch.nn.RNNBase:
    """Zero what lies off the diagonals of each hidden-to-hidden block, in place."""
    for key, weight in module.named_parameters():
        if key.startswith("weight_hh"):
            for block in weight.split(module.hidden_size):
                block.mul_(torch.eye(module.hidden_size))
    return module


def from_torch(
    name: str, tensors: Mapping[str, torch.Tensor], suffix: str = "l0", *, gradients: bool = False
) -> dict[str, torch.Tensor]:
    """Map the tensors of one nn.GRU or nn.LSTM layer to the parameters of the diagonal cell.

    With `gradients`, `tensors` are gradients: one of each pair of added biases is taken, not their
    sum.
    """
    gates = GATES[name]

    def blocks(key):
        return dict(zip(gates, tensors[f"{key}_{suffix}"].chunk(len(gates)), strict=True))

    w_in, w_hh = blocks("weight_ih"), blocks("weight_hh")
    b_in, b_hh = blocks("bias_ih"), blocks("bias_hh")
    params = {}
    for g in gates:
        params["W_" + g] = w_in[g].T
        params["a_" + g] = w_hh[g].diagonal()
        params["b_" + g] = b_in[g] if gradients else b_in[g] + b_hh[g]
    if name == "gru":  # PyTorch keeps this bias inside r * (...)
        params["b_n"] = b_in["n"]
        params["c_n"] = b_hh["n"]
    return {k: v.detach().clone() for k, v in params.items()}
