"""Derivatives of expression graphs, by graph rules: forward tangents and reverse cotangents.

A structural zero is `None`, so nothing is ever multiplied by a zero that was known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

from parnl.graph.nodes import Graph, Symbol, reachable
from parnl.graph.operations import CONDITIONS, OPERATIONS

Maybe = Symbol | None


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
        elif not any(x is not None for x in d) or not OPERATIONS[node.op].derivative:
            t[node.index] = None
        elif node.op == "where":
            t[node.index] = _select(node.graph, a[0], d[1], d[2])
        else:
            total: Maybe = None
            for position, dx in enumerate(d):
                if dx is not None:
                    rule = OPERATIONS[node.op].derivative[position]
                    total = _add(total, rule(dx, node, *a))
            t[node.index] = total
    return [t[o.index] for o in outputs]


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
        if c is None or node.op in ("leaf", "constant"):
            continue
        for x, rule in zip(node.args, OPERATIONS[node.op].derivative, strict=False):
            if x.op != "constant" and x.op not in CONDITIONS:
                total[x.index] = _add(total.get(x.index), rule(c, node, *node.args))
    return [total.get(v.index) for v in variables]
