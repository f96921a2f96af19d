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

from parnl.graph.flatcode import needed, operands_of
from parnl.graph.nodes import INFIX, Symbol
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

        At most 16 loads in flight, for their registers, or 8 where twice as many threads may share
        these, in many chunks (see `calls.tile`; with 12, a GRU in 256 chunks spilled 31 of them for
        sm_80); and no more steps than it takes to wait for the first of them, for their text.
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


# What tl lacks, or has with a larger error than the type's: its exp of a float32 rounds the
# exponent first, and errs by |x| eps, which is harmless only where e^-x stands beside a 1. Pure tl,
# not libdevice, which the interpreter lacks.
_MATH = {
    "float32": """

@triton.jit
def exp(x):
    # 2^n e^r; ln 2 in two parts, the first of few bits; 2^n in two factors, for it may overflow
    x = tl.where(x > 90.0, 90.0, tl.where(x < -105.0, -105.0, x))
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = tl.fma(n, 2.1219444e-4, tl.fma(n, -0.693359375, x))
    low = tl.floor(n * 0.5).to(tl.int32)
    high = n.to(tl.int32) - low
    low = ((low + 127) << 23).to(tl.float32, bitcast=True)
    high = ((high + 127) << 23).to(tl.float32, bitcast=True)
    return tl.exp(r) * low * high


@triton.jit
def tanh(x):
    # near 0, where the other formula cancels, the polynomial of least relative error
    size = tl.abs(x)
    y = x * x
    near = tl.fma(y, -0.005895157810300589, 0.020795971155166626)
    near = tl.fma(y, near, -0.053783830255270004)
    near = tl.fma(y, near, 0.13331924378871918)
    near = tl.fma(y, near, -0.33333298563957214)
    near = tl.fma(x * y, near, x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.6, near, tl.where(x < 0.0, -far, far))


@triton.jit
def power(x, exponent):
    # in float64, for the logarithm's error is multiplied by the exponent
    x = tl.where(x == float("-inf"), float("inf"), x)
    return tl.exp(tl.log(x.to(tl.float64)) * exponent).to(tl.float32)
""",
    "float64": """

@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def tanh(x):
    e = expm1(-2.0 * tl.abs(x))
    far = -e / (2.0 + e)
    return tl.where(x < 0.0, -far, far)


@triton.jit
def power(x, exponent):
    x = tl.where(x == float("-inf"), float("inf"), x)
    return tl.exp(tl.log(x) * exponent)
""",
    "both": """

@triton.jit
def expm1(x):
    # (u - 1) x / log u is right whatever the error of u = e^x (W. Kahan)
    u = exp(x)
    plain = (u == 1.0) | (u - 1.0 == -1.0) | (u == float("inf"))
    v = tl.where(plain, 2.0, u)
    return tl.where(plain, tl.where(u == 1.0, x, u - 1.0), (v - 1.0) * (x / tl.log(v)))


@triton.jit
def log1p(x):
    u = 1.0 + x
    plain = (u == 1.0) | (u == float("inf"))
    v = tl.where(plain, 2.0, u)
    return tl.where(plain, tl.where(u == 1.0, x, u), tl.log(v) * (x / (v - 1.0)))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    return tl.where(x < 0.0, 0.0, x) + log1p(exp(-tl.abs(x)))
""",
}


def source(kernel: Kernel) -> str:
    """Return the text of a module that defines the kernel's `functions`, and `affine_scan`.

    The module needs `composed`, from `kernels.tiles`, among its globals.
    """
    program, k = kernel.program, len(kernel.program.states)
    parts = ["import triton\nimport triton.language as tl\n", _MATH[kernel.dtype] + _MATH["both"]]
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
        parts.append(_function(name, arguments, kernel, names, results))
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


def _function(
    name: str,
    arguments: str,
    kernel: Kernel,
    names: dict[int, str],
    results: Sequence[Sequence[Symbol]],
) -> str:
    """Return the text of a function that returns a tuple for each group of results."""
    writer = _Writer(kernel)
    outputs = [o for group in results for o in group]
    known, lines = dict(names), []
    fused = kernel.program.fused(outputs)
    for node in needed(outputs, fused):
        if node.index not in known and node.op != "constant":
            operands = operands_of(node, fused)
            text = writer.expression(node, operands, known, node.index in fused)
            known[node.index] = f"v{node.index}"
            lines.append(f"v{node.index} = {text}")
    tuples = [
        _tuple([writer.typed(o) if o.op == "constant" else known[o.index] for o in group])
        for group in results
    ]
    lines.append(f"return {', '.join(tuples)}")
    body = "\n".join(f"    {line}" for line in lines)
    return f"@triton.jit\ndef {name}({arguments}):\n{body}\n"


class _Writer:
    """Writes the operations of a step."""

    def __init__(self, kernel: Kernel) -> None:
        self.real = "tl." + kernel.dtype

    def typed(self, constant: Symbol) -> str:
        """A number where no operand beside it tells its type; 0 and 1 are exact in any."""
        if repr(constant.value) in ("0.0", "1.0"):
            return repr(constant.value)
        return f"tl.full([1, 1], {_literal(constant.value)}, {self.real})"

    def expression(
        self, node: Symbol, operands: Sequence[Symbol], names: dict[int, str], fused: bool
    ) -> str:
        constants = [a.op == "constant" for a in operands]
        if node.op in INFIX and not all(constants) and not fused:
            x = [_literal(a.value) if a.op == "constant" else names[a.index] for a in operands]
            return f"{x[0]} {INFIX[node.op]} {x[1]}"
        x = [self.typed(a) if a.op == "constant" else names[a.index] for a in operands]
        if fused:
            return f"tl.fma({'-' if node.op == 'sub' else ''}{x[1]}, {x[2]}, {x[0]})"
        match node.op:
            case "neg":
                return f"-{x[0]}"
            case "exp" | "expm1" | "log1p" | "tanh" | "sigmoid" | "softplus":
                return f"{node.op}({x[0]})"
            case "log" | "sqrt" | "sin" | "cos" | "abs" | "erf":
                return f"tl.{node.op}({x[0]})"
            case "relu":
                return f"tl.where({x[0]} < 0.0, 0.0, {x[0]})"
            case "sign":
                return f"tl.where({x[0]} > 0.0, 1.0, tl.where({x[0]} < 0.0, -1.0, {x[0]}))"
            case "minimum":  # either NaN is the result
                return f"tl.where(({x[0]} < {x[1]}) | ({x[0]} != {x[0]}), {x[0]}, {x[1]})"
            case "maximum":
                return f"tl.where(({x[0]} > {x[1]}) | ({x[0]} != {x[0]}), {x[0]}, {x[1]})"
            case "where":
                return f"tl.where({x[0]}, {x[1]}, {x[2]})"
            case "logical_and":
                return f"{x[0]} & {x[1]}"
            case "logical_or":
                return f"{x[0]} | {x[1]}"
            case "logical_not":
                return f"~{x[0]}"
            case "pow":
                return _power(x[0], node.args[1].value)
        raise NotImplementedError(f"no Triton for {node.op}")


def _literal(value: float) -> str:
    if value != value or value in (math.inf, -math.inf):
        return f'float("{value}")'
    return f"({value!r})" if value < 0 else repr(value)


def _power(x: str, exponent: float) -> str:
    if exponent != int(exponent):
        return f"power({x}, {exponent!r})"
    if abs(exponent) <= 8:
        product = " * ".join([x] * int(abs(exponent)))
        return product if exponent > 0 else f"1.0 / ({product})"
    size = f"power(tl.abs({x}), {exponent!r})"
    return size if exponent % 2 == 0 else f"tl.where({x} < 0.0, -{size}, {size})"
