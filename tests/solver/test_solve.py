"""The solver: equal to the loop over time for any cell, chunk count, backend and shape."""

import functools
import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from oracles import (
    BACKENDS,
    CELLS,
    NUMPY,
    TIME_AWARE,
    assert_bits,
    assert_close,
    assert_same,
    numpy_of,
    to,
)

import parnl
from parnl import ops
from parnl.params import matrix, vector

quick = pytest.mark.usefixtures("quick_compile")
T = 23
CHUNKS = (1, 2, 7, "auto", T)
DIFFERENTIABLE = ("torch", "jax")


# -- cells that only these tests need ------------------------------------------------------------


@parnl.register("test-mgu")
class MinimalGatedUnit(parnl.Cell):
    """The example of the documentation: one gate, diagonal recurrence."""

    parameters = dict(
        W_f=matrix("input", "hidden"),
        a_f=vector("hidden"),
        b_f=vector("hidden", init="zeros"),
        W_n=matrix("input", "hidden"),
        a_n=vector("hidden"),
        b_n=vector("hidden", init="zeros"),
    )

    def features(self, p, u):
        return dict(f=u @ p.W_f + p.b_f, n=u @ p.W_n + p.b_n)

    def step(self, p, x, f):
        gate = ops.sigmoid(p.a_f * x + f.f)
        return x + gate * (ops.tanh(p.a_n * gate * x + f.n) - x)


@parnl.register("test-logistic")
class Logistic(parnl.Cell):
    """x' = 4 x (1 - x): chaotic, two nearby states part by a factor 2 a step."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return 4.0 * x * (1.0 - x)


@parnl.register("test-expanding")
class Expanding(parnl.Cell):
    """x' = 1.5 x + u."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return 1.5 * x + f.f


@parnl.register("test-expanding-nonlinear")
class ExpandingNonlinear(parnl.Cell):
    """x' = x + |x| / 2 + u: as `Expanding` above zero, but no longer linear."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return x + 0.5 * abs(x) + f.f


@parnl.register("test-gain")
class Gain(parnl.Cell):
    """x' = a x + b with both from the inputs."""

    parameters = dict(A=matrix("input", "hidden"), B=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(a=u @ p.A, b=u @ p.B)

    def step(self, p, x, f):
        return f.a * x + f.b


@parnl.register("test-gain-nonlinear")
class GainNonlinear(Gain):
    """The same map above zero."""

    def step(self, p, x, f):
        return f.a * ops.abs(x) + f.b


@parnl.register("test-lru")
class LinearRecurrentUnit(parnl.Cell):
    """A complex diagonal recurrence, as two real states: linear, 2 x 2 blocks."""

    parameters = dict(
        W_re=matrix("input", "hidden"),
        W_im=matrix("input", "hidden"),
        nu=vector("hidden"),
        theta=vector("hidden"),
    )
    states = ("im", "re")

    def features(self, p, u):
        return dict(re=u @ p.W_re, im=u @ p.W_im)

    def step(self, p, im, re, f):
        radius = ops.exp(-ops.exp(p.nu))
        lam_re, lam_im = radius * ops.cos(p.theta), radius * ops.sin(p.theta)
        return lam_re * im + lam_im * re + f.im, lam_re * re - lam_im * im + f.re


@parnl.register("test-selective")
class Selective(parnl.Cell):
    """A linear cell whose coefficient is made from the input, as in S6 or minGRU."""

    parameters = dict(W_z=matrix("input", "hidden"), W_n=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(z=ops.sigmoid(u @ p.W_z), n=u @ p.W_n)

    def step(self, p, x, f):
        return (1 - f.z) * x + f.z * f.n


@parnl.register("test-where")
class Piecewise(parnl.Cell):
    """A step with a condition."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return ops.where(x > 0.1, 0.5 * x + f.f, ops.tanh(f.f) - p.a * ops.sin(x))


@parnl.register("test-escaping")
class Escaping(parnl.Cell):
    """As `Piecewise`, but some sequences leave for minus infinity."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return ops.where(x > 0.1, 0.5 * x + f.f, ops.tanh(f.f) - p.a * x * x)


@parnl.register("test-pair")
class Pair(parnl.Cell):
    """Two states, each reading both."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
    states = ("v", "w")

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, v, w, f):
        fast = v + 0.3 * (2 * ops.tanh(v) - v - w + f.f)
        return fast, w + 0.1 * (p.a * v + 0.7 - p.b * w)


@parnl.register("test-trio")
class Trio(parnl.Cell):
    """Three states in a ring."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
    states = ("a", "b", "c")

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, a, b, c, f):
        new = ops.tanh(p.a * a + 0.6 * c + f.f)
        return new, 0.7 * b + ops.sin(new), ops.sigmoid(p.b * b) * c - 0.2 * a


@parnl.register("test-leaky")
class Leaky(parnl.Cell):
    """A time-aware cell with an option."""

    parameters = dict(W=matrix("input", "hidden"), tau=vector("hidden"))
    options = dict(dt=0.5, gain=1.0)

    def features(self, p, u):
        return dict(f=self.gain * (u @ p.W))

    def step(self, p, x, f, dt):
        return x + dt * (ops.tanh(f.f - x) - ops.softplus(p.tau) * x)


@parnl.register("test-accumulator")
class Accumulator(parnl.Cell):
    """x' = x + u: what is too small for half precision adds up in single."""

    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return x + f.f


OWN = {
    "test-mgu": 1,
    "test-lru": 2,
    "test-selective": 1,
    "test-where": 1,
    "test-escaping": 1,
    "test-pair": 2,
    "test-trio": 3,
    "test-leaky": 1,
}
BOUNDED = [name for name in OWN if name != "test-escaping"]
LINEAR = ("test-lru", "test-selective", "test-accumulator")


def own(name, *, steps=T, batch=(3,), n_in=3, hidden=4, seed=0, backend="numpy"):
    """Draw (cell, params, inputs, initial state) for a cell of this file, in float64."""
    cell = parnl.get_cell(name, input_size=n_in, hidden_size=hidden)
    rng = np.random.default_rng(seed)
    params = {
        k: to(backend, rng.uniform(-1, 1, v.shape))
        for k, v in cell.init(seed=0, backend="numpy").items()
    }
    inputs = to(backend, rng.normal(size=(*batch, steps, n_in)))
    state = tuple(to(backend, rng.uniform(-1, 1, (*batch, hidden))) for _ in range(OWN[name]))
    return cell, params, inputs, state


# -- equal to the loop ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "name", "chunks", "dtype"),
    [
        (backend, name, chunks, dtype)
        for backend, name, chunks in itertools.product(BACKENDS, CELLS, CHUNKS)
        for dtype in ("float64", "float32")
        if (backend, dtype) != ("jax", "float32") or chunks in (7, T)  # compile time
    ],
)
def test_equals_the_loop(backend, name, chunks, dtype, request):
    if chunks not in (7, T):  # those two see XLA's optimisations
        request.getfixturevalue("quick_compile")
    times = "own" if name in TIME_AWARE else None
    task = oracles.problem(name, steps=T, times=times, dtype=dtype)
    how: dict[str, Any] = {
        "method": "newton",
        "chunks": chunks,
        "gradients": backend in DIFFERENTIABLE,
    }
    found = oracles.answer(task, backend, **how)
    assert found.outputs.dtype == np.dtype(dtype)
    assert all(s.dtype == np.dtype(dtype) for s in found.final_state)
    assert_same(found, oracles.reference(task), {"float64": 1e-10, "float32": 2e-5}[dtype])


@quick
@pytest.mark.parametrize("method", ["sequential", "auto"])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_methods_equal_the_loop(backend, name, method):
    task = oracles.problem(name, steps=T)
    how: dict[str, Any] = {"method": method, "gradients": backend in DIFFERENTIABLE}
    assert_same(oracles.answer(task, backend, **how), oracles.reference(task), 1e-10)


@quick
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_and_reverse_equal_the_loop(backend, name, reverse):
    """Also with nothing but NaN in the padding, which must reach no result and no gradient."""
    lengths = [0, 1, 9, T]
    task = oracles.problem(name, steps=T, batch=(4,), lengths=lengths, reverse=reverse)
    expected = oracles.reference(task)
    for b, n in enumerate(lengths):
        task.inputs[b, n:] = np.nan
    for chunks in (4,) if backend == "jax" else (1, 4, T):
        how: dict[str, Any] = {"chunks": chunks, "gradients": backend in DIFFERENTIABLE}
        found = oracles.answer(task, backend, **how)
        assert_same(found, expected, 1e-10)
        assert (found.outputs[0] == 0).all()
        assert task.initial_state is not None
        for s, s0 in zip(found.final_state, task.initial_state, strict=True):
            assert_bits(s[0], s0[0])


@quick
@pytest.mark.parametrize("backend", BACKENDS)
def test_dt_padding_may_hold_nan(backend):
    task = oracles.problem("lrc", steps=T, batch=(2,), lengths=[5, T], times="own")
    expected = oracles.reference(task)
    assert task.dt is not None
    task.dt[0, 5:] = np.nan
    how: dict[str, Any] = {"chunks": 3, "gradients": backend in DIFFERENTIABLE}
    assert_same(oracles.answer(task, backend, **how), expected, 1e-10)
    short = oracles.problem("lrc", steps=1, batch=(2,), lengths=[1, 0], times="own")
    expected = oracles.reference(short)
    short.dt[1] = np.nan  # one step for each sequence, not one for all
    assert_same(oracles.answer(short, backend, **(how | {"chunks": 1})), expected, 1e-10)


@quick
@pytest.mark.parametrize(
    ("backend", "name", "reverse"),
    [
        (backend, name, reverse)
        for backend, name, reverse in itertools.product(DIFFERENTIABLE, BOUNDED, (False, True))
        if backend != "jax" or OWN[name] > 1 or not reverse  # compile time
    ],
)
def test_own_cells_equal_the_loop(backend, name, reverse):
    """Cells written here, with 1, 2 and 3 states: values and gradients, torch by autograd."""
    cell, params, inputs, state = own(name, backend="torch")
    leaves = [inputs, *state, *params.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = oracles.loop(cell, params, inputs, state, reverse=reverse)
    rng = np.random.default_rng(1)
    weights = [torch.from_numpy(rng.normal(size=x.shape)) for x in (expected[0], *expected[1])]

    def loss(found, weights):
        return sum((x * w).sum() for x, w in zip(found, weights, strict=True))

    gradients = torch.autograd.grad(loss((expected[0], *expected[1]), weights), leaves)
    for chunks in (5,) if backend == "jax" else (1, 5, T):
        if backend == "torch":
            out = parnl.solve(cell, params, inputs, state, chunks=chunks, reverse=reverse)
            found = (out.outputs, *out.final_state)
            found_gradients = torch.autograd.grad(loss(found, weights), leaves)
        else:
            import jax

            def f(tree, chunks=chunks):
                out = parnl.solve(cell, *tree, chunks=chunks, reverse=reverse)
                found = (out.outputs, *out.final_state)
                return loss(found, [to("jax", w.numpy()) for w in weights]), found

            tree = jax.tree.map(lambda x: to("jax", numpy_of(x)), (params, inputs, state))
            (_, found), (gp, gu, gs) = jax.value_and_grad(f, has_aux=True)(tree)
            found_gradients = (gu, *gs, *(gp[k] for k in params))
        for a, e in zip(found, (expected[0], *expected[1]), strict=True):
            assert_close(a, e, 1e-10)
        for a, e in zip(found_gradients, gradients, strict=True):
            assert_close(a, e, 1e-10)


FUNCTIONS = {
    "exp": lambda x: ops.exp(-x * x),
    "expm1": lambda x: ops.expm1(-x * x),
    "log": lambda x: ops.log(2 + x),
    "log1p": lambda x: ops.log1p(x * x),
    "sqrt": lambda x: ops.sqrt(1.5 + x),
    "tanh": lambda x: ops.tanh(3 * x),
    "sigmoid": lambda x: ops.sigmoid(5 * x),
    "softplus": lambda x: ops.softplus(4 * x),
    "relu": lambda x: ops.relu(x),
    "abs": lambda x: ops.abs(x),
    "abs operator": lambda x: abs(x),
    "minimum": lambda x: ops.minimum(x, 0.05),
    "maximum": lambda x: ops.maximum(0.05, x),
    "minimum of two": lambda x: ops.minimum(x, 0.3 - x * x),
    "clip": lambda x: ops.clip(x, -0.3, 0.25),
    "where": lambda x: ops.where(x >= 0.02, x * x, -x),
    "nested where": lambda x: ops.where(x < 0.2, ops.where(x <= -0.2, -x, 2 * x), x * x),
    "sin": lambda x: ops.sin(4 * x),
    "cos": lambda x: ops.cos(4 * x),
    "erf": lambda x: ops.erf(2 * x),
    "division": lambda x: (1 - x) / (2 + x * x),
    "reflected": lambda x: 1 - 0.5 / (2 + x),
    "power": lambda x: 0.1 * (x + 2.5) ** 2 - (0.3 * x) ** 3,
    "negation": lambda x: -(+x),
    "constant": lambda x: x * 0 + 0.3,
}


@quick
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function_in_a_step(function):
    """The value shows in the outputs; its derivative shows in the gradients, and only there."""
    f_of_x = FUNCTIONS[function]

    @parnl.register("test-function-" + function.replace(" ", "-"))
    class Step(parnl.Cell):
        parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

        def features(self, p, u):
            return dict(f=u @ p.W)

        def step(self, p, x, f):
            return 0.4 * f_of_x(p.a * x + 0.3 * f.f) - 0.1 * x + 0.2 * f.f

    rng = np.random.default_rng(0)
    cell = parnl.get_cell(
        "test-function-" + function.replace(" ", "-"), input_size=2, hidden_size=3
    )
    leaves = [rng.normal(size=s) for s in [(2, 3), (3,), (2, 11, 2), (2, 3)]]
    weights = torch.from_numpy(rng.normal(size=(2, 11, 3)))

    def gradients(run):
        w, a, u, x = (torch.from_numpy(v).requires_grad_() for v in leaves)
        outputs = run({"W": w, "a": a}, u, (x,))
        return outputs, torch.autograd.grad((outputs * weights).sum(), (w, a, u, x))

    expected, expected_gradients = gradients(lambda *args: oracles.loop(cell, *args)[0])
    for chunks in (1, 4, 11):
        run = functools.partial(parnl.solve, cell, chunks=chunks)
        found, found_gradients = gradients(lambda *args, run=run: run(*args).outputs)
        assert_close(found, expected, 1e-10)
        for a, e in zip(found_gradients, expected_gradients, strict=True):
            assert_close(a, e, 1e-10)
    for backend in ("numpy", "jax"):
        w, a, u, x = (to(backend, v) for v in leaves)
        out = parnl.solve(cell, {"W": w, "a": a}, u, (x,), chunks=4)
        assert_close(out.outputs, expected, 1e-10)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_saturated_cells_have_finite_gradients(name, scale):
    """Large arguments of sigmoid, tanh and softplus: right values, right gradients, no NaN."""
    task = oracles.problem(name, steps=T)
    task = task._replace(inputs=task.inputs * scale)
    expected = oracles.reference(task)
    assert all(np.isfinite(g).all() for g in expected.gradients.values())
    for chunks in (1, 5, T):
        assert_same(oracles.answer(task, "torch", gradients=True, chunks=chunks), expected, 1e-9)


# -- the worst cells ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "tolerance"),
    [(2, None), (2, 0), (7, None), (7, 0), (64, None), (64, 0), (4096, None)],
)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_chaos_ends_with_the_sequential_bits(backend, chunks, tolerance):
    steps = 4096
    cell = parnl.get_cell("test-logistic", input_size=1, hidden_size=3)
    starts = np.array([0.2, 0.3141592653589793, 0.77])
    expected = np.empty((steps, 3))
    x = starts
    for t in range(steps):
        x = 4.0 * x * (1.0 - x)
        expected[t] = x
    params = {"W": to(backend, np.ones((1, 3)))}
    arguments = (cell, params, to(backend, np.zeros((steps, 1))), (to(backend, starts),))
    sequential = parnl.solve(*arguments, method="sequential")
    assert_bits(sequential.outputs, expected)
    # Newton to its end; where it is given up, see test_hostile
    how: dict[str, Any] = {"chunks": chunks, "tolerance": tolerance, "max_iterations": chunks}
    out = parnl.solve(*arguments, method="newton", **how)
    assert_bits(out.outputs, expected)
    assert_bits(out.final_state[0], expected[-1])
    assert 1 <= int(out.info.iterations) <= chunks
    assert bool(out.info.converged)


def test_chaos_ends_on_jax():
    """A compiler may round differently in two programs, so only the first steps are compared."""
    cell = parnl.get_cell("test-logistic", input_size=1, hidden_size=1)
    arguments = ({"W": to("jax", np.ones((1, 1)))}, to("jax", np.zeros((4096, 1))))
    out = parnl.solve(cell, *arguments, (to("jax", np.array([0.2])),), chunks=64)
    outputs = numpy_of(out.outputs)
    assert ((outputs >= 0) & (outputs <= 1)).all()
    x = 0.2
    for t in range(20):
        x = 4.0 * x * (1.0 - x)
        assert abs(outputs[t, 0] - x) < 1e-9
    # every step, inside a chunk or across chunks, is a step of the map
    assert_close(outputs[1:], 4 * outputs[:-1] * (1 - outputs[:-1]), 1e-12)


@pytest.mark.parametrize("name", ["test-expanding", "test-expanding-nonlinear"])
@pytest.mark.parametrize(
    ("backend", "chunks"),
    [*itertools.product(("numpy", "torch"), (1, 2, 7, 64, 2000)), ("jax", 1), ("jax", 64)],
)
def test_expansion_overflows_where_the_loop_does(backend, chunks, name):
    steps = 2000 if chunks == 2000 else 4096
    cell = parnl.get_cell(name, input_size=1, hidden_size=2)
    u = np.random.default_rng(0).uniform(0.5, 1.0, (2, steps, 1))
    w = np.array([[1.0, 1e-3]])
    if name == "test-expanding":
        u[1] *= -1
    expected = np.empty((2, steps, 2))
    x = np.zeros((2, 2))
    with np.errstate(over="ignore"):
        for t in range(steps):
            x = (x + 0.5 * abs(x) if name.endswith("nonlinear") else 1.5 * x) + u[:, t] @ w
            expected[:, t] = x
    assert 1500 < np.isfinite(expected[0, :, 0]).sum() < 2000
    with np.errstate(all="ignore"):
        out = parnl.solve(cell, {"W": to(backend, w)}, to(backend, u), chunks=chunks)
    found = numpy_of(out.outputs)
    assert_bits(np.isfinite(found), np.isfinite(expected))
    assert_bits(found[~np.isfinite(found)], expected[~np.isfinite(expected)])
    finite = np.isfinite(expected)
    np.testing.assert_allclose(found[finite], expected[finite], rtol=1e-10)


def test_overflow_in_some_sequences_is_an_answer():
    """Once nothing changes the solve has converged, whatever the values are, and stops."""
    cell, params, inputs, state = own("test-escaping", steps=64)
    with np.errstate(all="ignore"):
        sequential = parnl.solve(cell, params, inputs, state, method="sequential").outputs
        assert 0 < np.isinf(sequential[:, -1]).sum() < sequential[:, -1].size
        for chunks, tolerance in itertools.product((4, 16, 64), (None, 0)):
            how: dict[str, Any] = {"method": "newton", "chunks": chunks, "tolerance": tolerance}
            out = parnl.solve(cell, params, inputs, state, **how)
            assert bool(out.info.converged), (how, out.info)
            assert int(out.info.iterations) < chunks
            assert_bits(np.isfinite(out.outputs), np.isfinite(sequential))
            if tolerance == 0:
                assert_bits(out.outputs, sequential)


def test_jacobian_products_that_overflow_do_no_harm():
    """The slope runs to 1e400 over a chunk while the state stays at 0, and moves only later."""
    cell = parnl.get_cell("test-expanding", input_size=1, hidden_size=1)
    u = np.zeros((1, 4000, 1))
    u[:, 3990:] = 1.0
    expected = np.zeros(4000)
    for t in range(3990, 4000):
        expected[t] = 1.5 * expected[t - 1] + 1.0
    for chunks in (2, 3, 64, 4000):
        with np.errstate(all="ignore"):
            out = parnl.solve(cell, {"W": np.ones((1, 1))}, u, chunks=chunks)
        assert_close(out.outputs[0, :, 0], expected, 1e-12)


@pytest.mark.parametrize("chunks", [2, 8, 50, 800])
@pytest.mark.parametrize("name", ["test-gain", "test-gain-nonlinear"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_growth_beyond_any_clamp(backend, name, chunks):
    """A state that grows by 1e400 and falls again: finite throughout, unlike products of slopes."""
    cell = parnl.get_cell(name, input_size=2, hidden_size=1)
    inputs = np.zeros((800, 2))
    inputs[:, 0] = np.where(np.arange(800) < 400, 10.0, 0.125)
    inputs[600:, 1] = 1e90
    x = np.array([1e-300])
    expected = np.empty((800, 1))
    for t, (a, b) in enumerate(inputs):
        x = a * x + b
        expected[t] = x
    params = {"A": np.array([[1.0], [0.0]]), "B": np.array([[0.0], [1.0]])}
    params = {k: to(backend, v) for k, v in params.items()}
    state = (to(backend, np.array([1e-300])),)
    out = parnl.solve(cell, params, to(backend, inputs), state, method="newton", chunks=chunks)
    np.testing.assert_allclose(numpy_of(out.outputs), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("steps", "chunks"), [(200, 8), (200, 200), (400, 2), (400, 8), (400, 400)]
)
@pytest.mark.parametrize("name", ["test-expanding", "test-expanding-nonlinear"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_bounded_path_of_an_expanding_cell(backend, name, steps, chunks):
    """Inputs that hold an unstable cell in [-1, 1]: the solver's rounding must not be amplified.

    All numbers are multiples of 2^-21, so the loop over time is exact.
    """
    path = np.round(np.random.default_rng(0).uniform(-1, 1, steps + 1) * 2**20) / 2**20
    own_part = 1.5 * path[:-1]
    if name == "test-expanding-nonlinear":
        own_part = path[:-1] + 0.5 * abs(path[:-1])
    cell = parnl.get_cell(name, input_size=1, hidden_size=1)
    arguments = (
        {"W": to(backend, np.ones((1, 1)))},
        to(backend, (path[1:] - own_part)[:, None]),
        (to(backend, path[:1]),),
    )
    out = parnl.solve(cell, *arguments, method="sequential")
    assert_bits(out.outputs, path[1:, None])
    out = parnl.solve(cell, *arguments, method="newton", chunks=chunks)
    assert_close(out.outputs, path[1:, None], 1e-10)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_poison_stays_where_it_is(backend, name, poison):
    """NaN or inf at one step of one sequence: the others, and what came before, keep their bits."""
    task = oracles.problem(name, steps=T)
    where, when = 1, 13
    bad = task.inputs.copy()
    bad[where, when] = poison
    with np.errstate(all="ignore"):
        expected = oracles.answer(task._replace(inputs=bad), "numpy", method="sequential")
    for chunks in (2, T) if backend == "jax" else (1, 2, 7, "auto", T):
        with np.errstate(all="ignore"):
            clean = oracles.answer(task, backend, chunks=chunks)
            found = oracles.answer(task._replace(inputs=bad), backend, chunks=chunks)
        others = [0, 2]
        assert_bits(found.outputs[others], clean.outputs[others], "other sequences")
        for a, e in zip(found.final_state, clean.final_state, strict=True):
            assert_bits(a[others], e[others], "other final states")
        assert_bits(found.outputs[where, :when], clean.outputs[where, :when], "earlier steps")
        assert_close(found.outputs, expected.outputs, 1e-10)
        if np.isnan(poison):
            assert np.isnan(found.outputs[where, when:]).all()


@pytest.mark.parametrize("chunks", [1, 2, 7, T])
@pytest.mark.parametrize("name", CELLS)
def test_poisoned_initial_state_stays_in_its_channel(name, chunks):
    """Channels are independent recurrences, so NaN in one start reaches that channel only."""
    task = oracles.problem(name, steps=T)
    assert task.initial_state is not None
    state = tuple(s.copy() for s in task.initial_state)
    for s in state:
        s[1, 2] = np.nan
    clean = oracles.answer(task, "numpy", chunks=chunks)
    found = oracles.answer(task._replace(initial_state=state), "numpy", chunks=chunks)
    others = np.ones((3, 4), bool)
    others[1, 2] = False
    for a, e in [(found.outputs.swapaxes(1, 2), clean.outputs.swapaxes(1, 2))]:
        assert_bits(a[others], e[others])
        assert np.isnan(a[~others]).all()


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_poison_leaves_the_gradients_of_others(backend):
    """The inputs' gradient of a sequence does not see what another sequence holds."""
    task = oracles.problem("gru", steps=T)
    expected = oracles.reference(task)
    task.inputs[1, 13] = np.nan
    for chunks in (1, 5):
        found = oracles.answer(task, backend, gradients=True, chunks=chunks)
        for k in ("inputs", "state.0"):
            assert_close(found.gradients[k][[0, 2]], expected.gradients[k][[0, 2]], 1e-10)


# -- statistics -----------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_cells_take_one_iteration(backend, name):
    cell = parnl.get_cell(name, input_size=2, hidden_size=3)
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=v.shape) for k, v in cell.init(backend="numpy").items()}
    inputs = rng.normal(size=(2, 40, 2))
    expected, _ = oracles.loop(cell, params, inputs)
    params = {k: to(backend, v) for k, v in params.items()}
    for chunks in (2, 9, 40):
        out = parnl.solve(cell, params, to(backend, inputs), method="newton", chunks=chunks)
        assert int(out.info.iterations) == 1
        assert bool(out.info.converged)
        assert_close(out.outputs, expected, 1e-12)


@pytest.mark.parametrize("name", [*CELLS, "test-mgu", "test-leaky", "test-trio"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_newton_is_quadratic(backend, name):
    """A wrong Jacobian would still end with the right answer, but only after many iterations."""
    if name in CELLS:
        task = oracles.problem(name, steps=256)
        cell, params, inputs, state = task.cell, task.params, task.inputs, task.initial_state
    else:
        cell, params, inputs, state = own(name, steps=256)
    params = {k: to(backend, v) for k, v in params.items()}
    state = tuple(to(backend, s) for s in state or ())
    iterations = {}
    for chunks in (16, 256):
        how: dict[str, Any] = {"chunks": chunks, "max_iterations": chunks}
        out = parnl.solve(cell, params, to(backend, inputs), state, method="newton", **how)
        assert bool(out.info.converged)
        assert int(out.info.chunks) == chunks
        iterations[chunks] = int(out.info.iterations)
    # 7 doublings of the number of right digits, from none, end beyond float64
    assert iterations[16] <= 7
    assert iterations[256] <= 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_info_of_a_stopped_solve(backend):
    task = oracles.problem("gru", steps=T)
    params = {k: to(backend, v) for k, v in task.params.items()}
    inputs = to(backend, task.inputs)
    solve = functools.partial(parnl.solve, task.cell, params, inputs, chunks=T)
    stopped, whole = solve(max_iterations=1), solve()
    assert int(stopped.info.iterations) == 1
    assert not bool(stopped.info.converged)
    assert bool(whole.info.converged)
    assert 1 < int(whole.info.iterations) <= T
    assert float(whole.info.residual) <= 1e-9 < float(stopped.info.residual)
    assert float(whole.info.update) <= float(stopped.info.update)
    assert stopped._fields == ("outputs", "final_state", "info")
    assert stopped.info._fields == (
        "iterations",
        "chunks",
        "update",
        "residual",
        "converged",
        "sequential",
    )


def test_looser_tolerance_takes_fewer_iterations():
    task = oracles.problem("lstm", steps=200)
    solve = functools.partial(parnl.solve, task.cell, task.params, task.inputs)
    solve = functools.partial(solve, chunks=200, max_iterations=200)  # Newton to its end
    loose, tight = solve(tolerance=1e-1), solve(tolerance=0)
    assert int(loose.info.iterations) < int(tight.info.iterations)
    expected = parnl.solve(task.cell, task.params, task.inputs, method="sequential").outputs
    assert_close(tight.outputs, expected, 1e-14)


def test_enough_iterations_give_the_sequential_answer():
    """After i iterations the first i + 1 chunk starts are exact, so i + 1 chunks of outputs are."""
    cell = parnl.get_cell("test-logistic", input_size=1, hidden_size=1)
    arguments = (cell, {"W": np.ones((1, 1))}, np.zeros((640, 1)), (np.array([0.2]),))
    expected = parnl.solve(*arguments, method="sequential").outputs
    for i in (1, 3, 8):
        out = parnl.solve(*arguments, method="newton", chunks=10, max_iterations=i)
        assert_bits(out.outputs[: 64 * (i + 1)], expected[: 64 * (i + 1)])


# -- shapes ---------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize(
    ("backend", "name"),
    [*itertools.product(("numpy", "torch"), CELLS), ("jax", "gru"), ("jax", "lstm")],
)
@pytest.mark.parametrize(
    ("batch", "steps", "hidden", "n_in", "chunks"),
    [
        ((), 11, 4, 3, 3),
        ((2, 1, 3), 11, 4, 3, 3),
        ((3,), 1, 4, 3, None),
        ((3,), 1, 4, 3, 1),
        ((2,), 11, 1, 1, 11),
        ((0,), 11, 4, 3, 3),
        ((2, 0), 5, 4, 3, "auto"),
        ((3,), 0, 4, 3, None),
        ((), 0, 1, 1, "auto"),
        ((0,), 0, 4, 3, None),
    ],
)
def test_shapes(backend, name, batch, steps, hidden, n_in, chunks):
    task = oracles.problem(name, batch=batch, steps=steps, hidden=hidden, n_in=n_in)
    gradients = backend in DIFFERENTIABLE and not (backend == "jax" and len(batch) == 1 < steps)
    found = oracles.answer(task, backend, gradients=gradients, chunks=chunks)
    assert found.outputs.shape == (*batch, steps, hidden)
    assert_same(found, oracles.reference(task), 1e-10)


@quick
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[[1, 0], [7, 3], [2, 7]], [[0, 0], [0, 0], [0, 0]]])
def test_lengths_have_the_batch_shape(backend, lengths):
    for name, reverse in itertools.product(("gru", "lstm"), (False, True)):
        task = oracles.problem(name, batch=(3, 2), steps=7, lengths=lengths, reverse=reverse)
        found = oracles.answer(task, backend, chunks=3)
        assert_same(found, oracles.reference(task), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_length_without_a_batch(backend):
    task = oracles.problem("gru", batch=(), steps=7, lengths=4)
    assert_same(oracles.answer(task, backend, chunks=2), oracles.reference(task), 1e-10)


@quick
@pytest.mark.parametrize("method", ["sequential", "newton"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_initial_state_is_zeros(backend, method):
    for name in CELLS:
        task = oracles.problem(name, start=False, steps=9)
        assert_same(oracles.answer(task, backend, method=method), oracles.reference(task), 1e-10)


def test_arguments_are_left_alone():
    task = oracles.problem("lstm", lengths=[0, 5, T], dtype="float64")
    for b, n in enumerate([0, 5, T]):
        task.inputs[b, n:] = np.nan
    copies = [task.inputs.copy(), *(s.copy() for s in task.initial_state or ())]
    oracles.answer(task, "numpy", chunks=4)
    for a, e in zip([task.inputs, *(task.initial_state or ())], copies, strict=True):
        assert_bits(a, e)


def test_arrays_that_are_not_contiguous():
    task = oracles.problem("gru", steps=T)
    strided = np.asfortranarray(task.inputs)
    expected = oracles.reference(task)
    assert_same(oracles.answer(task._replace(inputs=strided), "numpy", chunks=4), expected, 1e-10)
    params = {k: torch.from_numpy(np.asfortranarray(v)) for k, v in task.params.items()}
    inputs = torch.from_numpy(task.inputs.swapaxes(0, 1).copy()).transpose(0, 1)
    state = tuple(torch.from_numpy(s) for s in task.initial_state or ())
    out = parnl.solve(task.cell, params, inputs, state, chunks=4)
    assert_close(out.outputs, expected.outputs, 1e-10)


# -- dt -------------------------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("times", ["shared", "own"])
@pytest.mark.parametrize("name", TIME_AWARE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_dt_per_step(backend, name, times):
    task = oracles.problem(name, batch=(2,), times=times, steps=9, reverse=True)
    how: dict[str, Any] = {"chunks": 4, "gradients": backend in DIFFERENTIABLE}
    assert_same(oracles.answer(task, backend, **how), oracles.reference(task), 1e-10)


@pytest.mark.parametrize("name", TIME_AWARE)
def test_constant_dt_is_the_option(name):
    """One number per step in place of the option, which it overrides."""
    task = oracles.problem(name, dt=0.25)
    other = task._replace(options={"dt": 3.0}, dt=np.full(T, 0.25))
    found = oracles.answer(other, "numpy", chunks=4)
    assert_same(found, oracles.answer(task, "numpy", chunks=4), 1e-14)


def test_options_of_an_own_cell():
    cell, params, inputs, state = own("test-leaky")
    assert (cell.dt, cell.gain) == (0.5, 1.0)
    other = parnl.get_cell("test-leaky", input_size=3, hidden_size=4, gain=2.0, dt=0.1)
    for c in (cell, other):
        expected, _ = oracles.loop(c, params, inputs, state)
        assert_close(parnl.solve(c, params, inputs, state, chunks=5).outputs, expected, 1e-12)


def test_init_of_an_own_cell():
    cell = parnl.get_cell("test-mgu", input_size=3, hidden_size=4)
    params = cell.init(seed=3, backend="numpy")
    assert {k: v.shape for k, v in params.items()} == {
        "W_f": (3, 4),
        "a_f": (4,),
        "b_f": (4,),
        "W_n": (3, 4),
        "a_n": (4,),
        "b_n": (4,),
    }
    assert not params["b_f"].any()
    assert not params["b_n"].any()
    assert all(params[k].all() for k in ("W_f", "a_f", "W_n", "a_n"))


# -- streams and pieces ---------------------------------------------------------------------------


@quick
@pytest.mark.parametrize("name", [*CELLS, "test-trio", "test-leaky"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_streaming_equals_the_whole(backend, name):
    if name in CELLS:
        task = oracles.problem(name, steps=8)
        cell, params, inputs, state = task.cell, task.params, task.inputs, task.initial_state
    else:
        cell, params, inputs, state = own(name, steps=8)
    params = {k: to(backend, v) for k, v in params.items()}
    inputs, state = to(backend, inputs), tuple(to(backend, s) for s in state or ())
    whole = parnl.solve(cell, params, inputs, state, chunks=3)
    for t in range(8):
        y, state = parnl.step(cell, params, inputs[:, t], state)
        assert y.shape == (3, 4)
        assert_close(y, whole.outputs[:, t], 1e-12)
    assert isinstance(state, tuple)
    for a, e in zip(state, whole.final_state, strict=True):
        assert_close(a, e, 1e-12)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_streaming_takes_dt(backend):
    task = oracles.problem("lrc", steps=6, times="own", batch=(2,))
    params = {k: to(backend, v) for k, v in task.params.items()}
    state = tuple(to(backend, s) for s in task.initial_state or ())
    assert task.dt is not None
    dt, inputs = to(backend, task.dt), to(backend, task.inputs)
    for t in range(6):
        y, state = parnl.step(task.cell, params, inputs[:, t], state, dt=dt[:, t])
        assert_close(y, oracles.reference(task).outputs[:, t], 1e-12)


def test_streaming_has_gradients():
    task = oracles.problem("lstm", steps=5)
    params = {k: to("torch", v).requires_grad_() for k, v in task.params.items()}
    state = tuple(to("torch", s) for s in task.initial_state or ())
    total = torch.zeros((), dtype=torch.float64)
    for t in range(5):
        y, state = parnl.step(task.cell, params, to("torch", task.inputs[:, t]), state)
        total = total + (y * to("torch", task.weights[0][:, t])).sum()
    for s, w in zip(state, task.weights[1:], strict=True):
        total = total + (s * to("torch", w)).sum()
    expected = oracles.reference(task).gradients
    found = torch.autograd.grad(total, list(params.values()))
    for k, g in zip(params, found, strict=True):
        assert_close(g, expected["params." + k], 1e-10, k)


@pytest.mark.parametrize("cut", [1, 10, T - 1])
@pytest.mark.parametrize("name", CELLS)
def test_pieces_equal_the_whole(name, cut):
    """Carrying the state over a cut changes neither values nor gradients."""
    task = oracles.problem(name, steps=T)
    leaves = {k: to("torch", v).requires_grad_() for k, v in task.params.items()}
    inputs = to("torch", task.inputs)
    state = tuple(to("torch", s) for s in task.initial_state or ())
    solve = functools.partial(parnl.solve, task.cell, leaves)
    first = solve(inputs[:, :cut], state)
    second = solve(inputs[:, cut:], first.final_state)
    outputs = torch.cat([first.outputs, second.outputs], 1)
    expected = oracles.reference(task)
    assert_close(outputs, expected.outputs, 1e-10)
    loss = (outputs * to("torch", task.weights[0])).sum()
    for s, w in zip(second.final_state, task.weights[1:], strict=True):
        loss = loss + (s * to("torch", w)).sum()
    for k, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert_close(g, expected.gradients["params." + k], 1e-10, k)


def test_empty_piece_returns_the_state():
    task = oracles.problem("lstm", steps=0)
    out = parnl.solve(task.cell, task.params, task.inputs, task.initial_state)
    assert out.outputs.shape == (3, 0, 4)
    for a, e in zip(out.final_state, task.initial_state or (), strict=True):
        assert_bits(a, e)


# -- half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("numpy", "float16"),
        ("torch", "float16"),
        ("torch", "bfloat16"),
        ("jax", "float16"),
        ("jax", "bfloat16"),
    ],
)
def test_half_precision_is_solved_in_single(backend, dtype):
    """1000 additions of 1e-4 to 1: each alone is lost in half precision, together they are not."""
    import jax.numpy as jnp

    cell = parnl.get_cell("test-accumulator", input_size=1, hidden_size=1)
    module: Any = {"numpy": np, "torch": torch, "jax": jnp}[backend]
    make = functools.partial(module.full, dtype=getattr(module, dtype))
    params, inputs, state = {"W": make((1, 1), 1e-4)}, make((1000, 1), 1.0), (make((1,), 1.0),)
    added = float(params["W"][0, 0])
    for how in ({"chunks": 1}, {"chunks": 8}, {"method": "sequential"}):
        out = parnl.solve(cell, params, inputs, state, **how)
        assert out.outputs.dtype == inputs.dtype
        assert out.final_state[0].dtype == module.float32
        for t in (199, 999):
            expected = 1 + (t + 1) * added
            assert abs(float(out.outputs[t, 0]) - expected) < 5e-3


@pytest.mark.parametrize("name", CELLS)
def test_half_precision_gradients(name):
    task = oracles.problem(name, steps=12, dtype="float16")
    expected = oracles.reference(task)
    leaves = {k: to("torch", v).requires_grad_() for k, v in task.params.items()}
    state = tuple(to("torch", s) for s in task.initial_state or ())
    out = parnl.solve(task.cell, leaves, to("torch", task.inputs), state, chunks=3)
    assert_close(out.outputs, expected.outputs, 2e-3)
    loss = (out.outputs * to("torch", task.weights[0])).float().sum()
    for s, w in zip(out.final_state, task.weights[1:], strict=True):
        loss = loss + (s * to("torch", w)).float().sum()
    for k, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert g.dtype == torch.float16
        assert_close(g, expected.gradients["params." + k], 5e-3, k)


# -- the affine scan ------------------------------------------------------------------------------


def affine_loop(a, b, x0, reverse):
    """x_t = a_t x_{t-1} + b_t as a loop; time is axis 1, a is (..., D) or (..., D, k, k)."""
    blocks = a.ndim > b.ndim
    steps = b.shape[1]
    x = np.zeros_like(b[:, 0]) if x0 is None else x0
    found = np.empty_like(b)
    for t in reversed(range(steps)) if reverse else range(steps):
        moved = np.einsum("bdij,bdj->bdi", a[:, t], x) if blocks else a[:, t] * x
        x = moved + b[:, t]
        found[:, t] = x
    return found


@quick
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("k", [None, 1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_affine_scan(backend, k, start, reverse):
    rng = np.random.default_rng(0)
    for steps in (1, 21) if backend == "jax" else (1, 2, 16, 21):
        a = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k, k))
        b = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k))
        x0 = rng.normal(size=b[:, 0].shape) if start else None
        given_x0 = None if x0 is None else to(backend, x0)
        found = parnl.affine_scan(to(backend, a), to(backend, b), given_x0, reverse=reverse)
        assert_close(found, affine_loop(a, b, x0, reverse), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_affine_scan_without_batch_or_time(backend):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    found = parnl.affine_scan(to(backend, a), to(backend, b))
    assert_close(found, affine_loop(a[None], b[None], None, False)[0], 1e-13)
    empty = parnl.affine_scan(to(backend, a[:0]), to(backend, b[:0]), to(backend, b[0]))
    assert tuple(empty.shape) == (0, 3)


@quick
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_affine_scan_gradients(backend, k, reverse):
    rng = np.random.default_rng(0)
    steps = 13
    a = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k, k))
    b = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k))
    x0, weights = rng.normal(size=b[:, 0].shape), rng.normal(size=b.shape)
    leaves = [torch.from_numpy(v).requires_grad_() for v in (a, b, x0)]
    ta, tb, x = leaves
    rows = [torch.empty(0)] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        x = (ta[:, t] * x if k is None else (ta[:, t] @ x[..., None])[..., 0]) + tb[:, t]
        rows[t] = x
    loss = (torch.stack(rows, 1) * torch.from_numpy(weights)).sum()
    expected = torch.autograd.grad(loss, leaves)
    if backend == "torch":
        out = parnl.affine_scan(ta, tb, leaves[2], reverse=reverse)
        found = torch.autograd.grad((out * torch.from_numpy(weights)).sum(), leaves)
    else:
        import jax

        def f(a, b, x0):
            return (parnl.affine_scan(a, b, x0, reverse=reverse) * weights).sum()

        found = jax.grad(f, (0, 1, 2))(*(to("jax", v) for v in (a, b, x0)))
    for g, e in zip(found, expected, strict=True):
        assert_close(g, e, 1e-11)


def test_affine_scan_overflow_and_nan_stay_local():
    a = np.full((1, 40, 3), 1.5)
    b = np.ones((1, 40, 3))
    clean = parnl.affine_scan(a, b)
    b[0, 20, 1] = np.nan
    with np.errstate(all="ignore"):
        found = parnl.affine_scan(a, b)
    assert_bits(found[..., [0, 2]], clean[..., [0, 2]])
    assert_bits(found[0, :20], clean[0, :20])
    assert np.isnan(found[0, 20:, 1]).all()


# -- any shape, any chunk count -------------------------------------------------------------------


@st.composite
def tasks(draw, max_steps=17):
    name = draw(st.sampled_from(sorted(oracles.VARIANTS)))
    name, options = oracles.VARIANTS[name]
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    steps = draw(st.integers(0, max_steps))
    lengths = None
    if draw(st.booleans()):
        count = int(np.prod(batch))
        n = st.lists(st.integers(0, steps), min_size=count, max_size=count)
        lengths = np.array(draw(n), dtype=np.int64).reshape(batch)
    task = oracles.problem(
        name,
        steps=steps,
        batch=batch,
        n_in=draw(st.integers(1, 3)),
        hidden=draw(st.integers(1, 4)),
        times=draw(st.sampled_from([None, "shared", "own"])) if name in TIME_AWARE else None,
        lengths=lengths,
        reverse=draw(st.booleans()),
        start=draw(st.booleans()),
        seed=draw(st.integers(0, 10_000)),
        **options,
    )
    chunks = draw(st.sampled_from([None, "auto"]) | st.integers(1, max(steps, 1)))
    return task, chunks if steps else None


@given(tasks())
@settings(max_examples=150)
def test_any_task_on_numpy(drawn):
    task, chunks = drawn
    expected = oracles.reference(task)
    assert_same(oracles.answer(task, "numpy", chunks=chunks), expected, 1e-10)


@given(tasks())
@settings(max_examples=80)
def test_any_task_with_gradients_on_torch(drawn):
    task, chunks = drawn
    expected = oracles.reference(task)
    found = oracles.answer(task, "torch", gradients=True, chunks=chunks)
    assert_same(found, expected, 1e-10)


@quick
@given(tasks(max_steps=6))
@settings(max_examples=8)
def test_any_task_with_gradients_on_jax(drawn):
    task, chunks = drawn
    expected = oracles.reference(task)
    assert_same(oracles.answer(task, "jax", gradients=True, chunks=chunks), expected, 1e-10)


@given(
    name=st.sampled_from(BOUNDED),
    steps=st.integers(1, 40),
    chunks=st.integers(1, 40),
    reverse=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80)
def test_any_own_cell_on_numpy(name, steps, chunks, reverse, seed):
    cell, params, inputs, state = own(name, steps=steps, seed=seed)
    expected, finals = oracles.loop(cell, params, inputs, state, reverse=reverse)
    out = parnl.solve(
        cell, params, inputs, state, chunks=min(chunks, steps), reverse=reverse, tolerance=0
    )
    assert_close(out.outputs, expected, 1e-10)
    for a, e in zip(out.final_state, finals, strict=True):
        assert_close(a, e, 1e-10)


@given(steps=st.integers(1, 40), chunks=st.integers(1, 40), at=st.integers(0, 39))
@settings(max_examples=60)
def test_any_poisoned_step_keeps_the_past(steps, chunks, at):
    task = oracles.problem("lstm", steps=steps, batch=(2,))
    chunks, at = min(chunks, steps), min(at, steps - 1)
    clean = oracles.answer(task, "numpy", chunks=chunks)
    task.inputs[0, at] = np.nan
    found = oracles.answer(task, "numpy", chunks=chunks)
    assert_bits(found.outputs[1], clean.outputs[1])
    assert_bits(found.outputs[0, :at], clean.outputs[0, :at])
    assert np.isnan(found.outputs[0, at:]).all()


def test_the_oracle_itself_on_a_case_done_by_hand():
    """One GRU channel, one step, from h = 0.5: numbers worked out on paper."""
    one = {k: np.ones(s) for k, s in oracles.parameter_shapes("gru", 1, 1).items()}
    outputs, (h,) = oracles.run("gru", one, np.zeros((1, 1)), (np.array([0.5]),))
    gate = 1 / (1 + np.exp(-1.5))
    assert_close(h, [(1 - gate) * np.tanh(1 + gate * 1.5) + gate * 0.5], 1e-15)
    assert_close(outputs, h[None], 0.0)
    assert_close(NUMPY.sigmoid(np.array([-800.0, 0.0, 800.0])), [0.0, 0.5, 1.0], 0.0)
