"""The entries of the table for arithmetic, comparisons, choice, and functions with a kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from parnl.graph import intervals
from parnl.graph.intervals import monotone
from parnl.graph.operation import Operation, slope

# -- arithmetic ------------------------------------------------------------------------------------

add = Operation(
    name="add",
    arity=2,
    numpy=np.add,
    enclosure=intervals.add,
    derivative=(lambda t, f, x, y: t, lambda t, f, x, y: t),
    syntax="{x} + {y}",
    onnx="Add",
    example="x + y",
)
sub = Operation(
    name="sub",
    arity=2,
    numpy=np.subtract,
    enclosure=intervals.sub,
    derivative=(lambda t, f, x, y: t, lambda t, f, x, y: -t),
    syntax="{x} - {y}",
    onnx="Sub",
    example="x - y",
)
mul = Operation(
    name="mul",
    arity=2,
    numpy=np.multiply,
    enclosure=intervals.mul,
    derivative=(lambda t, f, x, y: t * y, lambda t, f, x, y: t * x),
    syntax="{x} * {y}",
    onnx="Mul",
    example="x * y",
)
div = Operation(
    name="div",
    arity=2,
    cost=4,
    numpy=np.divide,
    enclosure=intervals.div,
    derivative=(lambda t, f, x, y: t / y, lambda t, f, x, y: -(t * (f / y))),
    syntax="{x} / {y}",
    onnx="Div",
    example="x / (1.0 + y * y)",
)
neg = Operation(
    name="neg",
    numpy=np.negative,
    enclosure=intervals.neg,
    derivative=(lambda t, f, x: -t,),
    syntax="-{x}",
    onnx="Neg",
    example="-x",
)
# The exponent is a number. Targets write small whole ones as products, see `whole_power`.
_pow = Operation(
    name="pow",
    arity=2,
    cost=16,
    numpy=np.power,
    enclosure=lambda x, y: intervals.power(x, float(y.low)),
    derivative=slope(lambda f, x, y: (x ** (y.value - 1.0)) * y.value),
    python="{x} ** {y}",
    torch="{x} ** {y}",
    jax="{x} ** {y}",
    array_api="{x} ** {y}",
    c="pow{f}({x}, {y})",
    triton="power({x}, {y})",
    onnx="Pow",
    javascript="Math.pow",
    example="(1.0 + x * x) ** 0.3",
)


def whole_power(x: str, exponent: float, one: str) -> str:
    """Return the text of x ** exponent as a product, "" where the exponent is not small enough."""
    if exponent != int(exponent) or not 0 < abs(exponent) <= 8:
        return ""
    product = " * ".join([x] * int(abs(exponent)))
    return product if exponent > 0 else f"{one} / ({product})"


# -- comparisons and choice ------------------------------------------------------------------------


def _comparison(
    name: str,
    symbol: str,
    onnx: str,
    numpy: Callable,
    enclosure: Callable,
    example: str = "",
    definition: Callable | None = None,
) -> Operation:
    """Its enclosure takes a third argument: whether both sides are the same number."""
    return Operation(
        name=name,
        arity=2,
        numpy=numpy,
        enclosure=enclosure,
        definition=definition,
        syntax=f"{{x}} {symbol} {{y}}",
        onnx=onnx,
        is_condition=True,
        example=example or f"ops.where(x {symbol} y, x, 0.3 * y)",
        smooth=False,
    )


lt = _comparison("lt", "<", "Less", np.less, intervals.less)
le = _comparison("le", "<=", "LessOrEqual", np.less_equal, intervals.less_equal)
gt = _comparison("gt", ">", "Greater", np.greater, lambda x, y, same: intervals.less(y, x, same))
ge = _comparison(
    "ge",
    ">=",
    "GreaterOrEqual",
    np.greater_equal,
    lambda x, y, same: intervals.less_equal(y, x, same),
)
# These examples ask for NaN: whether two numbers are equal may depend on how they were rounded.
eq = _comparison(
    "eq", "==", "Equal", np.equal, intervals.equal, "ops.where((x == x) & (y > 0.1), 0.7 * x, y)"
)
ne = _comparison(
    "ne",
    "!=",
    "",
    np.not_equal,
    lambda x, y, same: intervals.logical_not(intervals.equal(x, y, same)),
    "ops.where((x != x) | (y > 0.1), y, 0.3 * x)",
    definition=lambda x, y: ~(x == y),
)
_and = Operation(
    name="logical_and",
    arity=2,
    numpy=np.logical_and,
    enclosure=monotone(np.minimum),
    torch="torch.logical_and",
    jax="jnp.logical_and",
    array_api="xp.logical_and",
    c="{x} & {y}",
    triton="{x} & {y}",
    onnx="And",
    javascript="{x} && {y}",
    conditions=(0, 1),
    is_condition=True,
    example="ops.where((x > 0.1) & ~(y >= 0.2), x, 0.5)",
    smooth=False,
)
_or = Operation(
    name="logical_or",
    arity=2,
    numpy=np.logical_or,
    enclosure=monotone(np.maximum),
    torch="torch.logical_or",
    jax="jnp.logical_or",
    array_api="xp.logical_or",
    c="{x} | {y}",
    triton="{x} | {y}",
    onnx="Or",
    javascript="{x} || {y}",
    conditions=(0, 1),
    is_condition=True,
    example="ops.where((x <= -0.2) | (y != y), 1.0, y)",
    smooth=False,
)
_not = Operation(
    name="logical_not",
    numpy=np.logical_not,
    enclosure=intervals.logical_not,
    torch="torch.logical_not",
    jax="jnp.logical_not",
    array_api="xp.logical_not",
    c="!{x}",
    triton="~{x}",
    onnx="Not",
    javascript="!{x}",
    conditions=(0,),
    is_condition=True,
    example="ops.where(~(x < 0.3), x, 0.5)",
    smooth=False,
)
where: Operation = Operation(
    name="where",
    arity=3,
    numpy=np.where,
    enclosure=intervals.where,
    derivative=(
        lambda t, f, condition, x, y: None,
        lambda t, f, condition, x, y: where(condition, t, 0.0),
        lambda t, f, condition, x, y: where(condition, 0.0, t),
    ),
    torch="torch.where",
    jax="jnp.where",
    array_api="where",
    c="{x} ? {y} : {z}",
    triton="tl.where",
    onnx="Where",
    javascript="{x} ? {y} : {z}",
    conditions=(0,),
    jumps=lambda condition, x, y: condition.low != condition.high,
    example="ops.where(x > 0.1, y, 0.5 * x)",
    smooth=False,
)

# -- kinks and jumps -------------------------------------------------------------------------------


def _wins(better: Any, mine: Any, other: Any) -> Any:
    """The slope of an extremum; at a tie each argument gets one half, as in JAX and PyTorch."""
    return where(better, 1.0, where(mine == other, 0.5, 0.0))


# Of two arguments the result is NaN where either is.
minimum = Operation(
    name="minimum",
    arity=2,
    numpy=np.minimum,
    enclosure=monotone(np.minimum),
    derivative=slope(lambda f, x, y: _wins(x < y, x, y), lambda f, x, y: _wins(y < x, y, x)),
    definition=lambda x, y: where((x < y) | (x != x), x, y),
    torch="minimum",
    jax="jnp.minimum",
    array_api="xp.minimum",
    onnx="Min",
    javascript="Math.min",
    example="ops.minimum(x, y)",
    smooth=False,
)
maximum = Operation(
    name="maximum",
    arity=2,
    numpy=np.maximum,
    enclosure=monotone(np.maximum),
    derivative=slope(lambda f, x, y: _wins(x > y, x, y), lambda f, x, y: _wins(y > x, y, x)),
    definition=lambda x, y: where((x > y) | (x != x), x, y),
    torch="maximum",
    jax="jnp.maximum",
    array_api="xp.maximum",
    onnx="Max",
    javascript="Math.max",
    example="ops.maximum(x, y)",
    smooth=False,
)
_abs = Operation(
    name="abs",
    numpy=np.abs,
    enclosure=intervals.absolute,
    derivative=slope(lambda f, x: sign(x)),
    torch="torch.abs",
    jax="jnp.abs",
    array_api="xp.abs",
    c="fabs{f}({x})",
    triton="tl.abs",
    onnx="Abs",
    javascript="Math.abs",
    smooth=False,
)
sign: Operation = Operation(
    name="sign",
    numpy=np.sign,
    enclosure=monotone(np.sign),
    definition=lambda x: where(x > 0.0, 1.0, where(x < 0.0, -1.0, x)),
    # torch.sign(NaN) is 0
    torch="torch.where(torch.isnan({x}), {x}.detach(), torch.sign({x}))",
    jax="jnp.sign",
    array_api="xp.sign",
    onnx="Sign",
    javascript="Math.sign",
    jumps=lambda x: ~((x.low > 0) | (x.high < 0) | ((x.low == 0) & (x.high == 0))),
    smooth=False,
)


def _relu_of_arrays(x: Any) -> Any:
    return np.maximum(x, 0.0)


relu = Operation(
    name="relu",
    numpy=_relu_of_arrays,
    enclosure=monotone(_relu_of_arrays),
    derivative=slope(lambda f, x: where(x > 0.0, 1.0, 0.0)),
    definition=lambda x: where(x < 0.0, 0.0, x),
    torch="torch.relu",
    jax="jax.nn.relu",
    onnx="Relu",
    smooth=False,
)
