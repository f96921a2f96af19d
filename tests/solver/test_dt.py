"""Time steps and the options of cells."""

from typing import Any

import numpy as np
import oracles
import pytest
from oracles import (
    BACKENDS,
    TIME_AWARE,
    assert_close,
    assert_same,
)
from small_cells import T, own

import parnl

DIFFERENTIABLE = ("torch", "jax")


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
