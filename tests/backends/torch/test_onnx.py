"""Modules written as ONNX, which onnxruntime runs: their outputs are PyTorch's."""

import numpy as np
import pytest
import torch

import parnl
import parnl.torch
from parnl import ops
from parnl.params import matrix, vector
from parnl.torch import RNN

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

FREE = torch.export.Dim.DYNAMIC
SIZES = (2, 20), (5, 33), (1, 1)  # the first is what is exported


class Odd(parnl.Cell):
    """Next states that do not depend on the state, are the same, or a number; none reads u."""

    states = ("a", "b", "c", "d", "e")
    parameters = dict(W=matrix("input", "hidden"), v=vector("hidden"))

    def features(self, p, u):
        return {}

    def step(self, p, a, b, c, d, e, f):
        new = ops.tanh(p.v + 0.5 * a) + 1e-3 * ops.expm1(b) ** 2
        return new, new, p.v, ops.where(p.v * 0.0 > 1.0, p.v, 0.25), d


def made(cell, **how):
    torch.manual_seed(0)
    return RNN(cell, 3, 4, batch_first=True, **how).eval()


def run(path, *arguments):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return session.run(None, dict(zip(names, (a.numpy() for a in arguments), strict=True)))


def flat(results):
    if isinstance(results, torch.Tensor):
        return [results.detach()]
    return [tensor for result in results for tensor in flat(result)]


def assert_same(found, results, error=1e-5):
    for one, other in zip(found, flat(results), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=error, atol=error)


# cell, keywords of the layers, keywords of the call
LAYERS = [
    ("gru", {"chunks": 2}, []),
    ("lstm", {"num_layers": 2, "bidirectional": True}, []),
    ("lrc", {"learn_initial": True}, []),
    ("ltc", {}, ["dt"]),
    ("lru", {}, []),
    ("s5", {}, []),
    ("lstm", {}, ["lengths"]),
    ("gru", {"bidirectional": True}, ["resets"]),
    ("mgu", {"bidirectional": True}, ["lengths", "resets"]),
    (Odd, {}, []),
]


class Many(torch.nn.Module):
    """Layers side by side: to export them one by one takes a minute."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(made(cell, **how) for cell, how, _ in LAYERS)

    def forward(self, u, dt, lengths, resets):
        told = {"dt": dt, "lengths": lengths, "resets": resets}
        pairs = zip(self.layers, LAYERS, strict=True)
        return [layer(u, **{n: told[n] for n in names}) for layer, (_, _, names) in pairs]


@pytest.mark.long
def test_whole_sequences(tmp_path):
    module, path = Many(), tmp_path / "module.onnx"
    given = [
        (
            torch.randn(batch, steps, 3),
            torch.rand(batch, steps) + 0.5,
            torch.randint(1, steps + 1, (batch,)),
            torch.rand(batch, steps) > 0.7,
        )
        for batch, steps in SIZES
    ]
    both = {0: FREE, 1: FREE}
    parnl.torch.export_onnx(module, given[0], path, dynamic_shapes=(both, both, {0: FREE}, both))
    for arguments in given:
        assert_same(run(path, *arguments), module(*arguments))


class Step(torch.nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, u, state):
        return self.rnn.step(u, state)


@pytest.mark.long
def test_one_step(tmp_path):
    module, path = Step(made("lstm", num_layers=2)), tmp_path / "step.onnx"
    u, state = torch.randn(2, 3), (torch.randn(2, 2, 4), torch.randn(2, 2, 4))
    parnl.torch.export_onnx(module, (u, state), path)
    assert_same(run(path, u, *state), module(u, state))


class Alone(torch.nn.Module):
    """A solve that is no layer: its states, and its statistics."""

    def __init__(self, **how):
        super().__init__()
        self.cell, self.how = parnl.get_cell("gru", 3, 4), how
        params = {n: torch.nn.Parameter(v) for n, v in self.cell.init(0, "torch").items()}
        self.params = torch.nn.ParameterDict(params)

    def forward(self, u):
        out = parnl.solve(self.cell, dict(self.params), u, states=True, **self.how)
        return out.states[0], out.info.iterations, out.info.converged, out.info.sequential


@pytest.mark.long
def test_a_solve_and_its_statistics(tmp_path):
    module, path = Alone(reverse=True).eval(), tmp_path / "solve.onnx"
    u = torch.randn(2, 9, 3)
    parnl.torch.export_onnx(module, (u,), path, dynamic_shapes=({0: FREE, 1: FREE},))
    u = torch.randn(3, 40, 3)
    states, iterations, converged, lanes = run(path, u)
    assert_same([states], [module(u)[0]])
    assert (iterations, converged, lanes) == (0, True, 3 * 4)


@pytest.mark.long
def test_double_precision(tmp_path):
    module, path = made("lrc", dtype=torch.float64), tmp_path / "double.onnx"
    u = torch.randn(2, 9, 3, dtype=torch.float64)
    parnl.torch.export_onnx(module, (u,), path)
    assert_same(run(path, u), module(u), 1e-13)


def test_the_old_exporter_is_refused():
    with pytest.raises(ValueError, match="dynamo: expected True, got False"):
        parnl.torch.export_onnx(made("gru"), (torch.ones(1, 2, 3),), dynamo=False)
    with pytest.raises(NotImplementedError, match=r"parnl\.torch\.export_onnx"):
        torch.jit.trace(made("gru"), torch.ones(1, 2, 3))
