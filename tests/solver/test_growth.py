"""Chaotic and expanding cells: the answer is the loop's, to the bit where the map is exact."""

import itertools
from typing import Any

import numpy as np
import pytest
from oracles import (
    assert_bits,
    assert_close,
    numpy_of,
    to,
)
from small_cells import own

import parnl


@pytest.mark.parametrize(
    ("steps", "chunks", "tolerance"),
    [*((4096, c, t) for c in (2, 7, 64) for t in (None, 0)), (1024, 1024, None)],
)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_chaos_ends_with_the_sequential_bits(backend, steps, chunks, tolerance):
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
