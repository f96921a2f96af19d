"""The expression graph and its derivative rules, against finite differences and PyTorch."""

import math

import numpy as np
import pytest
from optional import torch

import parnl
from parnl import ops
from parnl.frameworks import get_backend
from parnl.graph import derivatives
from parnl.graph.flatcode import compile_function, fused_sums, source
from parnl.graph.nodes import Graph, StepError, is_affine, reachable
from parnl.params import matrix, vector

# name -> (function of two symbols or arrays, how inputs are drawn)
FUNCTIONS = {
    "arithmetic": (lambda x, y: (x + 2.0) * y - x / (y * y + 1.0) + 3.0 - (1.0 - x), "normal"),
    "powers": (lambda x, y: x**2 + x**3 - (y * y + 1.0) ** 0.5 + (x * x + 0.5) ** -1.5, "normal"),
    "signs": (lambda x, y: -x - (-y) + -(x * y) + +x, "normal"),
    "exp": (lambda x, y: ops.exp(x) * ops.expm1(y), "normal"),
    "log": (lambda x, y: ops.log(x) * ops.log1p(y), "positive"),
    "sqrt": (lambda x, y: ops.sqrt(x) / ops.sqrt(y), "positive"),
    "trigonometric": (lambda x, y: ops.sin(x) * ops.cos(y * x), "normal"),
    "tanh": (lambda x, y: ops.tanh(x * y), "normal"),
    "sigmoid": (lambda x, y: ops.sigmoid(x) * ops.logsigmoid(y), "normal"),
    "softplus": (lambda x, y: ops.softplus(x) * y, "normal"),
    "rectifiers": (lambda x, y: ops.relu(x) * y + abs(y) * ops.sign(x), "normal"),
    "smooth rectifiers": (lambda x, y: ops.silu(x) + ops.gelu(y), "normal"),
    "erf": (lambda x, y: ops.erf(x * y), "normal"),
    "extrema": (
        lambda x, y: ops.minimum(x, y) * ops.maximum(x, 0.1) + ops.clip(y, -1, 1),
        "normal",
    ),
    "where": (lambda x, y: ops.where((x > y) & ~(x > 1.0) | (y <= -1.0), x * x, y), "normal"),
    "where of numbers": (lambda x, y: ops.where(x >= 0.0, 0.5, -0.75) * x * y, "normal"),
    # slopes that float32 would round
    "where of slopes": (lambda x, y: ops.where(x >= y, 0.3 * x, -0.7 * y), "normal"),
}


def traced(function):
    graph = Graph()
    x, y = graph.leaf("state", "x"), graph.leaf("state", "y")
    return graph, x, y, function(x, y)


def evaluate(backend, arguments, outputs, arrays, fuse=False):
    text = source("f", arguments, outputs, fused_sums(outputs) if fuse else None)
    return compile_function(text, "f", get_backend(backend).functions)(*arrays)


def drawn(kind, dtype="float64"):
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 50)) if kind == "normal" else rng.uniform(0.1, 3.0, (2, 50))
    return [torch.tensor(a, dtype=getattr(torch, dtype)) for a in pair]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_derivatives_equal_those_of_torch(name):
    function, kind = FUNCTIONS[name]
    _, x, y, out = traced(function)
    arrays = [a.requires_grad_() for a in drawn(kind)]
    expected = function(*arrays)
    grads = torch.autograd.grad(expected.sum(), arrays, create_graph=False)

    entries = derivatives.jacobian([out], [x, y])[0]
    ct = out.graph.leaf("cotangent", "out")
    pulled = derivatives.vjp([out], [ct], [x, y])
    weights = torch.linspace(-1, 1, 50, dtype=torch.float64)
    for backend, fuse in (("torch", True), ("torch", False), ("numpy", False)):
        given = [a.detach() if backend == "torch" else a.detach().numpy() for a in arrays]
        (value,) = evaluate(backend, [x, y], [out], given, fuse)
        np.testing.assert_allclose(value, expected.detach(), rtol=1e-13, atol=1e-13)
        forward = evaluate(backend, [x, y], entries, given, fuse)
        w = weights if backend == "torch" else weights.numpy()
        backward = evaluate(backend, [x, y, ct], pulled, [*given, w], fuse)
        for f, b, g in zip(forward, backward, grads, strict=True):
            np.testing.assert_allclose(f, g, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(b, g * weights, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_single_precision_stays_single(name):
    function, kind = FUNCTIONS[name]
    _, x, y, out = traced(function)
    arrays = drawn(kind, "float32")
    results = [out, *derivatives.jacobian([out], [x, y])[0]]
    results = [r for r in results if r is not None and r.op != "constant"]
    for backend in ("numpy", "torch"):
        given = arrays if backend == "torch" else [a.numpy() for a in arrays]
        for value in evaluate(backend, [x, y], results, given):
            assert str(value.dtype).removeprefix("torch.") == "float32"


@pytest.mark.parametrize(
    "name", ["sigmoid", "softplus", "tanh", "erf", "logsigmoid", "silu", "gelu", "relu"]
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_arguments_neither_overflow_nor_turn_nan(name, dtype):
    pytest.importorskip("torch")
    _, x, _, out = traced(lambda x, y: getattr(ops, name)(x) + 0.0 * y)
    entry = derivatives.jacobian([out], [x])[0][0]
    big = np.array([-1e30, -1e4, -800.0, -100.0, 100.0, 800.0, 1e4, 1e30], dtype)
    limits = {
        "sigmoid": big > 0, "softplus": np.maximum(big, 0), "tanh": np.sign(big),
        "erf": np.sign(big), "logsigmoid": np.minimum(big, 0), "silu": np.maximum(big, 0),
        "gelu": np.maximum(big, 0), "relu": np.maximum(big, 0),
    }  # fmt: skip
    slopes = {"softplus": big > 0, "logsigmoid": big < 0, "silu": big > 0, "gelu": big > 0}
    slopes["relu"] = big > 0
    y = np.zeros_like(big)
    with np.errstate(over="ignore"):
        value, slope = evaluate("numpy", [x, x.graph.leaf("state", "y")], [out, entry], [big, y])
    np.testing.assert_allclose(value, limits[name], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(slope, slopes.get(name, 0.0 * big), rtol=1e-6, atol=1e-30)
    for backend in ("torch", "jax"):
        arrays = [get_backend(backend).asarray(a, dtype) for a in (big, y)]
        if name == "gelu" and get_backend(backend).functions["erf"](arrays[0])[0] != -1:
            pytest.skip(f"in {dtype}, {backend}'s own erf(-1e30) is not -1")  # JAX 0.9
        other, change = evaluate(backend, [x, x.graph.leaf("state", "y")], [out, entry], arrays)
        np.testing.assert_allclose(np.asarray(other), value, rtol=1e-6, atol=1e-30)
        np.testing.assert_allclose(np.asarray(change), slope, rtol=1e-6, atol=1e-30)


def test_shared_subexpressions_are_stored_once():
    _, x, y, _ = traced(lambda x, y: x)
    assert ops.tanh(x * y) is ops.tanh(x * y)
    assert (x + 0.0) is x
    assert (x * 1.0) is x
    negative = -x
    assert -negative is x
    assert ops.where(x > y, y, y) is y


@pytest.mark.parametrize("kind", ["step", "jacobian", "vjp"])
def test_nodes_of_ltc_grow_linearly_with_unfolds(kind):
    def size(unfolds):
        program = parnl.get_cell("ltc", 2, 3, unfolds=unfolds).program
        return len(reachable(program.signature(kind, range(len(program.operands)))[1]))

    assert size(24) - size(12) == 2 * (size(12) - size(6)) > 0


@pytest.mark.parametrize(
    ("function", "linear"),
    [
        (lambda x, y: 0.5 * x + y, True),
        (lambda x, y: ops.tanh(y) * x / (1.0 + y * y) - ops.exp(y), True),
        (lambda x, y: ops.where(y > 0.0, x, 2.0 * x), True),
        (lambda x, y: x * x, False),
        (lambda x, y: y / (1.0 + x), False),
        (lambda x, y: ops.tanh(x), False),
        # the derivative is 0 wherever there is one, and yet these are no affine maps
        (lambda x, y: ops.sign(x) * y, False),
        (lambda x, y: ops.where(x > 0.0, y, -y), False),
        (lambda x, y: ops.relu(x), False),
    ],
)
def test_linearity_is_found_from_the_structure(function, linear):
    _, x, _, out = traced(function)
    assert is_affine([out], [x]) is linear


def test_generated_code_reuses_variables():
    program = parnl.get_cell("ltc", 2, 3, unfolds=50).program
    text = source("step", *program.signature("step"))
    variables = {line.split(" = ")[0].strip() for line in text.splitlines() if " = " in line}
    assert len(variables) < 10


def test_step_and_step_jacobian_agree_to_the_last_bit():
    """The solver compares ends of the one with ends of the other."""
    pytest.importorskip("torch")
    backend = get_backend("torch")
    for name in ("gru", "lrc", "lstm", "ltc"):
        program = parnl.get_cell(name, 2, 3).program
        count, k = len(program.states) + len(program.operands), len(program.states)
        arrays = list(torch.rand(count, 64, dtype=torch.float32, generator=torch.manual_seed(0)))
        alone = program.function("step", backend)(*arrays)
        beside = program.function("step_jacobian", backend)(*arrays)[:k]
        for a, b in zip(alone, beside, strict=True):
            assert torch.equal(a, b)


def test_constants_fold_and_nonfinite_ones_survive():
    graph, x, y, _ = traced(lambda x, y: x)
    assert graph.apply("mul", 2.0, 3.0).value == 6.0
    assert math.isnan(graph.apply("div", 0.0, 0.0).value)
    out = x * math.inf + y * math.nan
    (value,) = evaluate("numpy", [x, y], [out], [np.ones(1), np.ones(1)])
    assert np.isnan(value).all()


@pytest.mark.parametrize("name", ["exp", "erf", "sigmoid", "softplus", "relu", "gelu"])
def test_a_function_of_a_number_is_a_number_to_a_step(name):
    _, x, _, _ = traced(lambda x, y: x)
    assert (x + getattr(ops, name)(0.5)).args[1].op == "constant"


def test_a_symbol_of_another_trace_is_refused():
    kept = []

    class Leaky(parnl.Cell):
        parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

        def features(self, p, u):
            return dict(f=u @ p.W)

        def step(self, p, x, f):
            kept.append(p.a)
            return x * kept[0]

    Leaky(1, 1)
    with pytest.raises(StepError, match="another trace"):
        Leaky(1, 1)
