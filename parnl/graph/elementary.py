"""The entries of the table for elementary functions: exp, tanh, ... A new one is written here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from parnl.graph import intervals
from parnl.graph.arithmetic import relu, where
from parnl.graph.intervals import increasing, wave
from parnl.graph.operation import Operation, slope

sqrt = Operation(
    name="sqrt",
    cost=4,
    numpy=np.sqrt,
    enclosure=intervals.sqrt,
    derivative=slope(lambda f, x: 0.5 / f),
    torch="torch.sqrt",
    jax="jnp.sqrt",
    array_api="xp.sqrt",
    c="sqrt{f}({x})",
    triton="tl.sqrt",
    onnx="Sqrt",
    javascript="Math.sqrt",
    example="ops.sqrt(0.5 + abs(x))",
    smooth=False,
)
exp = Operation(
    name="exp",
    cost=8,
    numpy=np.exp,
    enclosure=increasing(np.exp, 0.0),
    derivative=slope(lambda f, x: f),
    torch="torch.exp",
    jax="jnp.exp",
    array_api="xp.exp",
    c="exp",
    c_float32="vexpf",
    triton="exp",
    onnx="Exp",
    javascript="Math.exp",
    example="ops.exp(-x * x)",
)


def _expm1_by_exp(x: Any) -> Any:
    """(u - 1) x / log u is right whatever the error of u = e^x (W. Kahan)."""
    u = exp(x)
    plain = (u == 1.0) | (u - 1.0 == -1.0) | (u == math.inf)
    v = where(plain, 2.0, u)
    return where(plain, where(u == 1.0, x, u - 1.0), (v - 1.0) * (x / log(v)))


expm1 = Operation(
    name="expm1",
    cost=10,
    numpy=np.expm1,
    enclosure=increasing(np.expm1, -1.0, odd_like=True),
    derivative=slope(lambda f, x: f + 1.0),
    definition=_expm1_by_exp,
    torch="torch.expm1",
    jax="jnp.expm1",
    array_api="xp.expm1",
    c="expm1",
    javascript="Math.expm1",
    example="ops.expm1(-abs(x))",
    smooth=False,
)
log = Operation(
    name="log",
    cost=8,
    numpy=np.log,
    enclosure=increasing(np.log, domain=0.0),
    derivative=slope(lambda f, x: 1.0 / x),
    torch="torch.log",
    jax="jnp.log",
    array_api="xp.log",
    c="log",
    triton="tl.log",
    onnx="Log",
    javascript="Math.log",
    example="ops.log(1.5 + x * x)",
)


def _log1p_by_log(x: Any) -> Any:
    u = 1.0 + x
    plain = (u == 1.0) | (u == math.inf)
    v = where(plain, 2.0, u)
    return where(plain, where(u == 1.0, x, u), log(v) * (x / (v - 1.0)))


log1p = Operation(
    name="log1p",
    cost=10,
    numpy=np.log1p,
    enclosure=increasing(np.log1p, domain=-1.0, odd_like=True),
    derivative=slope(lambda f, x: 1.0 / (1.0 + x)),
    definition=_log1p_by_log,
    torch="torch.log1p",
    jax="jnp.log1p",
    array_api="xp.log1p",
    c="log1p",
    javascript="Math.log1p",
    example="ops.log1p(abs(x))",
    smooth=False,
)
sin = Operation(
    name="sin",
    cost=10,
    numpy=np.sin,
    enclosure=wave(np.sin, 0.25),
    derivative=slope(lambda f, x: cos(x)),
    torch="torch.sin",
    jax="jnp.sin",
    array_api="xp.sin",
    c="sin",
    triton="tl.sin",
    onnx="Sin",
    javascript="Math.sin",
)
cos: Operation = Operation(
    name="cos",
    cost=10,
    numpy=np.cos,
    enclosure=wave(np.cos, 0.0),
    derivative=slope(lambda f, x: -sin(x)),
    torch="torch.cos",
    jax="jnp.cos",
    array_api="xp.cos",
    c="cos",
    triton="tl.cos",
    onnx="Cos",
    javascript="Math.cos",
)
tanh = Operation(
    name="tanh",
    cost=10,
    numpy=np.tanh,
    enclosure=increasing(np.tanh, -1.0, 1.0, odd_like=True),
    derivative=slope(lambda f, x: 1.0 - f * f),
    torch="torch.tanh",
    jax="jnp.tanh",
    array_api="xp.tanh",
    c="tanh",
    c_float32="vtanhf",
    triton="tanh",
    onnx="Tanh",
    javascript="Math.tanh",
)


# (atan(t) / t - 1) / t^2 in powers of t^2 for |t| <= tan(pi / 8), highest first, within 2^-57: an
# interpolation in Chebyshev points.
_ATAN = (
    -0.01917688711906226, 0.03923165829558719, -0.0508544973794026, 0.0585814891280221,
    -0.06664511447381948, 0.07692183190826087, -0.09090904578123903, 0.11111111015256361,
    -0.14285714284666542, 0.1999999999999552, -0.3333333333333333,
)  # fmt: skip


def _atan_by_polynomial(x: Any) -> Any:
    """atan s = pi/2 - atan 1/s, and atan s = pi/4 + atan (s - 1) / (s + 1), until s is small."""
    size = abs(x)
    small = where(size > 1.0, 1.0 / size, size)
    turned = small > math.tan(math.pi / 8)
    t = where(turned, (small - 1.0) / (small + 1.0), small)
    square = t * t
    total = square * _ATAN[0]
    for coefficient in _ATAN[1:]:
        total = square * (total + coefficient)
    angle = t + t * total
    angle = where(turned, angle + math.pi / 4, angle)
    angle = where(size > 1.0, math.pi / 2 - angle, angle)
    return where(x < 0.0, -angle, angle)


_RIGHT_ANGLE = math.nextafter(math.pi / 2, 2.0)  # and no less

atan = Operation(
    name="atan",
    cost=12,
    numpy=np.arctan,
    enclosure=increasing(np.arctan, -_RIGHT_ANGLE, _RIGHT_ANGLE, odd_like=True),
    derivative=slope(lambda f, x: 1.0 / (1.0 + x * x)),
    definition=_atan_by_polynomial,
    torch="torch.atan",
    jax="jnp.arctan",
    array_api="xp.atan",
    c="atan",
    onnx="Atan",
    javascript="Math.atan",
)


@np.errstate(over="ignore")  # an overflow of exp is the limit 0
def _sigmoid_of_arrays(x: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


sigmoid = Operation(
    name="sigmoid",
    cost=10,
    numpy=_sigmoid_of_arrays,
    enclosure=increasing(_sigmoid_of_arrays, 0.0, 1.0),
    derivative=slope(lambda f, x: f - f * f),
    definition=lambda x: 1.0 / (1.0 + exp(-x)),
    torch="torch.sigmoid",
    jax="jax.nn.sigmoid",
    c_float32="vsigmoidf",
    triton="1.0 / (1.0 + tl.exp(-{x}))",
    onnx="Sigmoid",
)


def _softplus_of_arrays(x: Any) -> Any:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


softplus = Operation(
    name="softplus",
    cost=16,
    numpy=_softplus_of_arrays,
    enclosure=increasing(_softplus_of_arrays, 0.0),
    derivative=slope(lambda f, x: sigmoid(x)),
    definition=lambda x: relu(x) + log1p(exp(-abs(x))),
    # the threshold beyond which softplus(x) is x: below it, float64 would lose digits
    torch="torch.nn.functional.softplus({x}, threshold=40.0)",
    jax="jax.nn.softplus",
    onnx="Softplus",
)


def _erf_of_arrays(x: Any) -> Any:
    values = np.asarray(np.frompyfunc(math.erf, 1, 1)(x))
    return values.astype(np.result_type(x))[()]  # a number's is a number


# erf(x) / x in powers of x^2 for |x| <= 1, and e^(z^2) erfc z in powers of (z - 33/13) / (z + 3)
# for 1 <= z <= 6, highest first: interpolations in Chebyshev points. Relative to erf, within 2^-53.
_ERF = (
    -7.795898827002142e-10, 1.3720064546777686e-08, -1.6208483801871705e-07,
    1.6447424703317362e-06, -1.492473690741966e-05, 0.00012055294904839707, -0.0008548325975389692,
    0.0052239776071164225, -0.02686617064323777, 0.11283791670945006, -0.37612638903183543,
    1.1283791670955126,
)  # fmt: skip
_ERFC = (
    -2.265119087493985e-05, -8.961560807502089e-06, 0.00015972754269427992,
    -2.4711123899089747e-05, -0.001157137045317648, 0.001948173557184624, 0.006043498159349177,
    -0.0393989950839878, 0.11329873132601806, -0.22344628389004179, 0.33596149092681643,
    -0.40133905316540974, 0.20798329133342885,
)  # fmt: skip


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    total: Any = 0.0
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


def _erf_by_polynomials(x: Any) -> Any:
    size = abs(x)
    near = size < 1.0
    square = where(near, x * x, 0.0)
    z = where(size > 6.0, 6.0, size)  # from there on erf is 1 to the last bit
    far = 1.0 - exp(-z * z) * _polynomial((z - 33.0 / 13.0) / (z + 3.0), _ERFC)
    return where(near, x * _polynomial(square, _ERF), where(x < 0.0, -far, far))


erf = Operation(
    name="erf",
    cost=10,
    numpy=_erf_of_arrays,
    enclosure=increasing(_erf_of_arrays, -1.0, 1.0, odd_like=True),
    derivative=slope(lambda f, x: exp(-(x * x)) * (2.0 / math.sqrt(math.pi))),
    definition=_erf_by_polynomials,
    torch="torch.erf",
    jax="jax.lax.erf",
    c="erf",
    triton="tl.erf",
    onnx="Erf",
)
