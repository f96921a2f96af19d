"""The table of operations: all that parnl knows of an elementwise function, in one entry each.

To add a function, write its entry here and a public function in `parnl.ops`. The tests go through
the table by themselves. What an entry says is explained in `operation.py`. Names in the forms are
those of a target's framework or language, and of its own small library:
`backends/c/vecmath.py`, `backends/triton/mathematics.py`, `backends/jax/elementwise.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from parnl.graph import intervals
from parnl.graph.intervals import increasing, monotone, wave
from parnl.graph.operation import DEFINED, Operation, slope

# -- arithmetic ------------------------------------------------------------------------------------

_add = Operation(
    name="add",
    arity=2,
    numpy=np.add,
    enclosure=intervals.add,
    derivative=(lambda t, f, x, y: t, lambda t, f, x, y: t),
    syntax="{x} + {y}",
    example="x + y",
)
_sub = Operation(
    name="sub",
    arity=2,
    numpy=np.subtract,
    enclosure=intervals.sub,
    derivative=(lambda t, f, x, y: t, lambda t, f, x, y: -t),
    syntax="{x} - {y}",
    example="x - y",
)
_mul = Operation(
    name="mul",
    arity=2,
    numpy=np.multiply,
    enclosure=intervals.mul,
    derivative=(lambda t, f, x, y: t * y, lambda t, f, x, y: t * x),
    syntax="{x} * {y}",
    example="x * y",
)
_div = Operation(
    name="div",
    arity=2,
    cost=4,
    numpy=np.divide,
    enclosure=intervals.div,
    derivative=(lambda t, f, x, y: t / y, lambda t, f, x, y: -(t * (f / y))),
    syntax="{x} / {y}",
    example="x / (1.0 + y * y)",
)
_neg = Operation(
    name="neg",
    numpy=np.negative,
    enclosure=intervals.neg,
    derivative=(lambda t, f, x: -t,),
    syntax="-{x}",
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
    c="pow{f}({x}, {y})",
    triton="power({x}, {y})",
    example="(1.0 + x * x) ** 0.3",
)


def whole_power(x: str, exponent: float, one: str) -> str:
    """Return the text of x ** exponent as a product, "" where the exponent is not small enough."""
    if exponent != int(exponent) or not 0 < abs(exponent) <= 8:
        return ""
    product = " * ".join([x] * int(abs(exponent)))
    return product if exponent > 0 else f"{one} / ({product})"


# -- comparisons and choice ------------------------------------------------------------------------


def _comparison(name: str, symbol: str, numpy: Callable, enclosure: Callable) -> Operation:
    """Its enclosure takes a third argument: whether both sides are the same number."""
    return Operation(
        name=name,
        arity=2,
        numpy=numpy,
        enclosure=enclosure,
        syntax=f"{{x}} {symbol} {{y}}",
        is_condition=True,
        example=f"ops.where(x {symbol} y, x, 0.3 * y)",
        smooth=False,
    )


_lt = _comparison("lt", "<", np.less, intervals.less)
_le = _comparison("le", "<=", np.less_equal, intervals.less_equal)
_gt = _comparison("gt", ">", np.greater, lambda x, y, same: intervals.less(y, x, same))
_ge = _comparison("ge", ">=", np.greater_equal, lambda x, y, same: intervals.less_equal(y, x, same))
_eq = _comparison("eq", "==", np.equal, intervals.equal)
_ne = _comparison(
    "ne", "!=", np.not_equal, lambda x, y, same: intervals.logical_not(intervals.equal(x, y, same))
)
_and = Operation(
    name="logical_and",
    arity=2,
    numpy=np.logical_and,
    enclosure=monotone(np.minimum),
    torch="torch.logical_and",
    jax="jnp.logical_and",
    c="{x} & {y}",
    triton="{x} & {y}",
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
    c="{x} | {y}",
    triton="{x} | {y}",
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
    c="!{x}",
    triton="~{x}",
    conditions=(0,),
    is_condition=True,
    example="ops.where(~(x < 0.3), x, 0.5)",
    smooth=False,
)
where = Operation(
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
    c="{x} ? {y} : {z}",
    triton="tl.where",
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
_minimum = Operation(
    name="minimum",
    arity=2,
    numpy=np.minimum,
    enclosure=monotone(np.minimum),
    derivative=slope(lambda f, x, y: _wins(x < y, x, y), lambda f, x, y: _wins(y < x, y, x)),
    definition=lambda x, y: where((x < y) | (x != x), x, y),
    torch="minimum",
    jax="jnp.minimum",
    pallas=DEFINED,
    example="ops.minimum(x, y)",
    smooth=False,
)
_maximum = Operation(
    name="maximum",
    arity=2,
    numpy=np.maximum,
    enclosure=monotone(np.maximum),
    derivative=slope(lambda f, x, y: _wins(x > y, x, y), lambda f, x, y: _wins(y > x, y, x)),
    definition=lambda x, y: where((x > y) | (x != x), x, y),
    torch="maximum",
    jax="jnp.maximum",
    pallas=DEFINED,
    example="ops.maximum(x, y)",
    smooth=False,
)
_abs = Operation(
    name="abs",
    numpy=np.abs,
    enclosure=intervals.absolute,
    derivative=slope(lambda f, x: _sign(x)),
    torch="torch.abs",
    jax="jnp.abs",
    c="fabs{f}({x})",
    triton="tl.abs",
    smooth=False,
)
_sign = Operation(
    name="sign",
    numpy=np.sign,
    enclosure=monotone(np.sign),
    definition=lambda x: where(x > 0.0, 1.0, where(x < 0.0, -1.0, x)),
    torch="torch.sign",
    jax="jnp.sign",
    pallas=DEFINED,
    jumps=lambda x: ~((x.low > 0) | (x.high < 0) | ((x.low == 0) & (x.high == 0))),
    smooth=False,
)


def _relu_of_arrays(x: Any) -> Any:
    return np.maximum(x, 0.0)


_relu = Operation(
    name="relu",
    numpy=_relu_of_arrays,
    enclosure=monotone(_relu_of_arrays),
    derivative=slope(lambda f, x: where(x > 0.0, 1.0, 0.0)),
    definition=lambda x: where(x < 0.0, 0.0, x),
    torch="torch.relu",
    jax="jax.nn.relu",
    pallas=DEFINED,
    smooth=False,
)

# -- elementary functions --------------------------------------------------------------------------

_sqrt = Operation(
    name="sqrt",
    cost=4,
    numpy=np.sqrt,
    enclosure=intervals.sqrt,
    derivative=slope(lambda f, x: 0.5 / f),
    torch="torch.sqrt",
    jax="jnp.sqrt",
    c="sqrt{f}({x})",
    triton="tl.sqrt",
    example="ops.sqrt(0.5 + abs(x))",
    smooth=False,
)
_exp = Operation(
    name="exp",
    cost=8,
    numpy=np.exp,
    enclosure=increasing(np.exp, 0.0),
    derivative=slope(lambda f, x: f),
    torch="torch.exp",
    jax="jnp.exp",
    c="exp",
    c_float32="vexpf",
    triton="exp",
    example="ops.exp(-x * x)",
)


def _expm1_by_exp(x: Any) -> Any:
    """(u - 1) x / log u is right whatever the error of u = e^x (W. Kahan)."""
    u = _exp(x)
    plain = (u == 1.0) | (u - 1.0 == -1.0) | (u == math.inf)
    v = where(plain, 2.0, u)
    return where(plain, where(u == 1.0, x, u - 1.0), (v - 1.0) * (x / _log(v)))


_expm1 = Operation(
    name="expm1",
    cost=10,
    numpy=np.expm1,
    enclosure=increasing(np.expm1, -1.0, odd_like=True),
    derivative=slope(lambda f, x: f + 1.0),
    definition=_expm1_by_exp,
    torch="torch.expm1",
    jax="jnp.expm1",
    c="expm1",
    example="ops.expm1(-abs(x))",
    smooth=False,
)
_log = Operation(
    name="log",
    cost=8,
    numpy=np.log,
    enclosure=increasing(np.log, domain=0.0),
    derivative=slope(lambda f, x: 1.0 / x),
    torch="torch.log",
    jax="jnp.log",
    c="log",
    triton="tl.log",
    example="ops.log(1.5 + x * x)",
)


def _log1p_by_log(x: Any) -> Any:
    u = 1.0 + x
    plain = (u == 1.0) | (u == math.inf)
    v = where(plain, 2.0, u)
    return where(plain, where(u == 1.0, x, u), _log(v) * (x / (v - 1.0)))


_log1p = Operation(
    name="log1p",
    cost=10,
    numpy=np.log1p,
    enclosure=increasing(np.log1p, domain=-1.0, odd_like=True),
    derivative=slope(lambda f, x: 1.0 / (1.0 + x)),
    definition=_log1p_by_log,
    torch="torch.log1p",
    jax="jnp.log1p",
    c="log1p",
    example="ops.log1p(abs(x))",
    smooth=False,
)
_sin = Operation(
    name="sin",
    cost=10,
    numpy=np.sin,
    enclosure=wave(np.sin, 0.25),
    derivative=slope(lambda f, x: _cos(x)),
    torch="torch.sin",
    jax="jnp.sin",
    c="sin",
    triton="tl.sin",
)
_cos = Operation(
    name="cos",
    cost=10,
    numpy=np.cos,
    enclosure=wave(np.cos, 0.0),
    derivative=slope(lambda f, x: -_sin(x)),
    torch="torch.cos",
    jax="jnp.cos",
    c="cos",
    triton="tl.cos",
)
_tanh = Operation(
    name="tanh",
    cost=10,
    numpy=np.tanh,
    enclosure=increasing(np.tanh, -1.0, 1.0, odd_like=True),
    derivative=slope(lambda f, x: 1.0 - f * f),
    torch="torch.tanh",
    jax="jnp.tanh",
    c="tanh",
    c_float32="vtanhf",
    triton="tanh",
)


@np.errstate(over="ignore")  # an overflow of exp is the limit 0
def _sigmoid_of_arrays(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


_sigmoid = Operation(
    name="sigmoid",
    cost=10,
    numpy=_sigmoid_of_arrays,
    enclosure=increasing(_sigmoid_of_arrays, 0.0, 1.0),
    derivative=slope(lambda f, x: f - f * f),
    definition=lambda x: 1.0 / (1.0 + _exp(-x)),
    torch="torch.sigmoid",
    jax="jax.nn.sigmoid",
    pallas=DEFINED,
    c_float32="vsigmoidf",
    triton="1.0 / (1.0 + tl.exp(-{x}))",
)


def _softplus_of_arrays(x: Any) -> Any:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


_softplus = Operation(
    name="softplus",
    cost=16,
    numpy=_softplus_of_arrays,
    enclosure=increasing(_softplus_of_arrays, 0.0),
    derivative=slope(lambda f, x: _sigmoid(x)),
    definition=lambda x: _relu(x) + _log1p(_exp(-abs(x))),
    # the threshold beyond which softplus(x) is x: below it, float64 would lose digits
    torch="torch.nn.functional.softplus({x}, threshold=40.0)",
    jax="jax.nn.softplus",
    pallas=DEFINED,
)


def _erf_of_arrays(x: Any) -> Any:
    values = np.asarray(np.frompyfunc(math.erf, 1, 1)(x))
    return values.astype(np.result_type(x))[()]  # a number's is a number


_erf = Operation(
    name="erf",
    cost=10,
    numpy=_erf_of_arrays,
    enclosure=increasing(_erf_of_arrays, -1.0, 1.0, odd_like=True),
    derivative=slope(lambda f, x: _exp(-(x * x)) * (2.0 / math.sqrt(math.pi))),
    torch="torch.erf",
    jax="jax.lax.erf",
    pallas="erf",
    c="erf",
    triton="tl.erf",
)

OPERATIONS = {entry.name: entry for entry in list(vars().values()) if isinstance(entry, Operation)}
COMPARISONS = frozenset(o.name for o in OPERATIONS.values() if o.is_condition and not o.conditions)
