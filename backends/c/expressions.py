"""C for the nodes of an expression graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parnl.graph.arithmetic import whole_power
from parnl.graph.flatcode import definition
from parnl.graph.nodes import Symbol, reachable
from parnl.graph.operation import DEFINED, Operation, is_name
from parnl.graph.operations import CONDITIONS, OPERATIONS

# Functions of the C library that are computed for a whole vector where the platform can.
MATH = tuple(o.c for o in OPERATIONS.values() if is_name(o.c))


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
                kind = "int" if node.op in CONDITIONS else "real"
                text = self._expression(node, [names[a.index] for a in node.args])
                lines.append(f"const {kind} v{node.index} = {text};")
        return [names[o.index] for o in outputs], lines

    def _number(self, value: float) -> str:
        if value != value:
            return "NAN_"
        if value in (float("inf"), float("-inf")):
            return "INFINITY_" if value > 0 else "(-INFINITY_)"
        return f"R({value!r})"

    def definitions(self) -> str:
        """Return the C functions of all operations that C lacks."""
        functions = []
        for operation in OPERATIONS.values():
            if self._form(operation) == DEFINED:
                arguments, value = definition(operation)
                names = {a.index: a.value[1] for a in arguments}
                (result,), lines = self.compute([value], names)
                given = ", ".join(f"real {name}" for name in names.values())
                body = " ".join([*lines, f"return {result};"])
                functions.append(f"static inline real own_{operation.name}({given}) {{ {body} }}\n")
        return "".join(functions)

    def _form(self, operation: Operation) -> str:
        return operation.c_float32 if self.suffix and operation.c_float32 else operation.form("c")

    def _expression(self, node: Symbol, x: list[str]) -> str:
        operation = OPERATIONS[node.op]
        if node.op == "pow" and (product := whole_power(x[0], node.args[1].value, "1")):
            return product
        form = self._form(operation)
        if form == DEFINED:
            form = f"own_{node.op}"
        elif form == operation.c and is_name(form):
            form += self.suffix
        return operation.text(form, *x, f=self.suffix)


def sum_of_products(row: Sequence[str], column: Sequence[str]) -> str:
    """A structural zero of `row` is left out: what it would multiply may not be finite."""
    terms = []
    for a, b in zip(row, column, strict=False):
        if a != "R(0.0)":
            terms.append(b if a == "R(1.0)" else f"{a} * {b}")
    return " + ".join(terms) or "0"
