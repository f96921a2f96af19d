"""Cells that Newton's method is bad at: the right answer all the same, and a bound on the cost."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from optional import torch
from oracles import BACKENDS, assert_bits, assert_close, numpy_of, to

import parnl
from parnl import ops
from parnl.frameworks import get_backend
from parnl.params import matrix, vector

# -- states in any units ---------------------------------------------------------------------------


class Oscillator(parnl.Cell):
    """A driven pendulum whose velocity is kept in units of 1 / `unit`, a power of two."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))
    states = ("z", "y")
    options = dict(unit=1.0)

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, z, y, f):
        z = z - (0.05 * self.unit) * (ops.tanh(f.f + p.a * y) + y)
        return z, y + (0.05 / self.unit) * z


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_units_of_a_state_change_nothing(backend):
    """Scaled by powers of two, all arithmetic is the same: so must be every decision."""
    u = np.random.default_rng(0).normal(size=(2, 2048, 3))
    found = {}
    for unit in (1.0, 2.0**20, 2.0**-20):
        cell = Oscillator(3, 8, unit=unit)
        params = {k: to(backend, v) for k, v in cell.init(0, "numpy", "float64").items()}
        out = parnl.solve(cell, params, to(backend, u), chunks=64)
        found[unit] = (int(out.info.iterations), numpy_of(out.outputs))
    iterations, outputs = found[1.0]
    assert 1 < iterations < 12
    for unit in (2.0**20, 2.0**-20):
        assert found[unit][0] == iterations
        assert_bits(found[unit][1], outputs)


@pytest.mark.parametrize(("name", "most"), [("slstm", 6), ("unicornn", 9), ("cornn", 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_several_states_take_a_handful_of_updates(name, most, dtype):
    """Products whose entries are large only because one state is counted in hundreds."""
    cell = parnl.get_cell(name, input_size=6, hidden_size=16)
    params = cell.init(seed=0, backend="numpy", dtype=dtype)
    if name == "slstm":
        params["b_f"][:] = 5.0
    u = np.random.default_rng(0).normal(size=(2, 4096, 6)).astype(dtype)
    out = parnl.solve(cell, params, u, chunks=64)
    assert bool(out.info.converged)
    assert int(out.info.iterations) <= most
    expected = parnl.solve(cell, params, u, method="sequential").outputs
    assert_close(out.outputs, expected, {"float32": 5e-5, "float64": 5e-14}[dtype])


class Idle(parnl.Cell):
    """Two states, of which one stays 0 for a while, or for good where the input is 0."""

    parameters = dict(W=matrix("input", "hidden"))
    states = ("x", "y")

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, y, f):
        return ops.tanh(0.9 * x + f.f), 0.5 * ops.sin(y) + 0.25 * ops.relu(x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_is_zero_has_no_size(backend):
    cell = Idle(1, 2)
    u = np.zeros((3, 96, 1))
    u[1, 50:] = 1.0  # sequence 0 never moves, 1 moves late, in 2 only x does
    u[2] = -1.0
    params = {"W": to(backend, np.ones((1, 2)))}
    out = parnl.solve(cell, params, to(backend, u), chunks=12)
    x = y = np.zeros((3, 2))
    expected = np.empty((3, 96, 2))
    for t in range(96):
        x, y = np.tanh(0.9 * x + u[:, t]), 0.5 * np.sin(y) + 0.25 * np.maximum(x, 0)
        expected[:, t] = y
    assert int(out.info.iterations) <= 5
    assert bool(out.info.converged)
    assert_close(out.outputs, expected, 1e-12)
    assert (numpy_of(out.outputs)[[0, 2]] == 0).all()


# -- Newton makes no progress ----------------------------------------------------------------------

# the cells of benchmarks/hostile.py, under short names
_spec = importlib.util.spec_from_file_location(
    "hostile", Path(__file__).parents[2] / "benchmarks" / "hostile.py"
)
_benchmark = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_benchmark)
Logistic = _benchmark.Logistic
HOSTILE = dict(
    zip(("logistic", "gru", "steep", "switch", "lstm"), _benchmark.CELLS.values(), strict=False)
)


def hostile(name, backend, steps, dtype="float64"):
    """Return (cell, params, inputs, initial state), one sequence of one channel."""
    cell, values = HOSTILE[name]
    params = {k: np.full(v.shape, values[k]) for k, v in cell.init(0, "numpy").items()}
    inputs = np.random.default_rng(1).normal(size=(steps, 1))
    state = tuple(np.full(1, 0.2) for _ in cell.states)
    params = {k: to(backend, v.astype(dtype)) for k, v in params.items()}
    state = tuple(to(backend, s.astype(dtype)) for s in state)
    return cell, params, to(backend, inputs.astype(dtype)), state


class Work:
    """Operations that a solve has to do one after the other, counted as its runs are made."""

    def __init__(self, monkeypatch, backend):
        self.done = self.updates = 0
        kind = type(get_backend(backend))
        for name, derived in (("advance", "step_jacobian"), ("trajectory", "step")):
            monkeypatch.setattr(kind, name, self.counted(getattr(kind, name), derived))

    def counted(self, run, derived):
        def counting(kernels, program, plan, operands, starts):
            self.done += plan.length * program.costs(derived)
            self.updates += derived == "step_jacobian"
            return run(kernels, program, plan, operands, starts)

        return counting


@pytest.mark.parametrize("chunks", [None, 64, "T"])
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_the_loop_takes_over(monkeypatch, backend, name, chunks):
    """The sequential bits, at no more than 2.5 times the sequential work."""
    monkeypatch.setenv("PARNL_KERNELS", "off")
    steps = 1024 if chunks == "T" else 4096
    arguments = hostile(name, backend, steps)
    expected = numpy_of(parnl.solve(*arguments, method="sequential").outputs)
    work = Work(monkeypatch, backend)
    out = parnl.solve(*arguments, chunks=steps if chunks == "T" else chunks)
    assert out.info.chunks > 1
    assert work.updates == int(out.info.iterations)
    assert work.done <= 2.5 * steps * arguments[0].program.cost
    assert bool(out.info.converged)
    if name == "switch":  # contracts between its jumps: right to rounding
        assert_close(out.outputs, expected, 1e-12)
    else:
        assert_bits(out.outputs, expected)
        assert_bits(out.final_state[-1], expected[-1])
        assert int(out.info.sequential) == 1


def work_of(info, cell, steps):
    """The same work by the solve's own statistics, where its runs cannot be counted."""
    length = -(-steps // info.chunks)
    both = cell.program.costs("step_jacobian") + cell.program.cost
    loop = steps * cell.program.cost if int(info.sequential) else 0
    return int(info.iterations) * length * both + loop


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("name", ["logistic", "switch"])
def test_the_loop_takes_over_under_jit(monkeypatch, name, kernels):
    from optional import jax

    monkeypatch.setenv("PARNL_KERNELS", kernels)
    cell, params, u, state = hostile(name, "jax", 4096)
    out = jax.jit(lambda *a: parnl.solve(cell, *a, chunks=64))(params, u, state)
    assert work_of(out.info, cell, 4096) <= 2.5 * 4096 * cell.program.cost
    assert int(out.info.sequential) == 1
    assert bool(out.info.converged)
    x = np.concatenate([[0.2], numpy_of(out.outputs)[:, 0]])
    # XLA may round differently in each program: a step is a step of the map, at every place
    before, after, f = x[:-1], x[1:], numpy_of(u)[:, 0]
    step = 4 * before * (1 - before)
    if name == "switch":
        step = 0.999 * np.where(before > f, before - 1, before + 0.7)
    assert_close(after, step, 1e-14)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_c_kernels_give_the_sequential_bits_too(backend):
    for name in HOSTILE:
        arguments = hostile(name, backend, 8192)
        expected = numpy_of(parnl.solve(*arguments, method="sequential").outputs)
        out = parnl.solve(*arguments, chunks=64)
        assert work_of(out.info, arguments[0], 8192) <= 2.5 * 8192 * arguments[0].program.cost
        assert_close(out.outputs, expected, 1e-12)
        if name != "switch":
            assert int(out.info.sequential) == 1
            assert_bits(out.outputs, expected)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_tame_lanes_keep_what_they_have(backend):
    """Chaos in one lane changes no bit of another; one that settles late keeps its early chunks."""
    cell = Logistic(1, 3)
    a = np.array([[4.0, 2.5, 0.5]])[0]
    u, x0 = np.zeros((2, 4096, 1)), np.full((2, 3), 0.2)
    params = {"W": to(backend, np.ones((1, 3))), "a": to(backend, a)}
    out = parnl.solve(cell, params, to(backend, u), (to(backend, x0),), chunks=64)
    assert int(out.info.sequential) == 2  # the first channel, of two sequences
    calm = {"W": to(backend, np.ones((1, 2))), "a": to(backend, a[1:])}
    alone = parnl.solve(Logistic(1, 2), calm, to(backend, u), (to(backend, x0[:, 1:]),), chunks=64)
    assert int(alone.info.sequential) == 0
    assert_bits(numpy_of(out.outputs)[..., 1:], numpy_of(alone.outputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["logistic", "gru", "steep"])
def test_chaos_shows_in_the_first_update_of_long_chunks(name, backend):
    arguments = hostile(name, backend, 16 * 1024)
    expected = parnl.solve(*arguments, method="sequential")
    out = parnl.solve(*arguments, chunks=16)
    assert int(out.info.iterations) == 1
    assert int(out.info.sequential) == 1
    assert bool(out.info.converged)
    assert_bits(numpy_of(out.outputs), numpy_of(expected.outputs))
    short = parnl.solve(*arguments, chunks=32)  # too short to tell the cell from the guess
    assert int(short.info.iterations) > 1


class Either(parnl.Cell):
    """Chaotic above 0 and contracting below, in channels of a > 0; in others a map with a jump."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        calmed = ops.where(x < 0.0, 0.9 * x - 0.1, 4.0 * x * (1.0 - x)) - 2.0 * f.f
        return ops.where(p.a > 0.0, calmed, 0.999 * ops.where(x > 0.0, x - 1.0, x + 0.7))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_lane_that_is_given_up_early_is_so_for_good(backend):
    """The first update finds chaos, for the guess has missed the kick; the next would settle all.

    There is a next one only if another lane wants it.
    """
    u = np.zeros((1, 3 * 1024, 1))
    u[:, 600] = 1.0
    found = []
    for a in ([1.0], [1.0, -1.0], [-1.0]):
        cell, size = Either(1, len(a)), (1, len(a))
        params = {"W": to(backend, np.ones(size)), "a": to(backend, np.array(a))}
        x0 = to(backend, np.full(size, 0.2))
        found.append(parnl.solve(cell, params, to(backend, u), (x0,), chunks=3))
    assert [int(out.info.iterations) for out in found] == [1, 2, 2]
    assert [int(out.info.sequential) for out in found] == [1, 1, 0]
    both = np.concatenate([numpy_of(found[i].outputs) for i in (0, 2)], -1)
    assert_bits(numpy_of(found[1].outputs), both)


def test_max_iterations_is_obeyed():
    arguments = hostile("logistic", "numpy", 4096)
    expected = parnl.solve(*arguments, method="sequential").outputs
    stopped = parnl.solve(*arguments, chunks=64, max_iterations=5)
    assert int(stopped.info.iterations) == 5
    assert not bool(stopped.info.converged)
    assert int(stopped.info.sequential) == 0
    whole = parnl.solve(*arguments, chunks=64, max_iterations=64)
    assert int(whole.info.iterations) == 63
    assert bool(whole.info.converged)
    assert int(whole.info.sequential) == 0
    assert_bits(whole.outputs, expected)


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["off", "c", "triton", "jax"])
@pytest.mark.parametrize("reverse", [False, True])
def test_an_expanding_adjoint_is_taken_over_too(monkeypatch, kernels, reverse):
    """Gradients that grow by 1e6 over the sequence, against autograd through a plain loop."""
    if kernels == "jax":
        from optional import jax
    else:
        if kernels == "triton":
            pytest.importorskip("triton", minversion="3.6")
        monkeypatch.setenv("PARNL_KERNELS", kernels)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    steps = 36
    rng = np.random.default_rng(0)
    given = [np.array([3.9, 3.7]), np.full((1, 2), 1e-3), rng.normal(size=(3, steps, 1))]
    given.append(rng.uniform(0.2, 0.8, (3, 2)))
    a, w, u, x0 = (torch.from_numpy(v).requires_grad_() for v in given)

    class Driven(Logistic):
        def step(self, p, x, f):
            return p.a * x * (1.0 - x) + f.f

    x, rows = x0, [None] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        x = rows[t] = a * x * (1.0 - x) + (u[:, t] @ w)
    expected = torch.autograd.grad((torch.stack(rows, 1) ** 2).sum(), (a, w, u, x0))
    assert float(expected[3].abs().max()) > 1e5
    cell = Driven(1, 2)

    def loss(a, w, u, x0):
        how = {"chunks": 12, "reverse": reverse}
        return (parnl.solve(cell, {"W": w, "a": a}, u, (x0,), **how).outputs ** 2).sum()

    if kernels == "jax":
        found = jax.grad(loss, (0, 1, 2, 3))(*(to("jax", v) for v in given))
    else:
        found = torch.autograd.grad(loss(a, w, u, x0), (a, w, u, x0))
    for f, e in zip(found, expected, strict=True):
        f, e = numpy_of(f), e.numpy()
        scale = np.abs(e).max(axis=tuple(range(1, e.ndim)), keepdims=True)
        assert (np.abs(f - e) <= 1e-5 * scale).all()
