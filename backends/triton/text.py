"""Triton source of what is a program's own: its step, its Jacobian, its vector-Jacobian product.

All else of a kernel, in `kernels`, is the same for every program. The text is made from the
expression graph and numbers alone, as that of `c.text` is. A generated function takes and returns
tuples: x, the states; q, the operands at this step that have an axis of time; w, those that have
none; y, the gradients of the states after the step:

    step(x, q, w):           states, ()
    step_jacobian(x, q, w):  states, k * k entries
    jacobian(x, y, q, w):    k * k entries
    vjp(x, y, q, w):         k cotangents of x, those of the wanted operands in q, of those in w
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parnl.backends.triton.mathematics import MATHEMATICS
from parnl.graph.arithmetic import whole_power
from parnl.graph.flatcode import definition, needed, operands_of
from parnl.graph.nodes import Symbol, reachable
from parnl.graph.operation import DEFINED
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program

# Operand layouts by the axes of (B, T, D) that they really have: time and channel.
FULL, TIME, CHANNEL, SCALAR = "f", "t", "c", "s"


class Kernel(NamedTuple):
    """What decides a kernel: `kind` is "solve" or "gradients".

    dtype: "float32" or "float64", that of the arithmetic; layouts: one letter for each operand;
    parallel: whether there is more than one chunk; wide: whether places within a sequence need 64
    bits; wanted: operands whose gradient is computed.
    """

    program: Program
    kind: str
    dtype: str
    layouts: str
    parallel: bool
    wide: bool
    wanted: tuple[int, ...] = ()

    @property
    def linear(self) -> bool:
        """Whether what is solved is linear in the state, as an adjoint always is."""
        return self.kind == "gradients" or self.program.linear

    @property
    def light(self) -> bool:
        """Whether a lane needs few registers."""
        return self.kind == "solve" and len(self.program.states) == 1

    @property
    def ahead(self) -> int:
        """How many steps ahead of their use operands are loaded.

        To save registers, at most 16 loads are in flight, or 8 in many chunks, where twice as many
        threads may share the registers (see `build.tile`; with 12, a GRU in 256 chunks spilled 31
        registers for sm_80). To save text, no more steps than it takes to wait for the first load.
        """
        backward = self.kind == "gradients"
        most = 8 if self.parallel and self.light else 16
        loads = len(self.moving()) + 2 * len(self.program.states) * backward
        cost = self.program.cost * (3 if backward else 1)
        return max(n for n in (1, 2, 4) if n == 1 or (n * loads <= most and n * cost <= 400))

    def moving(self) -> list[int]:
        """Return the operands that have an axis of time."""
        return [i for i, letter in enumerate(self.layouts) if letter in (FULL, TIME)]

    def fixed(self) -> list[int]:
        """Return the operands that have none: their gradients are sums over time."""
        return [i for i, letter in enumerate(self.layouts) if letter in (CHANNEL, SCALAR)]

    def reset(self) -> int | None:
        """Return which of `moving` says where sequences begin anew, None if none does."""
        at, moving = self.program.reset, self.moving()
        return moving.index(at) if at in moving else None

    def form(self) -> str:
        """Return for each entry of the Jacobian, transposed in a backward run, if it is 0 or 1."""
        k = len(self.program.states)
        entries = self.program.jacobian
        if self.kind == "gradients":
            entries = [entries[j * k + i] for i in range(k) for j in range(k)]
        return "".join({"0.0": "0", "1.0": "1"}.get(repr(e.value), "x")
                       if e.op == "constant" else "x" for e in entries)  # fmt: skip

    def functions(self) -> tuple[str, str]:
        """Return the generated functions of the run that gives products, and of the answer's."""
        if self.kind == "gradients":
            return "jacobian", "vjp"
        nonlinear = self.parallel and not self.program.linear
        return "step_jacobian", "step_jacobian" if nonlinear else "step"


def source(kernel: Kernel) -> str:
    """Return the text of a module that defines the kernel's `functions`, and `affine_scan`.

    The module needs `composed`, from `kernels.tiles`, among its globals.
    """
    program, k, writer = kernel.program, len(kernel.program.states), _Writer(kernel.dtype)
    parts = ["import triton\nimport triton.language as tl\n" + MATHEMATICS[kernel.dtype]]
    parts += ["\n".join(writer.definitions())]
    names = {s.index: f"x[{i}]" for i, s in enumerate(program.state_symbols)}
    for letter, group in (("q", kernel.moving()), ("w", kernel.fixed())):
        names |= {program.operand_symbols[i].index: f"{letter}[{n}]" for n, i in enumerate(group)}
    for name in sorted(set(kernel.functions())):
        arguments = "x, q, w" if kernel.kind == "solve" else "x, y, q, w"
        match name:
            case "step":
                results = [program.outputs, []]
            case "step_jacobian":
                results = [program.outputs, program.jacobian]
            case "jacobian":
                results = [program.jacobian]
            case _:
                given, pulled = program.vjp(kernel.wanted, states=True)
                names |= {y.index: f"y[{i}]" for i, y in enumerate(given)}
                wanted = dict(zip(kernel.wanted, pulled[k:], strict=True))
                results = [pulled[:k]]
                for group in (kernel.moving(), kernel.fixed()):
                    results.append([wanted[i] for i in group if i in wanted])
        parts.append(writer.function(name, arguments, program, names, results))
    parts.append(_affine_scan(k))
    return "\n\n".join(parts)


def _affine_scan(k: int) -> str:
    """`tl.associative_scan` hands its function every entry as an argument of its own."""
    groups = [[f"{name}{i}" for i in range(n)]
              for name, n in (("a", k * k), ("b", k), ("A", k * k), ("B", k))]  # fmt: skip
    arguments = ", ".join(x for group in groups for x in group)
    tuples = ", ".join(_tuple(group) for group in groups)
    return f"""\
@triton.jit
def compose({arguments}):
    return composed({tuples})


@triton.jit
def affine_scan(a, b):
    return tl.associative_scan(a + b, 0, compose)[{k * k}:]
"""


def _tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


class _Writer:
    """Writes functions of tiles of a dtype."""

    def __init__(self, dtype: str) -> None:
        self.real = "tl." + dtype

    def function(
        self,
        name: str,
        arguments: str,
        program: Program,
        names: dict[int, str],
        results: Sequence[Sequence[Symbol]],
    ) -> str:
        """Return the text of a function that returns a tuple for each group of results."""
        outputs = [o for group in results for o in group]
        known, lines = dict(names), []
        fused = program.fused(outputs)
        for node in needed(outputs, fused):
            if node.index not in known and node.op != "constant":
                operands = operands_of(node, fused)
                text = self.expression(node, operands, known, node.index in fused)
                known[node.index] = f"v{node.index}"
                lines.append(f"v{node.index} = {text}")
        tuples = [
            _tuple([self.typed(o) if o.op == "constant" else known[o.index] for o in group])
            for group in results
        ]
        lines.append(f"return {', '.join(tuples)}")
        return "\n".join(["@triton.jit", f"def {name}({arguments}):", *_indented(lines), ""])

    def typed(self, constant: Symbol) -> str:
        """A number where no operand beside it tells its type; 0 and 1 are exact in any."""
        if repr(constant.value) in ("0.0", "1.0"):
            return repr(constant.value)
        return f"tl.full([1, 1], {_literal(constant.value)}, {self.real})"

    def expression(
        self, node: Symbol, operands: Sequence[Symbol], names: dict[int, str], fused: bool
    ) -> str:
        operation = OPERATIONS[node.op]
        literal = len(operands) == 2 and operation.syntax and not fused
        if literal and not all(a.op == "constant" for a in operands):
            x = [_literal(a.value) if a.op == "constant" else names[a.index] for a in operands]
            return operation.text(operation.syntax, *x)
        x = [self.typed(a) if a.op == "constant" else names[a.index] for a in operands]
        if fused:
            return f"tl.fma({'-' if node.op == 'sub' else ''}{x[1]}, {x[2]}, {x[0]})"
        if node.op == "pow":
            return _power(x[0], node.args[1].value)
        form = operation.form("triton")
        return operation.text(node.op if form == DEFINED else form, *x)

    def definitions(self) -> list[str]:
        """Return the lines of the functions of all operations that Triton lacks."""
        found = []
        for operation in OPERATIONS.values():
            if operation.form("triton") != DEFINED:
                continue
            arguments, value = definition(operation)
            known = {a.index: a.value[1] for a in arguments}
            body = []
            for node in reachable([value]):
                if node.op not in ("leaf", "constant"):
                    known[node.index] = f"v{node.index}"
                    text = self.expression(node, node.args, known, False)
                    body.append(f"v{node.index} = {text}")
            given = ", ".join(a.value[1] for a in arguments)
            body.append(f"return {known[value.index]}")
            found += ["", "@triton.jit", f"def {operation.name}({given}):", *_indented(body), ""]
        return [*found, ""]


def _literal(value: float) -> str:
    if value != value or value in (math.inf, -math.inf):
        return f'float("{value}")'
    return f"({value!r})" if value < 0 else repr(value)


def _power(x: str, exponent: float) -> str:
    if product := whole_power(x, exponent, "1.0"):
        return product
    power = OPERATIONS["pow"]
    size = power.text(power.triton, f"tl.abs({x})", repr(exponent))
    if exponent != int(exponent):
        return power.text(power.triton, x, repr(exponent))
    return size if exponent % 2 == 0 else f"tl.where({x} < 0.0, -{size}, {size})"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]
