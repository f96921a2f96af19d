"""What tests of kernels share: a cell with every function, random cells, all a solve gives."""

import hypothesis.strategies as st
import numpy as np
import oracles  # noqa: F401, registers test-everything
import torch

import parnl
from parnl import ops
from parnl.expr import Symbol
from parnl.params import matrix, vector

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
        children = [c if isinstance(c, Symbol) else c + 0.0 * leaves["b"] for c in children]
    return (UNARY[name] if len(children) == 1 else BINARY[name])(*children)


@st.composite
def problems(draw, channels=(1, 3, 16, 17, 64, 70), steps=40):
    """(cell, batch, steps, seed, reverse, the expressions of its step)."""
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
        Random(2, draw(st.sampled_from(channels))),
        draw(st.integers(1, 3)),
        draw(st.integers(1, steps)),
        draw(st.integers(0, 2**31)),
        draw(st.booleans()),
        expressions,
    )
