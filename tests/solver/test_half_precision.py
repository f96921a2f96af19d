"""Half precision is solved in single."""

import functools
from typing import Any

import numpy as np
import oracles
import pytest
import small_cells  # noqa: F401, registers its cells
from optional import torch
from oracles import (
    CELLS,
    assert_close,
    to,
)

import parnl


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
    from optional import jnp

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
