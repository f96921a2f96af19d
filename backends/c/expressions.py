"""C for the nodes of an expression graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from parnl.graph.arithmetic import whole_power
from parnl.graph.flatcode import definition, needed, operands_of
from parnl.graph.nodes import Symbol
from parnl.graph.operation import DEFINED, Operation, is_name
from parnl.graph.operations import CONDITIONS, OPERATIONS

# Functions of the C library that are computed for a whole vector where the platform can.
MATH = tuple(o.c for o in OPERATIONS.values() if is_name(o.c))


class Expressions:
    """C over numbers of one type; suffix: "f" for float, "" for double.

    Languages that look alike are subclasses: what a reader sees of C in `export.text`, and the
    JavaScript of the documentation in `docs/see/cells.py`.
    """

    real = "real"  # the name of the type

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    def compute(
        self,
        outputs: Sequence[Symbol],
        names: Mapping[int, str],
        fused: Mapping[int, tuple[Symbol, Symbol]],
    ) -> tuple[list[str], list[str]]:
        """Return the expressions of `outputs`, and the lines before them.

        fused: the sums that take a fused multiply-add, of `Program.fused`.
        """
        names, lines = dict(names), []
        for node in needed(outputs, fused):
            if node.op == "constant":
                names[node.index] = self._number(node.value)
            elif node.index not in names:
                names[node.index] = f"v{node.index}"
                x = [names[a.index] for a in operands_of(node, fused)]
                if node.index in fused:
                    summand, left, right = x
                    text = multiply_add(summand, left, right, node.op == "sub")
                else:
                    text = self._expression(node, x)
                lines.append(f"{self._declared(node)} = {text};")
        return [names[o.index] for o in outputs], lines

    def _declared(self, node: Symbol) -> str:
        return f"const {'int' if node.op in CONDITIONS else self.real} v{node.index}"

    def _number(self, value: float) -> str:
        if value != value:
            return "NAN_"
        if value in (float("inf"), float("-inf")):
            return "INFINITY_" if value > 0 else "(-INFINITY_)"
        return f"R({value!r})"

    def definitions(self) -> str:
        """Return the functions of all operations that the language lacks."""
        own = (o for o in OPERATIONS.values() if self._form(o) == DEFINED)
        return "".join(map(self.definition, own))

    def definition(self, operation: Operation) -> str:
        """Return the function of an operation, by its definition."""
        arguments, value = definition(operation)
        names = {a.index: a.value[1] for a in arguments}
        (result,), lines = self.compute([value], names, {})
        body = " ".join([*lines, f"return {result};"])
        return f"{self._head(f'own_{operation.name}', names.values())} {{ {body} }}\n"

    def _head(self, name: str, arguments: Iterable[str]) -> str:
        given = ", ".join(f"{self.real} {argument}" for argument in arguments)
        return f"static inline {self.real} {name}({given})"

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


def multiply_add(summand: str, x: str, y: str, negative: bool = False) -> str:
    """Return summand + x y, or summand - x y, rounded once where the processor can."""
    return f"FMA({f'-({x})' if negative else x}, {y}, {summand})"


def sum_of_products(row: Sequence[str], column: Sequence[str]) -> str:
    """A structural zero of `row` is left out: what it would multiply may not be finite."""
    total = ""
    for a, b in zip(row, column, strict=False):
        if a == "R(0.0)":
            continue
        if not total:
            total = b if a == "R(1.0)" else f"{a} * {b}"
        else:
            total = f"{total} + {b}" if a == "R(1.0)" else multiply_add(total, a, b)
    return total or "0"
