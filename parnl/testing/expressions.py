"""Random cells: steps that are random expression trees, made by executing their source.

So what a failing test prints is the cell, to be pasted into a file and run again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

import parnl
from parnl import ops
from parnl.graph.nodes import Symbol
from parnl.params import matrix, vector

# Name -> an expression in x, or x and y; kept where it is defined and its values moderate.
UNARY = {
    "neg": "-x",
    "abs": "abs(x)",
    "exp": "ops.exp(-x * x)",
    "expm1": "ops.expm1(-abs(x))",
    "log": "ops.log(1.5 + x * x)",
    "log1p": "ops.log1p(abs(x))",
    "sqrt": "ops.sqrt(0.5 + abs(x))",
    "square": "x**2",
    "cube": "ops.tanh(x) ** 3",
    "inverse": "(1.0 + abs(x)) ** -1",
    "root": "(1.0 + x * x) ** 0.3",
    **{
        name: f"ops.{name}(x)"
        for name in "sin cos tanh sigmoid softplus logsigmoid relu silu gelu erf sign".split()
    },
}
BINARY = {
    "add": "x + y",
    "sub": "x - y",
    "mul": "x * y",
    "div": "x / (1.0 + y * y)",
    "minimum": "ops.minimum(x, y)",
    "maximum": "ops.maximum(x, y)",
    "clip": "ops.clip(x, -0.5, 0.7) * y",
    "less": "ops.where(x < y, x, 0.3 * y)",
    "both": "ops.where((x > 0.1) & ~(y >= 0.2), x, 0.5)",
    "either": "ops.where((x <= -0.2) | (y != y), 1.0, y)",
}
_COMPARE = ("less", "both", "either")  # two numbers compare to a truth value, no condition
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: eval(f"lambda x, y=None: {text}", {"ops": ops}) for name, text in (UNARY | BINARY).items()
}

# Those without a kink or a jump, where rounding may take the other side.
SMOOTH = (
    "neg exp log square cube root sin cos tanh sigmoid softplus logsigmoid silu gelu erf "
    "add sub mul div"
).split()

# A leaf's name, a number, or (name of an operation, tree, ...)
Tree = Any


def trees(
    leaves: Sequence[str], max_leaves: int = 8, smooth: bool = False
) -> st.SearchStrategy[Tree]:
    """Hypothesis strategy: random expression trees over `leaves` and numbers."""
    unary, binary = (
        [n for n in sorted(table) if n in SMOOTH or not smooth] for table in (UNARY, BINARY)
    )

    def grow(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        return st.one_of(
            st.tuples(st.sampled_from(unary), children),
            st.tuples(st.sampled_from(binary), children, children),
        )

    numbers = st.floats(-2, 2).map(lambda x: round(x, 3))
    return st.recursive(st.one_of(st.sampled_from(leaves), numbers), grow, max_leaves=max_leaves)


def value(tree: Tree, leaves: Mapping[str, Any]) -> Any:
    """Return the value of a tree, where `leaves` gives those of its leaves; one is called "b"."""
    if isinstance(tree, float):
        return tree
    if isinstance(tree, str):
        return leaves[tree]
    name, *children = tree
    children = [value(c, leaves) for c in children]
    if name in _COMPARE:
        children = [c if isinstance(c, Symbol) else c + 0.0 * leaves["b"] for c in children]
    return _FUNCTIONS[name](*children)


_SOURCE = """\
class Random(parnl.Cell):
    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
    states = {states!r}

    def features(self, p, u):
        f = u @ p.W
        return dict(f=f, g=f[..., :1])

    def step(self, p, {arguments}):
{lines}
        return {results}
"""


def source(states: Sequence[str], trees: Sequence[Tree]) -> str:
    """Return the source of a cell whose states move towards the values of `trees`."""
    lines: list[str] = []
    names = {"a": "p.a", "b": "p.b", "f": "f.f", "g": "f.g"}

    def emit(tree: Tree) -> str:
        if isinstance(tree, float):
            return repr(tree) if tree >= 0 else f"({tree!r})"
        if isinstance(tree, str):
            return names.get(tree, tree)
        name, *children = tree
        texts = [emit(c) for c in children]
        if name in _COMPARE:
            texts = [
                f"({t} + 0.0 * p.b)" if _is_number(c) else t
                for t, c in zip(texts, children, strict=True)
            ]
        # assigned to a name: an operation may read its argument twice
        lines.append(f"        x{len(lines)} = {_applied(name, texts)}")
        return f"x{len(lines) - 1}"

    results = [f"0.4 * {s} + 0.5 * ops.tanh({emit(t)})" for s, t in zip(states, trees, strict=True)]
    return _SOURCE.format(
        states=tuple(states),
        arguments=", ".join([*states, "f", "dt"]),
        lines="\n".join(lines) or "        # as simple as it gets",
        results=", ".join(results),
    )


def _is_number(tree: Tree) -> bool:
    """Whether no leaf is in it: then it is a number when the step is traced."""
    return not isinstance(tree, str) and (
        isinstance(tree, float) or all(_is_number(c) for c in tree[1:])
    )


def _applied(name: str, texts: Sequence[str]) -> str:
    """Return the operation's expression with its arguments' texts put in."""
    places = dict(zip("xy", texts, strict=False))
    return re.sub(r"\b[xy]\b", lambda m: places[m[0]], (UNARY | BINARY)[name])


@st.composite
def cells(
    draw: Callable[..., Any],
    hidden: Sequence[int] = (1, 3, 16, 17, 64, 70),
    max_states: int = 4,
    max_leaves: int = 8,
    smooth: bool = False,
) -> parnl.Cell:
    """Hypothesis strategy: random cells of one to four states, their source in `cell.source`.

    Every operation of `parnl.ops` may occur, or only the `smooth` ones. The cells read dt, two
    parameters and two features, one of them the same for all channels; new states are bounded, so
    nothing overflows.
    """
    states = ("x", "y", "z", "w")[: draw(st.integers(1, max_states))]
    leaves = [*states, "a", "b", "f", "g", "dt"]
    text = source(states, [draw(trees(leaves, max_leaves, smooth)) for _ in states])
    scope: dict[str, Any] = dict(parnl=parnl, ops=ops, matrix=matrix, vector=vector)
    exec(compile(text, "<random cell>", "exec"), scope)
    kind = scope["Random"]
    kind.source = text
    kind.__repr__ = lambda self: f"Random(2, {self.hidden_size}) of\n\n{text}"
    return kind(2, draw(st.sampled_from(list(hidden))))
