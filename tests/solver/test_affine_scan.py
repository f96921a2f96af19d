"""parnl.affine_scan against a loop."""

import numpy as np
import pytest
from optional import torch
from oracles import (
    BACKENDS,
    assert_bits,
    assert_close,
    to,
)

import parnl

DIFFERENTIABLE = ("torch", "jax")


def affine_loop(a, b, x0, reverse):
    """x_t = a_t x_{t-1} + b_t as a loop; time is axis 1, a is (..., D) or (..., D, k, k)."""
    blocks = a.ndim > b.ndim
    steps = b.shape[1]
    x = np.zeros_like(b[:, 0]) if x0 is None else x0
    found = np.empty_like(b)
    for t in reversed(range(steps)) if reverse else range(steps):
        moved = np.einsum("bdij,bdj->bdi", a[:, t], x) if blocks else a[:, t] * x
        x = moved + b[:, t]
        found[:, t] = x
    return found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("k", [None, 1, 2, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_affine_scan(backend, k, start, reverse):
    rng = np.random.default_rng(0)
    for steps in (1, 21) if backend == "jax" else (1, 2, 16, 21):
        a = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k, k))
        b = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k))
        x0 = rng.normal(size=b[:, 0].shape) if start else None
        given_x0 = None if x0 is None else to(backend, x0)
        found = parnl.affine_scan(to(backend, a), to(backend, b), given_x0, reverse=reverse)
        assert_close(found, affine_loop(a, b, x0, reverse), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_affine_scan_without_batch_or_time(backend):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3))
    found = parnl.affine_scan(to(backend, a), to(backend, b))
    assert_close(found, affine_loop(a[None], b[None], None, False)[0], 1e-13)
    empty = parnl.affine_scan(to(backend, a[:0]), to(backend, b[:0]), to(backend, b[0]))
    assert tuple(empty.shape) == (0, 3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_affine_scan_gradients(backend, k, reverse):
    rng = np.random.default_rng(0)
    steps = 13
    a = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k, k))
    b = rng.normal(size=(2, steps, 3) if k is None else (2, steps, 3, k))
    x0, weights = rng.normal(size=b[:, 0].shape), rng.normal(size=b.shape)
    leaves = [torch.from_numpy(v).requires_grad_() for v in (a, b, x0)]
    ta, tb, x = leaves
    rows = [torch.empty(0)] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        x = (ta[:, t] * x if k is None else (ta[:, t] @ x[..., None])[..., 0]) + tb[:, t]
        rows[t] = x
    loss = (torch.stack(rows, 1) * torch.from_numpy(weights)).sum()
    expected = torch.autograd.grad(loss, leaves)
    if backend == "torch":
        out = parnl.affine_scan(ta, tb, leaves[2], reverse=reverse)
        found = torch.autograd.grad((out * torch.from_numpy(weights)).sum(), leaves)
    else:
        from optional import jax

        def f(a, b, x0):
            return (parnl.affine_scan(a, b, x0, reverse=reverse) * weights).sum()

        found = jax.grad(f, (0, 1, 2))(*(to("jax", v) for v in (a, b, x0)))
    for g, e in zip(found, expected, strict=True):
        assert_close(g, e, 1e-11)


def test_affine_scan_overflow_and_nan_stay_local():
    a = np.full((1, 40, 3), 1.5)
    b = np.ones((1, 40, 3))
    clean = parnl.affine_scan(a, b)
    b[0, 20, 1] = np.nan
    with np.errstate(all="ignore"):
        found = parnl.affine_scan(a, b)
    assert_bits(found[..., [0, 2]], clean[..., [0, 2]])
    assert_bits(found[0, :20], clean[0, :20])
    assert np.isnan(found[0, 20:, 1]).all()
