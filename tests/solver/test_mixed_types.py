"""float32 and float64 in one call: all is computed in float64, and gradients come as each came."""

import numpy as np
import oracles
import pytest
from oracles import BACKENDS, assert_close, numpy_of, to

import parnl


@pytest.mark.parametrize("double", ["inputs", "params"])
@pytest.mark.parametrize("name", ["gru", "s6", "lru"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_wider_type_is_taken(backend, name, double):
    task = oracles.problem(name, steps=9, start=False)
    kinds = {"inputs": np.float32, "params": np.float32} | {double: np.float64}
    params = {n: p.astype(kinds["params"]) for n, p in task.params.items()}
    inputs = task.inputs.astype(kinds["inputs"])
    rounded = {n: p.astype(np.float64) for n, p in params.items()}
    expected = oracles.reference(
        task._replace(params=rounded, inputs=inputs.astype(np.float64))
    ).outputs
    given = {n: to(backend, p) for n, p in params.items()}
    found = parnl.solve(task.cell, given, to(backend, inputs), chunks=3).outputs
    assert numpy_of(found).dtype == np.float64
    assert_close(found, expected, 1e-12)
    streamed = parnl.step(task.cell, given, to(backend, inputs[:, 0]))[0]
    assert_close(streamed, expected[:, 0], 1e-12)


def test_gradients_come_in_each_arguments_type():
    torch = pytest.importorskip("torch")
    cell = parnl.get_cell("gru", 3, 4)
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
    inputs = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    parnl.solve(cell, params, inputs).outputs.sum().backward()
    assert {p.grad.dtype for p in params.values()} == {torch.float32}
    assert inputs.grad.dtype == torch.float64
