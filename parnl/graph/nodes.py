"""The expression graph that a cell's step becomes when it is called once with symbols.

A `Graph` stores every distinct subexpression once: asking for the same operation on the same
arguments again returns the node that is there. Nodes are numbered in the order they are made, so
that order is topological and later passes (`derivatives`, `flatcode`) are plain loops over it.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from parnl.graph.operations import CONDITIONS, OPERATIONS


class StepError(TypeError):
    """A step did something that is not elementwise arithmetic on one channel."""


_UFUNCS = {o.numpy: o.name for o in OPERATIONS.values() if o.arity == 2 and o.syntax}

# One for all graphs, which may thus be copied. A fork waits for it: no child may inherit it taken.
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class Graph:
    """A set of expressions over named leaves, each distinct subexpression stored once."""

    def __init__(self) -> None:
        self.nodes: list[Symbol] = []
        self._known: dict[tuple, Symbol] = {}

    def node(self, op: str, args: tuple[Symbol, ...], value: Any) -> Symbol:
        """Return the node of `op`, a new one if there is none like it; nothing is simplified."""
        # repr tells 0.0 from -0.0 and finds NaN equal to itself, which == does not
        key = (op, tuple(a.index for a in args), repr(value))
        with _lock:  # derivatives join the graph when they are first asked for, in any thread
            node = self._known.get(key)
            if node is None:
                node = Symbol(self, len(self.nodes), op, args, value)
                self.nodes.append(node)
                self._known[key] = node
        return node

    def leaf(self, kind: str, name: str) -> Symbol:
        """Return the input `name`; `kind` ("state", "parameter", ...) keeps equal names apart."""
        return self.node("leaf", (), (kind, name))

    def constant(self, value: float) -> Symbol:
        """Return the node of a number."""
        return self.node("constant", (), float(value))

    def apply(self, op: str, *args: Any) -> Symbol:
        """Return the node for `op` of symbols and numbers, simplified where that is exact.

        The sign of a zero is ignored: x + 0 is x.
        """
        nodes = tuple(self._as_node(op, a) for a in args)
        _check_kinds(op, nodes)
        if op == "pow" and not math.isfinite(nodes[1].value):
            raise StepError(f"step: **: expected a finite exponent, got {nodes[1].value}")
        simpler = self._simplified(op, nodes)
        return self.node(op, nodes, None) if simpler is None else simpler

    def _as_node(self, op: str, value: Any) -> Symbol:
        if isinstance(value, Symbol):
            if value.graph is not self:
                raise StepError(f"{op}: a symbol of another trace was used; do not store symbols")
            return value
        if isinstance(value, bool | np.bool_):
            _refuse(f"{op} got the truth value {value}, expected a number")
        if isinstance(value, int | float | np.integer | np.floating):
            try:
                return self.constant(float(value))
            except OverflowError as error:
                raise StepError(f"step: {op}: an integer beyond the range of float64") from error
        kind = type(value).__name__.lstrip("_")
        _refuse(f"{op} got a value of type {kind}, expected a number")

    def _simplified(self, op: str, args: tuple[Symbol, ...]) -> Symbol | None:
        values = [a.value if a.op == "constant" else None for a in args]
        if None not in values and op not in CONDITIONS:
            with np.errstate(all="ignore"):
                return self.constant(float(OPERATIONS[op].numpy(*map(np.float64, values))))
        first, second = args[0], args[-1]
        if op == "where" and args[1] is args[2]:
            return args[1]
        if op == "add" and values[0] == 0:
            return second
        if op in ("add", "sub") and values[1] == 0:
            return first
        if op == "mul" and values[0] == 1:
            return second
        if op in ("mul", "div", "pow") and values[1] == 1:
            return first
        if op == "mul" and values[0] == -1:
            return self.apply("neg", second)
        if op == "mul" and values[1] == -1:
            return self.apply("neg", first)
        if op == "neg" and first.op == "neg":
            return first.args[0]
        if op == "add" and second.op == "neg":
            return self.apply("sub", first, second.args[0])
        if op == "sub" and second.op == "neg":
            return self.apply("add", first, second.args[0])
        if op == "pow" and values[1] == 2:
            return self.apply("mul", first, first)
        if op == "pow" and values[1] == 0:
            return self.constant(1.0)
        return None


class Symbol:
    """A node of a `Graph`, standing for one channel at one time step while a step is traced.

    It allows arithmetic, the functions of `parnl.ops`, and comparisons inside `ops.where`. All
    else raises `StepError`, because it would mix channels or depend on a value.
    """

    __slots__ = ("args", "graph", "index", "op", "value")
    __hash__ = object.__hash__

    def __init__(
        self, graph: Graph, index: int, op: str, args: tuple[Symbol, ...], value: Any
    ) -> None:
        self.graph, self.index, self.op, self.args, self.value = graph, index, op, args, value

    def __add__(self, other: Any) -> Symbol:
        return self.graph.apply("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.graph.apply("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.graph.apply("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.graph.apply("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.graph.apply("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.graph.apply("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.graph.apply("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.graph.apply("div", other, self)

    def __pow__(self, other: Any) -> Symbol:
        if isinstance(other, Symbol):
            _refuse("** takes an exponent that is a number; write ops.exp(y * ops.log(x))")
        return self.graph.apply("pow", self, other)

    def __rpow__(self, other: Any) -> NoReturn:
        _refuse("** takes an exponent that is a number; write ops.exp(y * log(x))")

    def __neg__(self) -> Symbol:
        return self.graph.apply("neg", self)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return self.graph.apply("abs", self)

    def __lt__(self, other: Any) -> Symbol:
        return self.graph.apply("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return self.graph.apply("le", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return self.graph.apply("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return self.graph.apply("ge", self, other)

    def __eq__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self.graph.apply("eq", self, other)

    def __ne__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self.graph.apply("ne", self, other)

    def __and__(self, other: Any) -> Symbol:
        return self.graph.apply("logical_and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return self.graph.apply("logical_or", self, other)

    def __invert__(self) -> Symbol:
        return self.graph.apply("logical_not", self)

    def __repr__(self) -> str:
        if self.op == "constant":
            return repr(self.value)
        if self.op == "leaf":
            return self.value[1]
        if len(self.args) == 2 and (form := OPERATIONS[self.op].syntax):
            return f"({form.format(x=repr(self.args[0]), y=repr(self.args[1]))})"
        return f"{self.op}({', '.join(map(repr, self.args))})"

    def __bool__(self) -> NoReturn:
        raise StepError(
            "step: 'if', 'and', 'or', 'not', chained comparisons, min() and max() need a truth "
            "value, which differs from channel to channel: use ops.where(condition, a, b), & | ~, "
            "ops.minimum, ops.maximum"
        )

    def __float__(self) -> NoReturn:
        _refuse("float() of a value that is not known yet; use parnl.ops instead of math")

    __int__ = __index__ = __complex__ = __float__

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Symbol:
        """NumPy's own functions are refused, but its numbers take part in arithmetic."""
        if ufunc not in _UFUNCS or method != "__call__" or kwargs:
            _refuse(f"numpy.{ufunc.__name__} takes arrays; {_written(ufunc.__name__)}")
        return self.graph.apply(_UFUNCS[ufunc], *inputs)

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("conversion to an array; use parnl.ops instead of the framework's functions")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # protocols that are probed for: absent, not wrong
            raise AttributeError(name)
        _refuse(f".{name} is for arrays; {_written(name)}")


def _mixing(symbol: str) -> Callable[..., NoReturn]:
    def method(self: Symbol, *args: Any) -> NoReturn:
        _refuse(f"{symbol} is for arrays; {_MIXING}")

    return method


for _name, _symbol in {
    "__getitem__": "indexing [...]",
    "__matmul__": "matrix product @",
    "__rmatmul__": "matrix product @",
    "__iter__": "iteration or sum()",
    "__len__": "len()",
    "__setitem__": "assignment to x[...]",
    "__floordiv__": "//",
    "__rfloordiv__": "//",
    "__mod__": "%",
    "__rmod__": "%",
    "__divmod__": "divmod",
    "__round__": "round()",
}.items():
    setattr(Symbol, _name, _mixing(_symbol))


_MIXING = (
    "move what reads only the inputs to features(); a step cannot read states of other channels"
)


def _written(name: str) -> str:
    """What to write in place of a framework's function of this name."""
    return f"write ops.{name}(...)" if name in OPERATIONS else _MIXING


def _refuse(problem: str) -> NoReturn:
    raise StepError(
        f"step: {problem}. A step sees one channel at one time step, as a symbol: it takes "
        "arithmetic, parnl.ops and numbers."
    )


def _check_kinds(op: str, args: tuple[Symbol, ...]) -> None:
    """Conditions go where conditions are read, numbers where numbers are."""
    for position, a in enumerate(args):
        wants_condition = position in OPERATIONS[op].conditions
        if wants_condition != (a.op in CONDITIONS):
            given = "a comparison" if a.op in CONDITIONS else "a number"
            expected = "a comparison" if wants_condition else "a number"
            raise StepError(
                f"step: argument {position + 1} of {op} must be {expected}, got {given}; "
                "comparisons are for the first argument of ops.where"
            )


def reachable(outputs: list[Symbol]) -> list[Symbol]:
    """Return the nodes that `outputs` need, in topological order."""
    nodes = outputs[0].graph.nodes if outputs else []
    needed = {n.index for n in outputs}
    for node in reversed(nodes):
        if node.index in needed:
            needed.update(a.index for a in node.args)
    return [n for n in nodes if n.index in needed]


def is_affine(outputs: list[Symbol], variables: list[Symbol]) -> bool:
    """Tell whether every output is affine in `variables`, with coefficients free of them.

    Decided from the structure: True is a proof, False may still be an affine map.
    """
    degree = {v.index: 1 for v in variables}  # 0: free of them, 1: affine, 2: anything else
    for node in reachable(outputs):
        if node.index in degree:
            continue
        d = [degree[a.index] for a in node.args]
        if not any(d):
            degree[node.index] = 0
        elif node.op in ("add", "sub", "neg"):
            degree[node.index] = max(d)
        elif node.op == "mul":
            degree[node.index] = min(2, sum(d))
        elif node.op == "div":
            degree[node.index] = d[0] if d[1] == 0 else 2
        elif node.op == "where":
            degree[node.index] = max(d[1:]) if d[0] == 0 else 2
        else:
            degree[node.index] = 2
    return all(degree[n.index] < 2 for n in outputs)
