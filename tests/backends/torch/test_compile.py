"""torch.compile: a solve, and a module, in one graph, with every kind of kernels."""

import itertools
import os

import pytest
import torch

import parnl
from parnl.torch import RNN


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("name", "kernels"), [("lrc", "c"), ("lstm", "off"), ("lrc", "triton")])
def test_a_solve_compiles_in_one_graph(monkeypatch, name, kernels):
    if kernels == "triton":
        pytest.importorskip("triton", minversion="3.6")
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    cell = parnl.get_cell(name, 2, 3)
    params = {k: v.requires_grad_() for k, v in cell.init(0, "torch", "float64").items()}

    def solve(params, u, lengths):
        out = parnl.solve(cell, params, u, chunks=3, lengths=lengths)
        return out.outputs, out.final_state[-1], out.info

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")
    for steps in (7, 8, 9):  # of changing length, in two graphs
        u = torch.randn(1, steps, 2, dtype=torch.float64, requires_grad=True)
        lengths = torch.tensor([steps - 2])
        results = []
        for run in (solve, compiled):
            outputs, final, info = run(params, u, lengths)
            assert not info.update.requires_grad
            assert int(info.iterations) > 0
            grads = torch.autograd.grad(outputs.square().sum() + final.sum(), [u, *params.values()])
            results.append([outputs, final, *grads])
        for eager, found in zip(*results, strict=True):
            torch.testing.assert_close(found, eager, rtol=0, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.long
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_the_module_compiles_in_one_graph(compiler):
    torch.manual_seed(0)
    layers = {"num_layers": 2, "bidirectional": True} if compiler == "aot_eager" else {}
    rnn = RNN("gru", 3, 4, chunks=3, **layers)
    compiled = torch.compile(rnn, fullgraph=True, backend=compiler)
    u = torch.randn(9, 2, 3, requires_grad=True)
    results = []
    for run in (rnn, compiled):
        outputs, state = run(u)
        grads = torch.autograd.grad(outputs.square().sum(), [u, *rnn.parameters()])
        results.append([outputs, state, *grads])
    for eager, found in zip(*results, strict=True):
        torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)


KINDS = list(itertools.product(["lrc", "ltc", "lru", "s5"], ["float32", "bfloat16", "autocast"]))


@pytest.mark.long
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("name", "kind"), KINDS if "PARNL_EVERY" in os.environ else KINDS[1::2])
def test_every_kind_of_cell_and_precision_compiles_in_one_graph(name, kind):
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    rnn = RNN(name, 3, 4, batch_first=True, dtype=dtype, seed=0)
    u = torch.randn(2, 6, 3, dtype=dtype)
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found, exact = compiled(u)[0], rnn(u)[0]
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02)
    found.float().sum().backward()
