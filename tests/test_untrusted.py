"""Cells from somewhere else: their names and numbers in generated code."""

import math

import numpy as np
import pytest
from optional import torch

import parnl
from parnl import ops
from parnl.backends.c import text as c_text
from parnl.backends.c.kernel import CKernel, Lanes
from parnl.backends.triton import text as triton_text
from parnl.frameworks import get_backend
from parnl.graph.flatcode import source
from parnl.graph.nodes import Graph
from parnl.graph.program import Program
from parnl.params import matrix, vector

REFUSED = [
    "", " ", "a b", "a-b", "1a", "a'b", 'a"b', "a\nb", "a\0b", '"); system("touch executed'  "",
    "a); }\n#error", "a.b", "a/b", "x[0]", "lambda", "class", "None", "_kind", "__class__", "_a", 7,
]  # fmt: skip


def cell_of(state="x", parameter="a", feature="u", matrix_name="W"):
    """x' = tanh(a x + u), with names as given."""

    class Named(parnl.Cell):
        states = (state,)
        parameters = {matrix_name: matrix("input", "hidden"), parameter: vector("hidden")}

        def features(self, p, u):
            return {feature: u @ getattr(p, matrix_name)}

        def step(self, p, x, f):
            return ops.tanh(getattr(p, parameter) * x + getattr(f, feature))

    return Named


@pytest.mark.parametrize("name", REFUSED, ids=repr)
def test_names_that_are_no_identifiers_are_refused_where_the_cell_is_registered(name):
    for kind in ("state", "parameter", "feature", "matrix_name"):
        if kind == "feature" and not isinstance(name, str):
            continue
        if kind == "feature" and name.startswith("__"):
            with pytest.raises((AttributeError, parnl.StepError)):
                parnl.register("untrusted-name")(cell_of(feature=name))
            continue
        with pytest.raises(ValueError, match="expected Python identifiers") as caught:
            parnl.register("untrusted-name")(cell_of(**{kind: name}))
        assert repr(name) in str(caught.value)
        assert "untrusted-name" not in parnl.list_cells()


@pytest.mark.parametrize("states", [(), ("x", "x")], ids=repr)
def test_states_without_a_name_of_their_own_are_refused(states):
    class Twice(parnl.Cell):
        def features(self, p, u):
            return {}

        def step(self, p, *x):
            return x[:-1]

    Twice.states = states
    with pytest.raises(ValueError, match="states: expected one name or more, each once"):
        Twice(1, 1)


def texts(program):
    """The Python, C and Triton that is made of a program."""
    found = [source("step", *program.signature("step_jacobian"))]
    found.append(source("step", *program.signature("vjp", (0, 1)), program.fused(program.outputs)))
    lanes = Lanes(32, 8, True, True)
    for kind in ("trajectory", "advance", "adjoint", "backward"):
        wanted = (0, 1) if kind == "backward" else ()
        for dtype in ("float32", "float64"):
            kernel = CKernel(program, kind, dtype, "cf", lanes, wanted)
            found.append(c_text.source(kernel))
    for kind in ("solve", "gradients"):
        wanted = (0, 1) if kind == "gradients" else ()
        kernel = triton_text.Kernel(program, kind, "float32", "cf", True, False, wanted)
        found.append(triton_text.source(kernel))
    return found


# Identifiers all, so they are taken: names of C, of what is generated, of Python, of other letters.
TAKEN = [
    "float", "double", "int64_t", "main", "system", "INFINITY_", "NAN_", "R", "W", "V", "STAGE",
    "a0", "t0", "t", "a", "B", "T", "D", "C", "L", "x0", "q0", "m0", "v7", "op0", "kernel", "where",
    "tl", "exp", "print", "self", "dt", "keys", "größe", "步", "mask", "step", "number", "inf",
]  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_names_stay_out_of_what_is_generated(name):
    plain, named = cell_of("x", "p", "f")(3, 5), cell_of(name, name, name, "matrix_of")(3, 5)
    assert texts(named.program) == texts(plain.program)


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("name", ["float", "t", "a0", "keys", "größe", "dt"])
def test_a_cell_of_such_names_is_solved_and_differentiated(monkeypatch, name, kernels):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    rng = np.random.default_rng(0)
    w, a, u = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=(2, 20, 3))
    cell = cell_of(name, name, name, "matrix_of")(3, 5)
    params = {
        "matrix_of": torch.tensor(w, requires_grad=True),
        name: torch.tensor(a, requires_grad=True),
    }
    outputs = parnl.solve(cell, params, torch.tensor(u), chunks=4).outputs
    x, exact = torch.zeros(2, 5, dtype=torch.float64), []
    a_, w_ = torch.tensor(a, requires_grad=True), torch.tensor(w, requires_grad=True)
    for t in range(20):
        x = torch.tanh(a_ * x + torch.tensor(u[:, t]) @ w_)
        exact.append(x)
    exact = torch.stack(exact, 1)
    torch.testing.assert_close(outputs, exact, rtol=0, atol=1e-12)
    found = torch.autograd.grad(outputs.square().sum(), [params[name], params["matrix_of"]])
    expected = torch.autograd.grad(exact.square().sum(), [a_, w_])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_names_that_no_cell_can_have_stay_out_of_what_is_generated():
    """Even of a graph that was made by hand: nothing rests on the check of a cell's names."""

    def program(*names):
        g = Graph()
        x, a, u = (
            g.leaf(k, n) for k, n in zip(("state", "parameter", "feature"), names, strict=True)
        )
        return Program(g, [x], [a, u], [g.apply("tanh", a * x + u)])

    hostile = program('"); system("touch executed', "*/ #error /*", "'''\nimport os\n")
    assert texts(hostile) == texts(program("x", "a", "u"))


NUMBERS = [
    math.nan, math.inf, -math.inf, 0.0, -0.0, 1e400, -1e400, 5e-324, 2.2250738585072014e-308,
    1.7976931348623157e308, -1.7976931348623157e308, 0.1, 1 / 3, -1 / 3, 1e22, 2**53 + 1, 10**300,
    123456789012345678, 3.4028234663852886e38, 3.4028235677973366e38, 1e39, 1.4e-45, 7e-46,
    np.float32(0.1), np.int64(-7), 0.24999999999999997,
]  # fmt: skip

# Each form that a constant takes in generated code; u and c of one dtype.
FORMS = {
    "chosen": (lambda u, c: ops.where(u > 0, c, u), lambda u, c: np.where(u > 0, c, u)),
    "less": (lambda u, c: c - u, lambda u, c: c - u),
    "times": (lambda u, c: c * u, lambda u, c: c * u),
    "least": (
        lambda u, c: ops.minimum(c, u),
        lambda u, c: np.where(np.isnan(c), c, np.where(u < c, u, c)),
    ),
    "two numbers": (
        lambda u, c: ops.where(u > 0, c, -float(c)),
        lambda u, c: np.where(u > 0, c, -c),
    ),
    "compared": (lambda u, c: ops.where(u == c, 1.0, u), lambda u, c: np.where(u == c, 1.0, u)),
}


class Numbers(parnl.Cell):
    """One state for each number."""

    states = tuple(f"x{i}" for i in range(len(NUMBERS)))
    options = {"form": "chosen"}

    def features(self, p, u):
        return {"u": u}

    def step(self, p, *arguments):
        return tuple(FORMS[self.form][0](arguments[-1].u, c) for c in NUMBERS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("backend", "kernels"),
    [
        ("numpy", "off"), ("numpy", "c"), ("torch", "off"), ("torch", "c"), ("torch", "triton"),
        ("jax", "off"), ("jax", "c"), ("jax", "triton"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_are_exact_in_each_generator(monkeypatch, backend, kernels, dtype):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    if kernels == "triton":
        pytest.importorskip("triton", minversion="3.6")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    target, real = get_backend(backend), np.dtype(dtype).type
    u = np.array([1.5, -2.0, 0.25, -1e-3, 3.0, -0.5], dtype)
    inputs = target.asarray(u[:, None, None], dtype)
    for form, (_, exact) in FORMS.items():
        found = parnl.solve(Numbers(1, 1, form=form), {}, inputs, chunks=1).final_state
        for c, state in zip(NUMBERS, found, strict=True):
            rounded, got = real(float(c)), target.to_numpy(state)[:, 0]
            expected = exact(u, rounded)
            sizes, tiny = np.abs([rounded, *expected]), np.finfo(dtype).tiny
            if backend == "jax":  # XLA takes denormals for zeros on a CPU, and zeros for denormals:
                # where a step has the constants 0.0 and 5e-324, it may write one for the other
                if np.any((sizes > 0) & (sizes < tiny)):
                    continue
                got = np.where(np.abs(got) < tiny, np.copysign(real(0), got), got)
            np.testing.assert_array_equal(got, expected, err_msg=f"{c!r} {form}")
            number = ~np.isnan(expected)  # the sign of a NaN tells nothing
            signs = np.signbit(got[number]), np.signbit(expected[number])
            np.testing.assert_array_equal(*signs, err_msg=f"{c!r} {form}")


@pytest.mark.parametrize("exponent", [math.inf, -math.inf, math.nan])
def test_an_exponent_that_is_no_number_is_refused(exponent):
    class Power(parnl.Cell):
        def step(self, p, x, f):
            return x**exponent

    with pytest.raises(parnl.StepError, match=r"\*\*: expected a finite exponent, got"):
        Power(1, 1)


def test_an_integer_that_is_no_float64_is_refused():
    class Large(parnl.Cell):
        def step(self, p, x, f):
            return x * 10**400

    with pytest.raises(parnl.StepError, match="an integer beyond the range of float64"):
        Large(1, 1)


def test_a_step_without_any_operation_is_solved():
    class Plain(parnl.Cell):
        def features(self, p, u):
            return {"u": u}

        def step(self, p, x, f):
            return f.u

    for steps in (1, 15, 200):
        u = np.random.default_rng(0).normal(size=(1, steps, 1))
        np.testing.assert_array_equal(parnl.solve(Plain(1, 1), {}, u).outputs, u)
