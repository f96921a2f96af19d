"""What a solve tells of itself: iterations, convergence, residual."""

import functools
from typing import Any

import numpy as np
import oracles
import pytest
from oracles import (
    BACKENDS,
    CELLS,
    assert_close,
    numpy_of,
    to,
)
from small_cells import LINEAR, T, own

import parnl


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
    assert stopped._fields == ("outputs", "final_state", "info", "states")
    assert stopped.states is None
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", [{}, {"chunks": 5}, {"lengths": [T, 9, 0]}, {"reverse": True}])
def test_all_states_are_returned_where_they_are_asked_for(backend, how):
    task = oracles.problem("lstm", steps=T, batch=(3,), reverse=how.get("reverse", False))
    params = {k: to(backend, v) for k, v in task.params.items()}
    if "lengths" in how:
        how = {"lengths": to(backend, np.array(how["lengths"]))}
    found = parnl.solve(task.cell, params, to(backend, task.inputs), states=True, **how)
    plain = parnl.solve(task.cell, params, to(backend, task.inputs), **how)
    assert plain.states is None
    assert found.states._fields == ("c", "h")
    lengths = numpy_of(how["lengths"]) if "lengths" in how else [T] * 3
    for b, n in enumerate(lengths):  # each prefix, or suffix, ends in the state of that step
        for t in range(0, n, 7):
            cut = slice(t, None) if how.get("reverse") else slice(t + 1)
            alone = to(backend, task.inputs[b, cut])
            end = parnl.solve(
                task.cell, params, alone, method="sequential", reverse=how.get("reverse", False)
            ).final_state
            for name in ("c", "h"):
                states = numpy_of(getattr(found.states, name))
                assert_close(states[b, t], numpy_of(getattr(end, name)), 1e-12)
    with pytest.raises(ValueError, match="stretch: expected None with states=True"):
        parnl.solve(task.cell, params, to(backend, task.inputs), states=True, stretch=4)
