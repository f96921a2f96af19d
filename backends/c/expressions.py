"""C for the nodes of an expression graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parnl.backends.c import vecmath
from parnl.graph.nodes import INFIX, Symbol, reachable

MATH = ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf")
_CONDITIONS = ("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not")


class Expressions:
    """C over numbers of one type; suffix: "f" for float, "" for double."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def compute(
        self, outputs: Sequence[Symbol], names: Mapping[int, str]
    ) -> tuple[list[str], list[str]]:
        """Return the expressions of `outputs`, and the lines before them."""
        names, lines = dict(names), []
        for node in reachable(list(outputs)):
            if node.op == "constant":
                names[node.index] = self._number(node.value)
            elif node.index not in names:
                names[node.index] = f"v{node.index}"
                kind = "int" if node.op in _CONDITIONS else "real"
                text = self._expression(node, [names[a.index] for a in node.args])
                lines.append(f"const {kind} v{node.index} = {text};")
        return [names[o.index] for o in outputs], lines

    def _function(self, name: str) -> str:
        own = self.suffix and name in vecmath.INLINED
        return f"v{name}f" if own else f"{name}{self.suffix}"

    def _number(self, value: float) -> str:
        if value != value:
            return "NAN_"
        if value in (float("inf"), float("-inf")):
            return "INFINITY_" if value > 0 else "(-INFINITY_)"
        return f"R({value!r})"

    def _expression(self, node: Symbol, x: list[str]) -> str:
        f = self.suffix
        if node.op in INFIX:
            return f"{x[0]} {INFIX[node.op]} {x[1]}"
        if node.op in MATH or node.op == "sqrt":
            return f"{self._function(node.op)}({x[0]})"
        match node.op:
            case "neg":
                return f"-{x[0]}"
            case "abs":
                return f"fabs{f}({x[0]})"
            case "sigmoid" if f:
                return f"{self._function('sigmoid')}({x[0]})"
            case "sigmoid":
                return f"1 / (1 + exp(-{x[0]}))"
            case "softplus":
                small = f"{self._function('exp')}(-fabs{f}({x[0]}))"
                return f"({x[0]} < 0 ? 0 : {x[0]}) + log1p{f}({small})"
            case "relu":
                return f"{x[0]} < 0 ? 0 : {x[0]}"
            case "sign":
                return f"{x[0]} > 0 ? 1 : {x[0]} < 0 ? -1 : {x[0]}"
            case "minimum":  # either NaN is the result
                return f"({x[0]} < {x[1]} || {x[0]} != {x[0]}) ? {x[0]} : {x[1]}"
            case "maximum":
                return f"({x[0]} > {x[1]} || {x[0]} != {x[0]}) ? {x[0]} : {x[1]}"
            case "where":
                return f"{x[0]} ? {x[1]} : {x[2]}"
            case "logical_and":
                return f"{x[0]} & {x[1]}"
            case "logical_or":
                return f"{x[0]} | {x[1]}"
            case "logical_not":
                return f"!{x[0]}"
            case "pow":
                return self._power(x[0], node.args[1].value)
        raise NotImplementedError(f"no C for {node.op}")

    def _power(self, x: str, exponent: float) -> str:
        if exponent == int(exponent) and 0 < abs(exponent) <= 8:
            product = " * ".join([x] * int(abs(exponent)))
            return product if exponent > 0 else f"1 / ({product})"
        return f"pow{self.suffix}({x}, {self._number(exponent)})"


def sum_of_products(row: Sequence[str], column: Sequence[str]) -> str:
    """A structural zero of `row` is left out: what it would multiply may not be finite."""
    terms = []
    for a, b in zip(row, column, strict=False):
        if a != "R(0.0)":
            terms.append(b if a == "R(1.0)" else f"{a} * {b}")
    return " + ".join(terms) or "0"
