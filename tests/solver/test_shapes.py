"""Shapes and memory layouts of what a solve is given."""

import itertools

import numpy as np
import oracles
import pytest
from optional import torch
from oracles import (
    BACKENDS,
    CELLS,
    assert_bits,
    assert_close,
    assert_same,
)
from small_cells import T

import parnl

DIFFERENTIABLE = ("torch", "jax")


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
@pytest.mark.turns("batch", "steps", "chunks", "backend")
def test_shapes(backend, name, batch, steps, hidden, n_in, chunks):
    task = oracles.problem(name, batch=batch, steps=steps, hidden=hidden, n_in=n_in)
    gradients = backend in DIFFERENTIABLE and not (backend == "jax" and len(batch) == 1 < steps)
    found = oracles.answer(task, backend, gradients=gradients, chunks=chunks)
    assert found.outputs.shape == (*batch, steps, hidden)
    assert_same(found, oracles.reference(task), 1e-10)


@pytest.mark.long
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
