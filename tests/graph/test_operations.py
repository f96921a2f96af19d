"""Every operation of the table in every target, and its derivatives, against mpmath."""

import dataclasses
import functools

import mpmath
import numpy as np
import pytest
from javascript import evaluated
from truth import DOMAIN, EXACT, exactly

import parnl
from parnl import ops
from parnl.frameworks import get_backend
from parnl.graph import derivatives
from parnl.graph.nodes import Graph
from parnl.graph.operation import TARGETS
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program
from parnl.solver.newton import Plan


def arguments(operation, x, y):
    """Return what an operation is given in these tests, of two symbols or two numbers."""
    numbers, conditions = iter((x, y)), iter((x < y, x > 0.25))
    places = range(operation.arity)
    return [next(conditions if i in operation.conditions else numbers) for i in places]


def of_symbols(name, x, y):
    operation = OPERATIONS[name]
    value = operation(*arguments(operation, x, y))
    return ops.where(value, 1.0, 0.0) if operation.is_condition else value


# name -> (function of two symbols, the same of two numbers of mpmath)
FUNCTIONS = {
    name: (
        functools.partial(of_symbols, name),
        lambda x, y, name=name: EXACT[name](*arguments(OPERATIONS[name], x, y)),
    )
    for name in OPERATIONS
    if name != "pow"
}
FUNCTIONS |= {
    f"pow {n}": (lambda x, y, n=n: x**n, lambda x, y, n=n: EXACT["pow"](x, mpmath.mpf(n)))
    for n in (3.0, -1.0, -0.75, 1.25, -9.0, 10.0)
}
FUNCTIONS |= {
    "extrema of numbers": (
        lambda x, y: ops.minimum(x, 0.5) - ops.maximum(0.25, x),
        lambda x, y: min(x, 0.5) - max(0.25, x),
    ),
    "logsigmoid": (lambda x, y: ops.logsigmoid(x), lambda x, y: -EXACT["softplus"](-x)),
    "where of numbers": (
        lambda x, y: ops.where(x < 1.0, 0.5, 0.75),
        lambda x, y: 0.5 if x < 1 else 0.75,
    ),
}
# Where NaN gives something else than NaN: it compares as False.
_COMPARES = {n for n, o in OPERATIONS.items() if o.is_condition or o.conditions}
_COMPARES.add("where of numbers")

# Arguments of every size and both signs, and what has to come out exactly.
POINTS = np.concatenate(
    [s * np.logspace(-30, 2.2, 100) for s in (1, -1)] + [np.linspace(-6, 6, 100)]
)
_DTYPES = ("float32", "float64")
SPECIAL = [0.0, np.inf, -np.inf, np.nan, 89.0, -89.0, 150.0, -150.0, 3e38, -3e38, -1.0, 1.0]


def points(dtype):
    x = np.concatenate([POINTS, SPECIAL]).astype(dtype)
    return x, np.roll(x, 17)


@functools.cache
def expected(dtype):
    """Return name -> exact values, rounded to the dtype once."""
    found = {}
    with mpmath.workprec(300):
        for name, (_, function) in FUNCTIONS.items():
            values = [
                one(name, function, float(x), float(y)) for x, y in zip(*points(dtype), strict=True)
            ]
            with np.errstate(over="ignore"):
                found[name] = np.array(values).astype(dtype)
    return found


def one(name, function, x, y):
    if np.isnan(x) and name not in _COMPARES:
        return np.nan
    if np.isnan(y) and name in OPERATIONS and OPERATIONS[name].arity == 2 and name not in _COMPARES:
        return np.nan
    if x == -np.inf and name in ("pow 1.25", "pow -0.75"):  # as C has it
        return np.inf if name == "pow 1.25" else 0.0
    try:
        value = function(mpmath.mpf(x), mpmath.mpf(y))
    except ZeroDivisionError:
        return np.nan if x == 0 and name == "div" else np.inf * (np.sign(x) or 1)
    except ValueError:  # of an infinite angle
        return np.nan
    return np.nan if isinstance(value, mpmath.mpc) else float(value)


@functools.cache
def program():
    """Return a program of all functions, each a state that reads two features."""
    graph = Graph()
    x, y = (graph.leaf("feature", name) for name in "xy")
    states = [graph.leaf("state", f"s{i}") for i in range(len(FUNCTIONS))]
    return Program.shared(graph, states, [x, y], [f(x, y) for f, _ in FUNCTIONS.values()])


@functools.cache
def found(target, dtype):
    """Return name -> values that the target computes."""
    arrays = [a[None, None] for a in points(dtype)]
    match target:
        case "numpy" | "torch" | "jax" | "array_api_strict":
            pytest.importorskip(target)
            backend = get_backend(target)
        case "onnx":
            return in_onnx(dtype, arrays)
        case "javascript":
            (values,) = evaluated(program(), [[]] * arrays[0].size, np.stack(points(dtype), 1))
            return dict(zip(FUNCTIONS, values.T, strict=True))
        case _:
            return dict(zip(FUNCTIONS, compiled(target, dtype, arrays), strict=True))
    make = backend.asarray
    given = [make(a, dtype) for a in arrays]
    with np.errstate(all="ignore"):
        step = program().function("step", backend)
        values = step(*[given[0]] * len(FUNCTIONS), *given)
    values = [backend.to_numpy(v) for v in values]
    return {
        n: np.broadcast_to(v, arrays[0].shape)[0, 0] for n, v in zip(FUNCTIONS, values, strict=True)
    }


def in_onnx(dtype, arrays):
    ir = pytest.importorskip("onnx_ir")
    runtime = pytest.importorskip("onnxruntime")
    reference = pytest.importorskip("onnx.reference")
    from parnl.backends.onnx import loop

    kind, shape = ir.DataType[{"float32": "FLOAT", "float64": "DOUBLE"}[dtype]], arrays[0].shape
    given = [ir.val(name, kind, of) for name, of in (("x", shape), ("y", shape), ("s", shape[1:]))]
    tape = ir.tape.Tape()
    states = loop(tape, program(), 1, False, given[2:] * len(FUNCTIONS), given[:2])
    for state in states:
        state.type = ir.TensorType(kind)
    graph = ir.Graph(given, states, nodes=tape.nodes, opset_imports={"": 18}, name="steps")
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    values = dict(zip("xys", (*arrays, arrays[0][0]), strict=True))
    if dtype == "float32":
        options = {"providers": ["CPUExecutionProvider"]}
        session = runtime.InferenceSession(model.SerializeToString(), **options)
    else:  # in which onnxruntime has not all operators
        session = reference.ReferenceEvaluator(model)
    with np.errstate(all="ignore"):
        results = session.run(None, values)
    return {n: v[0, 0] for n, v in zip(FUNCTIONS, results, strict=True)}


def compiled(target, dtype, arrays):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARNL_KERNELS", target)
        patch.setenv("TRITON_INTERPRET", "1")
        plan, starts = Plan.make(1, 1, 1e-7), [arrays[0][0]] * len(FUNCTIONS)
        if target == "c":
            backend = get_backend("numpy")
            assert backend.compiles(arrays[0])
            states, _ = backend.newton(program(), plan, arrays, starts)
            return [s[0, 0] for s in states]
        torch, _ = pytest.importorskip("torch"), pytest.importorskip("triton", minversion="3.6")
        from parnl.backends.triton import calls

        tensors = [torch.tensor(a) for a in arrays]
        states, _ = calls.solve(program(), plan, tensors, [tensors[0][0]] * len(FUNCTIONS))
        return [s[0, 0].numpy() for s in states]


# The largest error in units of the last place of 1, relative to the result.
_LIBRARIES = ("numpy", "torch", "jax", "array_api_strict")
UNITS = {(t, d): 4 for t in (*_LIBRARIES, "c", "triton", "onnx") for d in _DTYPES}
UNITS["triton", "float64"] = 16
UNITS["javascript", "float64"] = 4  # Chromium and Node; the standard leaves accuracy open
# The logarithm's error is multiplied by what is exponentiated; XLA's log1p is off near -0.4.
WORST = {("triton", "float64", f"pow {n}"): 1024 for n in (-0.75, 1.25, -9.0, 10.0)}
WORST["jax", "float64", "log1p"] = 64
# Or the largest error itself: onnxruntime's sigmoid is not relatively accurate where it is small,
# and onnx.reference takes erf in float32.
ABSOLUTE = dict.fromkeys([("onnx", "float32", "sigmoid"), ("onnx", "float64", "erf")], 2.0**-23)


@pytest.mark.parametrize(
    ("target", "dtype", "name"),
    [(*unit, n) for unit in UNITS for n in FUNCTIONS],
)
def test_values_are_accurate_to_a_few_units(target, dtype, name):
    value = found(target, dtype)[name]
    assert value.dtype == dtype
    units = WORST.get((target, dtype, name), UNITS[target, dtype])
    info = np.finfo(dtype)  # results below `tiny` may be flushed to 0
    rtol, atol = units * info.eps, ABSOLUTE.get((target, dtype, name), info.tiny)
    np.testing.assert_allclose(value, expected(dtype)[name], rtol=rtol, atol=atol)


# -- derivatives -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_the_slopes_of_the_values(name):
    symbolic, function = FUNCTIONS[name]
    graph = Graph()
    x, y = (graph.leaf("state", n) for n in "xy")
    out = graph.apply("add", symbolic(x, y), 0.0)
    slopes = derivatives.jacobian([out], [x, y])[0]
    least = DOMAIN.get(name, (0.0 if name.startswith("pow") else -3.0, True))[0]
    with mpmath.workprec(200):
        for a, b in np.random.default_rng(0).uniform(least, least + 6, (25, 2)):
            for i, slope in enumerate(slopes):
                partial = mpmath.diff(function, (a, b), (1 - i, i))
                (value,) = exactly([slope], {x: a, y: b}) if slope is not None else (0.0,)
                assert abs(value - partial) <= 1e-15 * max(1, abs(partial))


@pytest.mark.parametrize("name", ["abs", "relu", "minimum", "maximum"])
def test_slopes_at_a_kink(name):
    """None at 0, one half at a tie, as in JAX and PyTorch."""
    graph = Graph()
    x, y = (graph.leaf("state", n) for n in "xy")
    slope = derivatives.jacobian([OPERATIONS[name](*(x, y)[: OPERATIONS[name].arity])], [x])[0][0]
    assert exactly([slope], {x: 0, y: 0}) == [0.5 if OPERATIONS[name].arity == 2 else 0]


# -- what is missing -------------------------------------------------------------------------------


class Sine(parnl.Cell):
    def features(self, p, u):
        return dict(f=u)

    def step(self, p, x, f):
        return 0.5 * x + ops.sin(f.f)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_lacks_an_operation_says_so(target):
    lacking = dataclasses.replace(OPERATIONS["sin"], **{target: ""})
    with pytest.raises(NotImplementedError, match=f"{target} has no form of sin"):
        lacking.form(target)


def test_a_backend_that_lacks_an_operation_says_so(monkeypatch):
    numpy = get_backend("numpy")
    monkeypatch.delitem(numpy.functions, "sin")
    monkeypatch.setenv("PARNL_KERNELS", "off")
    with pytest.raises(NotImplementedError, match=r"ops\.sin: numpy has no form of sin"):
        ops.sin(np.ones(3))
    with pytest.raises(NotImplementedError, match="numpy has no form of sin"):
        parnl.solve(Sine(2, 2), {}, np.ones((5, 2)))
