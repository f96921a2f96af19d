"""Random cells: C kernels, composed NumPy and composed torch must agree, forward and backward."""

import os

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from kernels import problems

import parnl

# `make fuzz` sets it; a cell takes a second or two, most of it the C compiler's.
CELLS = int(os.environ.get("PARNL_FUZZ", "8"))


def answer(backend, kernels, cell, batch, steps, seed, reverse, chunks):
    os.environ["PARNL_KERNELS"] = kernels
    rng = np.random.default_rng(seed)
    make = torch.tensor if backend == "torch" else np.asarray
    params = {n: make(v) for n, v in cell.init(seed, dtype="float64").items()}
    u = make(rng.normal(size=(batch, steps, 2)))
    x0 = [make(rng.normal(size=(batch, cell.hidden_size))) for _ in cell.states]
    dt = make(rng.uniform(0.1, 1.0, (batch, steps)))
    leaves = [*params.values(), u, *x0, dt]
    if backend == "torch":
        for leaf in leaves:
            leaf.requires_grad_()
    out = parnl.solve(cell, params, u, x0, dt=dt, reverse=reverse, chunks=chunks)
    results = [out.outputs, *out.final_state]
    if backend == "torch":
        weights = torch.tensor(rng.normal(size=out.outputs.shape))
        loss = (out.outputs * weights).sum() + sum(s.sum() for s in out.final_state)
        results += torch.autograd.grad(loss, leaves, materialize_grads=True)
        results = [r.detach().numpy() for r in results]
    return results


@pytest.fixture
def restored(monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", "")


@pytest.mark.usefixtures("restored")
@settings(
    max_examples=CELLS,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    derandomize="PARNL_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(problems(), st.data())
def test_random_cells(problem, data):
    cell, batch, steps, seed, reverse, _ = problem
    chunks = data.draw(st.integers(1, steps))
    how = (cell, batch, steps, seed, reverse)
    reference = answer("torch", "off", *how, 1)
    for backend, kernels, count in (
        ("torch", "c", chunks),
        ("torch", "off", chunks),
        ("numpy", "c", chunks),
        ("numpy", "off", 1),
    ):
        found = answer(backend, kernels, *how, count)
        for f, r in zip(found, reference, strict=False):
            scale = max(1.0, float(np.abs(r).max(initial=0.0)))
            error = float(np.abs(f - r).max(initial=0.0)) / scale
            assert error < 1e-9, f"{backend}, {kernels}, {count} chunks: {error}"
