"""Random cells: C kernels, composed NumPy and composed torch must agree, forward and backward."""

import os

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

import parnl
from parnl import ops
from parnl.params import matrix, vector

# `make fuzz` sets it; a cell takes a second or two, most of it the C compiler's.
CELLS = int(os.environ.get("PARNL_FUZZ", "8"))

UNARY = {
    "neg": lambda x: -x,
    "abs": abs,
    "exp": lambda x: ops.exp(-x * x),
    "expm1": lambda x: ops.expm1(-abs(x)),
    "log": lambda x: ops.log(1.5 + x * x),
    "log1p": lambda x: ops.log1p(abs(x)),
    "sqrt": lambda x: ops.sqrt(0.5 + abs(x)),
    "square": lambda x: x**2,
    "cube": lambda x: ops.tanh(x) ** 3,
    "inverse": lambda x: (1.0 + abs(x)) ** -1,
    "root": lambda x: (1.0 + x * x) ** 0.3,
    **{
        name: getattr(ops, name)
        for name in "sin cos tanh sigmoid softplus logsigmoid relu silu gelu erf sign".split()
    },
}
BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / (1.0 + y * y),
    "minimum": ops.minimum,
    "maximum": ops.maximum,
    "clip": lambda x, y: ops.clip(x, -0.5, 0.7) * y,
    "less": lambda x, y: ops.where(x < y, x, 0.3 * y),
    "both": lambda x, y: ops.where((x > 0.1) & ~(y >= 0.2), x, 0.5),
    "either": lambda x, y: ops.where((x <= -0.2) | (y != y), 1.0, y),
}


def trees(leaves):
    def grow(children):
        return st.one_of(
            st.tuples(st.sampled_from(sorted(UNARY)), children),
            st.tuples(st.sampled_from(sorted(BINARY)), children, children),
        )

    numbers = st.floats(-2, 2).map(lambda x: round(x, 3))
    return st.recursive(st.one_of(st.sampled_from(leaves), numbers), grow, max_leaves=8)


def value(tree, leaves):
    if isinstance(tree, float):
        return tree
    if isinstance(tree, str):
        return leaves[tree]
    name, *children = tree
    children = [value(c, leaves) for c in children]
    if name in ("less", "both", "either"):  # two numbers compare to a truth value, no condition
        children = [c + 0.0 * leaves["b"] if isinstance(c, float) else c for c in children]
    return (UNARY[name] if len(children) == 1 else BINARY[name])(*children)


@st.composite
def problems(draw):
    states = ("x", "y", "z", "w")[: draw(st.integers(1, 4))]
    leaves = [*states, "a", "b", "f", "g", "dt"]
    expressions = [draw(trees(leaves)) for _ in states]

    class Random(parnl.Cell):
        parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))

        def features(self, p, u):
            f = u @ p.W
            return dict(f=f, g=f[..., :1])

        def step(self, p, *arguments):
            *x, f, dt = arguments
            leaves = dict(zip(states, x, strict=True), a=p.a, b=p.b, f=f.f, g=f.g, dt=dt)
            new = [ops.tanh(value(e, leaves)) for e in expressions]
            return tuple(0.4 * old + 0.5 * n for old, n in zip(x, new, strict=True))

    # the names of a cell's states and whether it reads dt are those of its step's signature
    Random.states = states
    names = ", ".join(["self", "p", *states, "f", "dt"])
    scope = {"inner": Random.step}
    exec(f"def step({names}):\n    return inner({names})", scope)
    Random.step = scope["step"]
    return (
        Random(2, draw(st.sampled_from([1, 3, 16, 17, 64, 70]))),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 40)),
        draw(st.integers(0, 2**31)),
        draw(st.booleans()),
        expressions,
    )


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
