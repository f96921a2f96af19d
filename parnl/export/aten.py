"""PyTorch's elementwise operations by those of parnl: functions of symbols and numbers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from parnl import ops


def _add(x: Any, y: Any, alpha: Any = 1) -> Any:
    return x + y * alpha


def _sub(x: Any, y: Any, alpha: Any = 1) -> Any:
    return x - y * alpha


def _div(x: Any, y: Any, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise NotImplementedError(f"rounding_mode={rounding_mode!r}")
    return x / y


def _pow(x: Any, y: Any) -> Any:
    x, y = (a.value if getattr(a, "op", "") == "constant" else a for a in (x, y))
    if isinstance(x, int | float):
        if x <= 0:
            raise NotImplementedError(f"a power of {x}")
        return ops.exp(y * math.log(x))
    return x**y


def _clamp(x: Any, low: Any = None, high: Any = None, **named: Any) -> Any:
    low, high = named.get("min", low), named.get("max", high)
    x = x if low is None else ops.maximum(x, low)
    return x if high is None else ops.minimum(x, high)


def _gelu(x: Any, approximate: str = "none") -> Any:
    if approximate == "none":
        return ops.gelu(x)
    inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))
    return 0.5 * x * (1.0 + ops.tanh(inner))


def _elu(x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
    return ops.where(x > 0.0, x * scale, alpha * scale * ops.expm1(x * input_scale))


def _leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
    return ops.where(x > 0.0, x, x * negative_slope)


def _softplus(x: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    # the threshold only spares the computation of what would be x to the last digits
    return ops.softplus(x * beta) / beta


NUMBERS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _sub,
    "rsub": lambda x, y, alpha=1: y - x * alpha,
    "mul": operator.mul,
    "div": _div,
    "pow": _pow,
    "neg": operator.neg,
    "abs": abs,
    "reciprocal": lambda x: 1.0 / x,
    "sqrt": ops.sqrt,
    "rsqrt": lambda x: 1.0 / ops.sqrt(x),
    "exp": ops.exp,
    "exp2": lambda x: ops.exp(x * math.log(2.0)),
    "expm1": ops.expm1,
    "log": ops.log,
    "log2": lambda x: ops.log(x) * (1.0 / math.log(2.0)),
    "log10": lambda x: ops.log(x) * (1.0 / math.log(10.0)),
    "log1p": ops.log1p,
    "sin": ops.sin,
    "cos": ops.cos,
    "tan": lambda x: ops.sin(x) / ops.cos(x),
    "atan": ops.atan,
    "tanh": ops.tanh,
    "erf": ops.erf,
    "sigmoid": ops.sigmoid,
    "softplus": _softplus,
    "relu": ops.relu,
    "silu": ops.silu,
    "gelu": _gelu,
    "elu": _elu,
    "leaky_relu": _leaky_relu,
    "sign": ops.sign,
    "minimum": ops.minimum,
    "maximum": ops.maximum,
    "clamp": _clamp,
    "clamp_min": ops.maximum,
    "clamp_max": ops.minimum,
    "hardtanh": lambda x, low=-1.0, high=1.0: _clamp(x, low, high),
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "isnan": lambda x: x != x,
    "isinf": lambda x: abs(x) == math.inf,
}

# Of conditions; the bitwise ones are the same for these.
CONDITIONS: dict[str, Callable[..., Any]] = {
    "logical_and": operator.and_,
    "logical_or": operator.or_,
    "logical_not": operator.invert,
    "logical_xor": lambda x, y: (x & ~y) | (~x & y),
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_not": operator.invert,
    "bitwise_xor": lambda x, y: (x & ~y) | (~x & y),
}
