"""Lyapunov exponents as terms of a loss: equal to NumPy's, with right gradients, and of use."""

import numpy as np
import pytest
from optional import jax, jnp, torch

import parnl

STEPS, BATCH = 400, 2
# parnl's own: other files register more
CELLS = [n for n in parnl.list_cells() if not n.startswith("test-")]


def problem(name, scale=1.0, steps=STEPS):
    cell = parnl.get_cell(name, 2, 3)
    params = {n: scale * p for n, p in cell.init(0, dtype="float64").items()}
    rng = np.random.default_rng(1)
    return cell, params, rng.standard_normal((BATCH, steps, 2))


def of_torch(values):
    return {n: torch.tensor(v) for n, v in values.items()}


@pytest.mark.parametrize("name", [n for n in CELLS if n != "indrnn"])
@pytest.mark.parametrize("backend", ["torch", "jax", "numpy"])
def test_exponents_are_those_of_numpy(name, backend):
    cell, params, u = problem(name)
    expected = parnl.lyapunov(cell, params, u)
    if backend == "torch":
        params, u = of_torch(params), torch.tensor(u)
    elif backend == "jax":
        params, u = {n: jnp.asarray(p) for n, p in params.items()}, jnp.asarray(u)
    found = parnl.lyapunov(cell, params, u, differentiable=True)
    # of several states, the growth of one change and of all differ by a constant over T
    tolerance = 1e-12 if len(cell.states) == 1 else 2.0 * np.log(10 * len(cell.states)) / STEPS
    np.testing.assert_allclose(np.asarray(found.exponents), expected.exponents, atol=tolerance)
    np.testing.assert_allclose(np.asarray(found.rho), expected.rho, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_gradients_are_those_of_finite_differences(name):
    cell, params, u = problem(name, steps=20)

    def total(params, u):
        found = parnl.lyapunov(cell, params, u, differentiable=True)
        return (found.exponents**2).sum() + found.rho.sum()

    given = {n: p.requires_grad_() for n, p in of_torch(params).items()}
    total(given, torch.tensor(u)).backward()
    of_jax = jax.grad(total)({n: jnp.asarray(p) for n, p in params.items()}, jnp.asarray(u))
    for n, p in params.items():
        flat = np.zeros(p.size)
        for i in range(p.size):
            ends = []
            for sign in (1, -1):
                moved = p.copy()
                moved.flat[i] += sign * 1e-6
                ends.append(float(total(params | {n: moved}, u)))
            flat[i] = (ends[0] - ends[1]) / 2e-6
        slope = flat.reshape(p.shape)
        np.testing.assert_allclose(given[n].grad.numpy(), slope, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(np.asarray(of_jax[n]), slope, rtol=1e-5, atol=1e-7)


def test_exponents_can_be_learned():
    """Flossing: exponents are brought to a wanted value by gradient descent alone."""
    cell, params, u = problem("gru", steps=200)
    given, u = {n: p.requires_grad_() for n, p in of_torch(params).items()}, torch.tensor(u)
    optimiser = torch.optim.Adam(given.values(), lr=0.05)
    for _ in range(100):
        exponents = parnl.lyapunov(cell, given, u, differentiable=True).exponents
        optimiser.zero_grad()
        (exponents + 0.1).square().mean().backward()
        optimiser.step()
    reported = parnl.lyapunov(cell, {n: p.detach() for n, p in given.items()}, u).exponents
    np.testing.assert_allclose(reported, -0.1, atol=0.03)


def test_a_slope_of_zero_counts_as_a_tiny_one():
    cell = parnl.get_cell("indrnn", 2, 3)  # of rectified linear units, some of which are off
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch", "float64").items()}
    u = torch.randn(1, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = parnl.lyapunov(cell, params, u, differentiable=True).exponents
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in params.values())


def test_it_is_jitted():
    cell, params, u = problem("lstm")
    found = jax.jit(lambda p, u: parnl.lyapunov(cell, p, u, differentiable=True).exponents)(
        {n: jnp.asarray(p) for n, p in params.items()}, jnp.asarray(u)
    )
    expected = parnl.lyapunov(cell, params, u, differentiable=True).exponents
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)
