"""Every elementwise function in a step: its value and its derivative."""

import functools

import numpy as np
import oracles
import pytest
from optional import torch
from oracles import (
    assert_close,
    to,
)

import parnl
from parnl import ops
from parnl.params import matrix, vector

FUNCTIONS = {
    "exp": lambda x: ops.exp(-x * x),
    "expm1": lambda x: ops.expm1(-x * x),
    "log": lambda x: ops.log(2 + x),
    "log1p": lambda x: ops.log1p(x * x),
    "sqrt": lambda x: ops.sqrt(1.5 + x),
    "tanh": lambda x: ops.tanh(3 * x),
    "sigmoid": lambda x: ops.sigmoid(5 * x),
    "softplus": lambda x: ops.softplus(4 * x),
    "relu": lambda x: ops.relu(x),
    "abs": lambda x: ops.abs(x),
    "abs operator": lambda x: abs(x),
    "minimum": lambda x: ops.minimum(x, 0.05),
    "maximum": lambda x: ops.maximum(0.05, x),
    "minimum of two": lambda x: ops.minimum(x, 0.3 - x * x),
    "clip": lambda x: ops.clip(x, -0.3, 0.25),
    "where": lambda x: ops.where(x >= 0.02, x * x, -x),
    "nested where": lambda x: ops.where(x < 0.2, ops.where(x <= -0.2, -x, 2 * x), x * x),
    "sin": lambda x: ops.sin(4 * x),
    "cos": lambda x: ops.cos(4 * x),
    "erf": lambda x: ops.erf(2 * x),
    "division": lambda x: (1 - x) / (2 + x * x),
    "reflected": lambda x: 1 - 0.5 / (2 + x),
    "power": lambda x: 0.1 * (x + 2.5) ** 2 - (0.3 * x) ** 3,
    "negation": lambda x: -(+x),
    "constant": lambda x: x * 0 + 0.3,
}


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.turns("function")
def test_every_function_in_a_step(monkeypatch, function, kernels):
    """The value shows in the outputs; its derivative shows in the gradients, and only there."""
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    f_of_x = FUNCTIONS[function]

    @parnl.register("test-function-" + function.replace(" ", "-"))
    class Step(parnl.Cell):
        parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

        def features(self, p, u):
            return dict(f=u @ p.W)

        def step(self, p, x, f):
            return 0.4 * f_of_x(p.a * x + 0.3 * f.f) - 0.1 * x + 0.2 * f.f

    rng = np.random.default_rng(0)
    cell = parnl.get_cell(
        "test-function-" + function.replace(" ", "-"), input_size=2, hidden_size=3
    )
    leaves = [rng.normal(size=s) for s in [(2, 3), (3,), (2, 11, 2), (2, 3)]]
    weights = torch.from_numpy(rng.normal(size=(2, 11, 3)))

    def gradients(run):
        w, a, u, x = (torch.from_numpy(v).requires_grad_() for v in leaves)
        outputs = run({"W": w, "a": a}, u, (x,))
        return outputs, torch.autograd.grad((outputs * weights).sum(), (w, a, u, x))

    expected, expected_gradients = gradients(lambda *args: oracles.loop(cell, *args)[0])
    for chunks in (1, 4, 11):
        run = functools.partial(parnl.solve, cell, chunks=chunks)
        found, found_gradients = gradients(lambda *args, run=run: run(*args).outputs)
        assert_close(found, expected, 1e-10)
        for a, e in zip(found_gradients, expected_gradients, strict=True):
            assert_close(a, e, 1e-10)
    for backend in ("numpy", "jax"):
        w, a, u, x = (to(backend, v) for v in leaves)
        out = parnl.solve(cell, {"W": w, "a": a}, u, (x,), chunks=4)
        assert_close(out.outputs, expected, 1e-10)


@pytest.mark.parametrize("rows", [1, 500, 1000, 8000])  # of nine channels: all seven, and fewer
@pytest.mark.parametrize("backend", [*oracles.BACKENDS, "array_api_strict"])
def test_a_sum_over_inputs_by_any_number_of_terms_at_once(backend, rows):
    rng = np.random.default_rng(0)
    u, m, n = rng.normal(size=(rows, 7)), rng.normal(size=(7, 9)), rng.normal(size=(7, 9))
    if backend == "array_api_strict":
        to, back = pytest.importorskip(backend).asarray, np.asarray
    else:
        to, back = functools.partial(oracles.to, backend), oracles.numpy_of

    def term(u, m, n):
        return ops.tanh(m * u), (n - u) * (n - u)

    found = ops.input_sum(term, to(u), [to(m), to(n)])
    first = np.tanh(m * u[:, :, None]).sum(axis=1)
    second = ((n - u[:, :, None]) ** 2).sum(axis=1)
    for f, expected in zip(found, (first, second), strict=True):
        oracles.assert_close(back(f), expected, 1e-13)
