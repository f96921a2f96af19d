"""The solver equals the loop over time, for any cell, chunk count and backend."""

import itertools
import sys
from typing import Any

import numpy as np
import oracles
import pytest
from optional import jax, torch
from oracles import (
    BACKENDS,
    CELLS,
    NUMPY,
    TIME_AWARE,
    assert_bits,
    assert_close,
    assert_same,
    numpy_of,
    to,
)
from small_cells import BOUNDED, OWN, T, own

import parnl

CHUNKS = (1, 2, 7, "auto", T)

DIFFERENTIABLE = ("torch", "jax")


@pytest.mark.parametrize(
    ("backend", "name", "chunks", "dtype"),
    [
        (backend, name, chunks, dtype)
        for backend, name, chunks in itertools.product(BACKENDS, CELLS, CHUNKS)
        for dtype in ("float64", "float32")
        if (backend, dtype) != ("jax", "float32") or chunks == T  # compile time
    ],
)
@pytest.mark.turns("backend", "chunks")
def test_equals_the_loop(backend, name, chunks, dtype):
    times = "own" if name in TIME_AWARE else None
    task = oracles.problem(name, steps=T, times=times, dtype=dtype)
    how: dict[str, Any] = {
        "method": "newton",
        "chunks": chunks,
        "gradients": backend in DIFFERENTIABLE,
    }
    found = oracles.answer(task, backend, **how)
    assert found.outputs.dtype == np.dtype(dtype)
    assert all(s.dtype == np.dtype(dtype) for s in found.final_state)
    assert_same(found, oracles.reference(task), {"float64": 1e-10, "float32": 2e-5}[dtype])


@pytest.mark.parametrize("method", ["sequential", "auto"])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_methods_equal_the_loop(backend, name, method):
    task = oracles.problem(name, steps=T)
    how: dict[str, Any] = {"method": method, "gradients": backend in DIFFERENTIABLE}
    assert_same(oracles.answer(task, backend, **how), oracles.reference(task), 1e-10)


@pytest.mark.parametrize(
    ("backend", "name", "reverse"),
    [
        (backend, name, reverse)
        for backend, name, reverse in itertools.product(DIFFERENTIABLE, BOUNDED, (False, True))
        if backend != "jax" or OWN[name] > 1 or not reverse  # compile time
    ],
)
@pytest.mark.turns("backend", "name")
def test_own_cells_equal_the_loop(backend, name, reverse):
    """Cells written here, with 1, 2 and 3 states: values and gradients, torch by autograd."""
    cell, params, inputs, state = own(name, backend="torch")
    leaves = [inputs, *state, *params.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = oracles.loop(cell, params, inputs, state, reverse=reverse)
    rng = np.random.default_rng(1)
    weights = [torch.from_numpy(rng.normal(size=x.shape)) for x in (expected[0], *expected[1])]

    def loss(found, weights):
        return sum((x * w).sum() for x, w in zip(found, weights, strict=True))

    gradients = torch.autograd.grad(loss((expected[0], *expected[1]), weights), leaves)
    for chunks in (5,) if backend == "jax" else (1, 5, T):
        if backend == "torch":
            out = parnl.solve(cell, params, inputs, state, chunks=chunks, reverse=reverse)
            found = (out.outputs, *out.final_state)
            found_gradients = torch.autograd.grad(loss(found, weights), leaves)
        else:
            from optional import jax

            def f(tree, chunks=chunks):
                out = parnl.solve(cell, *tree, chunks=chunks, reverse=reverse)
                found = (out.outputs, *out.final_state)
                return loss(found, [to("jax", w.numpy()) for w in weights]), found

            tree = jax.tree.map(lambda x: to("jax", numpy_of(x)), (params, inputs, state))
            (_, found), (gp, gu, gs) = jax.value_and_grad(f, has_aux=True)(tree)
            found_gradients = (gu, *gs, *(gp[k] for k in params))
        for a, e in zip(found, (expected[0], *expected[1]), strict=True):
            assert_close(a, e, 1e-10)
        for a, e in zip(found_gradients, gradients, strict=True):
            assert_close(a, e, 1e-10)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_saturated_cells_have_finite_gradients(name, scale):
    """Large arguments of sigmoid, tanh and softplus: right values, right gradients, no NaN."""
    task = oracles.problem(name, steps=T)
    task = task._replace(inputs=task.inputs * scale)
    expected = oracles.reference(task)
    assert all(np.isfinite(g).all() for g in expected.gradients.values())
    for chunks in (1, 5, T):
        assert_same(oracles.answer(task, "torch", gradients=True, chunks=chunks), expected, 1e-9)


def test_enough_iterations_give_the_sequential_answer():
    """After i iterations the first i + 1 chunk starts are exact, so i + 1 chunks of outputs are."""
    cell = parnl.get_cell("test-logistic", input_size=1, hidden_size=1)
    arguments = (cell, {"W": np.ones((1, 1))}, np.zeros((640, 1)), (np.array([0.2]),))
    expected = parnl.solve(*arguments, method="sequential").outputs
    for i in (1, 3, 8):
        out = parnl.solve(*arguments, method="newton", chunks=10, max_iterations=i)
        assert_bits(out.outputs[: 64 * (i + 1)], expected[: 64 * (i + 1)])


def test_the_oracle_itself_on_a_case_done_by_hand():
    """One GRU channel, one step, from h = 0.5: numbers worked out on paper."""
    one = {k: np.ones(s) for k, s in oracles.parameter_shapes("gru", 1, 1).items()}
    outputs, (h,) = oracles.run("gru", one, np.zeros((1, 1)), (np.array([0.5]),))
    gate = 1 / (1 + np.exp(-1.5))
    assert_close(h, [(1 - gate) * np.tanh(1 + gate * 1.5) + gate * 0.5], 1e-15)
    assert_close(outputs, h[None], 0.0)
    assert_close(NUMPY.sigmoid(np.array([-800.0, 0.0, 800.0])), [0.0, 0.5, 1.0], 0.0)


@pytest.mark.long
@pytest.mark.turns("backend", "kernels")
@pytest.mark.parametrize("back", [1, 3, 5])
@pytest.mark.parametrize("kernels", ["", "off"])
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b in DIFFERENTIABLE])
def test_the_backward_run_has_chunks_of_its_own(monkeypatch, backend, kernels, back):
    """Automatic ones, as many as pay; so the shapes of what is summed for each chunk are theirs."""
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    if backend == "jax":
        jax.clear_caches()  # another test's choice of kernels
    monkeypatch.setattr("parnl.solver.run.auto_chunks", lambda *a: 5)
    monkeypatch.setattr("parnl.solver.run.backward_chunks", lambda *a: back)
    asked, newton = [], sys.modules["parnl.solver.newton"].Plan.backward
    monkeypatch.setattr(
        "parnl.solver.newton.Plan.backward", lambda p: (asked.append(p), newton(p))[1]
    )
    for name, reverse in (("lstm", True), ("lrc", False)):
        task = oracles.problem(name, steps=T, reverse=reverse)
        found = oracles.answer(task, backend, gradients=True)
        assert_same(found, oracles.reference(task), 1e-9)
    assert {(p.chunks, newton(p).chunks) for p in asked} == {(5, back)}
