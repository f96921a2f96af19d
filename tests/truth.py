"""What every operation of the table is, in mpmath: the truth that its targets are held against.

A new operation needs a line in `EXACT`; and in `DOMAIN`, where it is not defined everywhere.
"""

import mpmath

from parnl.graph.nodes import reachable

EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, b: a**b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "logical_and": lambda a, b: a and b,
    "logical_or": lambda a, b: a or b,
    "logical_not": lambda a: not a,
    "where": lambda c, a, b: a if c else b,
    "minimum": min,
    "maximum": max,
    "abs": abs,
    "sign": mpmath.sign,
    "relu": lambda a: max(a, 0),
    "sqrt": mpmath.sqrt,
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "sin": mpmath.sin,
    "cos": mpmath.cos,
    "atan": mpmath.atan,
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)) if x < 500 else x + mpmath.exp(-x),
    "erf": mpmath.erf,
}

# Where a function begins to be defined, and whether it is defined there.
DOMAIN = {"sqrt": (0.0, True), "log": (0.0, False), "log1p": (-1.0, False)}


def exactly(outputs, at):
    """Return the values of expressions, in mpmath, where `at` gives those of their leaves."""
    known = {}
    for node in reachable(outputs):
        if node.op == "leaf":
            known[node.index] = mpmath.mpf(at[node])
        elif node.op == "constant":
            known[node.index] = mpmath.mpf(node.value)
        else:
            known[node.index] = EXACT[node.op](*(known[a.index] for a in node.args))
    return [known[o.index] for o in outputs]
