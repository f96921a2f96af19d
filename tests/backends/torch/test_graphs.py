"""Tensors without values, recorded graphs, exported and compiled programs."""

import pytest
import torch
from oracles import assert_close
from torch._dynamo.testing import CompileCounter
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch_tasks import DOUBLE, small

import parnl
from parnl import ops
from parnl.frameworks import get_backend
from parnl.params import matrix, vector
from parnl.torch import RNN


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_tensors_without_values_have_shapes():
    cell, params, inputs, state = small("lstm", hidden=3)
    with FakeTensorMode() as fakes:
        given = torch.utils._pytree.tree_map(fakes.from_tensor, (params, inputs, state))
        out = parnl.solve(cell, *given)
        with pytest.raises(TypeError, match="FakeTensor has no values"):
            get_backend("torch").address(out.outputs)
    outside = parnl.solve(cell, *given)  # where the class alone tells
    for result in (out, outside):
        assert isinstance(result.outputs, FakeTensor)
        assert result.outputs.dtype == DOUBLE
        assert result.outputs.shape == (2, 5, 3)
        assert [s.shape for s in result.final_state] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("how", [{"chunks": 2}, {"lengths": torch.tensor([5, 2])}], ids=str)
@pytest.mark.parametrize("name", ["gru", "ltc"])
def test_recorded_graphs_compute_anew(name, how):
    cell, params, inputs, _ = small(name)

    def gradient(u):
        out = parnl.solve(cell, params, u, **how)
        return torch.autograd.grad(out.outputs.square().sum() + out.final_state[0].sum(), u)[0]

    other = (inputs * 1.7).detach().requires_grad_()
    graph = make_fx(gradient)(inputs)
    assert_close(graph(other), gradient(other), 1e-14)


def test_exported_programs_compute_anew():
    layer = RNN("gru", 2, 3).to(DOUBLE)
    u, other = torch.randn(2, 5, 2, 2, dtype=DOUBLE)
    program = torch.export.export(layer, (u,))
    with torch.no_grad():
        assert_close(program.module()(other)[0], layer(other)[0], 1e-14)


def test_forward_mode_is_refused_where_its_tangents_would_be_lost():
    cell, params, inputs, _ = small("gru")
    with pytest.raises(NotImplementedError, match=r"parnl\.solve: forward mode is not supported"):
        torch.func.linearize(lambda u: parnl.solve(cell, params, u).outputs, inputs.detach())


@pytest.mark.long
def test_a_new_cell_compiles_once_for_every_length():
    """Below and above where products are large; nothing that is computed once has been before."""

    class New(parnl.Cell):
        parameters = {"W": matrix("input", "hidden"), "a": vector("hidden")}

        def features(self, p, u):
            return {"x": ops.matmul(u, p.W)}

        def step(self, p, x, f):
            return ops.tanh(0.8126437 * p.a * x + f.x)

    cell = New(3, 64)
    params = cell.init(0, "torch")
    torch._dynamo.reset()
    counter = CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(u):
        return parnl.solve(cell, params, u, chunks=3).outputs

    for steps in (1000, 20_000, 2000, 30_000):
        run(torch.randn(1, steps, 3))
    assert counter.frame_count == 1

    @torch.compile(fullgraph=True, backend="eager")
    def automatic(u):
        return parnl.solve(cell, params, u).outputs

    u = torch.randn(1, 5000, 3)
    torch.testing.assert_close(automatic(u), parnl.solve(cell, params, u).outputs)
