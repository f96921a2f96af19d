"""One step at a time, and a sequence in pieces, equal the whole."""

import functools

import oracles
import pytest
from optional import torch
from oracles import (
    BACKENDS,
    CELLS,
    assert_bits,
    assert_close,
    to,
)
from small_cells import T, own

import parnl


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
