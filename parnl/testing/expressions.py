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
from parnl.graph.operations import OPERATIONS
from parnl.params import matrix, vector

# Name -> an expression in x, or x and y: every operation of the table, and some made of them.
EXPRESSIONS = {name: o.example or f"ops.{name}(x)" for name, o in OPERATIONS.items()} | {
    "square": "x**2",
    "cube": "ops.tanh(x) ** 3",
    "inverse": "(1.0 + abs(x)) ** -1",
    "clip": "ops.clip(x, -0.5, 0.7) * y",
    "logsigmoid": "ops.logsigmoid(x)",
    "silu": "ops.silu(x)",
    "gelu": "ops.gelu(x)",
}
UNARY = sorted(name for name, text in EXPRESSIONS.items() if not re.search(r"\by\b", text))
BINARY = sorted(EXPRESSIONS.keys() - set(UNARY))
# Those that compare: of two numbers they would get a truth value, and no condition.
_COMPARE = {name for name, o in OPERATIONS.items() if o.is_condition or o.conditions}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: eval(f"lambda x, y=None: {text}", {"ops": ops}) for name, text in EXPRESSIONS.items()
}

# Those without a kink or a jump, where rounding may take the other side.
SMOOTH = {name for name, o in OPERATIONS.items() if o.smooth}
SMOOTH |= {"square", "cube", "logsigmoid", "silu", "gelu"}

# A leaf's name, a number, or (name of an operation, tree, ...)
Tree = Any


def trees(
    leaves: Sequence[str], max_leaves: int = 8, smooth: bool = False
) -> st.SearchStrategy[Tree]:
    """Hypothesis strategy: random expression trees over `leaves` and numbers."""
    unary, binary = ([n for n in names if n in SMOOTH or not smooth] for names in (UNARY, BINARY))

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
    """Whether no array is in it, as dt need not be: then it is a number where a step is run."""
    if isinstance(tree, str):
        return tree == "dt"
    return isinstance(tree, float) or all(_is_number(c) for c in tree[1:])


def _applied(name: str, texts: Sequence[str]) -> str:
    """Return the operation's expression with its arguments' texts put in."""
    places = dict(zip("xy", texts, strict=False))
    return re.sub(r"\b[xy]\b", lambda m: places[m[0]], EXPRESSIONS[name])


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
