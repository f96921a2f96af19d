"""What tests of kernels share: a cell with every function, random cells, all a solve gives."""

import hypothesis.strategies as st
import numpy as np
import oracles  # noqa: F401, registers test-everything
from optional import torch

import parnl
from parnl.testing import cells

# batch, steps, chunks, reverse, lengths
PROBLEMS = [
    (2, 53, 1, False, None),
    (2, 53, 1, True, [53, 20]),
    (2, 53, 7, False, [0, 53]),
    (3, 40, 8, True, None),
    (1, 30, 30, False, None),
    (5, 33, 16, True, [1, 33, 0, 12, 30]),
]


def answer(monkeypatch, kernels, cell, problem, dtype="float64"):
    """Outputs, final state and every gradient, by torch."""
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    batch, steps, chunks, reverse, lengths = problem
    rng = np.random.default_rng(0)

    def drawn(*shape):
        return torch.tensor(rng.normal(size=shape), dtype=getattr(torch, dtype)).requires_grad_()

    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch", dtype).items()}
    u = drawn(batch, steps, cell.input_size)
    x0 = [drawn(batch, cell.hidden_size) for _ in cell.states]
    out = parnl.solve(
        cell, params, u, x0, chunks=chunks, reverse=reverse,
        lengths=None if lengths is None else np.array(lengths),
    )  # fmt: skip
    weights = drawn(batch, steps, cell.hidden_size).detach()
    loss = (out.outputs * weights).sum() + sum((s**2).sum() for s in out.final_state)
    grads = torch.autograd.grad(loss, [u, *x0, *params.values()])
    return [a.detach().numpy() for a in (out.outputs, *out.final_state, *grads)]


# -- random cells ----------------------------------------------------------------------------------


@st.composite
def problems(draw, channels=(1, 3, 16, 17, 64, 70), steps=40):
    """(cell, batch, steps, seed, reverse, the source of the cell)."""
    cell = draw(cells(channels))
    return (
        cell,
        draw(st.integers(1, 3)),
        draw(st.integers(1, steps)),
        draw(st.integers(0, 2**31)),
        draw(st.booleans()),
        cell.source,
    )
