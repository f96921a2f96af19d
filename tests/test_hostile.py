"""Cells that Newton's method is bad at: the right answer all the same, and a bound on the cost."""

import numpy as np
import pytest
from oracles import BACKENDS, assert_bits, assert_close, numpy_of, to

import parnl
from parnl import ops
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
