"""Functions that Triton lacks, or has with too large an error, as Triton code for each dtype."""

# tl.exp of a float32 rounds the exponent first, and errs by |x| eps, which is harmless only where
# e^-x stands beside a 1. This is pure tl, not libdevice, which the interpreter lacks.
MATHEMATICS = {
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
}
