"""Derivatives of expression graphs, by graph rules: forward tangents and reverse cotangents.

A structural zero is `None`, so nothing is ever multiplied by a zero that was known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from parnl.graph.nodes import BOOLEAN, Graph, Symbol, reachable

Maybe = Symbol | None


def _partial(node: Symbol, position: int) -> Symbol:
    """Return d node / d args[position], reusing `node` itself where the rule allows."""
    g, a = node.graph, node.args
    x = a[0]
    match node.op:
        case "exp":
            return node
        case "expm1":
            return node + 1.0
        case "log":
            return 1.0 / x
        case "log1p":
            return 1.0 / (1.0 + x)
        case "sqrt":
            return 0.5 / node
        case "sin":
            return g.apply("cos", x)
        case "cos":
            return -g.apply("sin", x)
        case "tanh":
            return 1.0 - node * node
        case "sigmoid":
            return node - node * node
        case "softplus":
            return g.apply("sigmoid", x)
        case "relu":
            return g.apply("where", x > 0.0, 1.0, 0.0)
        case "abs":
            return g.apply("sign", x)
        case "erf":
            return g.apply("exp", -(x * x)) * (2.0 / math.sqrt(math.pi))
        case "pow":
            exponent = a[1].value
            return (x ** (exponent - 1.0)) * exponent
        case "minimum" | "maximum":
            # at a tie each argument gets one half, as in JAX and PyTorch
            mine, other = (a[0], a[1]) if position == 0 else (a[1], a[0])
            wins = mine < other if node.op == "minimum" else mine > other
            tie = g.apply("where", g.apply("eq", mine, other), 0.5, 0.0)
            return g.apply("where", wins, 1.0, tie)
    raise NotImplementedError(f"no derivative rule for {node.op}")


def _add(a: Maybe, b: Maybe) -> Maybe:
    return b if a is None else a if b is None else a + b


def _select(graph: Graph, condition: Symbol, a: Maybe, b: Maybe) -> Maybe:
    if a is None and b is None:
        return None
    return graph.apply("where", condition, 0.0 if a is None else a, 0.0 if b is None else b)


def jvp(outputs: Sequence[Symbol], tangents: dict[Symbol, Symbol]) -> list[Maybe]:
    """Push `tangents` (leaf -> its tangent) forward; return one tangent per output."""
    given = {leaf.index: t for leaf, t in tangents.items()}
    t: dict[int, Maybe] = {}
    for node in reachable(list(outputs)):
        a = node.args
        d = [t[x.index] for x in a]
        if node.index in given:
            t[node.index] = given[node.index]
        elif node.op in BOOLEAN or node.op == "sign" or not any(x is not None for x in d):
            t[node.index] = None
        elif node.op == "where":
            t[node.index] = _select(node.graph, a[0], d[1], d[2])
        else:
            total: Maybe = None
            for position, dx in enumerate(d):
                if dx is not None:
                    total = _add(total, _scaled(node, position, dx))
            t[node.index] = total
    return [t[o.index] for o in outputs]


def _scaled(node: Symbol, position: int, t: Symbol) -> Symbol:
    """Return t * d node / d args[position]; the rule is the same forward and backward."""
    a = node.args
    match node.op, position:
        case ("add", _) | ("sub", 0):
            return t
        case ("sub", 1) | ("neg", _):
            return -t
        case ("mul", 0):
            return t * a[1]
        case ("mul", 1):
            return t * a[0]
        case ("div", 0):
            return t / a[1]
        case ("div", 1):
            return -(t * (node / a[1]))
    partial = _partial(node, position)
    return partial if t.op == "constant" and t.value == 1.0 else t * partial


def jacobian(outputs: Sequence[Symbol], variables: Sequence[Symbol]) -> list[list[Maybe]]:
    """Return d outputs[i] / d variables[j] as nested lists; None where it is zero."""
    columns = [jvp(outputs, {v: v.graph.constant(1.0)}) for v in variables]
    return [[column[i] for column in columns] for i in range(len(outputs))]


def vjp(
    outputs: Sequence[Symbol], cotangents: Sequence[Symbol], variables: Sequence[Symbol]
) -> list[Maybe]:
    """Pull `cotangents` (one per output) back; return one cotangent per variable."""
    total: dict[int, Maybe] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        total[output.index] = _add(total.get(output.index), cotangent)
    for node in reversed(reachable(list(outputs))):
        c = total.get(node.index)
        if c is None or node.op in BOOLEAN or node.op == "sign":
            continue
        for position, x in enumerate(node.args):
            if x.op == "constant" or x.op in BOOLEAN:
                continue
            if node.op == "where":
                first, second = (c, None) if position == 1 else (None, c)
                share = _select(node.graph, node.args[0], first, second)
            else:
                share = _scaled(node, position, c)
            total[x.index] = _add(total.get(x.index), share)
    return [total.get(v.index) for v in variables]
