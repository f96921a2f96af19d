"""What PyTorch records, it records right, or parnl refuses it and names `torch.export`.

One row for each way of recording (`WAYS`) and each public function (`FUNCTIONS`). What was recorded
is run on other inputs than it was recorded with, and compared with the call itself. CUDA graphs
record kernels as they are launched: `tests/backends/triton` has them.
"""

import contextlib
import io
from functools import partial

import pytest
import torch
from oracles import assert_close
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import parnl
from parnl.torch import RNN

CELL = parnl.get_cell("gru", 2, 3)


class Function(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, value in CELL.init(0, "torch").items():
            self.register_parameter(name, torch.nn.Parameter(value))
        self.register_buffer("lengths", torch.tensor([5, 3]))

    def values(self):
        return {name: getattr(self, name) for name in CELL.parameter_shapes}


class Solve(Function):
    def forward(self, u):
        return parnl.solve(CELL, self.values(), u).outputs


class SolveOfLengths(Function):
    def forward(self, u):
        return parnl.solve(CELL, self.values(), u, lengths=self.lengths, chunks=2).outputs


class Step(Function):
    def forward(self, u):
        return parnl.step(CELL, self.values(), u[:, 0])[0]


class Scan(Function):
    def forward(self, u):
        return parnl.affine_scan(torch.sigmoid(u), u)


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = RNN("gru", 2, 3, batch_first=True, num_layers=2, bidirectional=True, seed=0)

    def forward(self, u):
        return self.rnn(u)[0]


FUNCTIONS = {c.__name__: c for c in (Solve, SolveOfLengths, Step, Scan, Layers)}


def exported_to_onnx(module, u):
    torch.onnx.export(module, (u,), io.BytesIO(), dynamo=False)


def graphs(**how):
    """`make_fx`; parameters are arguments too, for fake modes take none but their own tensors."""

    def record(module, u):
        kept = dict(module.state_dict(keep_vars=True))
        graph = make_fx(partial(torch.func.functional_call, module), **how)(kept, u)
        return partial(graph, kept)

    return record


def exported(strict):
    return lambda module, u: torch.export.export(module, (u,), strict=strict).module()


def compiled(backend):
    def record(module, u):
        torch._dynamo.reset()
        return torch.compile(module, backend=backend, fullgraph=True)

    return record


def mapped(module, u):
    if isinstance(module, SolveOfLengths):  # row i of what is mapped over sequence i
        return lambda u: torch.func.vmap(module)(u[:, None].expand(2, 2, -1, -1))[(0, 1), (0, 1)]
    return torch.func.vmap(lambda u: module(u[None])[0])


def inside(context):
    """Not recorded, only looked at."""

    def record(module, u):
        def call(other):
            with context():
                return module(other)

        return call

    return record


class Looking(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


WAYS = {
    "torch.jit.trace": lambda module, u: torch.jit.trace(module, (u,)),
    "torch.onnx.export(dynamo=False)": exported_to_onnx,
    "torch.jit.script": lambda module, u: torch.jit.script(module),
    "torch.fx.symbolic_trace": lambda module, u: torch.fx.symbolic_trace(module),
    "make_fx real": graphs(),
    "make_fx fake": graphs(tracing_mode="fake"),
    "make_fx symbolic": graphs(tracing_mode="symbolic"),
    "make_fx real before dispatch": graphs(pre_dispatch=True),
    "make_fx fake before dispatch": graphs(tracing_mode="fake", pre_dispatch=True),
    "make_fx symbolic before dispatch": graphs(tracing_mode="symbolic", pre_dispatch=True),
    "torch.export": exported(strict=False),
    "torch.export strict": exported(strict=True),
    "torch.compile eager": compiled("eager"),
    "torch.compile aot_eager": compiled("aot_eager"),
    "torch.func.functionalize": lambda module, u: torch.func.functionalize(module),
    "torch.func.vmap": mapped,
    "FlopCounterMode": inside(lambda: FlopCounterMode(display=False)),
    "torch.profiler": inside(torch.profiler.profile),
    "a dispatch mode": inside(Looking),
    "inference_mode": inside(torch.inference_mode),
}
REFUSED = {
    "torch.jit.trace": (NotImplementedError, "Step"),  # one step is composed of ATen's operations
    "torch.onnx.export(dynamo=False)": (NotImplementedError, "Step"),
    "torch.jit.script": (
        NotImplementedError,
        "Solve SolveOfLengths Step Scan",
    ),  # torch's own error
    "torch.fx.symbolic_trace": (TypeError, ""),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.turns("way")
def test_recorded_right_or_refused(way, name, gradients):
    module, (u, other) = FUNCTIONS[name](), torch.randn(2, 2, 5, 2)
    error, spared = REFUSED.get(way, (None, ""))
    with torch.set_grad_enabled(gradients):
        if error is not None and name not in spared.split():
            with pytest.raises(error, match=r"torch\.export"):
                WAYS[way](module, u)
        elif way == "torch.jit.script":
            with pytest.raises((torch.jit.frontend.FrontendError, RuntimeError)):
                WAYS[way](module, u)
        elif way == "torch.onnx.export(dynamo=False)":
            pytest.importorskip("onnx")
            WAYS[way](module, u)
        else:
            assert_close(WAYS[way](module, u)(other), module(other), 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["Solve", "SolveOfLengths"])
@pytest.mark.parametrize(
    "way", ["torch.export", "torch.compile aot_eager", "torch.func.functionalize"]
)
def test_gradients_of_what_was_recorded(way, name):
    module, (u, other) = FUNCTIONS[name](), torch.randn(2, 2, 5, 2)
    recorded = WAYS[way](module, u.requires_grad_())
    other.requires_grad_()

    def gradients(call):
        own = call.parameters() if way == "torch.export" else module.parameters()
        return torch.autograd.grad(call(other).square().sum(), [other, *own])

    expected = torch.autograd.grad(module(other).square().sum(), [other, *module.parameters()])
    for a, e in zip(gradients(recorded), expected, strict=True):
        assert_close(a, e, 1e-5)


def test_a_step_is_traced_for_every_batch_and_state():
    cell = parnl.get_cell("lstm", 2, 3)
    params = cell.init(0, "torch")

    def step(u, c, h):
        output, state = parnl.step(cell, params, u, (c, h))
        return output, *state

    first, second = ([torch.randn(n, size) for size in (2, 3, 3)] for n in (1, 4))
    traced = torch.jit.trace(step, tuple(first))
    for a, e in zip(traced(*second), step(*second), strict=True):
        assert_close(a, e, 1e-6)


def test_modules_are_made_without_values_too():
    with torch.device("meta"):
        assert all(p.is_meta for p in RNN("gru", 2, 3).parameters())
    with FakeTensorMode():
        assert RNN("gru", 2, 3).weight_W_r_l0.shape == (2, 3)


def test_layers_are_refused_inside_a_scripted_model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), RNN("gru", 2, 3))
    with pytest.raises(NotImplementedError, match=r"use torch\.export"):
        torch.jit.script(model)


@pytest.mark.parametrize("fake", [False, True], ids=["meta", "fake"])
def test_shapes_without_values(fake):
    """On the device "meta" and in `FakeTensorMode`, forward and backward."""
    with FakeTensorMode() if fake else contextlib.nullcontext():
        device = "cpu" if fake else "meta"
        rnn = RNN("lstm", 2, 3, num_layers=2, device=device)
        u = torch.empty(4, 2, 2, device=device, requires_grad=True)
        output, (h, c) = rnn(u)
        assert output.shape == (4, 2, 3)
        assert h.shape == c.shape == (2, 2, 3)
        (grad,) = torch.autograd.grad(output.sum(), u)
        assert grad.shape == u.shape
        assert grad.device.type == device
        assert parnl.affine_scan(u, u).shape == u.shape


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_packed_sequences_are_refused_by_the_tracer():
    rnn, lengths = RNN("gru", 2, 3), torch.tensor([5, 3])

    def call(u):
        return rnn(pack_padded_sequence(u, lengths, batch_first=True))[0].data

    for parameter in rnn.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(NotImplementedError, match=r"use torch\.export"):
        torch.jit.trace(call, torch.randn(2, 5, 2))
