"""`affine_scan` beyond real arrays of one shape: complex, broadcast, half precision, transposed."""

import numpy as np
import pytest

import parnl

RNG = np.random.default_rng(0)
# shapes of a, b, x0 that broadcast, and whether they are blocks
SHAPES = {
    "a for every sequence": ((7, 3), (2, 7, 3), (2, 3)),
    "a for every step": ((3,), (2, 7, 3), None),
    "one a": ((1, 1, 1), (2, 7, 3), (3,)),
    "b for every sequence": ((2, 7, 3), (7, 3), None),
    "x0 brings the batch": ((7, 3), (7, 3), (4, 3)),
    "blocks": ((1, 7, 3, 2, 2), (2, 7, 3, 2), (3, 2)),
}


def drawn(shape, dtype):
    x = RNG.normal(size=shape)
    return (x + 1j * RNG.normal(size=shape) if dtype == "complex128" else x).astype(dtype)


def posed(case, dtype):
    a, b, x0 = SHAPES[case]
    return 0.5 * drawn(a, dtype), drawn(b, dtype), None if x0 is None else drawn(x0, dtype)


def loop(a, b, x0, reverse=False):
    """x_t = a_t x_{t-1} + b_t over the last but one axis (of blocks: the last but two)."""
    blocks = a.ndim == 5
    if not blocks:
        a, b, x0 = a[..., None, None], b[..., None], None if x0 is None else x0[..., None]
    x = np.zeros(b.shape[-1:]) if x0 is None else x0
    steps = np.broadcast_shapes(a.shape[:-2], b.shape[:-1])[-2]
    a = np.broadcast_to(a, np.broadcast_shapes(a.shape, (steps, 1, 1, 1)))
    b = np.broadcast_to(b, np.broadcast_shapes(b.shape, (steps, 1, 1)))
    found = []
    for t in reversed(range(steps)) if reverse else range(steps):
        x = (a[..., t, :, :, :] * x[..., None, :]).sum(-1) + b[..., t, :, :]
        found.append(x)
    found = np.stack(np.broadcast_arrays(*(found[::-1] if reverse else found)), -3)
    return found if blocks else found[..., 0]


def arrays(backend, values):
    module = pytest.importorskip({"jax": "jax.numpy"}.get(backend, backend))
    return [None if v is None else module.asarray(v) for v in values]


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("backend", ["numpy", "jax", "torch"])
def test_equals_the_loop(backend, case, dtype):
    values = posed(case, dtype)
    for reverse in (False, True):
        found = parnl.affine_scan(*arrays(backend, values), reverse=reverse)
        expected = loop(*values, reverse)
        assert tuple(found.shape) == expected.shape
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["numpy", "jax", "torch"])
def test_real_and_complex_promote(backend):
    a, b = arrays(backend, [drawn((7, 3), "float32"), drawn((7, 3), "complex128")])
    found = parnl.affine_scan(a, b)
    assert str(found.dtype).removeprefix("torch.") == "complex128"
    np.testing.assert_allclose(np.asarray(found), loop(np.asarray(a), np.asarray(b), None), 1e-12)


def test_infinity_stays_in_its_part():
    b = np.zeros((3, 1), complex)
    b[1] = complex(1.0, np.inf)
    found = parnl.affine_scan(np.zeros((3, 1)), b)
    assert (found[1, 0].real, found[1, 0].imag) == (1.0, np.inf)


@pytest.mark.long
@pytest.mark.parametrize("case", ["a for every sequence", "blocks"])
def test_complex_gradients_in_torch(case):
    """Those of torch's own operations, by its own convention."""
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(v, requires_grad=True) for v in posed(case, "complex128")]
    assert torch.autograd.gradcheck(parnl.affine_scan, leaves)


@pytest.mark.long
def test_complex_gradients_in_jax():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    given = arrays("jax", posed("a for every sequence", "complex128"))

    def plain(a, b, x0):
        def run(x, t):
            x = a[t] * x + b[:, t]
            return x, x

        return jnp.moveaxis(jax.lax.scan(run, x0, jnp.arange(7))[1], 0, 1)

    def gradients(scan):
        return jax.grad(lambda *v: (jnp.abs(scan(*v)) ** 2).sum(), (0, 1, 2))(*given)

    for f, e in zip(gradients(parnl.affine_scan), gradients(plain), strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_jax_transposes_it(dtype):
    """<g, A (b, x0)> = <A^T g, (b, x0)>, and what is not linear is refused."""
    jax = pytest.importorskip("jax")
    a, b, x0 = arrays("jax", posed("a for every sequence", dtype))
    g = drawn((2, 7, 3), dtype)
    linear = jax.jit(lambda b, x0: parnl.affine_scan(a, b, x0))
    to_b, to_x0 = jax.linear_transpose(linear, b, x0)(g)
    left = (g * linear(b, x0)).sum()
    np.testing.assert_allclose((to_b * b).sum() + (to_x0 * x0).sum(), left, rtol=1e-12)
    with pytest.raises(NotImplementedError, match="linear"):
        jax.linear_transpose(lambda a: parnl.affine_scan(a, b, x0), a)(g)


@pytest.mark.parametrize("backend", ["numpy", "jax", "torch"])
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_adds_up_in_single(backend, half):
    if backend == "torch":
        torch = pytest.importorskip("torch")
        one, start = torch.ones(5000, 1), torch.ones(1)
        low = [x.to(getattr(torch, half)) for x in (one, start)]
    else:
        pytest.importorskip("ml_dtypes")
        one, start = arrays(backend, [np.ones((5000, 1), "float32"), np.ones(1, "float32")])
        low = [x.astype(half) for x in (one, start)]
    found = parnl.affine_scan(low[0], low[0])
    assert str(found.dtype).removeprefix("torch.") == half
    assert float(found[-1, 0]) == {"float16": 5000, "bfloat16": 4992}[half]  # the nearest number
    mixed = parnl.affine_scan(one, one, low[1])
    assert (str(mixed.dtype).removeprefix("torch."), float(mixed[-1, 0])) == ("float32", 5001)


@pytest.mark.parametrize(
    ("a", "b", "x0"), [((7, 3), (6, 3), None), ((3,), (3,), None), ((7, 3), (7, 3), (2,))]
)
def test_shapes_that_do_not_fit(a, b, x0):
    with pytest.raises(ValueError, match=r"expected shape"):
        parnl.affine_scan(np.zeros(a), np.zeros(b), None if x0 is None else np.zeros(x0))
