"""Checked mode: it is silent about right answers, and names the first thing wrong in others."""

import itertools
import re

import numpy as np
import oracles
import pytest
from optional import torch
from oracles import BACKENDS, CELLS, assert_bits, numpy_of, to

import parnl
from parnl import ops
from parnl.params import matrix, vector


class Fragile(parnl.Cell):
    """A feature, a state and a time step that can each be made to fail."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))
    states = ("x", "y")

    def features(self, p, u):
        return dict(f=u @ p.W, g=ops.log(1.0 + u[..., :1]))

    def step(self, p, x, y, f, dt):
        return p.a * x + f.f, 0.5 * y + dt * ops.sqrt(1.0 + x) + f.g


def fragile(backend, batch=(4,), steps=20):
    """Return (cell, params, inputs, dt) of a solve that is all right, as NumPy arrays."""
    cell = Fragile(2, 3)
    params = {"W": np.full((2, 3), 0.1), "a": np.full(3, 0.5)}
    return cell, params, np.full((*batch, steps, 2), 0.3), np.full((*batch, steps), 0.1)


def checked(backend, cell, params, inputs, dt=None, **how):
    params = {k: to(backend, v) for k, v in params.items()}
    dt = None if dt is None else to(backend, dt)
    with np.errstate(all="ignore"):
        return parnl.solve(cell, params, to(backend, inputs), dt=dt, check=True, **how)


def fails(message, *arguments, **how):
    with pytest.raises(parnl.SolveError, match=re.escape(message)) as caught:
        checked(*arguments, **how)
    return str(caught.value)


@pytest.mark.parametrize(
    ("backend", "name"),
    [*itertools.product(("numpy", "torch"), CELLS), ("jax", "gru"), ("jax", "lstm")],
)
def test_right_answers_pass(backend, name):
    for reverse, dtype in ((False, "float32"), (True, "float64")):
        task = oracles.problem(
            name, steps=23, lengths=[0, 9, 23], reverse=reverse, dtype=dtype, batch=(3,)
        )
        task.inputs[0] = task.inputs[1, 9:] = np.nan  # padding may hold anything
        arguments = (task.cell, {k: to(backend, v) for k, v in task.params.items()})
        how = {"lengths": np.array([0, 9, 23]), "reverse": reverse, "chunks": 5}
        state = tuple(to(backend, s) for s in task.initial_state or ())
        plain = parnl.solve(*arguments, to(backend, task.inputs), state, **how)
        found = parnl.solve(*arguments, to(backend, task.inputs), state, check=True, **how)
        assert_bits(found.outputs, plain.outputs)


@pytest.mark.parametrize("chunks", [1, 7])
def test_hostile_answers_pass(chunks):
    """Chaos and steep slopes: rounding is amplified, the answer is right all the same."""

    class Steep(parnl.Cell):
        def features(self, p, u):
            return dict(u=u)

        def step(self, p, x, f):
            return ops.sin(1e4 * x + f.u)

    u = np.random.default_rng(0).normal(size=(400, 2)).astype("float32")
    for backend in BACKENDS:
        checked(backend, Steep(2, 2), {}, u, chunks=chunks)


@pytest.mark.long
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_cause_is_named(backend, reverse):
    cell, params, u, dt = fragile(backend)
    run = {"chunks": 5, "reverse": reverse}
    checked(backend, cell, params, u, dt, **run)
    first, later = (17, 3) if reverse else (3, 17)
    bad = u.copy()
    bad[3, first, 1] = np.nan
    bad[1, later, 0] = np.inf
    fails(
        f"inputs: nan at sequence 3, step {first}, channel 1", backend, cell, params, bad, dt, **run
    )
    bad = dt.copy()
    bad[2, first] = -np.inf
    fails(f"dt: -inf at sequence 2, step {first}, channel 0", backend, cell, params, u, bad, **run)
    bad = u.copy()
    bad[1, first, 0] = -1.0
    message = fails("feature g: -inf at sequence 1", backend, cell, params, bad, dt, **run)
    assert f"step {first}, channel 0" in message
    assert "look at what cell.features makes" in message
    bad = u.copy()
    bad[2, first] = [-0.9, -90.0]  # x falls below -1, which y is made from one step after
    after = first - 1 if reverse else first + 1
    message = fails(
        f"state y: nan at sequence 2, step {after}", backend, cell, params, bad, dt, **run
    )
    assert "the step itself makes it" in message


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_and_initial_states_are_looked_at(backend):
    cell, params, u, dt = fragile(backend)
    bad = {"W": params["W"].copy(), "a": params["a"]}
    bad["W"][1, 2] = np.nan
    fails("parameter W: nan at [1, 2]", backend, cell, bad, u, dt)
    start = np.zeros((4, 3))
    start[2, 1] = np.inf
    state = (to(backend, np.zeros((4, 3))), to(backend, start))
    fails("initial_state y: inf at sequence 2, channel 1", backend, cell, params, u, dt,
          initial_state=state)  # fmt: skip


@pytest.mark.parametrize("chunks", [1, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_overflow_is_told_from_the_rest(backend, chunks):
    cell, params, u, dt = fragile(backend, batch=(2, 2), steps=40)
    u, dt = u.astype("float32"), dt.astype("float32")
    params = {"W": params["W"], "a": np.array([0.5, 0.5, 50.0])}
    params = {k: v.astype("float32") for k, v in params.items()}
    x, t = np.float32(0), 0
    with np.errstate(over="ignore"):
        while np.isfinite(x):
            x, t = np.float32(50) * x + np.float32(0.06), t + 1
    message = fails("state x: grows beyond float32", backend, cell, params, u, dt, chunks=chunks)
    assert f"sequence (0, 0), step {t - 1}, channel 2" in message
    assert "see parnl.diagnose" in message


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_not_looked_at(backend):
    cell, params, u, dt = fragile(backend, batch=(2,))
    u[0, 12:] = np.nan
    dt[0, 12:] = np.nan
    checked(backend, cell, params, u, dt, lengths=np.array([12, 20]), chunks=4)
    u[0, 11] = np.nan
    fails("inputs: nan at sequence 0, step 11", backend, cell, params, u, dt,
          lengths=np.array([12, 20]), chunks=4)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stopped_solve_is_an_error(backend):
    task = oracles.problem("gru", steps=23)
    arguments = (backend, task.cell, task.params, task.inputs)
    message = fails("not converged in max_iterations=1", *arguments, chunks=23, max_iterations=1)
    assert "23, the number of chunks, is always enough" in message
    found = re.search(
        r"state h is (\S+) away .* at sequence (\d), step (\d+), channel (\d)", message
    )
    assert found
    params = {k: to(backend, v) for k, v in task.params.items()}
    stopped = numpy_of(
        parnl.solve(
            task.cell, params, to(backend, task.inputs), chunks=23, max_iterations=1
        ).outputs
    )
    b, t, d = (int(found[i]) for i in (2, 3, 4))
    after, _ = parnl.step(
        task.cell, task.params, task.inputs[:, t], (np.asarray(stopped[:, t - 1]),)
    )
    np.testing.assert_allclose(abs(after - stopped[:, t])[b, d], float(found[1]), rtol=1e-2)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_wrong_state_is_seen(monkeypatch, reverse):
    """One state of one step, changed on the way out of the solver."""
    from parnl.backends.numpy import NumpyBackend

    right = NumpyBackend.solve

    def wrong(*arguments):
        states, stats = right(*arguments)
        states[0][1, 11, 2] += 0.01
        return states, stats

    monkeypatch.setattr(NumpyBackend, "solve", wrong)
    cell, params, u, dt = fragile("numpy")
    message = fails("state x is 0.01 away", "numpy", cell, params, u, dt, reverse=reverse)
    assert "sequence 1, step 11, channel 2" in message
    assert "a fault of parnl" in message


def test_values_must_be_known():
    pytest.importorskip("torch")
    from optional import jax

    cell = parnl.get_cell("gru", 2, 3)
    params, u = cell.init(0, "jax"), to("jax", np.zeros((5, 2), "float32"))

    def solve(p, u):
        return parnl.solve(cell, p, u, check=True).outputs.sum()

    for run in (jax.jit(solve), jax.grad(solve), jax.vmap(solve, (None, 0))):
        with pytest.raises(TypeError, match=r"check: the values of .* outside jit, vmap"):
            run(params, u[None] if run is not jax.grad else u)
    with pytest.raises(TypeError, match=r"check: the values of .* not known"):
        jax.jit(lambda: solve(params, u))()
    with pytest.raises(TypeError, match="check: the values of state h are not known"):
        jax.vmap(lambda x: parnl.solve(cell, params, u, x, check=True))(np.ones((4, 3), "float32"))
    params, u = cell.init(0, "torch"), torch.zeros(2, 5, 2)
    run = torch.func.vmap(lambda x: parnl.solve(cell, params, x, check=True).outputs)
    with pytest.raises(TypeError, match="check: the values of inputs are not known"):
        run(u)


def test_gradients_go_through_a_checked_solve():
    pytest.importorskip("torch")
    cell = parnl.get_cell("lstm", 2, 3)
    params = {k: v.requires_grad_() for k, v in cell.init(0, "torch", "float64").items()}
    u = torch.randn(2, 9, 2, dtype=torch.float64)
    grads = []
    for check in (False, True):
        out = parnl.solve(cell, params, u, chunks=3, check=check).outputs
        grads.append(torch.autograd.grad(out.square().sum(), list(params.values())))
    for found, expected in zip(*grads, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_check(backend):
    cell, params, u, dt = fragile(backend)
    assert checked(backend, cell, params, u[:0], dt[:0]).outputs.shape == (0, 20, 3)
    assert checked(backend, cell, params, u[:, :0], dt[:, :0]).outputs.shape == (4, 0, 3)
